"""What dps, a_dps and ddnm share: noisy images brought down the levels, an update of the solver's own at each.

The image is u = x + sigma n, in units in which a step does not depend on the schedule's alpha; the network sees T u, or
the entries of it that a mask keeps, through the same seam as in every other method.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from msm.operators.operator import per_example
from msm.operators.randomness import draw_noise_of
from msm.sampling import SamplerSettings, get_levels
from msm.solvers.guidance import get_copies
from msm.solvers.registry import Range, Solver


def get_ancestral_solver(
    config,
    experiment,
    num_levels: int,
    get_update: Callable,
    hyper: Mapping[str, float],
    search: Mapping[str, Range],
    differentiated: bool = False,
) -> Solver:
    """A posterior sampler of images: K = `eval.num_samples` samples per scan in one batched call.

    Args:
      config: uses `eval.num_samples`.
      experiment: schedule, transform, operator and denoise.
      num_levels: from the schedule's most noise to its least; a network call each.
      get_update: get_update(estimate, measurement (B,...), its copies (K*B,...), keys (K*B,), hyper) -> update, where
        estimate(u, mask, t) is x0 of noisy images at the level t (), seen through mask, and update(u, fresh, level)
        -> u goes from level["sigma"] to level["next"], at last 0, with fresh noise N(0,1).
      hyper, search: of the solver.
      differentiated: whether an update takes a gradient through its network call.
    """
    number = config.eval.num_samples
    transform, operator, schedule = experiment.transform, experiment.operator, experiment.schedule
    levels = get_levels(SamplerSettings(num_levels), schedule)
    calls = len(levels["t"])

    def solve(key, params, measurement, hyper):
        copies, keys = get_copies(key, measurement, number)
        shape = operator.image_shape(copies.y.shape)

        def estimate(u, mask, t):
            z = transform.forward(u, copies.maps)
            t = jnp.full(u.shape[0], t)
            out = experiment.denoise(params, per_example(schedule.alpha(t), z) * z, mask, copies.maps, t)
            return transform.adjoint(out.z0, copies.maps)

        update = get_update(estimate, measurement, copies, keys, hyper)

        def step(u, level):
            return update(u, draw_noise_of(transform, keys, level["index"] + 1, shape), level), None

        start = levels["sigma"][0] * draw_noise_of(transform, keys, 0, shape)
        x, _ = jax.lax.scan(step, start, levels)
        return x.reshape(number, -1, *x.shape[1:])

    return Solver(solve, hyper, search, num_samples=number, nfe=calls, gradients=calls if differentiated else 0)


def see_whole(measurement) -> jax.Array:
    """The mask, of a batch, that keeps every entry: the network sees all of T u."""
    return jnp.ones((measurement.noise_std.shape[0], 1, 1, 1), bool)
