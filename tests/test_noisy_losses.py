"""Training on noisy measurements, the oracle and the redraw ablation, on white Gaussian data whose denoiser is known.

For s = x + rho n with x ~ N(0, v) per scalar the denoiser is D_sigma(u) = v / (v + sigma^2) u. The stand-in denoiser
here multiplies by theta v / (v + sigma^2), so that theta = 1 is the truth, and gradients in theta say everything.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msm import losses
from msm.models.denoiser import Denoised, get_denoise_fn, get_loss_weight
from msm.operators import randomness
from msm.operators.masks import get_masks
from msm.operators.measurement import Measurement
from msm.operators.operator import per_example
from msm.operators.transform import get_transform
from msm.sde_lib import get_schedule
from tests.test_losses import PARAMS, SIZE, linear_net, parts, toy_config, toy_measurement

VARIANCE, RHO, BATCH, COILS = 0.5, 0.3, 64, 2


def toy(schedule="edm", count=BATCH):
    """(config, schedule, transform, x, noisy s, mask): white coil images, which the identity-like maps leave white."""
    config = toy_config()
    config.schedule.name = schedule
    rng = np.random.default_rng(0)
    shape = (count, COILS, SIZE, SIZE)
    x, n = (rng.normal(size=shape) + 1j * rng.normal(size=shape) for _ in range(2))
    mask = rng.random((count, 1, 1, SIZE)) < 0.5
    x = (np.sqrt(VARIANCE) * x).astype(np.complex64)
    s = np.where(mask, x + RHO * n, 0).astype(np.complex64)
    return config, get_schedule(config), get_transform(config), x, s, mask


def scaled_truth(schedule, theta, variance=VARIANCE):
    """denoise(s_t, mask, maps, t) that returns theta times the exact posterior mean of white data of `variance`."""

    def denoise(s_t, mask, maps, t):
        sigma = per_example(schedule.sigma(t), s_t)
        u = jnp.where(mask, s_t / per_example(schedule.alpha(t), s_t), 0)
        s0 = theta * variance / (variance + sigma**2) * u
        return Denoised(s0=s0, eps=(u - s0) / sigma, z0=s0)

    return denoise


@functools.partial(jax.jit, static_argnums=(1,))
def terms(theta, schedule_name, sigma, count=None):
    """(denoising term, risk) of `msm_sure_loss`, each (B,), unweighted, at noise level sigma."""
    _, schedule, transform, _, s, mask = toy(schedule_name)
    keys = jax.vmap(jax.random.key)(jnp.arange(BATCH))
    noise, probe = (randomness.draw_noise(transform, randomness.split_keys(keys, n), s.shape) for n in (3, 5))
    t, rho = jnp.full(BATCH, schedule.level(sigma)), jnp.full(BATCH, RHO)
    problem = losses.Problem(scaled_truth(schedule, theta), schedule, transform, jnp.ones_like)
    measurement = Measurement(s, mask, None, rho, jnp.arange(BATCH))
    return losses.msm_sure_loss(problem, measurement, noise, probe, t, 0.005, count=count)


def zero_within_error(values, sigmas=4.0):
    """The mean of independent values is zero within its standard error."""
    values = np.asarray(values, np.float64)
    return abs(values.mean()) < sigmas * values.std(ddof=1) / np.sqrt(len(values))


def gradient_in_theta(term, theta, *args, **options):
    """(B,) derivative of each example's term by theta: linear in theta, so a central difference is exact."""
    high, low = (np.asarray(terms(theta + step, *args, **options)[term], np.float64) for step in (0.5, -0.5))
    return high - low


@pytest.mark.parametrize("schedule", ["edm", "ddpm"])
def test_above_the_noise_the_gradient_vanishes_at_the_true_denoiser_and_nowhere_near(schedule):
    for sigma in (0.5, 2.0):
        assert zero_within_error(gradient_in_theta(0, 1.0, schedule, sigma))
        for theta in (0.9, 1.1):
            gradient = gradient_in_theta(0, theta, schedule, sigma)
            assert not zero_within_error(gradient)
            assert np.sign(gradient.mean()) == np.sign(theta - 1)


