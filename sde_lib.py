"""Diffusion schedules: how much signal and noise a level holds, and the levels that sampling visits.

Every schedule writes a noisy measurement as `s_t = alpha(t) (s + sigma(t) n)` with n ~ N(0, I): `sigma` is the noise in
the units of the data (sqrt((1-abar)/abar) for a variance-preserving table), so samplers and losses are the same for
all. These two functions are also all that an SDE is, `forward_sde`: whatever has them has a forward process, its
reverse and its probability flow (Song et al. 2021, arXiv 2011.13456).
"""

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from msm.infra.registry import Registry


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


class _Continuous(abc.ABC):
    """What the SDEs of Song et al. 2021 share: t in [min_time, 1], uniform in training and in sampling."""

    min_time = 1e-3

    @property
    def sigma_max(self) -> float:
        with jax.ensure_compile_time_eval():
            return float(self.sigma(jnp.float32(1.0)))

    @abc.abstractmethod
    def alpha(self, t) -> jax.Array: ...

    @abc.abstractmethod
    def sigma(self, t) -> jax.Array: ...

    @abc.abstractmethod
    def level(self, sigma) -> jax.Array: ...

    def net_time(self, t):
        return 999.0 * t  # as published for VP

    def sample(self, key):
        return jax.random.uniform(key, (), minval=self.min_time, maxval=1.0)

    def grid(self, num_levels, start_sigma=math.inf):
        first = 1.0
        with jax.ensure_compile_time_eval():  # the levels are static, also where this is called while tracing
            if start_sigma < self.sigma_max:
                first = max(self.min_time, float(self.level(jnp.float32(start_sigma))))
        return np.linspace(first, self.min_time, num_levels, dtype=np.float32)


@dataclass(frozen=True)
class VE(_Continuous):
    """Variance exploding: alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t; dx = sqrt(d sigma^2 / dt) dw."""

    low: float
    high: float

    min_time = 1e-5

    def alpha(self, t):
        return jnp.ones_like(t)

    def sigma(self, t):
        return self.low * (self.high / self.low) ** t

    def level(self, sigma):
        return jnp.log(sigma / self.low) / math.log(self.high / self.low)


@SCHEDULES.register("ve")
def get_ve(schedule) -> VE:
    """Variance exploding; uses `schedule.sigma_min` and `schedule.sigma_max`."""
    return VE(low=schedule.sigma_min, high=schedule.sigma_max)


@dataclass(frozen=True)
class VP(_Continuous):
    """Variance preserving: dx = -beta/2 x dt + sqrt(beta) dw, beta = beta_min + t (beta_max - beta_min).

    alpha = e^(-B/2) and alpha sigma = sqrt(1 - e^-B), B the integral of beta from 0 to t. With beta_min 0.1 and
    beta_max 20 it is the limit of the DDPM table for many timesteps.
    """

    beta_min: float
    beta_max: float

    def integral(self, t):
        """B(t)."""
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2

    def time(self, integral):
        """The t with B(t) = integral, without cancellation for small ones."""
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2 * slope * integral))

    def alpha(self, t):
        return jnp.exp(-0.5 * self.integral(t))

    def sigma(self, t):
        return jnp.sqrt(jnp.expm1(self.integral(t)))

    def level(self, sigma):
        return self.time(jnp.log1p(sigma**2))


@SCHEDULES.register("vp")
def get_vp(schedule) -> VP:
    """Variance preserving; uses `schedule.beta_min` and `schedule.beta_max`."""
    return VP(beta_min=schedule.beta_min, beta_max=schedule.beta_max)


@dataclass(frozen=True)
class SubVP(VP):
    """The SDE with VP's drift and less noise: alpha sigma = 1 - e^-B, so sigma = 2 sinh(B/2)."""

    def sigma(self, t):
        return 2.0 * jnp.sinh(0.5 * self.integral(t))

    def level(self, sigma):
        return self.time(2.0 * jnp.arcsinh(0.5 * sigma))


@SCHEDULES.register("subvp")
def get_subvp(schedule) -> SubVP:
    """Sub-VP; uses `schedule.beta_min` and `schedule.beta_max`."""
    return SubVP(beta_min=schedule.beta_min, beta_max=schedule.beta_max)


def forward_sde(schedule: Schedule, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(f, g^2) of the SDE dx = f x dt + g dw whose marginals are x_t = alpha (x + sigma n).

    f = d log alpha / dt,  g^2 = alpha^2 d sigma^2 / dt

    Args:
      schedule: any; DDPM's table is taken as linear in log sigma between timesteps.
      t: levels, any shape.
    """
    one = jnp.ones_like(t)
    _, drift = jax.jvp(lambda s: jnp.log(schedule.alpha(s)), (t,), (one,))
    _, growth = jax.jvp(lambda s: schedule.sigma(s) ** 2, (t,), (one,))
    return drift, schedule.alpha(t) ** 2 * growth


def reverse_drift(schedule: Schedule, t: jax.Array, x: jax.Array, score: jax.Array, flow: bool = False) -> jax.Array:
    """dx/dt without its noise, backwards in time: f x - g^2 score of the reverse SDE, f x - g^2/2 score of the flow.

    Args:
      schedule: any.
      t: () the level.
      x: (B,...) at that level.
      score: gradient of log p_t at x, its shape.
      flow: the probability-flow ODE, whose solutions have the SDE's marginals without any noise.
    """
    drift, squared = forward_sde(schedule, t)
    return drift * x - (0.5 if flow else 1.0) * squared * score
