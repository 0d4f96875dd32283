"""The partial-score sampler and the MSM solver: exact cases, switches, independence of batch-mates, flat memory."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msm.configs.default import get_config
from msm.models.denoiser import Denoised, get_denoise_fn
from msm.operators.acquisition import Acquisition
from msm.operators.masks import get_masks
from msm.operators.operator import per_example
from msm.operators.randomness import example_keys
from msm.operators.transform import get_transform
from msm.sampling import SamplerSettings, get_sampler, get_sampling_fn
from msm.sde_lib import get_schedule
from msm.solvers import get_solver
from tests.oracle.test_gaussian import gaussian_denoiser
from tests.test_losses import PARAMS, SIZE, linear_net, toy_config, toy_measurement


def experiment(config):
    schedule, transform = get_schedule(config), get_transform(config)
    denoise = get_denoise_fn(config, schedule, transform, linear_net)
    return SimpleNamespace(
        config=config,
        schedule=schedule,
        transform=transform,
        operator=Acquisition(transform, config.solver.cg_steps),
        masks=get_masks(config),
        denoise=denoise,
    )


def solver_config(**changes):
    config = toy_config()
    config.solver.num_levels, config.eval.num_samples = 4, 2
    config.solver.update(changes)
    return config


KEYS = jax.random.split(jax.random.key(0), 2)

SWITCHES = [
    {"mask_keep": 1.0},
    {"mask_keep": 1.0, "start_sigma": 1.0},
    {"mask_keep": 0.0, "w": 3, "consistency": "entries"},
    {"mask_keep": 0.0, "w": 3, "mask_order": "complement"},
    {"mask_keep": 0.5, "w": 2, "reinject": True, "consistency": "entries"},
    {"mask_keep": 0.5, "w": 2, "step": "ddim"},
    {"mask_keep": 0.5, "w": 2, "weight": "population"},
    {"mask_keep": 0.5, "w": 2, "order": 2},
]


@pytest.mark.parametrize("changes", SWITCHES, ids=str)
def test_result_of_a_scan_does_not_depend_on_its_batch_mates(changes):
    config = solver_config(**changes)
    solver = get_solver(config, experiment(config), "msm")
    m, key = toy_measurement(), jax.random.key(1)
    solve = jax.jit(solver.solve)
    together = solve(key, PARAMS, m, solver.hyper)
    assert together.shape == (2, 4, SIZE, SIZE) and bool(jnp.all(jnp.isfinite(together)))
    alone = solve(key, PARAMS, jax.tree.map(lambda a: a[2:3], m), solver.hyper)
    np.testing.assert_allclose(alone[:, 0], together[:, 2], atol=2e-4)
    assert not np.allclose(together[0], together[1])  # samples differ
    swapped = solve(key, PARAMS, jax.tree.map(lambda a: a[::-1], m), solver.hyper)
    np.testing.assert_allclose(swapped[:, ::-1], together, atol=2e-4)


@pytest.mark.parametrize("changes", SWITCHES[:6], ids=str)
def test_full_noiseless_data_return_the_exact_image_whatever_the_network_says(changes):
    config = solver_config(**changes)
    config.solver.num_levels = 12  # enough draws that every line is covered
    m = toy_measurement()
    full = m.replace(mask=np.ones_like(m.mask), noise_std=np.zeros(4, np.float32))
    x = get_transform(config).adjoint(jnp.asarray(m.y), m.maps)
    full = full.replace(y=np.asarray(get_transform(config).forward(x, m.maps)))
    solver = get_solver(config, experiment(config), "msm")
    samples = solver.solve(jax.random.key(0), PARAMS, full, {**solver.hyper, "eta": 0.85})
    np.testing.assert_allclose(samples, np.broadcast_to(x, samples.shape), atol=1e-5)


def test_msm_fast_is_one_estimate_of_the_msm_solver_without_noise():
    """No key matters, samples are one, calls are levels; its own section has the settings, warm start included."""
    config = solver_config()
    config.msm_fast.update(num_levels=3, start_sigma=1.0, damping=2.0, symmetry=False)
    m, fast = toy_measurement(), get_solver(config, experiment(config), "msm_fast")
    assert (fast.num_samples, fast.nfe, fast.hyper["damping"]) == (1, 3, 2.0)
    assert fast.search.keys() == {"gamma", "damping"} and not fast.spread
    x = fast.solve(jax.random.key(0), PARAMS, m, fast.hyper)
    np.testing.assert_array_equal(x, fast.solve(jax.random.key(1), PARAMS, m, fast.hyper))
    config.solver.update(num_levels=3, start_sigma=1.0, damping=2.0, step="plug_and_play", variance="white")
    same = get_solver(config, experiment(config), "msm")
    np.testing.assert_allclose(x, same.solve(jax.random.key(0), PARAMS, m, same.hyper), atol=1e-6)
    assert config.eval.num_samples == 2  # the preset does not change what others see


def test_a_finishing_call_returns_the_networks_own_estimate_of_what_the_others_found():
    """At `finish_sigma`, counted as a call: one more denoising of the shorter run's result, not moved to the data."""
    config, m = solver_config(), toy_measurement()
    config.msm_fast.update(num_levels=2, start_sigma=1.0, symmetry=False)
    exp = experiment(config)
    solver = get_solver(config, exp, "msm_fast")
    found = solver.solve(jax.random.key(0), PARAMS, m, solver.hyper)[0]
    t = jnp.full(found.shape[:1], exp.schedule.level(jnp.float32(0.1)))
    z = exp.transform.forward(found, m.maps) * per_example(exp.schedule.alpha(t), m.y)
    expected = exp.transform.adjoint(exp.denoise(PARAMS, z, np.ones_like(m.mask), m.maps, t).z0, m.maps)
    config.msm_fast.update(num_levels=3, finish_sigma=0.1)
    finished = get_solver(config, exp, "msm_fast")
    assert finished.nfe == 3
    x = finished.solve(jax.random.key(0), PARAMS, m, finished.hyper)[0]
    np.testing.assert_allclose(x, expected, atol=1e-5)
    assert np.isfinite(jax.jit(finished.solve)(jax.random.key(0), PARAMS, m, finished.hyper)).all()  # levels are static
    assert np.abs(np.asarray(x) - found).max() > 1e-3


