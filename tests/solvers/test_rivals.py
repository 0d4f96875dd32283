"""The rivals of MSM on the same seam: SSDU, ambient diffusion and A-DPS, DPS, DDNM; exact cases, then whole runs."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msm import losses, run_lib
from msm.configs import brain64_ambient, brain64_ssdu
from msm.configs.rules.check import find_problems
from msm.models import unrolled as ssdu
from msm.models.denoiser import Denoised
from msm.operators import randomness
from msm.operators.acquisition import Acquisition
from msm.operators.masks import get_masks
from msm.operators.measurement import Measurement
from msm.operators.transform import Identity
from msm.sde_lib import get_schedule
from msm.solvers import get_solver
from msm.solvers.dps import get_dps_update
from tests.helpers.tiny_model import register
from tests.test_losses import PARAMS, SIZE, parts, toy_config, toy_measurement
from tests.test_sampling import experiment


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
    keys = randomness.split_keys(randomness.example_keys(key, m.example_id), 1)
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


def gaussian_world(solver, **changes):
    """Four noisy-measured pixels of a white image of variance 4 and mean 0, whose exact denoiser is a gain."""
    config = rival_config("msm")
    config.eval.num_samples, config.schedule.sigma_max = 400, 10.0
    for path, value in changes.items():
        section, key = path.split("__")
        config[section][key] = value
    variance, size = 4.0, 2

    def denoise(params, s_t, mask, maps, t):
        z0 = jnp.where(mask, s_t, 0) * (variance / (variance + jnp.exp(2 * t)))[:, None, None, None]
        return Denoised(s0=z0, eps=(s_t - z0), z0=z0)

    transform = Identity()
    parts = {"config": config, "transform": transform, "operator": Acquisition(transform), "denoise": denoise}
    world = SimpleNamespace(**parts, schedule=get_schedule(config), masks=get_masks(config))
    mask = np.ones((1, size, size, 1), bool)
    mask[0, 0] = False
    y = np.where(mask, np.linspace(1, 2, size * size * 3).reshape(1, size, size, 3), 0).astype(np.float32)
    m = Measurement(y, mask, None, np.full(1, 1e-3, np.float32), np.zeros(1, np.int32))
    chosen = get_solver(config, world, solver)
    return jax.jit(chosen.solve)(jax.random.key(0), None, m, chosen.hyper), m, chosen


def test_dps_nears_the_posterior_of_a_gaussian():
    """White prior: measured pixels come near y, the others keep the prior's mean 0 and standard deviation 2."""
    samples, m, solver = gaussian_world("dps", dps__num_levels=100, dps__zeta=0.1)
    assert solver.nfe == solver.gradients == 100
    seen = np.broadcast_to(m.mask, m.y.shape)
    np.testing.assert_allclose(np.mean(samples, 0)[seen], m.y[seen], atol=0.1)
    assert np.all(np.std(samples, 0)[seen] < 0.3)
    np.testing.assert_allclose(np.mean(samples, 0)[~seen], 0, atol=0.35)  # 3.5 standard errors
    np.testing.assert_allclose(np.std(samples, 0)[~seen], 2.0, atol=0.3)


def test_dps_update_takes_the_published_step():
    """x0 = c u: the displacement is 2 zeta c H^H r / |r| for H = M T, with several coils and complex images."""
    m, transform = toy_measurement(2), parts(rival_config())[1]
    operator, c, zeta = Acquisition(transform), 0.5 + 0.2j, 0.3
    u = transform.noise(jax.random.key(5), (2, SIZE, SIZE))
    level = {"t": jnp.float32(0.0), "sigma": jnp.float32(1.0), "next": jnp.float32(0.0)}
    update = get_dps_update(operator, lambda v, mask, t: c * v, m, jnp.ones((2, 1, 1, 1), bool), zeta)
    moved = update(u, jnp.zeros_like(u), level)
    residual = m.y - operator.forward(c * u, m.mask, m.maps)
    norm = np.linalg.norm(np.reshape(residual, (2, -1)), axis=1)[:, None, None]
    expected = c * u + 2 * zeta * np.conj(c) * operator.adjoint(residual, m.mask, m.maps) / norm
    np.testing.assert_allclose(moved, expected, atol=1e-5)


def test_ddnm_keeps_measured_entries_exactly_and_draws_the_others():
    samples, m, solver = gaussian_world("ddnm")
    assert solver.nfe == 100 and solver.gradients == 0
    seen = np.broadcast_to(m.mask, m.y.shape)
    np.testing.assert_allclose(samples[:, seen], np.broadcast_to(m.y[seen], (400, seen.sum())), atol=1e-6)
    assert np.all(np.std(samples, 0)[~seen] > 0.5)


@pytest.mark.parametrize("mask", ["drawn", "own"])
def test_a_dps_network_sees_one_thinned_mask_per_sample_or_the_scans_own(mask):
    config, seen = rival_config("ambient"), []
    config.dps.mask, config.dps.num_levels, config.eval.num_samples = mask, 2, 2
    world, m = experiment(config), toy_measurement(2)

    def spy(params, s_t, mask, maps, t):
        jax.debug.callback(lambda a: seen.append(np.asarray(a)), mask)
        return Denoised(s0=s_t, eps=s_t, z0=jnp.where(mask, s_t, 0))

    world.denoise = spy
    solver = get_solver(config, world, "a_dps")
    samples = solver.solve(jax.random.key(0), None, m, solver.hyper)
    jax.effects_barrier()
    assert samples.shape == (2, 2, SIZE, SIZE) and np.all(np.isfinite(samples))
    one, other = seen
    np.testing.assert_array_equal(one, other)  # the same at every level
    assert one.shape == (4, 1, 1, SIZE)
    if mask == "own":
        np.testing.assert_array_equal(one, np.tile(m.mask, (2, 1, 1, 1)))
    else:
        assert len(np.unique(one, axis=0)) > 1 and one.mean() < 0.75


@pytest.mark.parametrize("name", ["ssdu", "ambient"])
def test_training_and_evaluation_need_no_clean_image(name, tiny_store, nan_reference_store, tmp_path):
    """Whole runs of a tiny network; with NaN for every reference, training is the same bit by bit."""
    register()
    module, solver = {"ssdu": (brain64_ssdu, "ssdu"), "ambient": (brain64_ambient, "a_dps")}[name]
    folders = []
    for store in (tiny_store, nan_reference_store):
        config = module.get_config("smoke")
        config.data.image_size, config.masks.acs_lines, config.data.dir = 32, 4, str(store)
        config.model.name, config.training.num_steps, config.eval.solvers = "tiny", 2, ("zero_filled", solver)
        folders.append(tmp_path / store.name)
        run_lib.train(config, str(folders[-1]))
    assert (folders[0] / "metrics.jsonl").read_bytes() == (folders[1] / "metrics.jsonl").read_bytes()
    config.data.dir = str(tiny_store)
    summary = run_lib.evaluate(config, str(folders[0]))
    assert np.isfinite(summary["solvers"][solver]["psnr"]["mean"])
