"""Parallel-beam CT: exact projections, scikit-image's transforms, adjoint, filters, the FBP solver."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.transform import iradon, radon

from msm.configs.default import get_config
from msm.operators import ct
from msm.operators.acquisition import Acquisition
from msm.operators.measurement import Measurement
from msm.operators.transform import Identity
from msm.solvers import get_solver
from tests.helpers.checks import message_of

FILTERS = {"ramp": "ramp", "shepp_logan": "shepp-logan", "cosine": "cosine", "hamming": "hamming", "hann": "hann"}


def blobs(size):
    """(n,n) float32: smooth humps well inside the image."""
    place = (np.arange(size) - (size - 1) / 2) * 61 / size
    rows, columns = place[:, None], place
    humps = np.exp(-((rows - 5) ** 2 + (columns - 9) ** 2) / 60)
    return (humps + 0.5 * np.exp(-((rows + 10) ** 2) / 30 - (columns + 4) ** 2 / 90)).astype(np.float32)


def projected(image, angles):
    """(V,D) of one image (n,n)."""
    return np.asarray(ct.project(jnp.asarray(image)[None, ..., None], angles))[0, ..., 0]


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def test_projections_are_scikit_images_within_the_discretisation():
    """Theirs samples a turned, bilinearly interpolated image: 4 parts in 10,000 apart on humps of 5 pixels."""
    angles, image = ct.view_angles(12), blobs(61)  # odd sizes: both have the middle of a pixel in the middle
    theirs = radon(image.astype(np.float64), np.rad2deg(angles), circle=False).T
    ours = projected(image, angles)
    assert ours.shape == theirs.shape == (12, ct.num_bins(61))
    assert relative(ours, theirs) < 4e-4


def coverage(size, centre, radius, fine=16):
    """(n,n) float32: which share of each pixel a disc covers; centre in rows and columns from the middle."""
    place = (np.arange(size * fine) + 0.5) / fine - size / 2
    inside = (place[:, None] - centre[0]) ** 2 + (place - centre[1]) ** 2 <= radius**2
    return inside.reshape(size, fine, size, fine).mean((1, 3)).astype(np.float32)


def test_a_disc_has_the_chords_of_its_circle():
    """The exact projection, 2 sqrt(r^2 - d^2), mean over each bin; pixels at the rim cost 0.7 %."""
    size, centre, radius = 64, (5.0, -8.0), 19.0
    angles = ct.view_angles(9)
    middle = centre[1] * np.cos(angles) - centre[0] * np.sin(angles)
    edges = np.arange(ct.num_bins(size) + 1) - ct.num_bins(size) / 2
    u = np.clip((edges - middle[:, None]) / radius, -1, 1)
    area = radius**2 * (u * np.sqrt(1 - u**2) + np.arcsin(u))  # integral of the chord up to an edge
    ours, exact = projected(coverage(size, centre, radius), angles), np.diff(area, axis=1)
    assert relative(ours, exact) < 0.008 and np.abs(ours - exact).max() < 0.04 * exact.max()
    np.testing.assert_allclose(ours.sum(axis=1), np.pi * radius**2, rtol=1e-3)


def test_single_pixels_have_exact_shadows():
    """At 0 degrees one bin; at 45 degrees a triangle of width sqrt(2), cut into bins."""
    image = np.zeros((9, 9), np.float32)
    image[4, 4] = 3.0
    straight, slanted = projected(image, np.array([0.0, np.pi / 4]))
    bins = np.zeros(13)
    bins[6] = 3.0
    np.testing.assert_allclose(straight, bins, atol=1e-6)
    tail = 0.5 * (1 - np.sqrt(2) * 0.5) ** 2  # of the triangle beyond half a bin
    bins[5:8] = 3 * tail, 3 * (1 - 2 * tail), 3 * tail
    np.testing.assert_allclose(slanted, bins, atol=1e-5)


@pytest.mark.parametrize(("size", "views"), [(12, 5), (15, 19)])  # less and more than VIEWS_AT_ONCE
def test_adjoint_and_mass(size, views):
    rng, angles = np.random.default_rng(0), ct.view_angles(views)
    x = rng.standard_normal((3, size, size, 2)).astype(np.float32)
    y = rng.standard_normal((3, views, ct.num_bins(size), 2)).astype(np.float32)
    forward = jax.jit(lambda v: ct.project(v, angles))
    rx, rty = (
        np.asarray(forward(x), np.float64),
        np.asarray(jax.jit(lambda v: ct.backproject(v, angles))(y), np.float64),
    )
    assert abs(np.vdot(rx, y) - np.vdot(x, rty)) < 1e-6 * np.linalg.norm(rx) * np.linalg.norm(y)
    (transposed,) = jax.linear_transpose(forward, jax.ShapeDtypeStruct(x.shape, x.dtype))(jnp.asarray(y))
    np.testing.assert_allclose(transposed, rty, atol=1e-5)
    np.testing.assert_allclose(rx.sum(axis=2), np.broadcast_to(x.sum((1, 2))[:, None], (3, views, 2)), atol=1e-3)
    assert ct.size_of(ct.num_bins(size)) == size


def test_every_size_follows_from_its_bins():
    assert all(ct.size_of(ct.num_bins(size)) == size for size in range(1, 1025))


@pytest.mark.parametrize("name", FILTERS)
def test_fbp_is_scikit_images_and_inverts_many_views(name):
    """Hamming and Hann windows of scikit-image are sampled on a grid that ends half a step earlier."""
    angles, image = ct.view_angles(120), blobs(61)
    y = ct.project(jnp.asarray(image)[None, ..., None], angles)
    ours = np.asarray(ct.fbp(y, angles, name))[0, ..., 0]
    theirs = iradon(
        np.asarray(y)[0, ..., 0].T.astype(np.float64),
        np.rad2deg(angles),
        circle=False,
        filter_name=FILTERS[name],
        output_size=61,
    )
    assert relative(ours, theirs) < (2e-4 if name in ("hamming", "hann") else 2e-6)
    assert relative(ours, image) < 0.025
    assert message_of(ct.ramp_filter, 13, "ram").startswith("unknown filter 'ram'; did you mean 'ramp'?")


def test_the_bound_of_the_operator_is_near():
    """Power iteration: the largest singular value is 0.82 of sqrt(V D)."""
    operator = ct.ParallelBeam(7)
    x = jnp.ones((1, 20, 20, 1))

    def step(_, v):
        v = operator.normal(v, True, None)
        return v / jnp.linalg.norm(v)

    x = jax.jit(lambda v: jax.lax.fori_loop(0, 30, step, v))(x)
    assert 0.8 < float(jnp.linalg.norm(operator.forward(x, True, None))) < 0.85


def solve(name, operator, y, mask, **settings):
    config = get_config()
    config.baselines.update(settings)
    solver = get_solver(config, types.SimpleNamespace(operator=operator), name)
    batch = len(y)
    m = Measurement(y, mask, None, jnp.zeros(batch), jnp.arange(batch))
    return np.asarray(jax.jit(lambda m: solver.solve(None, None, m, solver.hyper))(m))[0]


def test_fbp_solver_undoes_scale_and_air():
    """An image of air, -1, comes back exactly from any number of views; a picture on it as from its own sinogram."""
    operator, mask = ct.ParallelBeam(5), np.ones((2, 1, 1, 1), bool)
    image = 1.5 * blobs(32)
    x = np.stack([np.full((32, 32, 1), -1.0), image[..., None] - 1]).astype(np.float32)
    result = solve("fbp", operator, operator.forward(x, mask, None), mask, fbp_window="hann")
    np.testing.assert_allclose(result[0], -1, atol=1e-4)
    alone = ct.fbp(ct.project(jnp.asarray(image)[None, ..., None], operator.angles), operator.angles, "hann")
    np.testing.assert_allclose(result[1], alone[0] - 1, atol=1e-4)
    experiment = types.SimpleNamespace(operator=Acquisition(Identity()))
    message = message_of(get_solver, get_config(), experiment, "fbp")
    assert message == "solver 'fbp' reconstructs CT, task.name 'acquired' is not one: choose other solvers"


@pytest.mark.parametrize("exact", [True, False])
def test_conjugate_gradients_and_singular_vectors_agree(exact, monkeypatch):
    """Both forms of the damped inverse solve their equation; the pseudo-inverses explain noiseless data."""
    if not exact:
        monkeypatch.setattr(ct, "MOST_RAYS", 0)
    operator = ct.ParallelBeam(4, cg_steps=60)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 10, 10, 1)).astype(np.float32)
    mask, mu = np.ones((2, 1, 1, 1), bool), np.array([0.1, 0.01], np.float32)
    damped = jax.jit(operator.get_damped_inverse(mask, None))(x, mu)
    np.testing.assert_allclose(operator.normal(damped, mask, None) + mu[:, None, None, None] * damped, x, atol=1e-4)
    y = operator.forward(x, mask, None)
    back = jax.jit(operator.get_pinv(mask, None))(y)
    np.testing.assert_allclose(operator.forward(back, mask, None), y, atol=1e-5 if exact else 1e-3)


def test_masked_rays_are_not_read():
    operator = ct.ParallelBeam(6)
    rng = np.random.default_rng(2)
    x, shape = rng.standard_normal((1, 8, 8, 1)).astype(np.float32), operator.measurement_shape((1, 8, 8, 1))
    mask = rng.random(shape) < 0.6
    y = operator.forward(x, mask, None)
    assert np.all(np.asarray(y)[~mask] == 0) and y.shape == shape
    loud = jnp.where(mask, y, 1e6)
    for inverse in map(jax.jit, (operator.get_pinv(mask, None), lambda y: operator.adjoint(y, mask, None))):
        np.testing.assert_allclose(inverse(loud), inverse(y), atol=1e-5)
