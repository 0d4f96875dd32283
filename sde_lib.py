"""Diffusion schedules: how much signal and noise a level holds, and the levels that sampling visits.

Every schedule writes a noisy measurement as `s_t = alpha(t) (s + sigma(t) n)` with n ~ N(0, I): `sigma` is the noise in
the units of the data (sqrt((1-abar)/abar) for a variance-preserving table), so samplers and losses are the same for
all.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from registry import Registry


class Schedule(Protocol):
    """Level t (B,) float32 -> signal scale, noise level, and what the network is told."""

    @property
    def sigma_max(self) -> float:
        """The largest noise level."""
        ...

    def alpha(self, t: jax.Array) -> jax.Array:
        """Signal scale, (B,)."""
        ...

    def sigma(self, t: jax.Array) -> jax.Array:
        """Noise standard deviation per real scalar in data units, (B,)."""
        ...

    def level(self, sigma: jax.Array) -> jax.Array:
        """The level t with `sigma(t)` = sigma: the inverse of `sigma`."""
        ...

    def net_time(self, t: jax.Array) -> jax.Array:
        """The network's time input, in 0..1000, (B,)."""
        ...

    def sample(self, key: jax.Array) -> jax.Array:
        """One training level, ()."""
        ...

    def grid(self, num_levels: int, start_sigma: float = math.inf) -> np.ndarray:
        """(num_levels,) descending levels from the most noise, at most `start_sigma`, to the least."""
        ...


SCHEDULES: Registry[Callable] = Registry("schedule")


def get_schedule(config) -> Schedule:
    """Returns the schedule of `config.schedule`. Raises UserError for an unknown name."""
    return SCHEDULES[config.schedule.name](config.schedule)


@dataclass(frozen=True)
class DDPM:
    """Variance preserving: beta linear from 1e-4 to 0.02 over 1000 timesteps (Ho et al. 2020), t in [0, 999].

    Fractional timesteps interpolate log sigma linearly.
    """

    stride: int = 5  # training and sampling use every stride-th timestep

    num_timesteps = 1000

    @cached_property
    def log_sigma(self) -> np.ndarray:
        abar = np.cumprod(1.0 - np.linspace(1e-4, 0.02, self.num_timesteps))
        return (0.5 * np.log((1.0 - abar) / abar)).astype(np.float32)

    @property
    def sigma_max(self) -> float:
        return float(np.exp(self.log_sigma[-1]))

    def alpha(self, t):
        return 1.0 / jnp.sqrt(1.0 + self.sigma(t) ** 2)  # abar = 1 / (1 + sigma^2)

    def sigma(self, t):
        return jnp.exp(jnp.interp(t, jnp.arange(self.num_timesteps, dtype=jnp.float32), self.log_sigma))

    def level(self, sigma):
        return jnp.interp(jnp.log(sigma), self.log_sigma, jnp.arange(self.num_timesteps, dtype=jnp.float32))

    def net_time(self, t):
        return t

    def sample(self, key):
        return self.stride * jax.random.randint(key, (), 0, self.num_timesteps // self.stride).astype(jnp.float32)

    def grid(self, num_levels, start_sigma=math.inf):
        levels = np.arange(0, self.num_timesteps, self.stride, dtype=np.float32)
        levels = levels[: max(1, np.searchsorted(self.log_sigma[:: self.stride], np.log(start_sigma), "right"))]
        picks = np.round(np.linspace(0, len(levels) - 1, min(num_levels, len(levels)))).astype(int)
        return levels[picks][::-1].copy()


@SCHEDULES.register("ddpm")
def get_ddpm(schedule) -> DDPM:
    """The published schedule; uses `schedule.train_stride`."""
    return DDPM(stride=schedule.train_stride)


@dataclass(frozen=True)
class EDM:
    """Karras et al. 2022 (arXiv 2206.00364): alpha = 1, t = log sigma; log-normal in training, rho grid in sampling."""

    sigma_min: float
    sigma_max: float
    rho: float
    log_sigma_mean: float
    log_sigma_std: float

    def alpha(self, t):
        return jnp.ones_like(t)

    def sigma(self, t):
        return jnp.exp(t)

    def level(self, sigma):
        return jnp.log(sigma)

    def net_time(self, t):
        low, high = np.log(self.sigma_min), np.log(self.sigma_max)
        return 1000.0 * (t - low) / (high - low)

    def sample(self, key):
        t = self.log_sigma_mean + self.log_sigma_std * jax.random.normal(key)
        return jnp.clip(t, np.log(self.sigma_min), np.log(self.sigma_max))

    def grid(self, num_levels, start_sigma=math.inf):
        ramp = np.linspace(0.0, 1.0, num_levels)
        high, low = min(self.sigma_max, start_sigma) ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return (self.rho * np.log(high + ramp * (low - high))).astype(np.float32)


@SCHEDULES.register("edm")
def get_edm(schedule) -> EDM:
    """Karras' schedule; uses sigma_min, sigma_max, rho, log_sigma_mean and log_sigma_std of `schedule`."""
    return EDM(
        sigma_min=schedule.sigma_min,
        sigma_max=schedule.sigma_max,
        rho=schedule.rho,
        log_sigma_mean=schedule.log_sigma_mean,
        log_sigma_std=schedule.log_sigma_std,
    )
