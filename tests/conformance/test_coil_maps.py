"""ESPIRiT on simulated scans of a real head: against BART and sigpy where they are installed, and against the truth."""

import shutil
import types

import jax
import numpy as np
import pytest

from msm.configs.default import get_config
from msm.operators.acquisition import Acquisition
from msm.operators.coils import get_coil_maps
from msm.operators.measurement import Measurement
from msm.operators.transform import TRANSFORMS
from msm.solvers import cg_sense  # noqa: F401  (it registers itself)
from msm.solvers.registry import SOLVERS
from tests.conformance.test_bart import bart, psnr
from tests.helpers.brain_scans import brain_scans

needs_bart = pytest.mark.skipif(shutil.which("bart") is None, reason="the program `bart` is not installed")


def correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|<c1,c2>| of all pixels where both maps (B,C,H,W) are not 0."""
    both = (np.abs(a).sum(1) > 0) & (np.abs(b).sum(1) > 0)
    return np.abs(np.sum(np.conj(a) * b, axis=1))[both]


def agree(ours: np.ndarray, theirs: np.ndarray, median: float = 0.999, percentile: float = 0.90) -> bool:
    """Prints agreement within the common support; whether it suffices and the supports are nearly the same."""
    found = correlations(ours, theirs)
    support = [np.mean(np.abs(maps).sum(1) > 0) for maps in (ours, theirs)]
    print(f"median {np.median(found):.5f}, 1st percentile {np.percentile(found, 1):.4f}, support {support}")
    close = np.median(found) >= median and np.percentile(found, 1) >= percentile
    return bool(close and abs(support[0] - support[1]) < 0.05)


def bart_maps(folder, y: np.ndarray, *arguments: str) -> np.ndarray:
    """`ecalib -m1` of (B,C,H,W) k-space, slice by slice."""
    slices = [np.moveaxis(scan, 0, -1)[:, :, None, :] for scan in y]  # (rows, columns, 1, coils)
    return np.stack([np.moveaxis(bart(folder, "ecalib", "-m1", *arguments, "y", y=s), -1, 0) for s in slices])


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # BART's threads wait for each other on a busy machine


def isolated(size: int) -> Measurement:
    """Scans without the lines next to the ACS, which BART would use only if they are on both sides."""
    scans, _ = brain_scans(size, 4)
    beside = {128: (57, 70), 64: (28, 35)}[size]
    mask = scans.mask.copy()
    mask[..., beside] = False
    return scans.replace(y=np.where(mask, scans.y, 0), mask=mask)


@needs_bart
def test_espirit_agrees_with_bart(tmp_path):
    """Both with their defaults."""
    scans, _ = brain_scans(128, 4)
    ours = np.asarray(get_coil_maps("espirit")(scans.y, scans.mask))
    assert agree(ours, bart_maps(tmp_path, scans.y))


@needs_bart
def test_espirit_of_few_lines_agrees_with_bart(tmp_path):
    """Where 6 ACS lines are too few for BART's default kernel, and both are told one that fits."""
    scans = isolated(64)
    ours = np.asarray(get_coil_maps("espirit", kernel=(6, 3))(scans.y, scans.mask))
    assert agree(ours, bart_maps(tmp_path, scans.y, "-k", "6:3:1"))


@needs_bart
def test_phase_of_the_maps_is_that_of_bart_up_to_a_constant(tmp_path):
    """From the same calibration data, all rows of the ACS."""
    scans = isolated(128)
    ours = np.asarray(get_coil_maps("espirit", calibration=128)(scans.y, scans.mask))
    for mine, theirs in zip(ours, bart_maps(tmp_path, scans.y, "-r", "128:128:1"), strict=True):
        product = np.sum(np.conj(mine) * theirs, axis=0)
        product = product[np.abs(product) > 0.9999]  # elsewhere an eigenvalue is nearly double
        turned = product * np.exp(-1j * np.angle(product.mean()))
        assert product.size > 0.9 * np.sum(np.abs(theirs).sum(0) > 0)
        assert np.percentile(np.abs(np.angle(turned)), 99) < 1e-2


@pytest.mark.parametrize(("size", "kernel", "block"), [(128, 6, 12), (64, 3, 6)])
def test_espirit_agrees_with_sigpy(size, kernel, block):
    """sigpy takes a square calibration block: so do we here."""
    calib = pytest.importorskip("sigpy.mri", reason="the package `sigpy` is not installed").app.EspiritCalib
    scans, _ = brain_scans(size, 4)
    settings = {"calib_width": block, "kernel_width": kernel, "thresh": 0.001**0.5, "crop": 0.8, "show_pbar": False}
    theirs = np.stack([calib(y, **settings).run() for y in scans.y])
    ours = get_coil_maps("espirit", calibration=block, kernel=(kernel, kernel))(scans.y, scans.mask)
    assert agree(np.asarray(ours), theirs)


@pytest.mark.parametrize(("size", "count", "percentile"), [(128, 2, 0.999), (64, 4, 0.98)])
def test_true_maps_are_recovered_and_reconstruct_as_well(size, count, percentile):
    """Correlation inside the head, and CG-SENSE with estimated maps within 1 dB of CG-SENSE with the true ones."""
    scans, images = brain_scans(size, count)
    maps = np.asarray(get_coil_maps("espirit")(scans.y, scans.mask))
    head = np.abs(images) > 0.1 * np.abs(images).max((1, 2), keepdims=True)
    found = correlations(maps * head[:, None], scans.maps)
    assert found.size > 0.99 * head.sum()
    assert np.median(found) >= 0.999
    assert np.percentile(found, 1) >= percentile
    transform = TRANSFORMS["multicoil_fourier"]()
    solve = jax.jit(SOLVERS["cg_sense"](get_config(), types.SimpleNamespace(operator=Acquisition(transform))).solve)
    results = [np.asarray(solve(None, None, s, {"lam": 0.001}))[0] for s in (scans, scans.replace(maps=maps))]
    true, estimated = (np.mean([psnr(i, r) for i, r in zip(images, result, strict=True)]) for result in results)
    quality = f"median {np.median(found):.5f}, 1st percentile {np.percentile(found, 1):.4f}"
    print(f"correlation with the true maps: {quality}; CG-SENSE {estimated:.2f} dB, with true maps {true:.2f} dB")
    assert estimated > true - 1
