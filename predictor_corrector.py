"""Predictor-corrector sampling of a score model (Song et al. 2021, arXiv 2011.13456), as one scan over network calls.

At every noise level some corrector steps of Langevin dynamics keep x at that level, then a predictor step goes to the
next. x holds images; level t has x_t = alpha (x + sigma n) and the score is the gradient of log p_t at x_t. Step sizes
are those of an example alone: the published code takes the norms' mean over the batch, so that an image depends on the
others drawn with it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from msm.infra.registry import Registry
from msm.operators.measurement import Array
from msm.operators.operator import per_example
from msm.operators.transform import Transform
from msm.sde_lib import Schedule, forward_sde, reverse_drift


@flax.struct.dataclass
class Level:
    """One noise level, of the whole batch: time t, signal scale and noise level, each ()."""

    t: jax.Array
    alpha: jax.Array
    sigma: jax.Array


Predictor = Callable[[Schedule, jax.Array, jax.Array, jax.Array, Level, Level], jax.Array]
Corrector = Callable[[jax.Array, jax.Array, jax.Array, Level, Level, jax.Array], jax.Array]
PREDICTORS: Registry[Predictor] = Registry("predictor")  # (schedule, x, score, noise, now, after) -> x at `after`
CORRECTORS: Registry[Corrector] = Registry("corrector")  # (x, score, noise, now, after, snr) -> x at `now`


def added_variance(now: Level, after: Level) -> jax.Array:
    """G^2 = alpha^2 (sigma^2 - sigma'^2): the variance that the forward process adds between the levels."""
    return now.alpha**2 * (now.sigma**2 - after.sigma**2)


@PREDICTORS.register("reverse_diffusion")
def reverse_diffusion(schedule, x, score, noise, now, after):
    """(2 - r) x + G^2 score + G n, r = alpha / alpha': the exact forward transition x' -> r x' + G n, reversed.

    The published discretization of VE and VP; for sub-VP they take Euler's, which agrees to first order.
    """
    del schedule
    squared = added_variance(now, after)
    return (2.0 - now.alpha / after.alpha) * x + squared * score + jnp.sqrt(squared) * noise


@PREDICTORS.register("euler_maruyama")
def euler_maruyama(schedule, x, score, noise, now, after):
    """x - (f x - g^2 score) dt + g sqrt(dt) n, the reverse SDE by Euler's rule."""
    dt = now.t - after.t
    squared = forward_sde(schedule, now.t)[1]
    return x - dt * reverse_drift(schedule, now.t, x, score) + jnp.sqrt(dt * squared) * noise


@PREDICTORS.register("ancestral")
def ancestral(schedule, x, score, noise, now, after):
    """(x + G^2 score) / r + alpha' sigma'/sigma sqrt(sigma^2 - sigma'^2) n: x' given x and the clean image's estimate.

    The published VP rule adds sqrt(beta) n, the other of DDPM's two choices, which is larger.
    """
    del schedule
    share = after.alpha * after.sigma / now.sigma * jnp.sqrt(now.sigma**2 - after.sigma**2)
    return after.alpha / now.alpha * (x + added_variance(now, after) * score) + share * noise


@PREDICTORS.register("probability_flow")
def probability_flow(schedule, x, score, noise, now, after):
    """The flow's ODE by Euler's rule in sigma: x/alpha moves by (sigma - sigma') sigma alpha score. No noise."""
    del schedule, noise
    step = (now.sigma - after.sigma) * now.sigma * now.alpha
    return after.alpha * (x / now.alpha + step * score)


@PREDICTORS.register("none")
def no_prediction(schedule, x, score, noise, now, after):
    """x: the corrector alone takes it from level to level (annealed Langevin dynamics)."""
    del schedule, score, noise, now, after
    return x


def norms(x: jax.Array) -> jax.Array:
    """(B,...) -> (B,): the Euclidean norm of each example."""
    return jnp.sqrt(jnp.sum(jnp.abs(x) ** 2, axis=tuple(range(1, x.ndim))))


def langevin_step(x, score, noise, step):
    """x + step score + sqrt(2 step) noise; step (B,)."""
    step = per_example(step, x)
    return x + step * score + jnp.sqrt(2.0 * step) * noise


@CORRECTORS.register("langevin")
def langevin(x, score, noise, now, after, snr):
    """Langevin step of size 2 (alpha/alpha')^2 (snr |n| / |score|)^2, of each example's own norms."""
    size = norms(score)
    ratio = jnp.where(size > 0, snr * norms(noise) / jnp.where(size > 0, size, 1.0), 0.0)
    return langevin_step(x, score, noise, 2.0 * (now.alpha / after.alpha) ** 2 * ratio**2)


@CORRECTORS.register("ald")
def ald(x, score, noise, now, after, snr):
    """Annealed Langevin dynamics: step 2 (alpha/alpha')^2 (snr alpha sigma)^2, the same for all examples."""
    step = 2.0 * (now.alpha / after.alpha) ** 2 * (snr * now.alpha * now.sigma) ** 2
    return langevin_step(x, score, noise, jnp.full(x.shape[0], step))


@CORRECTORS.register("none")
def no_correction(x, score, noise, now, after, snr):
    """x."""
    del score, noise, now, after, snr
    return x


@dataclass(frozen=True)
class PCSettings:
    """What is static about a predictor-corrector sampler; see configs/default.py for each meaning."""

    num_levels: int
    predictor: str = "reverse_diffusion"
    corrector: str = "langevin"
    corrector_steps: int = 1


CORRECT, PREDICT, DENOISE = range(3)


def network_calls(settings: PCSettings, schedule: Schedule) -> np.ndarray:
    """(calls, 3) int32: level, what the call is for, and whether it opens a corrector's or predictor's turn.

    Corrector steps and a predictor step at each level, at the last level an estimate of the clean image in the
    predictor's place: num_levels (corrector_steps + 1) calls; without a predictor num_levels corrector_steps + 1.
    """
    corrections = 0 if settings.corrector == "none" else settings.corrector_steps
    levels, calls = len(schedule.grid(settings.num_levels)), []
    for level in range(levels):
        calls += [(level, CORRECT, step == 0) for step in range(corrections)]
        last = level == levels - 1
        if last or settings.predictor != "none":
            calls.append((level, DENOISE if last else PREDICT, True))
    return np.array(calls, np.int32)


def get_score_fn(transform: Transform, denoise: Callable, maps: Array | None) -> Callable:
    """Returns score(x (B,...) images at level t, Level) -> gradient of log p_t, through the one seam `denoise`.

    (alpha x0 - x) / (alpha sigma)^2 with x0 = T^H of the denoised T x, the whole measurement in one call. Outside the
    support of the coil maps x0 is 0, and so is what is drawn.

    Args:
      transform: T.
      denoise: denoise(s_t, mask, maps, t) -> Denoised, parameters bound.
      maps: coil maps or None, for the batch of x.
    """

    def score(x, level: Level):
        whole = jnp.ones((x.shape[0], 1, 1, 1), bool)
        out = denoise(transform.forward(x, maps), whole, maps, jnp.full(x.shape[0], level.t))
        return (level.alpha * transform.adjoint(out.z0, maps) - x) / (level.alpha * level.sigma) ** 2

    return score


def get_pc_sampler(
    settings: PCSettings,
    schedule: Schedule,
    transform: Transform,
    score: Callable[[jax.Array, Level], jax.Array],
    pull: Callable[[jax.Array, jax.Array, Level], jax.Array] | None = None,
    guide: Callable[[jax.Array, jax.Array, Level], jax.Array] | None = None,
) -> Callable:
    """Returns sample(keys, shape, snr) -> images of the given shape, their noise removed by Tweedie's formula.

    Args:
      settings: static switches.
      schedule: levels.
      transform: T, for its type and its noise.
      score: score(x, level) of the prior.
      pull: optional pull(x, noise, level) -> x, applied before a corrector's or predictor's turn.
      guide: optional guide(x, noise, level) -> gradient, added to the score of corrector and predictor.

    `sample`: keys (B,) one per example; snr a traced float. `noise` is fresh at every call, of the shape of x. Memory
    does not grow with the number of levels.
    """
    times = jnp.asarray(schedule.grid(settings.num_levels))
    levels = Level(times, schedule.alpha(times), schedule.sigma(times))
    plan = network_calls(settings, schedule)
    predict, correct = PREDICTORS[settings.predictor], CORRECTORS[settings.corrector]

    def draw(keys, number, shape):
        return jax.vmap(lambda key: transform.noise(jax.random.fold_in(key, number), shape[1:]))(keys)

    def sample(keys, shape, snr):
        def call(x, item):
            number, (index, purpose, opens) = item
            after = jnp.minimum(index + 1, len(times) - 1)
            now, after = (jax.tree.map(lambda a, i=i: a[i], levels) for i in (index, after))
            noise, other = (draw(keys, 2 * number + 1 + k, shape) for k in range(2))
            if pull is not None:
                x = jax.lax.cond((opens == 1) & (purpose != DENOISE), pull, lambda x, *_: x, x, other, now)
            gradient = prior = score(x, now)
            if guide is not None:
                gradient = prior + guide(x, other, now)
            corrected = correct(x, gradient, noise, now, after, snr)
            predicted = predict(schedule, x, gradient, noise, now, after)
            denoised = x / now.alpha + now.alpha * now.sigma**2 * prior
            return jnp.where(purpose == CORRECT, corrected, jnp.where(purpose == PREDICT, predicted, denoised)), None

        start = levels.alpha[0] * levels.sigma[0] * draw(keys, 0, shape)
        x, _ = jax.lax.scan(call, start, (jnp.arange(len(plan)), tuple(jnp.asarray(plan.T))))
        return x

    return sample
