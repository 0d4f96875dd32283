"""Pictures from a folder through training, evaluation and sampling: the files of each mode, and what they show."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from skimage.io import imread
from skimage.metrics import peak_signal_noise_ratio

from msm import datasets, run_lib
from tests.helpers.pictures import small_image_config


@pytest.fixture(scope="module")
def workdir(image_store, trained_on_pictures, tmp_path_factory):
    """The workdir of one run of each mode."""
    folder = Path(shutil.copytree(trained_on_pictures, tmp_path_factory.mktemp("images") / "run"))
    config = small_image_config(image_store)
    run_lib.evaluate(config, str(folder), "the command")
    run_lib.sample(config, str(folder))
    return folder


def test_training_pictures_show_colours_and_masks(workdir, image_config):
    """Columns of four panels of 128 pixels and a frame of 2: zero-filled, mask, two samples."""
    picture = imread(workdir / "samples" / "step_0000002.png")[..., :3]
    assert picture.shape == (4 * 132, 4 * 132, 3)
    panels = picture.reshape(4, 132, 4, 132, 3)[:, 2:-2, :, 2:-2].transpose(0, 2, 1, 3, 4)
    chosen = datasets.load_measurements(image_config, "train")
    for column, index in enumerate(np.unique(np.linspace(0, 5, 4).astype(int))):
        zero_filled = panels[0, column, ::4, ::4]
        expected = np.rint(np.clip((chosen.y[index] + 1) / 2, 0, 1) * 255)
        assert np.abs(zero_filled - expected).max() <= 1
        np.testing.assert_array_equal(panels[1, column, ::4, ::4] == 255, np.repeat(chosen.mask[index], 3, axis=-1))
    assert np.ptp(panels[0].astype(int), axis=-1).max() > 50  # in colour


def test_summary_can_be_recomputed_from_the_stored_images(workdir):
    """PSNR of real images: all channels, data range 2."""
    summary = json.loads((workdir / "eval" / "summary.json").read_text())
    found = {solver: [] for solver in summary["solvers"]}
    for path in (workdir / "eval" / "rounds").glob("*.npz"):
        with np.load(path) as arrays:
            assert arrays["reference"].shape[1:] == (32, 32, 3) and arrays["msm/std"].shape[1:] == (32, 32)
            for index in np.flatnonzero(arrays["example_id"] >= 0):
                for solver, values in found.items():
                    pair = (arrays["reference"][index], arrays[f"{solver}/mean"][index])
                    values.append(peak_signal_noise_ratio(*pair, data_range=2))
    assert set(found) == {"zero_filled", "msm"}
    for solver, values in found.items():
        stated = summary["solvers"][solver]["psnr"]
        assert len(values) == stated["n"] == 3 and np.mean(values) == pytest.approx(stated["mean"], rel=1e-5)
    page = (workdir / "eval" / "report.html").read_text()
    assert "the command" in page and "<td>1.6</td>" in page
    assert len(list((workdir / "eval" / "figures").glob("slice_*.png"))) >= 2


def test_generated_images_are_colour_pictures(workdir):
    with np.load(workdir / "samples" / "generated" / "images.npz") as arrays:
        images = arrays["images"]
    assert images.shape == (4, 32, 32, 3) and images.dtype == np.float32 and np.isfinite(images).all()
    assert imread(workdir / "samples" / "generated" / "grid.png").std() > 0
