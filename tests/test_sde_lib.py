"""Schedules: definitions against their formulas, inverses, sampling grids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from msm.configs.default import get_config
from msm.infra.errors import UserError
from msm.sde_lib import SCHEDULES, forward_sde, get_schedule, reverse_drift


def schedule_of(name, **changes):
    config = get_config()
    config.schedule.name = name
    config.schedule.update(changes)
    return get_schedule(config)


def test_ddpm_table_is_the_published_one():
    schedule = schedule_of("ddpm")
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    t = jnp.asarray([0.0, 5.0, 500.0, 995.0])
    np.testing.assert_allclose(schedule.alpha(t) ** 2, abar[[0, 5, 500, 995]], rtol=2e-5)
    np.testing.assert_allclose(schedule.sigma(t) ** 2, (1 / abar - 1)[[0, 5, 500, 995]], rtol=2e-5)
    np.testing.assert_array_equal(schedule.grid(200), np.arange(995, -1, -5))
    assert schedule.grid(50).shape == (50,) and schedule.grid(50)[0] == 995 and schedule.grid(50)[-1] == 0


def test_ddpm_fractional_timestep_of_noise_level_0_1():
    assert float(schedule_of("ddpm").level(jnp.asarray(0.1))) == pytest.approx(26.41, abs=0.02)


def test_ddpm_trains_on_every_fifth_timestep():
    drawn = np.asarray(jax.vmap(schedule_of("ddpm").sample)(jax.random.split(jax.random.key(0), 4000)))
    assert set(drawn) == set(range(0, 1000, 5))


@pytest.mark.parametrize("name", SCHEDULES.names())
def test_level_inverts_sigma_and_grids_descend(name):
    schedule = schedule_of(name)
    grid = schedule.grid(12)
    sigma = schedule.sigma(jnp.asarray(grid))
    assert bool(jnp.all(jnp.diff(sigma) < 0))
    np.testing.assert_allclose(schedule.sigma(schedule.level(sigma)), sigma, rtol=1e-4)
    time = schedule.net_time(jnp.asarray(grid))
    assert float(time.min()) >= 0 and float(time.max()) <= 1000.1


def test_edm_grid_is_that_of_karras():
    schedule = schedule_of("edm", sigma_min=0.002, sigma_max=80.0, rho=7.0, log_sigma_mean=-1.0, log_sigma_std=1.2)
    i = np.arange(18)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(np.exp(schedule.grid(18)), expected, rtol=1e-5)
    t = jax.vmap(schedule.sample)(jax.random.split(jax.random.key(0), 5000))
    assert abs(float(t.mean()) + 1.0) < 0.1 and abs(float(t.std()) - 1.2) < 0.1


def test_unknown_schedule_is_refused():
    with pytest.raises(UserError, match="unknown schedule"):
        schedule_of("cosine")


CONTINUOUS = ("subvp", "ve", "vp")


def integrated_beta(t):
    return 0.1 * t + 0.5 * 19.9 * t**2


def test_sdes_are_those_of_the_paper():
    """Drift and diffusion in the closed forms of Song et al. 2021, appendix B."""
    t = jnp.asarray([0.01, 0.3, 0.99])
    beta, total = 0.1 + 19.9 * np.asarray(t), integrated_beta(np.asarray(t))
    expected = {
        "ve": (0 * beta, 2 * np.log(20.0 / 0.005) * 0.005**2 * (20.0 / 0.005) ** (2 * np.asarray(t))),
        "vp": (-beta / 2, beta),
        "subvp": (-beta / 2, beta * (1 - np.exp(-2 * total))),
    }
    for name, (drift, squared) in expected.items():
        found = forward_sde(schedule_of(name), t)
        np.testing.assert_allclose(found[0], drift, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(found[1], squared, rtol=2e-4)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_marginals_are_those_of_the_integrated_sde(name):
    """dm/dt = f m, dv/dt = 2 f v + g^2 by a numerical solver, from the least noise to three other levels."""
    schedule, times = schedule_of(name), np.array([0.1, 0.5, 1.0])
    sde = jax.jit(lambda t: forward_sde(schedule, t))

    def moments(t):
        t = jnp.asarray(t, jnp.float32)
        return np.asarray(schedule.alpha(t), np.float64), np.asarray((schedule.alpha(t) * schedule.sigma(t)) ** 2)

    def grow(t, state):
        drift, squared = (float(value) for value in sde(jnp.float32(t)))
        return [drift * state[0], 2 * drift * state[1] + squared]

    start = [float(value) for value in moments(schedule.min_time)]
    found = solve_ivp(grow, (schedule.min_time, 1.0), start, t_eval=times, rtol=1e-6, atol=1e-9).y
    np.testing.assert_allclose(found, moments(times), rtol=2e-4)


def test_vp_is_the_limit_of_the_ddpm_table():
    """The table of N timesteps with beta_i = beta(t_i)/N differs from the SDE by the order of 1/N."""
    schedule, errors = schedule_of("vp"), []
    for number in (250, 1000, 4000):
        grid = np.linspace(0.0, 1.0, number)
        abar = np.cumprod(1 - (0.1 + 19.9 * grid) / number)
        alpha = np.asarray(schedule.alpha(jnp.asarray((np.arange(number) + 1) / number)), np.float64)
        errors.append(np.max(np.abs(np.log(abar[: number // 2]) - 2 * np.log(alpha[: number // 2]))))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1) and errors[1] / errors[2] == pytest.approx(4, rel=0.1)
    ddpm, t = schedule_of("ddpm"), np.array([9, 99, 499, 899])
    ratio = schedule.sigma(jnp.asarray((t + 1) / 1000)) / ddpm.sigma(jnp.asarray(t, jnp.float32))
    np.testing.assert_allclose(ratio, 1, atol=0.05)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_probability_flow_of_gaussian_data_is_its_closed_form(name):
    """x0 ~ N(0, v): x_t keeps its quantile, u(sigma') = u(sigma) sqrt((v + sigma'^2) / (v + sigma^2)), u = x/alpha."""
    schedule, variance, high, low = schedule_of(name), 0.5, 0.9, 0.05

    @jax.jit
    def slope(t, x):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return reverse_drift(schedule, t, x, -x / (alpha**2 * (variance + sigma**2)), flow=True)

    def scale(t):
        t = jnp.float32(t)
        return float(schedule.alpha(t) * jnp.sqrt(variance + schedule.sigma(t) ** 2))

    def move(t, x):
        return np.asarray(slope(jnp.float32(t), jnp.asarray(x, jnp.float32)), np.float64)

    end = solve_ivp(move, (high, low), [1.0, -2.0], rtol=1e-6, atol=1e-8).y[:, -1]
    np.testing.assert_allclose(end, np.array([1.0, -2.0]) * scale(low) / scale(high), rtol=1e-3)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_schedules_train_and_sample_on_the_whole_interval(name):
    schedule = schedule_of(name)
    drawn = np.asarray(jax.vmap(schedule.sample)(jax.random.split(jax.random.key(0), 4000)))
    assert drawn.min() >= schedule.min_time and drawn.max() <= 1 and abs(drawn.mean() - 0.5) < 0.02
    grid = schedule.grid(5)
    np.testing.assert_allclose(grid, np.linspace(1.0, schedule.min_time, 5), rtol=1e-6)
    warm = schedule.sigma(jnp.asarray(schedule.grid(3, start_sigma=0.7)))
    assert float(warm[0]) == pytest.approx(0.7, rel=1e-3)