def test_below_the_noise_the_target_is_the_denoised_measurement_and_carries_no_gradient():
    """y1 = D_rho(s) has variance v' = v^2 / (v + rho^2); at lower noise the minimiser is the denoiser of that."""
    _, schedule, transform, _, s, mask = toy()
    sigma, less = 0.1, VARIANCE**2 / (VARIANCE + RHO**2)
    noise = randomness.draw_noise(transform, jax.vmap(jax.random.key)(jnp.arange(BATCH)), s.shape)
    t, rho = jnp.full(BATCH, schedule.level(jnp.float32(sigma))), jnp.full(BATCH, RHO)

    @jax.jit
    def fit(at_rho, below):
        """The denoising term of at_rho times the truth at rho, and below times the denoiser of y1 at sigma."""

        def denoise(s_t, mask, maps, t):
            first = scaled_truth(schedule, at_rho)(s_t, mask, maps, t)
            then = scaled_truth(schedule, below, less)(s_t, mask, maps, t)
            noisy = per_example(schedule.sigma(t) > 0.2, s_t)
            return jax.tree.map(lambda a, b: jnp.where(noisy, a, b), first, then)

        problem = losses.Problem(denoise, schedule, transform, jnp.ones_like)
        measurement = Measurement(s, mask, None, rho, jnp.arange(BATCH))
        return losses.msm_sure_loss(problem, measurement, noise, noise, t, 0.005)[0]

    assert zero_within_error(fit(1.0, 1.5) - fit(1.0, 0.5))
    assert not zero_within_error(fit(1.0, 1.6) - fit(1.0, 0.6))
    assert np.asarray(fit(1.0, 1.0)).mean() == pytest.approx(less * sigma**2 / (less + sigma**2), rel=0.05)
    assert float(jax.grad(lambda theta: jnp.sum(fit(theta, 1.0)))(1.0)) == 0.0
    assert float(jax.grad(lambda theta: jnp.sum(fit(1.0, theta)))(1.3)) > 0.0


@pytest.mark.parametrize("schedule", ["edm", "ddpm"])
@pytest.mark.parametrize("theta", [0.5, 1.0, 1.4])
def test_risk_estimate_equals_the_true_error(schedule, theta):
    _, _, _, x, s, mask = toy(schedule)
    risk = np.asarray(terms(theta, schedule, 1.0)[1], np.float64)
    gain = theta * VARIANCE / (VARIANCE + RHO**2)
    inside = np.broadcast_to(mask, s.shape)
    true = np.array([np.mean(np.abs(gain * s - x)[i][inside[i]] ** 2) / 2 for i in range(BATCH)])
    assert zero_within_error(risk - true)
    exact = (gain - 1) ** 2 * VARIANCE + gain**2 * RHO**2
    assert risk.mean() == pytest.approx(exact, abs=4 * risk.std() / np.sqrt(BATCH))


def test_risk_is_least_at_the_true_denoiser():
    assert zero_within_error(gradient_in_theta(1, 1.0, "edm", 1.0))
    assert not zero_within_error(gradient_in_theta(1, 1.2, "edm", 1.0))


def test_the_published_count_is_wrong_by_the_factors_that_the_method_page_names():
    config = toy_config()
    shape = (BATCH, COILS, SIZE, SIZE)
    mri = losses.published_count(config, get_transform(config), shape)
    assert mri == 2 * SIZE**2 / config.masks.acceleration
    config.transform.name, config.masks.name, config.masks.grid, config.masks.drop = "identity", "random_boxes", 4, 6
    assert losses.published_count(config, get_transform(config), (1, SIZE, SIZE, 3)) == 2.5 * 3 * SIZE**2
    right, wrong = (terms(1.0, "edm", 1.0, count=c)[1] for c in (None, mri))
    assert not np.allclose(right, wrong)


def noisy_config(name="msm_sure"):
    config = toy_config()
    config.loss.name = name
    return config


