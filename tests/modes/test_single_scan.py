"""One raw scan to images without a store: any mask and size, in the units of the file, whatever the batch size."""

import json
from pathlib import Path

import numpy as np
import pytest

from msm.builders.raw import RawVolume
from msm.builders.scans.scan import Options
from msm.configs.rules.stored import config_of
from msm.experiment import build
from msm.infra.atomic import atomic_write_json
from msm.infra.checkpoints import export_params
from msm.models.init import init_params
from msm.modes import reconstruct as single_scan
from tests.helpers.checks import message_of
from tests.helpers.small_runs import small_config
from tests.helpers.toy_data import fourier, phantom, smooth_coils

SIZE = 16


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """An untrained network of 16 x 16 images with attention at its one level, as a folder of pretrained/ is."""
    folder = tmp_path_factory.mktemp("pretrained")
    config = small_config(folder)
    config.data.image_size = SIZE
    config.model.attention_resolutions = (SIZE // 2,)
    experiment = build(config)
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
    """The network was made for 16 x 16 pixels; any other will do."""
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


def test_another_size_changes_what_depends_on_it_and_the_trained_one_nothing(checkpoint):
    config, trained = config_for(checkpoint), config_for(checkpoint)
    single_scan.set_size(config, SIZE)
    assert config == trained
    single_scan.set_size(config, 24)
    trained.data.image_size, trained.model.attention_resolutions, trained.masks.acs_lines = 24, (12,), 6  # 4 of 16
    assert config == trained


@pytest.mark.parametrize("shape", [(30, 22), (23, 31)])
def test_a_scan_of_any_rows_and_columns_keeps_them(checkpoint, tmp_path, shape):
    """Even or odd, wider or higher: the network pads inside, and nothing that was padded counts as missing."""
    rng = np.random.default_rng(1)
    mask = rng.random((1, *shape)) < 0.4
    mask[:, shape[0] // 2 - 4 : shape[0] // 2 + 4, shape[1] // 2 - 4 : shape[1] // 2 + 4] = True
    square, _ = scan(np.ones((1, 1, 32), bool))
    start = [16 - size // 2 for size in shape]
    inside = (slice(None), slice(None), *(slice(s, s + n) for s, n in zip(start, shape, strict=True)))
    raw = RawVolume(np.where(mask, square.kspace[inside], 0), mask, header={"fov_mm": (shape[0], 2 * shape[1], 3.0)})
    config = config_for(checkpoint, solvers=("zero_filled", "cg_sense", "l1_wavelet", "msm"))
    volume = single_scan.reconstruct(config, raw, options(size=0), "head", str(tmp_path), "")
    assert volume.image.shape == (2, *shape) and np.isfinite(volume.image).all()
    assert volume.pixel_mm == (1.0, 2.0, 3.0)
    run = json.loads((tmp_path / "eval" / "summary.json").read_text())["run"]
    assert run["acceleration, effective"] == round(1 / mask.mean(), 2)
    assert run["image size"] == f"{shape[0]}x{shape[1]}"


def test_a_folder_goes_on_with_its_raw_file_and_refuses_another(checkpoint, tmp_path):
    (raw, _), (other, _) = scan(masks()["equispaced"], slices=1), scan(masks()["partial Fourier"], slices=1)

    def reconstruct(raw: RawVolume, name: str, **changes):
        config = config_for(checkpoint, solvers=("zero_filled",))
        return single_scan.reconstruct(config, raw, options(**changes), name, str(tmp_path), "")

    first, path = reconstruct(raw, "head"), tmp_path / "eval" / "rounds" / "round_0000.npz"
    written = path.stat().st_mtime_ns
    np.testing.assert_array_equal(reconstruct(raw, "head").image, first.image)
    assert path.stat().st_mtime_ns == written, "the round was computed again"
    for answer in (message_of(reconstruct, raw, "copy"), message_of(reconstruct, other, "head")):
        assert answer == f"{tmp_path} holds the results of another raw file, head: choose another --out"
    assert path.stat().st_mtime_ns == written
    assert np.abs(reconstruct(raw, "head", maps="walsh").image - first.image).max() > 0, (
        "other options are no other file"
    )


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("a/2024.01.05_scan.npy", "2024.01.05_scan"),
        ("2024.01.05_scan", "2024.01.05_scan"),
        ("head.H5", "head"),
        ("b/head.1.hdr", "head.1"),
    ],
)
def test_a_scan_has_the_name_of_its_file_without_the_known_suffix(file, name):
    assert single_scan.name_of(file) == name


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
