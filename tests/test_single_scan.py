"""One raw scan to images without a store: any mask and size, in the units of the file, whatever the batch size."""

import json
from pathlib import Path

import numpy as np
import pytest

import run_lib
from builders.scan import Options
from infra import single_scan
from infra.atomic import atomic_write_json
from infra.checkpoints import export_params
from infra.raw_readers import RawVolume
from infra.workdir import config_of
from models.init import init_params
from tests.checks import message_of
from tests.small_runs import small_config
from tests.toy_data import column_masks, fourier, phantom, smooth_coils

pytestmark = pytest.mark.usefixtures("compiler")
SIZE = 16


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """An untrained network of 16 x 16 images, as a folder of pretrained/ is."""
    folder = tmp_path_factory.mktemp("pretrained")
    config = small_config(folder)
    config.data.image_size = SIZE
    experiment = run_lib.build(config)
    export_params(folder, init_params(experiment.model, 0, experiment.image_shape), 7, {})
    atomic_write_json(folder / "config.json", config.to_dict())
    return folder


def config_for(checkpoint: Path, **settings):
    config = config_of(checkpoint)
    config.eval.update(checkpoint=str(checkpoint), num_samples=2, batch_size=2, max_examples=0, **settings)
    return config


def options(**changes) -> Options:
    return Options(**{"size": SIZE, "maps": "lowres", "acceleration": 1, "acs_lines": 0, **changes})


def scan(mask: np.ndarray, slices: int = 2) -> tuple[RawVolume, np.ndarray]:
    """A noiseless scan of three coils in units of 1000, and its images."""
    images = 1000 * phantom(mask.shape[-1], slices)
    maps = smooth_coils(mask.shape[-1], 3)
    kspace = np.where(mask, fourier(maps * images[:, None]), 0).astype(np.complex64)
    return RawVolume(kspace, mask, header={"fov_mm": (160.0, 160.0, 3.0)}), images


def masks() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    equispaced = np.zeros((1, 1, SIZE), bool)
    equispaced[..., ::3] = equispaced[..., 5:11] = True
    partial = np.arange(SIZE)[None, None] < 11
    distance = np.hypot(*(np.indices((1, 24, 24))[1:] - 12))
    dense = rng.random((1, 24, 24)) < np.exp(-distance / 6)
    return {
        "equispaced": equispaced,
        "partial Fourier": partial,
        "another size, variable density in 2-D": dense | (distance < 5),
    }


@pytest.mark.parametrize("kind", masks())
def test_any_mask_and_size_is_reconstructed_by_one_network(checkpoint, tmp_path, kind):
    """The network was made for 16 x 16 pixels; any multiple of its unit, 2, will do."""
    size = masks()[kind].shape[-1]
    raw, _ = scan(masks()[kind])
    config = config_for(checkpoint, solvers=("zero_filled", "msm"))
    volume = single_scan.reconstruct(config, raw, options(size=size), "head", str(tmp_path), "a command")
    assert volume.image.shape == volume.std.shape == (2, size, size)
    assert np.isfinite(volume.image).all() and volume.std.max() > 0
    assert volume.pixel_mm == (round(160 / size, 4), round(160 / size, 4), 3.0)
    with np.load(tmp_path / "eval" / "rounds" / "round_0000.npz") as arrays:
        np.testing.assert_array_equal(arrays["mask"][0], masks()[kind])
    summary = json.loads((tmp_path / "eval" / "summary.json").read_text())
    assert "psnr" not in summary["solvers"]["msm"] and "no reference" in summary["absent"]["image quality"]
    assert (tmp_path / "eval" / "report.html").exists()


def test_a_size_that_the_network_does_not_admit_is_refused(checkpoint, tmp_path):
    raw, _ = scan(column_masks(24, 1, acs=8)[0])
    config = config_for(checkpoint, solvers=("msm",))
    problem = message_of(single_scan.reconstruct, config, raw, options(size=23), "head", str(tmp_path / "odd"), "")
    assert "data.image_size is 23: it must be a multiple of 2" in problem


def test_images_have_the_units_of_the_file(checkpoint, tmp_path):
    raw, images = scan(np.ones((1, 1, SIZE), bool))
    config = config_for(checkpoint, solvers=("zero_filled",))
    volume = single_scan.reconstruct(config, raw, options(maps="walsh"), "head", str(tmp_path), "")
    inside = np.abs(images) > 0.3 * np.abs(images).max()
    np.testing.assert_allclose(np.abs(volume.image)[inside], np.abs(images)[inside], rtol=0.1)
    assert volume.std is None
    summary = json.loads((tmp_path / "eval" / "summary.json").read_text())
    assert summary["solvers"]["zero_filled"]["psnr"]["mean"] > 30  # a fully sampled scan is its own reference


def test_a_slice_does_not_depend_on_its_batch(checkpoint, tmp_path):
    raw, _ = scan(masks()["equispaced"], slices=3)
    found = []
    for size in (2, 3):
        config = config_for(checkpoint, solvers=("msm",))
        config.eval.batch_size = size
        found.append(single_scan.reconstruct(config, raw, options(), "head", str(tmp_path / str(size)), "").image)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-3 * np.abs(found[0]).max())


def test_a_folder_without_config_is_no_checkpoint(tmp_path):
    assert "config.json is missing" in message_of(config_of, tmp_path)
