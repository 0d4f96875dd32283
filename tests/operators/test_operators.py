"""Laws of the operators: unitarity, adjoints, linearity, mask statistics, symmetries. Complex arithmetic, toy sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from msm.infra.errors import UserError
from msm.operators import augment, poisson_disc
from msm.operators.fourier import fft2c, ifft2c
from msm.operators.masks import MASKS, get_masks, mask_sequence
from msm.operators.measurement import Measurement
from msm.operators.transform import TRANSFORMS, get_transform, normal


def complex_normal(rng, shape):
    return jnp.asarray(rng.standard_normal((*shape, 2)).astype(np.float32).view(np.complex64)[..., 0])


def inner(a, b):
    return complex(jnp.vdot(a, b))


@pytest.mark.parametrize("shape", [(8, 8), (6, 10), (7, 7), (9, 6), (5, 8), (64, 64)])
def test_fft_is_centred_orthonormal_and_unitary(shape):
    rng = np.random.default_rng(0)
    x = complex_normal(rng, (2, *shape))
    expected = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(x, axes=(-2, -1)), norm="ortho"), axes=(-2, -1))
    np.testing.assert_allclose(fft2c(x), expected, atol=2e-6)
    np.testing.assert_allclose(ifft2c(fft2c(x)), x, atol=2e-6)
    k = complex_normal(rng, (2, *shape))
    assert abs(inner(fft2c(x), k) - inner(x, ifft2c(k))) < 1e-4 * abs(inner(x, x))


def case(name, shape=(6, 10), coils=3):
    """(transform, x, z, maps) of random values for a registered transform."""
    rng = np.random.default_rng(1)
    transform = TRANSFORMS[name]()
    if transform.real_scalars == 1:
        shape = (2, *shape, transform.channels)
        x, z = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for _ in range(2))
        return transform, x, z, None
    maps = complex_normal(rng, (2, coils, *shape))
    maps = maps / jnp.sqrt(jnp.sum(jnp.abs(maps) ** 2, axis=1, keepdims=True))
    x, z = complex_normal(rng, (2, *shape)), complex_normal(rng, (2, coils, *shape))
    return transform, x.real.astype(x.dtype) if name == "real_fourier" else x, z, maps


def product(name, a, b):
    """The inner product in which a transform's adjoint is one: of real numbers for images without phase."""
    return inner(a, b).real if name == "real_fourier" else inner(a, b)


@pytest.mark.parametrize("shape", [(6, 10), (7, 9)])
@pytest.mark.parametrize("name", TRANSFORMS.names())
def test_transform_laws(name, shape):
    transform, x, z, maps = case(name, shape)
    forward, adjoint = transform.forward(x, maps), transform.adjoint(z, maps)
    assert forward.shape == z.shape and adjoint.shape == x.shape == transform.image_shape(z.shape)
    assert abs(product(name, forward, z) - product(name, x, adjoint)) < 1e-4 * abs(inner(x, x))
    scale = 2.0 - 0.5j if transform.channels == 2 else 2.0
    other = transform.forward(x[::-1], maps)
    np.testing.assert_allclose(transform.forward(scale * x + x[::-1], maps), scale * forward + other, atol=1e-5)
    np.testing.assert_allclose(transform.adjoint(forward, maps), x, atol=1e-5)  # T^H T = I on the maps' support
    np.testing.assert_array_equal(transform.from_channels(transform.to_channels(x)), x)
    assert transform.to_channels(x).shape == (*x.shape[:3], transform.channels)


@pytest.mark.parametrize("shape", [(6, 10), (7, 9)])
@pytest.mark.parametrize("name", TRANSFORMS.names())
def test_normal_operator_is_hermitian_and_between_0_and_1(name, shape):
    transform, x, _, maps = case(name, shape)
    rng = np.random.default_rng(2)
    mask = rng.random((2, 1, 1, shape[1]) if maps is not None else (2, *shape, 1)) < 0.4
    ax = normal(transform, x, mask, maps)
    there_and_back = transform.adjoint(jnp.where(mask, transform.forward(x, maps), 0), maps)
    np.testing.assert_allclose(ax, there_and_back, atol=1e-5)
    assert abs(inner(x, ax).imag) < 1e-3 and 0 <= inner(x, ax).real <= inner(x, x).real
    y = x[::-1]
    assert abs(product(name, y, ax) - product(name, normal(transform, y, mask, maps), x)) < 1e-3 * abs(inner(x, x))


