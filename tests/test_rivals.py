"""The rivals of MSM on the same seam: SSDU, ambient diffusion and A-DPS, DPS, DDNM; exact cases, then whole runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import losses
import ssdu
from configs import brain64_ambient, brain64_ssdu
from infra.config_check import find_problems
from models.denoiser import Denoised
from operators.acquisition import Acquisition
from operators.masks import get_masks
from operators.measurement import Measurement
from operators.transform import Identity
from tests.test_losses import PARAMS, SIZE, parts, toy_config, toy_measurement


def rival_config(loss="ssdu"):
    config = toy_config()
    config.loss.name, config.data.augment = loss, ()
    return config


def pixels(seed=0, count=2, size=8):
    """Noiseless images with half of their pixels, and the images."""
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((count, size, size, 3)).astype(np.float32)
    mask = rng.random((count, size, size, 1)) < 0.5
    ids = np.arange(count, dtype=np.int32)
    return Measurement(np.where(mask, images, 0), mask, None, np.zeros(count, np.float32), ids), images


@pytest.mark.parametrize("share", [0.01, 0.4, 0.99])
def test_split_shares_out_the_lines_and_spares_the_calibration(share):
    always = get_masks(toy_config()).inclusion_probability() >= 1.0
    masks = jnp.asarray(toy_measurement(8).mask)
    theta, judged = jax.vmap(lambda k, m: ssdu.split(k, m, always, share))(
        jax.random.split(jax.random.key(0), 8), masks
    )
    assert not np.any(theta & judged) and np.array_equal(theta | judged, masks)
    assert not np.any(judged & always)
    free = np.sum(masks & ~always, axis=(1, 2, 3))
    np.testing.assert_array_equal(
        np.sum(judged, axis=(1, 2, 3)), np.clip(np.round(share * free), np.minimum(1, free), free)
    )


def test_ssdu_network_never_sees_the_lines_it_is_judged_on():
    """Other values on Lambda change the loss, and not one bit of what the network is given."""
    config, seen = rival_config(), []
    schedule, transform, masks, denoise = parts(config)
    m, key = toy_measurement(), jax.random.key(2)
    always = masks.inclusion_probability() >= 1.0
    keys = losses.split_keys(losses.example_keys(key, m.example_id), 1)
    _, judged = jax.vmap(lambda k, mask: ssdu.split(k, mask, always, config.ssdu.share))(keys, jnp.asarray(m.mask))

    def spy(params, s_t, mask, maps, t):
        jax.debug.callback(lambda a: seen.append(np.asarray(a)), s_t)
        return denoise(params, s_t, mask, maps, t)

    loss = losses.get_loss_fn(config, schedule, transform, masks, spy)
    one = loss(PARAMS, m, key)
    other = loss(PARAMS, m.replace(y=np.where(judged, 3 * m.y, m.y).astype(np.complex64)), key)
    jax.effects_barrier()
    assert len(seen) == 2 and np.abs(seen[0]).max() > 0.1
    np.testing.assert_array_equal(seen[0], seen[1])
    assert np.all(np.abs(one - other) > 0.01)


def test_ssdu_data_consistency_is_the_damped_solution_and_so_is_its_derivative():
    """C(v) solves (H^H H + mu) x = H^H y + mu v, here with mu 1; dC/dv is self-adjoint."""
    m, transform = toy_measurement(2), parts(rival_config())[1]
    operator, mu, rng = Acquisition(transform), jnp.ones(2), np.random.default_rng(1)
    v, w = (jnp.asarray((rng.standard_normal((2, 2, SIZE, SIZE)) @ np.eye(SIZE)).astype(np.float32)) for _ in range(2))
    v, w = v[:, 0] + 1j * v[:, 1], w[:, 0] + 1j * w[:, 1]
    consistent = ssdu.get_consistency(operator, m.y, m.mask, m.maps, mu)
    x, transposed = jax.vjp(consistent, v)
    np.testing.assert_allclose(
        operator.normal(x, m.mask, m.maps) + x, operator.adjoint(m.y, m.mask, m.maps) + v, atol=1e-4
    )
    (back,) = transposed(jnp.conj(w))
    np.testing.assert_allclose(jnp.conj(back), consistent(w) - consistent(0 * w), atol=1e-4)


def test_ssdu_loss_and_its_gradient_are_zero_at_the_exact_reconstruction():
    m, _ = pixels()
    value, gradient = jax.value_and_grad(lambda v: jnp.sum(ssdu.normalised_loss(v, m.y, m.mask)))(jnp.asarray(m.y))
    assert value == 0 and not np.any(gradient)
    np.testing.assert_allclose(ssdu.normalised_loss(1.5 * m.y, m.y, m.mask), 1.0, rtol=1e-5)  # 0.5 in both norms
    np.testing.assert_array_equal(ssdu.normalised_loss(m.y, m.y, np.zeros_like(m.mask)), 0)


def test_ambient_loss_judges_what_it_hides_and_is_least_for_the_conditional_mean():
    """A network that fills hidden entries by c times the mean of the given ones: the loss is least at their regression.

    Images are constant, so that the conditional mean fills every hidden entry by the (nearly noiseless) given value.
    """
    config = rival_config("ambient")
    config.transform.name, config.data.num_coils = "identity", 0
    config.masks.name, config.masks.grid, config.masks.drop = "random_boxes", 4, 6
    schedule, _, masks, _ = parts(rival_config("ambient"))
    schedule = dataclasses.replace(schedule, sigma_min=1e-4, log_sigma_mean=-7.0, log_sigma_std=0.0)
    masks, count = get_masks(config), 4
    y = np.ones((count, SIZE, SIZE, 3), np.float32) * np.asarray([-1, 0.5, 1, 2], np.float32)[:, None, None, None]
    mask = jax.vmap(masks.sample)(jax.random.split(jax.random.key(0), count))
    m = Measurement(np.where(mask, y, 0), mask, None, np.zeros(count, np.float32), np.arange(count, dtype=np.int32))
    shares = []

    def denoise(c, s_t, mask, maps, t):
        jax.debug.callback(lambda a: shares.append(float(a)), jnp.mean(mask))
        mean = jnp.sum(jnp.where(mask, s_t, 0), axis=(1, 2, 3), keepdims=True) / (
            3 * jnp.sum(mask, (1, 2, 3), keepdims=True)
        )
        z0 = jnp.where(mask, s_t, c * mean)
        return Denoised(s0=jnp.where(mask, z0, 0), eps=s_t, z0=z0)

    loss = losses.get_loss_fn(config, schedule, Identity(), masks, denoise)
    total = jax.jit(lambda c: jnp.sum(loss(c, m, jax.random.key(1))))
    slope = jax.grad(total)
    assert total(1.0) < 1e-3 * total(0.0) and abs(slope(1.0)) < 1e-2 * abs(slope(0.0))
    jax.effects_barrier()
    assert shares[0] < 0.9 * np.mean(mask)  # the network was given less than was acquired


@pytest.mark.parametrize("name", ["ssdu", "ambient"])
def test_losses_read_acquired_entries_alone_and_no_batch_mates(name):
    config = rival_config(name)
    config.data.augment = ("flip", "shift", "phase")
    loss = jax.jit(losses.get_loss_fn(config, *parts(config)))
    m, key = toy_measurement(), jax.random.key(3)
    together = loss(PARAMS, m, key)
    garbage = m.replace(y=np.where(m.mask, m.y, 1e3 + 1j).astype(np.complex64))
    np.testing.assert_allclose(loss(PARAMS, garbage, key), together, rtol=1e-4)
    alone = loss(PARAMS, jax.tree.map(lambda a: a[1:2], m), key)
    np.testing.assert_allclose(alone[0], together[1], rtol=1e-4)


def test_every_solver_is_told_apart_from_the_networks_it_cannot_use():
    config = brain64_ssdu.get_config()
    assert find_problems(config, "train") == find_problems(config, "eval") == []
    config.eval.solvers, config.loss.redraw = ("msm", "a_dps"), True
    told = "; ".join(find_problems(config, "eval"))
    assert "eval.solvers names 'msm': loss.name 'ssdu' trains no denoiser" in told and "loss.redraw is True" in told
    config = brain64_ambient.get_config()
    assert find_problems(config, "train") == find_problems(config, "eval") == find_problems(config, "tune") == []
    config.training.picture_solver, config.loss.ambient_keep = "ssdu", 1.0
    told = "; ".join(find_problems(config, "train"))
    assert "its network is trained by loss.name 'ssdu', not 'ambient'" in told and "must hide some entries" in told
