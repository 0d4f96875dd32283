"""CT as known entries of an invertible transform, held to the Radon transform."""

import functools

import jax
import numpy as np
import pytest

from msm.builders.ct.store import SOURCE, to_images
from msm.operators import ct
from msm.operators.fourier_slice import FourierSlice

SIZE, VIEWS = 32, 23
KNOWN = np.ones((1, 1, 1, 1), bool)


@functools.cache
def chest():
    """(1,n,n,1) attenuation relative to water of a slice of the demo, and its sinogram as ParallelBeam scales it."""
    with np.load(SOURCE) as arrays:
        x = to_images(arrays["lung1"][20:21], SIZE) / np.float32(1000) + 1
    return x, np.asarray(ct.ParallelBeam(VIEWS).forward(x, KNOWN, None))


def error(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("size", [16, 17])
def test_the_transform_is_an_isometry_with_an_exact_inverse(size):
    space = FourierSlice(size, 5, 2)
    x = np.random.default_rng(0).standard_normal((2, size, size, 1)).astype(np.float32)
    z = space.forward(x)
    assert z.shape == (2, space.grid, space.grid, 1) and space.grid % 2 == 1
    np.testing.assert_allclose(space.inverse(z), x, atol=1e-5)
    assert np.linalg.norm(z) == pytest.approx(np.linalg.norm(x), rel=1e-5)


def test_lines_of_the_transform_are_the_projections():
    """Fourier-slice theorem: the error is the distance to the grid, which halves as the grid gets twice as fine."""
    x, y = chest()
    errors = []
    for oversampling in (2, 4, 8):
        space = FourierSlice(SIZE, VIEWS, oversampling)
        views = np.asarray(space.views_of(space.forward(x)))[:, :, : y.shape[2]]
        errors.append(error(views, ct.ParallelBeam(VIEWS).scale(SIZE) * y))
    assert errors[1] < 0.05 and errors[2] < 0.025
    assert errors[0] > 1.8 * errors[1] > 3.2 * errors[2]


def test_a_merge_keeps_or_replaces_what_is_measured():
    x, y = chest()
    space = FourierSlice(SIZE, VIEWS)
    merge = jax.jit(space.merge)
    other = x[:, ::-1] ** 2
    np.testing.assert_allclose(merge(other, y, KNOWN, 0.0), other, atol=1e-5)
    nothing = np.zeros(y.shape, bool)
    assert error(merge(other, y, nothing, 1.0), other) < 0.05  # what leaks beyond the bins is known to be 0
    assert error(merge(x, y, KNOWN, 1.0), x) < 0.05  # the grid's share of the error
    half, whole = (error(merge(other, y, KNOWN, weight), x) for weight in (0.5, 1.0))
    assert whole < 0.75 * half < 0.75 * error(other, x)


def test_repeated_merges_are_those_of_a_projection():
    """Whole weight: a second merge changes nothing but what T^-1, which crops, took away."""
    x, y = chest()
    space = FourierSlice(SIZE, VIEWS)
    merge = jax.jit(space.merge)
    image, steps = np.zeros_like(x), []
    for _ in range(3):
        image, before = np.asarray(merge(image, y, KNOWN, 1.0)), image
        steps.append(np.linalg.norm(image - before))
    assert steps[0] > steps[1] > steps[2] and error(image, x) < 0.35
