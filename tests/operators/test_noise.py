"""Noise estimated from measurements: known noise comes back within its standard error, content adds to it."""

import json

import numpy as np
import pytest
from PIL import Image

from msm import datasets
from msm.builders.pictures.folder import Division, Folder
from msm.builders.pictures.store import Images, Settings
from msm.builders.store import noise_std, prepare_store
from msm.operators.noise import diagonal_details, outer_noise, pixel_noise
from tests.builders.test_raw_readers import random_kspace
from tests.helpers.checks import message_of
from tests.helpers.pictures import COUNTS, small_image_config
from tests.helpers.processes import Process
from tests.helpers.raw_files import raw_head
from tests.helpers.toy_data import column_masks

FOUR_AND_A_HALF = 4.5  # standard errors: one false alarm in 150,000


def boxes(size: int) -> np.ndarray:
    mask = np.ones((size, size), bool)
    mask[: size // 2, : size // 2] = False
    return mask


MASKS = {
    "whole": lambda size: np.ones((size, size), bool),
    "boxes": boxes,
    "random": lambda size: np.random.default_rng(1).random((size, size)) < 0.7,
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("size", "channels"), [(64, 3), (65, 1), (128, 3)])
@pytest.mark.parametrize("rho", [0.01, 0.3])
def test_pixel_noise_on_a_slope_is_known_to_its_standard_error(mask, size, channels, rho):
    """A plane vanishes from the details; missing pixels are not read."""
    down, right = np.indices((size, size))[..., None] / size
    kept = MASKS[mask](size)
    noise = rho * np.random.default_rng(0).standard_normal((size, size, channels))
    image = np.where(kept[..., None], 0.5 * down - 0.3 * right + noise, np.nan)
    count = diagonal_details(image, kept).size
    assert abs(pixel_noise([(image, kept)]) / rho - 1) < FOUR_AND_A_HALF * 1.17 / np.sqrt(count)


def test_details_of_white_noise_have_its_standard_deviation_and_are_uncorrelated():
    noise = np.random.default_rng(0).standard_normal((200, 200, 2))
    details = diagonal_details(noise, np.ones((200, 200), bool))
    assert details.shape == (20_000,)
    assert abs(details.std() - 1) < FOUR_AND_A_HALF / np.sqrt(2 * details.size)
    assert abs(np.corrcoef(details[:-2], details[2:])[0, 1]) < FOUR_AND_A_HALF / np.sqrt(details.size)


def test_white_texture_adds_its_variance_and_sparse_edges_add_little():
    rng = np.random.default_rng(0)
    whole, rho = np.ones((256, 256), bool), 0.1
    noise = rho * rng.standard_normal((256, 256, 1))
    texture = 0.1 * rng.standard_normal((256, 256, 1))
    error = FOUR_AND_A_HALF * 1.17 / np.sqrt(128**2)
    assert abs(pixel_noise([(noise + texture, whole)]) / np.hypot(rho, 0.1) - 1) < error
    edges = 1.0 * (np.hypot(*np.indices((256, 256)) - 128) < 80)[..., None]  # one block in 60 has the edge in it
    assert 1 - error < pixel_noise([(noise + edges, whole)]) / rho < 1.04


def test_constant_blocks_say_nothing_of_noise():
    noise = 0.1 * np.random.default_rng(0).standard_normal((64, 64, 3))
    noise[:48] = -1.0  # padding
    estimate = pixel_noise([(noise, np.ones((64, 64), bool))])
    assert abs(estimate / 0.1 - 1) < FOUR_AND_A_HALF * 1.17 / np.sqrt(8 * 32 * 3)
    assert "give the noise as a number" in message_of(pixel_noise, [(noise[:48], np.ones((48, 64), bool))])


@pytest.mark.parametrize("lines", [True, False])
@pytest.mark.parametrize(("shape", "coils", "slices"), [((64, 64), 1, 1), ((33, 48), 5, 2), ((128, 96), 12, 3)])
def test_scans_of_noise_alone_are_known_to_their_standard_error(lines, shape, coils, slices):
    levels = np.geomspace(0.5, 3, coils)
    mask = column_masks(shape[1], 1, acs=8)
    mask = mask if lines else np.broadcast_to(mask, (1, 1, *shape)).copy()
    noise = np.where(mask, random_kspace(slices, coils, *shape) * levels[:, None, None], 0)
    count = 0.1 * mask.mean() * np.prod(shape) * slices
    # the lower of two estimates, the second from half as many entries
    error = FOUR_AND_A_HALF * 0.73 * np.sqrt(2 if lines else 1) / np.sqrt(count)
    np.testing.assert_allclose(outer_noise(noise, mask), levels, rtol=error)


@pytest.mark.parametrize("lines", [True, False])
def test_every_slice_may_have_a_mask_of_its_own(lines):
    """What the masks leave out does not count, and a slice in which nothing was acquired neither."""
    masks = column_masks(48, 4, acs=8)
    masks[3] = False
    masks = masks if lines else np.broadcast_to(masks, (4, 1, 33, 48)).copy()
    noise = random_kspace(4, 2, 33, 48) * np.array([1.0, 3.0])[:, None, None]
    assert (masks[0] != masks[1]).any()
    found = outer_noise(np.where(masks, noise, 0), masks)
    np.testing.assert_array_equal(found, outer_noise(np.where(masks, noise, 50), masks))
    error = FOUR_AND_A_HALF * 0.73 * np.sqrt(2 if lines else 1) / np.sqrt(0.1 * masks.mean() * noise[:, 0].size)
    np.testing.assert_allclose(found, [1, 3], rtol=error)
    repeated = np.repeat(masks[:1], 4, axis=0)
    np.testing.assert_array_equal(outer_noise(noise, repeated), outer_noise(noise, masks[:1]))


@pytest.mark.parametrize("lines", [True, False])
def test_signal_in_the_middle_of_kspace_and_image_does_not_count(lines):
    """White noise of known size in every coil, and signal in the middle of k-space."""
    size, levels = 64, np.array([0.5, 1.0, 2.0])
    noise = random_kspace(4, 3, size, size) * levels[:, None, None]
    mask = column_masks(size, 1, acs=8)
    mask = mask if lines else np.broadcast_to(mask, (1, 1, size, size)).copy()
    signal = np.where(np.hypot(*np.indices((size, size)) - 32) < 8, 50, 0)
    np.testing.assert_allclose(outer_noise(np.where(mask, noise + signal, 0), mask), levels, rtol=0.08)


def test_a_head_makes_the_estimate_of_a_scan_an_upper_bound():
    """What the image adds weighs less, the larger the noise: the ratio falls towards 1."""
    ratios = []
    for rho in (0.002, 0.01, 0.05):
        head = raw_head(64, 3, noise_std=rho)
        true = np.sqrt(np.mean(np.abs(head.noise) ** 2, axis=1) / 2)
        found = outer_noise(head.kspace, head.mask[None, None, None])
        ratios.append(np.sqrt(np.mean(found**2) / np.mean(true**2)))
    print("estimated over true noise:", ratios)
    assert ratios[0] > ratios[1] > ratios[2] > 0.97 and ratios[1] < 1.5 and ratios[2] < 1.1


@pytest.fixture(scope="module")
def noisy_folder(tmp_path_factory):
    """Smooth 8-bit pictures of 64 x 64 that came with noise of 0.1."""
    folder, rng = tmp_path_factory.mktemp("noisy"), np.random.default_rng(0)
    for index in range(9):
        coarse = Image.fromarray(rng.integers(60, 200, (3, 3, 3), dtype=np.uint8))
        clean = np.asarray(coarse.resize((64, 64), Image.Resampling.BICUBIC)) / 127.5 - 1
        noisy = np.clip((clean + 0.1 * rng.standard_normal(clean.shape) + 1) * 127.5, 0, 255)
        Image.fromarray(np.rint(noisy).astype(np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize("added", [0.0, 0.2])
def test_store_of_noisy_pictures_knows_their_noise(noisy_folder, tmp_path, added):
    source = Images(Settings(noise_std=added, own_noise=None), Folder(noisy_folder, Division(counts=COUNTS)))
    manifest, _ = prepare_store(tmp_path / "store", source)
    own = manifest["own_noise"]
    assert own["from"] == "estimated, an upper bound" and manifest["settings"]["own_noise"] is None
    assert own["noise_std"] == pytest.approx(0.1, rel=0.05)
    assert noise_std(manifest) == pytest.approx(np.hypot(own["noise_std"], added), abs=1e-6)
    config = small_image_config(tmp_path / "store")
    config.data.image_size = 64
    stored = datasets.load_measurements(config, "test").noise_std
    np.testing.assert_allclose(stored, noise_std(manifest), atol=1e-6)
    assert prepare_store(tmp_path / "store", source) == (manifest, False)
    given = Images(Settings(noise_std=added, own_noise=0.1), Folder(noisy_folder, Division(counts=COUNTS)))
    assert "own_noise None instead of 0.1" in message_of(prepare_store, tmp_path / "store", given)


def test_tool_takes_a_number_or_estimates(noisy_folder, tmp_path):
    def run(own: str) -> Process:
        flags = [f"--folder={noisy_folder}", f"--out={tmp_path / own}", f"--own_noise={own}"]
        return Process("tools/prepare_images.py", flags, tmp_path / f"printed_{own}")

    run("estimate").finish()
    manifest = json.loads((tmp_path / "estimate" / "manifest.json").read_text())
    assert "--own_noise estimate" in manifest["command"] and manifest["noise_std"] == pytest.approx(0.1, rel=0.05)
    for given, told in (("guess", "is 'guess': it must be a number or 'estimate'"), ("-1", "is -1.0: it must be at ")):
        mistaken = run(given)
        assert mistaken.wait() == 2 and f"error: --own_noise {told}" in mistaken.stderr


def test_stores_made_before_own_noise_are_still_known():
    assert "own_noise" not in Settings().identity() and Settings(own_noise=0.2).identity()["own_noise"] == 0.2