@pytest.mark.parametrize(("parametrization", "schedule"), [("eps", "ddpm"), ("edm", "edm")])
def test_noisy_loss_of_an_example_depends_on_nothing_but_the_example(parametrization, schedule):
    """Neither on batch-mates nor on values outside its mask; and its own noise level counts."""
    config = noisy_config()
    config.denoiser.parametrization, config.schedule.name = parametrization, schedule
    loss_fn = losses.get_loss_fn(config, *parts(config))
    m, key = toy_measurement(), jax.random.key(3)
    m = m.replace(noise_std=np.array([0.02, 0.05, 0.1, 0.3], np.float32))
    together = loss_fn(PARAMS, m, key)
    for index in range(4):
        alone = loss_fn(PARAMS, jax.tree.map(lambda a, i=index: a[i : i + 1], m), key)
        np.testing.assert_allclose(alone[0], together[index], rtol=2e-4)
    garbage = m.replace(y=np.where(m.mask, m.y, 1e3 + 1j).astype(np.complex64))
    np.testing.assert_allclose(loss_fn(PARAMS, garbage, key), together, rtol=1e-5)
    louder = np.asarray(loss_fn(PARAMS, m.replace(noise_std=2 * m.noise_std), key))
    assert (louder != np.asarray(together)).all()  # little where sigma is far above the noise
    assert not np.isclose(louder, together, rtol=1e-3).all()


def test_noisy_loss_is_the_weighted_sum_of_its_terms_in_two_network_calls():
    config, calls = noisy_config(), []
    config.loss.min_keep, config.data.augment = 1.0, ()
    schedule, transform, masks, denoise = parts(config)

    def spy(params, s_t, mask, maps, t):
        calls.append(s_t.shape[0])
        return denoise(params, s_t, mask, maps, t)

    m, key = toy_measurement(), jax.random.key(1)
    total = losses.get_loss_fn(config, schedule, transform, masks, spy)(PARAMS, m, key)
    assert calls == [8, 4]
    config.loss.sure_weight = 0.0
    fit = losses.get_loss_fn(config, schedule, transform, masks, denoise)(PARAMS, m, key)
    keys = randomness.example_keys(key, m.example_id)
    t = jax.vmap(schedule.sample)(randomness.split_keys(keys, 2))
    noise, probe = (randomness.draw_noise(transform, randomness.split_keys(keys, n), m.y.shape) for n in (3, 5))
    problem = losses.Problem(lambda *a: denoise(PARAMS, *a), schedule, transform, get_loss_weight(config))
    first, risk = losses.msm_sure_loss(problem, m, noise, probe, t, 0.005)
    np.testing.assert_allclose(fit, first, rtol=1e-5)
    at_rho = get_loss_weight(config)(m.noise_std)
    np.testing.assert_allclose(total - fit, 0.05 * at_rho * risk, rtol=1e-3, atol=1e-3 * float(np.abs(total).max()))


def full_measurement(batch=4):
    """Fully sampled, noiseless scans; maps cover the whole image, so that T^H T = I."""
    m = toy_measurement(batch)
    config = toy_config()
    transform = get_transform(config)
    x = jax.random.normal(jax.random.key(5), (batch, SIZE, SIZE)) * (0.3 + 0.1j)
    y = np.asarray(transform.forward(x.astype(jnp.complex64), m.maps))
    return m.replace(y=y, mask=np.ones_like(m.mask), noise_std=np.zeros(batch, np.float32)), x