@pytest.mark.parametrize("names", [("flip", "shift"), ("flip", "shift", "phase")], ids=len)
def test_a_symmetry_per_level_changes_what_the_network_sees_and_nothing_else(names):
    """A network that commutes with flips and shifts gives the same, also where maps are 0 and have to be moved along.

    One that treats real and imaginary parts differently does not commute with a phase.
    """
    config, m = solver_config(), toy_measurement()
    config.data.augment = names
    config.msm_fast.update(num_levels=3, start_sigma=1.0, symmetry=False)
    m.maps[..., :3, :] = 0
    solvers = [get_solver(config, experiment(config), "msm_fast")]
    config.msm_fast.symmetry = True
    solvers.append(get_solver(config, experiment(config), "msm_fast"))
    plain, moved = (solver.solve(jax.random.key(0), PARAMS, m, solver.hyper) for solver in solvers)
    assert solvers[0].nfe == solvers[1].nfe == 3
    assert (np.abs(plain - moved).max() < 2e-5) == ("phase" not in names)


def test_msm_fast_may_see_one_mask_of_the_data_per_level():
    """`mask_keep` 0: masks are drawn, so the key matters; the same as msm with those settings, whatever its weights."""
    config = solver_config(weight="population")
    config.msm_fast.update(num_levels=3, start_sigma=1.0, mask_keep=0.0, symmetry=False)
    m, fast = toy_measurement(), get_solver(config, experiment(config), "msm_fast")
    x, other = (fast.solve(jax.random.key(k), PARAMS, m, fast.hyper) for k in (0, 1))
    assert fast.nfe == 3 and np.all(np.isfinite(x)) and np.abs(x - other).max() > 1e-4
    config.solver.update(
        num_levels=3, start_sigma=1.0, step="plug_and_play", mask_keep=0.0, weight="count", variance="white"
    )
    same = get_solver(config, experiment(config), "msm")
    np.testing.assert_allclose(x[0], same.solve(jax.random.key(0), PARAMS, m, same.hyper)[0], atol=1e-6)


def test_acquired_entries_of_a_projection_equal_the_data_for_one_coil():
    config = solver_config(mask_keep=1.0)
    m = toy_measurement(coils=1).replace(noise_std=np.zeros(4, np.float32))
    solver = get_solver(config, experiment(config), "msm")
    x = solver.solve(jax.random.key(0), PARAMS, m, {**solver.hyper, "eta": 0.85})[0]
    z = get_transform(config).forward(x, m.maps)
    np.testing.assert_allclose(np.where(m.mask, z, 0), m.y, atol=2e-5)


