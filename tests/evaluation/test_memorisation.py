"""memorisation.py: a copy of a training image is found whatever symmetry hides it, and an unseen image is no copy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msm.configs.default import get_config
from msm.evaluation import memorisation
from msm.operators.augment import reflect
from msm.operators.measurement import Measurement
from msm.operators.transform import Identity, MultiCoilFourier
from tests.helpers.toy_data import acquisition, fourier, phantom

SIZE = 32


@pytest.fixture(scope="module")
def training():
    return acquisition(SIZE, count=6)


@pytest.fixture(scope="module")
def distances():
    """Compiled once: distances of a few MRI images, all symmetries."""
    return jax.jit(memorisation.get_distance_fn(get_config(), MultiCoilFourier()))


def unseen(count):
    """Images with the intensities of phantoms, but of other shapes."""
    return np.stack([np.roll(image, (9, 13), (0, 1)).T for image in phantom(SIZE, count, seed=5)])


def expected_noise(measurement, index):
    """Relative residual of the exact image: what noise is left in the acquired scalars."""
    y = measurement.y[index]
    scalars = 2 * np.broadcast_to(measurement.mask[index], y.shape).sum()
    return measurement.noise_std[index] * np.sqrt(scalars) / np.linalg.norm(y)


def test_distance_of_a_copy_is_the_noise(training, distances):
    measurement, images = training
    found = np.asarray(distances(images, measurement))
    assert found.shape == (6, 6)
    for index in range(6):
        assert found[index, index] == pytest.approx(expected_noise(measurement, index), rel=0.1)
        assert np.argmin(found[index]) == index and np.sort(found[index])[1] > 5 * found[index, index]


@pytest.mark.parametrize(
    "hide",
    [
        lambda x: x * np.exp(2.1j),
        lambda x: np.asarray(reflect(jnp.asarray(x), -1)),
        lambda x: np.asarray(reflect(jnp.asarray(x), -2)),
        lambda x: np.roll(x, (2, -1), (-2, -1)),
        lambda x: np.roll(np.asarray(reflect(jnp.asarray(x), -1)), (-2, 2), (-2, -1)) * np.exp(-1j),
    ],
    ids=["phase", "left-right", "upside-down", "moved", "all"],
)
def test_a_symmetry_does_not_hide_a_copy(training, distances, hide):
    measurement, images = training
    plain, hidden = np.asarray(distances(images, measurement)), np.asarray(distances(hide(images), measurement))
    np.testing.assert_allclose(np.diag(hidden), np.diag(plain), rtol=1e-3)


def test_without_symmetries_only_the_image_itself_is_a_copy(training):
    measurement, images = training
    config = get_config()
    config.data.augment = ()
    plain = jax.jit(memorisation.get_distance_fn(config, MultiCoilFourier()))
    found = np.asarray(plain(np.stack([images[0], 1j * images[0]]), measurement))
    for index, (y, mask, maps) in enumerate(zip(measurement.y, measurement.mask, measurement.maps, strict=True)):
        seen = np.where(mask, fourier(maps * images[0]), 0)
        assert found[0, index] == pytest.approx(np.linalg.norm(seen - y) / np.linalg.norm(y), rel=1e-3)
    assert found[1, 0] > 1


def test_an_empty_image_is_at_one_and_padding_infinitely_far(training, distances):
    measurement, images = training
    measurement = measurement.replace(example_id=np.array([0, 1, -1, 3, 4, -1], np.int32))
    found = np.asarray(distances(np.zeros_like(images[:1]), measurement))
    np.testing.assert_allclose(found[0], [1, 1, np.inf, 1, 1, np.inf], rtol=1e-6)


def test_distances_do_not_depend_on_the_batch(training, distances):
    measurement, images = training
    together = np.asarray(distances(images, measurement))
    one = jax.tree.map(lambda a: a[2:3], measurement)
    np.testing.assert_allclose(np.asarray(distances(images[4:5], one)), together[4:5, 2:3], rtol=1e-5)


def test_a_copy_is_flagged_and_an_unseen_image_is_not(training, distances):
    measurement, images = training
    drawn, held_out = np.concatenate([images[3:4], unseen(5)[:2]]), unseen(5)[2:]
    values, names = memorisation.nearest_two(
        None, np.asarray(distances(np.concatenate([drawn, held_out]), measurement)), measurement.example_id
    )
    usual = float(np.median(values[3:, 0]))
    rows = memorisation.rows_of("drawn", np.arange(3), values[:3], names[:3], usual)
    rows += memorisation.rows_of("held-out", np.arange(3), values[3:], names[3:], usual)
    assert [row["flagged"] for row in rows] == [True] + [False] * 5
    assert rows[0]["nearest_id"] == 3
    table = memorisation.summarize(rows)
    assert table["drawn"]["flagged"] == 1 and table["held-out"]["flagged"] == 0
    assert table["held-out"]["over_held_out"]["median"] == pytest.approx(1)


def test_nearest_two_over_batches_are_those_of_all():
    rng = np.random.default_rng(0)
    found, ids, best = rng.random((4, 10)), np.arange(100, 110), None
    for start in (0, 3, 6, 9):
        best = memorisation.nearest_two(best, found[:, start : start + 3], ids[start : start + 3])
    order = np.argsort(found, axis=1)[:, :2]
    np.testing.assert_array_equal(best[1], ids[order])
    np.testing.assert_array_equal(best[0], np.take_along_axis(found, order, 1))


def test_ratios_of_special_cases():
    """One training acquisition has no second; two copies are each other's second; without held-out images no ratio."""
    values, names = np.array([[0.2, np.inf], [0.0, 0.0]]), np.array([[1, -1], [1, 2]])
    rows = memorisation.rows_of("drawn", np.arange(2), values, names, float("nan"))
    assert np.isnan(rows[0]["over_second"]) and rows[1]["over_second"] == 1
    assert np.isnan(rows[0]["over_held_out"])


def test_without_held_out_images_copies_of_near_duplicates_are_not_called_clean():
    """A perfect copy of one of two equal acquisitions: the ratio to the second is 1, whatever the distance."""
    values, names = np.array([[0.01, 0.01], [0.01, 0.5]]), np.array([[1, 2], [1, 2]])
    rows = memorisation.rows_of("drawn", np.arange(2), values, names, float("nan"))
    assert [row["flagged"] for row in rows] == [None, True]
    table = memorisation.summarize(rows)["drawn"]
    assert (table["flagged"], table["not_judged"]) == (1, 1)
    table = memorisation.summarize(rows[:1])["drawn"]
    assert (table["flagged"], table["not_judged"]) == (None, 1)
    judged = memorisation.rows_of("drawn", np.arange(2), values, names, 0.5)
    assert [row["flagged"] for row in judged] == [True, True]
    assert memorisation.summarize(judged)["drawn"]["not_judged"] == 0


def test_mirrored_colour_images_are_found():
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (4, 8, 8, 3)).astype(np.float32)
    mask = rng.random((4, 8, 8, 1)) < 0.6
    measurement = Measurement(np.where(mask, images, 0), mask, None, np.zeros(4, np.float32), np.arange(4))
    config = get_config()
    config.data.augment = ("mirror",)
    found = np.asarray(memorisation.get_distance_fn(config, Identity())(images[:, :, ::-1], measurement))
    np.testing.assert_allclose(np.diag(found), 0, atol=1e-6)
    assert found[~np.eye(4, dtype=bool)].min() > 0.5