def test_transform_noise_has_unit_variance_per_real_scalar():
    for name in TRANSFORMS.names():
        transform = TRANSFORMS[name]()
        n = np.asarray(transform.noise(jax.random.key(0), (4, 50, 50)))
        parts = [n.real, n.imag] if transform.real_scalars == 2 else [n]
        for part in parts:
            assert abs(part.std() - 1) < 0.03 and abs(part.mean()) < 0.05


def test_unknown_transform_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'multicoil_fourier'"):
        get_transform(ConfigDict({"transform": {"name": "multicoil_fourrier"}}))


def mask_config(name, size=16):
    masks = {"name": name, "acceleration": 4.0, "acs_lines": 4, "grid": 4, "drop": 6}
    return ConfigDict({"masks": masks, "data": {"image_size": size}})


@pytest.mark.parametrize("size", [16, 20])
@pytest.mark.parametrize("name", MASKS.names())
def test_inclusion_probability_is_the_mean_of_the_draws(name, size):
    masks = get_masks(mask_config(name, size))
    draws = 500 if name == "cartesian_poisson_disc" else 4000  # it takes as long
    drawn = np.asarray(jax.vmap(masks.sample)(jax.random.split(jax.random.key(1), draws)))
    assert drawn.dtype == bool and drawn.shape[1:] == masks.inclusion_probability().shape
    # five standard errors of a Bernoulli mean
    np.testing.assert_allclose(drawn.mean(0), masks.inclusion_probability(), atol=5 * 0.5 / np.sqrt(draws))


def test_random_cartesian_keeps_the_acs_and_lines_independently():
    masks = get_masks(mask_config("cartesian_random", 16))
    drawn = np.asarray(jax.vmap(masks.sample)(jax.random.split(jax.random.key(1), 6000)))[:, 0, 0]
    assert drawn[:, 6:10].all()
    outside = np.delete(drawn, np.s_[6:10], axis=1).astype(float)
    covariance = np.cov(outside.T)
    np.testing.assert_allclose(np.diag(covariance), 0.25 * 0.75, atol=0.02)
    np.testing.assert_allclose(covariance - np.diag(np.diag(covariance)), 0, atol=0.02)


@pytest.mark.parametrize("name", MASKS.names())
@pytest.mark.parametrize("density", [0.5, 1.0])
def test_sampling_masks_of_another_density(name, density):
    masks = get_masks(mask_config(name, 16), density=density)
    assert abs(float(masks.inclusion_probability().mean()) - density) < 0.07
    if density == 1.0:
        assert bool(jnp.all(masks.sample(jax.random.key(0))))


@pytest.mark.parametrize("name", MASKS.names())
def test_complementary_masks_cover_more_than_independent_ones(name):
    masks = get_masks(mask_config(name, 16))
    none = jnp.zeros(masks.inclusion_probability().shape, bool)

    def covered(key, order):
        return jnp.mean(jnp.any(mask_sequence(masks, key, 3, order, none)[0], axis=0))

    keys = jax.random.split(jax.random.key(2), 300)
    iid, complement = (float(jnp.mean(jax.vmap(lambda k, o=o: covered(k, o))(keys))) for o in ("iid", "complement"))
    assert complement > iid + 0.02


