"""The MSM loss and the optimiser step: exact values on toys, independence of batch-mates and devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msm import losses
from msm.configs.default import get_config
from msm.models.denoiser import get_denoise_fn, get_loss_weight, get_wiener
from msm.operators.conjugate_gradient import conjugate_gradient
from msm.operators.masks import get_masks
from msm.operators.measurement import Measurement
from msm.operators.transform import get_transform, normal
from msm.sde_lib import get_schedule
from tests.helpers.toy_data import column_masks, phantom, smooth_coils

SIZE = 16


def toy_measurement(batch=4, coils=3):
    maps = np.broadcast_to(smooth_coils(SIZE, coils), (batch, coils, SIZE, SIZE))
    mask = column_masks(SIZE, batch, acs=4)
    full = get_transform(toy_config()).forward(jnp.asarray(phantom(SIZE, batch)), jnp.asarray(maps))
    y = np.where(mask, full, 0).astype(np.complex64)
    return Measurement(
        y, mask, maps.copy(), np.full(batch, 0.02, np.float32), np.arange(10, 10 + batch, dtype=np.int32)
    )


def toy_config():
    config = get_config()
    config.data.image_size, config.masks.acs_lines, config.training.num_steps = SIZE, 4, 100
    config.optim.warmup_steps = 10
    return config


def linear_net(params, images, time):
    """A stand-in network with the right signature: a 2x2 channel mix and a gain that depends on time."""
    return images @ params["mix"] * (1 + params["gain"] * time[:, None, None, None] / 1000)


PARAMS = {"mix": np.asarray([[0.3, -0.1], [0.2, 0.4]], np.float32), "gain": np.float32(0.5)}  # numpy: never donated


def parts(config):
    schedule, transform = get_schedule(config), get_transform(config)
    return schedule, transform, get_masks(config), get_denoise_fn(config, schedule, transform, linear_net)


@pytest.fixture(params=[("eps", "adjoint", "ddpm"), ("eps", "wiener", "ddpm"), ("edm", "wiener", "edm")], ids="-".join)
def config(request):
    config = toy_config()
    config.denoiser.parametrization, config.denoiser.sandwich, config.schedule.name = request.param
    return config


def test_loss_of_an_example_does_not_depend_on_its_batch_mates(config):
    loss_fn = losses.get_loss_fn(config, *parts(config))
    measurement, key = toy_measurement(), jax.random.key(3)
    together = loss_fn(PARAMS, measurement, key)
    for index in range(4):
        alone = loss_fn(PARAMS, jax.tree.map(lambda a, i=index: a[i : i + 1], measurement), key)
        np.testing.assert_allclose(alone[0], together[index], rtol=1e-5)
    assert len(np.unique(np.asarray(together))) == 4


def test_loss_never_reads_what_was_not_acquired(config):
    """Garbage outside the mask changes nothing: the mask decides, not the values."""
    loss_fn = losses.get_loss_fn(config, *parts(config))
    measurement, key = toy_measurement(), jax.random.key(3)
    garbage = measurement.replace(y=np.where(measurement.mask, measurement.y, 1e3 + 1j).astype(np.complex64))
    np.testing.assert_allclose(loss_fn(PARAMS, garbage, key), loss_fn(PARAMS, measurement, key), rtol=1e-5)


def test_thinning_keeps_the_calibration_lines_under_every_symmetry():
    """A mirrored k-space has its calibration lines elsewhere; the loss must still see as many as were acquired."""
    config = toy_config()
    config.data.augment, config.loss.min_keep = ("flip",), 1e-6
    schedule, transform, masks, denoise = parts(config)
    seen = []

    def spy(params, s_t, mask, maps, t):
        seen.append(mask)
        return denoise(params, s_t, mask, maps, t)

    loss_fn = losses.get_loss_fn(config, schedule, transform, masks, spy)
    acs = np.flatnonzero(np.asarray(masks.inclusion_probability()).ravel() >= 1)
    mirrored = (2 * (SIZE // 2) - acs) % SIZE
    assert set(acs) != set(mirrored)
    for seed in range(4):
        loss_fn(PARAMS, toy_measurement(), jax.random.key(seed))
    for mask in np.concatenate([np.asarray(m)[:, 0, 0] for m in seen]):
        assert mask[acs].all() or mask[mirrored].all()


def test_perfect_denoiser_has_no_loss_and_reductions_differ_by_the_share_observed(config):
    schedule, transform, _, denoise = parts(config)
    m = toy_measurement()
    noise = transform.noise(jax.random.key(0), m.y.shape)
    t = jnp.asarray(schedule.grid(6)[1:5])
    weight = get_loss_weight(config)

    def perfect(s_t, mask, maps, t):
        out = denoise(PARAMS, s_t, mask, maps, t)
        return out.replace(s0=jnp.where(mask, m.y, 0))

    def loss_of(network, reduction="observed"):
        return losses.msm_loss(losses.Problem(network, schedule, transform, weight, reduction), m, noise, t)

    np.testing.assert_allclose(loss_of(perfect), 0, atol=1e-9)
    bound = lambda *a: denoise(PARAMS, *a)  # noqa: E731
    observed, every = (loss_of(bound, r) for r in ("observed", "all"))
    np.testing.assert_allclose(every / observed, m.mask.mean((1, 2, 3)), rtol=1e-5)


def test_eps_parametrization_is_the_noise_loss():
    """With one coil sandwich and identity hold: the loss of 'eps' is mean |n - net|^2 on what was observed."""
    config = toy_config()
    config.denoiser.parametrization, config.denoiser.sandwich, config.schedule.name = "eps", "adjoint", "ddpm"
    schedule, transform, _, denoise = parts(config)
    m = toy_measurement(coils=1)
    m = m.replace(mask=np.ones_like(m.mask))
    noise, t = transform.noise(jax.random.key(0), m.y.shape), jnp.asarray([0.0, 200.0, 500.0, 900.0])
    zero = {"mix": jnp.zeros((2, 2)), "gain": jnp.zeros(())}
    problem = losses.Problem(lambda *a: denoise(zero, *a), schedule, transform, get_loss_weight(config))
    value = losses.msm_loss(problem, m, noise, t)
    np.testing.assert_allclose(value, np.mean(np.abs(noise) ** 2, axis=(1, 2, 3)) / 2, rtol=2e-3)


def test_wiener_is_the_white_prior_posterior_mean_and_the_skip_term_for_one_coil():
    config = toy_config()
    config.denoiser.cg_steps = 40
    _, transform, _, _ = parts(config)
    wiener = get_wiener(config.denoiser, transform)
    m = toy_measurement(batch=2, coils=3)
    sigma = jnp.asarray([0.05, 0.8])
    x = wiener(jnp.asarray(m.y), m.mask, m.maps, sigma)
    damping = (sigma / config.denoiser.sigma_data)[:, None, None] ** 2
    left = normal(transform, x, m.mask, m.maps) + damping * x
    np.testing.assert_allclose(left, transform.adjoint(m.y, m.maps), atol=2e-4)
    one = toy_measurement(batch=2, coils=1)
    s0 = transform.forward(wiener(jnp.asarray(one.y), one.mask, one.maps, sigma), one.maps)
    skip = 1 / (1 + (sigma / config.denoiser.sigma_data) ** 2)
    np.testing.assert_allclose(np.where(one.mask, s0, 0), skip[:, None, None, None] * one.y, atol=2e-4)


def test_conjugate_gradient_solves_each_example_and_survives_zero():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((3, 6, 6))
    a = jnp.asarray(a @ a.transpose(0, 2, 1) + np.eye(6), jnp.float32)
    b = jnp.asarray(rng.standard_normal((3, 6)), jnp.float32).at[1].set(0)
    x = conjugate_gradient(lambda v: jnp.einsum("bij,bj->bi", a, v), b, 12)
    np.testing.assert_allclose(x, np.linalg.solve(a, b[..., None])[..., 0], atol=1e-3)
