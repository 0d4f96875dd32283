"""A raw scan of any rows and columns against BART on the same file: CG-SENSE and l1-wavelet, by tools/reconstruct.py.

8 coils, a Poisson-disc mask with a fully sampled centre, plain arrays with axes chw. BART estimates its own maps; each
method has the same weight in the same units.
"""

import json
import shutil

import numpy as np
import pytest
from skimage.io import imread

from msm.builders.demo import simulate
from msm.builders.demo.heads import SOURCE
from tests.conformance.test_bart import bart
from tests.e2e.test_raw_scans import start
from tests.helpers.toy_data import smooth_coils

pytestmark = pytest.mark.skipif(shutil.which("bart") is None, reason="the program `bart` is not installed")
COILS, RIDGE, WAVELET = 8, 0.001, 0.001  # weights as in configs/default.py


def write_scan(path, shape: tuple[int, int], mask: np.ndarray) -> np.ndarray:
    """k-space (C,H,W) of a head of rows 1.0 mm and columns 1.0 mm, as .npy; its image."""
    with np.load(SOURCE, allow_pickle=False) as heads:
        whole = heads["brain2"][10].astype(np.float64)
    top, left = (64 - size // 2 for size in shape)
    inside = np.s_[..., top : top + shape[0], left : left + shape[1]]
    image, maps = whole[inside] / np.percentile(whole, 99), smooth_coils(128, COILS)[inside]
    maps = maps / np.sqrt(np.sum(np.abs(maps) ** 2, axis=0))
    rng = np.random.default_rng(0)
    noise = 0.005 * (rng.normal(size=maps.shape) + 1j * rng.normal(size=maps.shape))
    np.save(path, (7.0 * mask * (simulate.fft2c(maps * image) + noise)).astype(np.complex64))
    return 7.0 * image


@pytest.mark.parametrize("shape", [(115, 90), (88, 121)])
def test_a_scan_of_any_rows_and_columns_is_reconstructed_as_by_bart(tmp_path, shape):
    mask = bart(tmp_path, "poisson", "-Y", str(shape[0]), "-Z", str(shape[1]), "-y", "2", "-z", "2", "-C", "24", "-v")
    mask = np.abs(mask).reshape(shape) > 0
    write_scan(tmp_path / "scan.npy", shape, mask)
    start(
        "tools/reconstruct.py", f"--raw={tmp_path / 'scan.npy'}", "--axes=chw", "--checkpoint=pretrained/brain64_msm",
        f"--out={tmp_path / 'out'}", "--solvers=zero_filled,cg_sense,l1_wavelet", "--formats=npz,png",
        "--pixel_mm=1,2", "--batch_size=1",
    )  # fmt: skip
    with np.load(tmp_path / "out" / "images" / "scan.npz") as images:
        ours = {"l1_wavelet": images["complex"][0]}
        assert images["complex"].shape == (1, *shape)
    summary = json.loads((tmp_path / "out" / "eval" / "summary.json").read_text())
    assert summary["run"]["acceleration, effective"] == round(1 / mask.mean(), 2)
    with np.load(tmp_path / "out" / "eval" / "rounds" / "round_0000.npz") as arrays:
        scale = np.abs(ours["l1_wavelet"]).max() / np.abs(arrays["l1_wavelet/mean"][0]).max()
        ours["cg_sense"] = scale * arrays["cg_sense/mean"][0]
    height, width = imread(tmp_path / "out" / "images" / "scan.png").shape[:2]
    assert (width - 4) / (height - 4) == pytest.approx(2 * shape[1] / shape[0], rel=0.02), "pixels are 1 x 2 mm"

    kspace = np.load(tmp_path / "scan.npy").transpose(1, 2, 0)[:, :, None]
    maps = bart(tmp_path, "ecalib", "-m1", "-d0", "y", y=kspace).reshape(kspace.shape)
    for name, arguments in (
        ("cg_sense", ("-R", f"Q:{RIDGE}", "-i", "30")),
        ("l1_wavelet", ("-R", f"W:3:0:{WAVELET}", "-i", "100")),
    ):
        theirs = bart(tmp_path, "pics", "-S", "-w", str(scale), *arguments, "y", "maps", y=kspace, maps=maps)
        theirs = np.abs(theirs.reshape(shape))
        inside = (np.abs(maps).sum(axis=-1)[..., 0] > 0) & (np.abs(ours[name]) > 0)
        error = np.linalg.norm((np.abs(ours[name]) - theirs)[inside]) / np.linalg.norm(theirs[inside])
        assert inside.mean() > 0.3 and error < 0.05, f"{name} differs by {error:.1%}"
