"""Symmetries of measurements are undone exactly, and move the image; changes of images do what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msm.operators.augment import AUGMENTATIONS, get_symmetry_fns
from msm.operators.image_augment import enlarge, get_image_augment_fn, rotate
from msm.operators.measurement import Measurement
from msm.operators.transform import MultiCoilFourier
from tests.helpers.toy_data import acquisition

NAMES = ("flip", "shift", "phase")


def blob(rows, columns):
    """A Gaussian off the centre, of places in pixels from the centre."""
    return np.exp(-((rows - 3) ** 2 / 12 + (columns + 4) ** 2 / 20)).astype(np.complex64)


def grid(size):
    return np.meshgrid(*2 * [np.arange(size) - size // 2], indexing="ij")


@pytest.mark.parametrize("names", [("flip",), ("shift",), ("phase",), NAMES], ids="+".join)
def test_a_symmetry_is_the_measurement_of_a_moved_image_and_can_be_undone(names):
    (m, images), transform = acquisition(size=32, count=4), MultiCoilFourier()
    move, back = get_symmetry_fns(names)
    keys = jax.random.split(jax.random.key(0), 4)
    z = transform.forward(jnp.asarray(images), m.maps)
    moved, mask, maps = move(keys, z, m.mask, m.maps)
    assert np.abs(moved - z).max() > 0.1 and mask.shape == m.mask.shape
    np.testing.assert_allclose(back(keys, moved), z, atol=2e-6)
    image = transform.adjoint(moved, maps)
    np.testing.assert_allclose(transform.forward(image, maps), moved, atol=2e-6)
    np.testing.assert_allclose(np.sort(np.abs(image), axis=None), np.sort(np.abs(images), axis=None), atol=2e-6)


def test_a_mirror_is_its_own_inverse():
    y = jnp.asarray(np.random.default_rng(0).standard_normal((4, 8, 8, 3)).astype(np.float32))
    move, back = get_symmetry_fns(("mirror",))
    keys = jax.random.split(jax.random.key(0), 4)
    moved, mask, _ = move(keys, y, y[..., :1] > 0, None)
    assert np.any(moved != y) and np.all(mask == (moved[..., :1] > 0))
    np.testing.assert_array_equal(back(keys, moved), y)


def test_every_symmetry_can_be_undone():
    keys, nothing = jax.random.split(jax.random.key(0), 2), jnp.zeros((2, 16, 16, 16), jnp.complex64)
    for name in AUGMENTATIONS.names():
        np.testing.assert_array_equal(get_symmetry_fns((name,))[1](keys, nothing), nothing)
    assert {*NAMES, "mirror"} <= set(AUGMENTATIONS.names())


@pytest.mark.parametrize("size", [48, 49])
def test_images_are_turned_and_zoomed_as_functions_of_the_place(size):
    rows, columns = grid(size)
    x = jnp.asarray(blob(rows, columns))
    turned = blob(np.cos(0.3) * rows - np.sin(0.3) * columns, np.sin(0.3) * rows + np.cos(0.3) * columns)
    np.testing.assert_allclose(rotate(x, 0.3), turned, atol=1e-3)
    np.testing.assert_allclose(enlarge(x, 1.1, 0.9), blob(rows / 1.1, columns / 0.9), atol=1e-3)
    np.testing.assert_allclose(rotate(rotate(x, 0.2), -0.2), x, atol=1e-4)
    np.testing.assert_allclose(enlarge(x, 1.0, 1.0), x, atol=1e-6)


@pytest.mark.parametrize("name", ["flip", "shift", "warp"])
def test_the_support_moves_with_the_image(name):
    rows, columns = grid(32)
    support = np.broadcast_to((rows**2 / 50 + (columns - 3) ** 2 / 90) < 1, (16, 32, 32))
    measurement = Measurement(
        jnp.asarray(support, jnp.complex64), np.ones((16, 1, 1), bool), jnp.asarray(support), None, None
    )
    moved = get_image_augment_fn((name,))(jax.random.split(jax.random.key(1), 16), measurement)
    assert np.any(moved.maps != support)
    assert np.mean((np.abs(moved.y) > 0.5) == moved.maps) > 0.99


def test_contrast_changes_magnitudes_of_some_and_no_phase():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((32, 8, 8, 2)).astype(np.float32).view(np.complex64)[..., 0]
    measurement = Measurement(jnp.asarray(x), np.ones((32, 1, 1), bool), None, None, None)
    changed = np.asarray(get_image_augment_fn(("contrast",))(jax.random.split(jax.random.key(1), 32), measurement).y)
    np.testing.assert_allclose(np.angle(changed * np.conj(x)), 0, atol=1e-5)
    same = np.all(np.isclose(changed, x), axis=(1, 2))
    assert 15 < same.sum() < 32
    order = np.argsort(np.abs(x).reshape(32, -1), axis=1)
    assert np.all(np.diff(np.take_along_axis(np.abs(changed).reshape(32, -1), order, axis=1)) >= 0)