def test_oracle_loss_is_the_plain_noise_loss_on_images():
    """With 'eps' and 'adjoint', weight 1/sigma^2: mean |n - net(alpha (x + sigma n), t)|^2 (Ho et al. 2020)."""
    config = noisy_config("dsm")
    config.data.augment = ()
    config.denoiser.parametrization, config.denoiser.sandwich, config.schedule.name = "eps", "adjoint", "ddpm"
    config.schedule.train_stride = 1
    schedule, transform = get_schedule(config), get_transform(config)
    denoise = get_denoise_fn(config, schedule, transform, linear_net)
    m, x = full_measurement()
    key = jax.random.key(2)
    loss = losses.get_loss_fn(config, schedule, transform, get_masks(config), denoise)(PARAMS, m, key)
    keys = randomness.example_keys(key, m.example_id)
    t = jax.vmap(schedule.sample)(randomness.split_keys(keys, 2))
    n = randomness.draw_noise(transform, randomness.split_keys(keys, 3), x.shape)
    x_t = schedule.alpha(t)[:, None, None] * (x + schedule.sigma(t)[:, None, None] * n)
    eps = transform.from_channels(linear_net(PARAMS, transform.to_channels(x_t), t))
    np.testing.assert_allclose(loss, jnp.mean(jnp.abs(n - eps) ** 2, axis=(1, 2)) / 2, rtol=1e-3)


def test_redraw_makes_fresh_acquisitions_of_the_requested_kind():
    config = noisy_config("msm")
    config.data.augment, config.loss.min_keep = (), 1.0
    config.loss.redraw, config.loss.redraw_noise_std = True, 0.1
    _, transform, masks, _ = parts(config)
    m, _ = full_measurement(batch=64)
    m = m.replace(example_id=np.arange(64, dtype=np.int32))
    prepare = losses.get_prepare_fn(config, transform, masks)
    one, two = (prepare(randomness.example_keys(jax.random.key(k), m.example_id), m) for k in range(2))
    assert isinstance(one, Measurement) and not np.array_equal(one.mask, two.mask)
    probability = np.asarray(masks.inclusion_probability())
    drawn = np.concatenate([one.mask, two.mask]).mean(axis=0)
    assert np.all(np.abs(drawn - probability) < 5 * np.sqrt(probability * (1 - probability) / 128) + 1e-6)
    inside = np.broadcast_to(one.mask, one.y.shape)
    assert np.all(np.asarray(one.y)[~inside] == 0)
    noise = (np.asarray(one.y) - m.y)[inside]
    assert np.std(noise.real) == pytest.approx(0.1, rel=0.02) and np.std(noise.imag) == pytest.approx(0.1, rel=0.02)
    np.testing.assert_array_equal(one.noise_std, np.float32(0.1))


def test_without_redraw_the_stored_mask_and_noise_are_all_there_is():
    config = noisy_config("msm")
    config.data.augment, config.loss.min_keep = (), 1.0
    _, transform, masks, _ = parts(config)
    m = toy_measurement()
    prepared = losses.get_prepare_fn(config, transform, masks)(jax.vmap(jax.random.key)(jnp.arange(4)), m)
    np.testing.assert_array_equal(prepared.y, m.y)
    np.testing.assert_array_equal(prepared.mask, m.mask)


def test_oracle_and_msm_loss_are_one_where_nothing_is_missing():
    """On images T is the identity: with a mask of ones both losses see the same noise and the same network call."""
    config = noisy_config("msm")
    config.data.augment, config.loss.min_keep = (), 1.0
    config.transform.name, config.masks.name, config.masks.grid, config.masks.drop = "identity", "random_boxes", 4, 6
    schedule, transform = get_schedule(config), get_transform(config)
    denoise = get_denoise_fn(config, schedule, transform, lambda params, images, time: images @ params)
    mix = np.asarray([[0.3, -0.1, 0.0], [0.2, 0.4, 0.1], [0.0, 0.1, 0.2]], np.float32)
    y = np.random.default_rng(0).uniform(-1, 1, (3, SIZE, SIZE, 3)).astype(np.float32)
    ids = np.arange(3, dtype=np.int32)
    m = Measurement(y, np.ones((3, SIZE, SIZE, 1), bool), None, np.zeros(3, np.float32), ids)
    one, other = (
        losses.LOSSES[name](config, schedule, transform, get_masks(config), denoise)(mix, m, jax.random.key(4))
        for name in ("msm", "dsm")
    )
    np.testing.assert_allclose(one, other, rtol=1e-5)