def test_uncovered_entries_keep_the_last_estimate():
    """With one sparse mask a level, entries outside the first mask are still 0 after one level."""
    config = toy_config()
    schedule, transform = get_schedule(config), get_transform(config)
    settings = SamplerSettings(num_levels=1, w=1)
    sample = get_sampler(settings, schedule, transform, get_masks(config), gaussian_denoiser(0.5, schedule))
    z = np.asarray(
        sample(example_keys(jax.random.key(0), jnp.arange(3)), None, jnp.zeros((3, 2, SIZE, SIZE), jnp.complex64), 1.0)
    )
    empty = (z == 0).all((1, 2))
    assert empty.any() and not empty.all() and (z != 0)[:, :, :, ~empty.all(0)].any()


def compiled_memory(levels):
    config = solver_config(num_levels=levels, mask_keep=0.5, w=2)
    solver = get_solver(config, experiment(config), "msm")
    compiled = jax.jit(solver.solve).lower(jax.random.key(0), PARAMS, toy_measurement(), solver.hyper).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_a_second_order_step_errs_quadratically():
    """Images of N(0, 1), exact denoiser, eta 0: the flow ends at u_0 / sqrt(1 + sigma_max^2), closed form."""
    config = get_config()
    config.transform.name, config.masks.name, config.data.num_coils = "identity", "random_boxes", 0
    config.data.image_size, config.masks.grid, config.masks.drop = 4, 4, 8
    schedule, transform = get_schedule(config), get_transform(config)

    def exact(s_t, mask, maps, t):
        s0 = s_t / (1 + schedule.sigma(t).reshape(-1, 1, 1, 1) ** 2)
        return Denoised(s0=jnp.where(mask, s0, 0), eps=s_t, z0=s0)

    def end(order, num_levels):
        settings = SamplerSettings(num_levels, order=order)
        run = get_sampler(settings, schedule, transform, get_masks(config, density=1.0), exact)
        return np.asarray(jax.jit(run)(KEYS, None, jnp.zeros((2, 4, 4, 3)), 0.0))

    start = jax.vmap(lambda k: transform.noise(jax.random.fold_in(jax.random.fold_in(k, 1), 0), (4, 4, 3)))(KEYS)
    low, high = config.schedule.sigma_min, config.schedule.sigma_max
    flow = high * np.asarray(start) / np.sqrt((1 + high**2) * (1 + low**2))
    first, second = ([np.linalg.norm(end(order, n) / flow - 1) for n in (20, 40)] for order in (1, 2))
    assert 0.4 < first[1] / first[0] < 0.6 and 0.15 < second[1] / second[0] < 0.35
    assert second[1] < first[1] / 7


def test_memory_does_not_grow_with_the_number_of_levels():
    few, many = compiled_memory(50), compiled_memory(500)
    assert few > 0
    assert many - few <= 500 * 8 * 4  # the level table itself: a few numbers per level


def test_hyper_parameters_are_traced():
    """One compilation serves all values of gamma and eta."""
    config = solver_config()
    solver = get_solver(config, experiment(config), "msm")
    solve = jax.jit(solver.solve)
    m = toy_measurement()
    results = [
        solve(jax.random.key(0), PARAMS, m, {**solver.hyper, "gamma": g, "eta": e}) for g, e in ((1.0, 0.8), (0.5, 0.2))
    ]
    assert solve._cache_size() == 1
    assert not np.allclose(results[0], results[1])


def test_generation_draws_images_that_depend_on_id_alone():
    config = toy_config()
    config.sampling.num_levels = 3
    e = experiment(config)
    draw = get_sampling_fn(config, e.schedule, e.transform, e.denoise)
    m = toy_measurement()
    ids = jnp.asarray([5, 6, 7, 5])
    images = draw(jax.random.key(0), PARAMS, ids, m.maps, m.y.shape)
    assert images.shape == (4, SIZE, SIZE)
    np.testing.assert_allclose(images[0], images[3], atol=1e-4)
    assert not np.allclose(images[0], images[1])


def test_settings_have_no_silent_default():
    names = {field.name for field in dataclasses.fields(SamplerSettings)}
    config = get_config()
    assert names <= set(config.solver) and names - {"start_sigma", "finish_sigma"} <= set(config.sampling)
