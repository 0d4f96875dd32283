"""Schedules: definitions against their formulas, inverses, sampling grids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.default import get_config
from infra.errors import UserError
from sde_lib import SCHEDULES, get_schedule


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
