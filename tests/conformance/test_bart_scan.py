"""A raw scan of any rows and columns against BART on the same file: CG-SENSE and l1-wavelet, by tools/reconstruct.py.

8 coils, a Poisson-disc mask with a fully sampled centre, arrays with axes chw, BART's maps for both, the same
weights in the same units. BART 0.8 is exact for even sizes only: with odd ones `bart pics` sees maps and image half a
pixel apart (its error of 35 % here becomes 49 %, ours stays), so there the image that was simulated is the judge.
"""

import json
import shutil

import numpy as np
import pytest
from skimage.io import imread

from msm.builders.demo import simulate
from msm.builders.demo.heads import SOURCE
from msm.configs.default import get_config
from tests.conformance.test_bart import bart
from tests.e2e.test_raw_scans import start
from tests.helpers.toy_data import smooth_coils

pytestmark = pytest.mark.skipif(shutil.which("bart") is None, reason="the program `bart` is not installed")
COILS, SCALE = 8, 7.0


def scan_of(shape: tuple[int, int], mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """k-space (C,H,W) complex64 of a head, 0 outside the mask, and its image, in units of 7."""
    with np.load(SOURCE, allow_pickle=False) as heads:
        whole = heads["brain2"][10].astype(np.float64)
    top, left = (64 - size // 2 for size in shape)
    inside = np.s_[..., top : top + shape[0], left : left + shape[1]]
    image, maps = whole[inside] / np.percentile(whole, 99), smooth_coils(128, COILS)[inside]
    maps = maps / np.sqrt(np.sum(np.abs(maps) ** 2, axis=0))
    rng = np.random.default_rng(0)
    noise = 0.005 * (rng.normal(size=maps.shape) + 1j * rng.normal(size=maps.shape))
    return (SCALE * mask * (simulate.fft2c(maps * image) + noise)).astype(np.complex64), SCALE * image


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Of magnitudes, relative to the other."""
    return float(np.linalg.norm(np.abs(one) - np.abs(other)) / np.linalg.norm(other))


@pytest.mark.parametrize("shape", [(116, 90), (115, 91)])
def test_a_scan_of_any_rows_and_columns_is_reconstructed_as_by_bart(tmp_path, shape):
    drawn = bart(
        tmp_path, "poisson", "-Y", str(shape[0]), "-Z", str(shape[1]), "-y", "1.3", "-z", "1.3", "-C", "24", "-v"
    )
    mask = np.abs(drawn).reshape(shape) > 0
    kspace, truth = scan_of(shape, mask)
    theirs = kspace.transpose(1, 2, 0)[:, :, None]
    maps = bart(tmp_path, "ecalib", "-m1", "y", y=theirs).reshape(theirs.shape)
    np.savez(tmp_path / "scan.npz", kspace=kspace, maps=maps[:, :, 0].transpose(2, 0, 1))
    start(
        "tools/reconstruct.py", f"--raw={tmp_path / 'scan.npz'}", "--axes=chw", "--checkpoint=pretrained/brain64_msm",
        f"--out={tmp_path / 'out'}", "--solvers=zero_filled,cg_sense,l1_wavelet", "--pixel_mm=1,2", "--batch_size=1",
    )  # fmt: skip
    with np.load(tmp_path / "out" / "images" / "scan.npz") as images:
        wavelet = images["complex"][0]
    with np.load(tmp_path / "out" / "eval" / "rounds" / "round_0000.npz") as arrays:
        scale = float(np.abs(wavelet).max() / np.abs(arrays["l1_wavelet/mean"][0]).max())
        ours = {"cg_sense": scale * arrays["cg_sense/mean"][0], "l1_wavelet": wavelet}
    assert all(image.shape == shape for image in ours.values())
    summary = json.loads((tmp_path / "out" / "eval" / "summary.json").read_text())
    assert summary["run"]["acceleration, effective"] == round(1 / mask.mean(), 2)
    height, width = imread(tmp_path / "out" / "images" / "scan.png").shape[:2]
    assert (width - 4) / (height - 4) == pytest.approx(2 * shape[1] / shape[0], rel=0.02), "pixels are 1 x 2 mm"

    weights = get_config().baselines  # the checkpoint's config has none of its own
    for name, most, *arguments in (
        ("cg_sense", 0.01, "-R", f"Q:{weights.ridge}", "-i", "30"),
        ("l1_wavelet", 0.06, "-R", f"W:3:0:{weights.wavelet}", "-i", "100"),
    ):
        assert difference(ours[name], truth) < 0.4, "of 5.8 times fewer entries; 0.35 and 0.30"
        if not shape[0] % 2:
            image = bart(tmp_path, "pics", "-S", "-w", str(scale), *arguments, "y", "maps", y=theirs, maps=maps)
            assert difference(ours[name], image.reshape(shape)) < most, name
