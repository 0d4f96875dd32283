"""Fourier transform and classical solvers against BART (mrirecon.github.io/bart), where `bart` is installed."""

import shutil
import subprocess
import types

import jax
import numpy as np
import pytest

from msm.configs.default import get_config
from msm.operators.acquisition import Acquisition
from msm.operators.fourier import fft2c
from msm.operators.transform import TRANSFORMS
from msm.solvers import (
    tv,  # noqa: F401  (they register themselves)
)
from msm.solvers.registry import SOLVERS
from tests.helpers.toy_data import acquisition

pytestmark = pytest.mark.skipif(shutil.which("bart") is None, reason="the program `bart` is not installed")


def write_cfl(path, array: np.ndarray) -> None:
    """Writes (...) complex64 as BART's pair of files: dimensions as text, values in Fortran order."""
    path.with_suffix(".hdr").write_text("# Dimensions\n" + " ".join(map(str, array.shape)) + "\n")
    path.with_suffix(".cfl").write_bytes(array.astype(np.complex64).tobytes(order="F"))


def read_cfl(path) -> np.ndarray:
    shape = [int(v) for v in path.with_suffix(".hdr").read_text().splitlines()[1].split()]
    return np.fromfile(path.with_suffix(".cfl"), np.complex64).reshape(shape, order="F").squeeze()


def bart(folder, *arguments, **arrays) -> np.ndarray:
    """Runs `bart arguments` in `folder` on files named like `arrays`, returns the file `out`."""
    for name, array in arrays.items():
        write_cfl(folder / name, array)
    subprocess.run(["bart", *arguments, "out"], cwd=folder, check=True, capture_output=True)
    return read_cfl(folder / "out")


def psnr(reference, estimate):
    return -10 * np.log10(np.mean((np.abs(reference) - np.abs(estimate)) ** 2) / np.abs(reference).max() ** 2)


@pytest.mark.parametrize("shape", [(16, 16), (15, 22)])
def test_fft2c_equals_bart(tmp_path, shape):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)
    expected = bart(tmp_path, "fft", "-u", "3", "x", x=x)
    assert np.linalg.norm(fft2c(x) - expected) < 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("name", "hyper", "arguments"),
    [
        ("cg_sense", {"lam": 0.01}, ("-R", "Q:0.01", "-i", "30")),
        ("l1_wavelet", {"lam": 0.002}, ("-R", "W:3:0:0.002", "-i", "100")),
        ("tv", {"lam": 0.005}, ("-R", "T:3:0:0.005", "-i", "100")),
    ],
)
def test_baseline_is_as_good_as_bart(tmp_path, name, hyper, arguments):
    measurement, images = acquisition(size=64, count=2)
    transform = TRANSFORMS["multicoil_fourier"]()
    solve = jax.jit(SOLVERS[name](get_config(), types.SimpleNamespace(operator=Acquisition(transform))).solve)
    ours = np.asarray(solve(None, None, measurement, hyper))[0]
    for index, image in enumerate(images):
        arrays = {
            key: np.moveaxis(value[index], 0, -1)[:, :, None, :]  # (rows, columns, 1, coils)
            for key, value in (("y", measurement.y), ("maps", measurement.maps))
        }
        theirs = bart(tmp_path, "pics", "-S", *arguments, "y", "maps", **arrays)
        assert psnr(image, ours[index]) > psnr(image, theirs) - 0.5