@pytest.mark.parametrize("size", [32, 33])
@pytest.mark.parametrize("acceleration", [3.0, 6.0])
def test_poisson_discs_keep_their_distance_and_number(size, acceleration):
    """No two points are nearer than the larger of their distances, and no further one would find room before lots."""
    config = mask_config("cartesian_poisson_disc", size)
    config.masks.acceleration = acceleration
    masks = get_masks(config)
    drawn = np.asarray(jax.vmap(masks.sample)(jax.random.split(jax.random.key(3), 20)))
    acs = poisson_disc.block((size, size), 4)
    points = round((size**2 - 16) / acceleration)
    assert drawn[:, 0, acs].all() and np.median(drawn.sum((1, 2, 3))) == points + 16
    assert (np.abs(drawn.sum((1, 2, 3)) - 16 - points) <= 0.02 * points).all()
    radius = np.asarray(poisson_disc.radii((size, size), masks.centre_radius))
    for mask in drawn[:5, 0]:
        places = np.argwhere(mask & ~acs)
        apart = np.hypot(*(places[:, None] - places).transpose(2, 0, 1)) + 1e9 * np.eye(len(places))
        own = radius[mask & ~acs]
        assert (apart >= np.maximum(own[:, None], own)).all()
    density = drawn[:, 0].mean(0)
    away = np.hypot(*np.indices((size, size)) - size // 2)
    assert density[away < size / 4].mean() > 1.5 * density[away > size / 2].mean()


def test_poisson_discs_are_what_visiting_the_points_one_by_one_gives():
    size, reach = 12, 4
    radius = np.asarray(poisson_disc.radii((size, size), 0.9))
    order = np.asarray(poisson_disc.draw_order(jax.random.key(5), (size, size)))
    open_ = ~poisson_disc.block((size, size), 2)
    taken = []
    for place in sorted((tuple(p) for p in np.argwhere(open_)), key=lambda p: order[p]):
        if all(np.hypot(place[0] - q[0], place[1] - q[1]) >= max(radius[place], radius[q]) for q in taken):
            taken.append(place)
    chosen = np.asarray(poisson_disc.choose(jnp.asarray(order), jnp.asarray(radius), jnp.asarray(open_), reach))
    assert {tuple(p) for p in np.argwhere(chosen)} == set(taken)


def test_variable_density_falls_from_the_centre_and_has_the_nominal_mean():
    masks = get_masks(mask_config("cartesian_variable_density", 64))
    p = np.asarray(masks.inclusion_probability())[0, 0]
    assert (np.diff(p[32:]) <= 0).all() and (p[30:34] == 1).all() and p.min() > 0
    np.testing.assert_allclose(np.delete(p, np.s_[30:34]).mean(), 0.25, rtol=1e-5)


def test_partial_fourier_leaves_a_quarter_of_one_side_out():
    masks = get_masks(mask_config("cartesian_partial_fourier", 64))
    drawn = np.asarray(jax.vmap(masks.sample)(jax.random.split(jax.random.key(4), 400)))[:, 0, 0]
    left, right = drawn[:, :16].any(1), drawn[:, 48:].any(1)
    assert not (left & right).any() and (drawn[:, 30:34]).all()
    assert 0.35 < left.mean() < 0.65
    assert abs(np.delete(drawn, np.s_[30:34], axis=1).mean() - 0.25) < 0.01


def test_complementary_masks_start_again_once_all_is_covered():
    masks = get_masks(mask_config("cartesian_equispaced", 16))
    none = jnp.zeros((1, 1, 16), bool)
    drawn, covered = mask_sequence(masks, jax.random.key(0), 4, "complement", none)
    assert bool(jnp.any(drawn, axis=0).all()) and not bool(covered.any())


@pytest.mark.parametrize("size", [32, 33])
@pytest.mark.parametrize("name", ["flip", "shift", "phase"])
def test_augmented_measurement_is_a_measurement_of_another_image(name, size):
    """The augmented y equals the augmented mask times T of some image, with the energy of the original."""
    rng = np.random.default_rng(3)
    transform, x, _, maps = case("multicoil_fourier", (size, size))
    mask = jnp.asarray(rng.random((2, 1, 1, size)) < 0.5)
    full = transform.forward(x, maps)
    y = jnp.where(mask, full, 0)
    apply = augment.get_augment_fn(ConfigDict({"data": {"augment": (name,)}}))
    keys = jax.random.split(jax.random.key(7), 2)
    noise_std, ids = jnp.zeros(2), jnp.arange(2)
    out = apply(keys, Measurement(y, mask, maps, noise_std, ids))
    whole = apply(keys, Measurement(full, jnp.ones_like(mask), maps, noise_std, ids))
    image = transform.adjoint(whole.y, whole.maps)
    np.testing.assert_allclose(transform.forward(image, out.maps), whole.y, atol=1e-5)
    np.testing.assert_allclose(out.y, jnp.where(out.mask, whole.y, 0), atol=1e-5)
    np.testing.assert_array_equal(out.mask.sum((1, 2, 3)), mask.sum((1, 2, 3)))
    assert not np.allclose(out.y, y)
    np.testing.assert_allclose(jnp.sort(jnp.abs(image).ravel()), jnp.sort(jnp.abs(x).ravel()), atol=1e-5)


def test_mirror_flips_image_and_mask_together():
    y = jnp.arange(12.0).reshape(1, 2, 2, 3)
    mask = jnp.asarray([[[[True], [False]], [[True], [True]]]])
    apply = augment.get_augment_fn(ConfigDict({"data": {"augment": ("mirror",)}}))
    results = {
        bool(out.mask[0, 0, 0, 0]): out
        for out in (
            apply(jax.random.split(jax.random.key(s), 1), Measurement(y, mask, None, None, None)) for s in range(8)
        )
    }
    assert set(results) == {True, False}
    np.testing.assert_array_equal(results[False].y, y[:, :, ::-1])
    np.testing.assert_array_equal(results[True].y, y)
