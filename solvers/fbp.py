"""Filtered backprojection, the classical reconstruction of computed tomography: R^-1 of many noiseless views.

Images have air at -1 (x = HU / 1000), and few views of a constant that ends at the rim of the image would leave streaks
of their own. So what is filtered are the views of x + 1, which is 0 in air; R 1 is known, which makes that exact.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from msm.infra.errors import UserError
from msm.operators import ct
from msm.operators.measurement import Measurement
from msm.solvers.registry import SOLVERS, Solver


@SOLVERS.register("fbp")
def get_fbp_solver(config, experiment) -> Solver:
    """Returns the solver x = FBP(M (scale y + R 1)) - 1; window `config.baselines.fbp_window`, no hyper-parameter.

    Unknown rays count as 0: what leaving out a metal trace costs. Raises UserError unless `experiment.operator` is a
    `ParallelBeam`.
    """
    reconstruct = get_reconstruct(config, experiment.operator, "fbp")

    def solve(key, params, measurement: Measurement, hyper):
        del key, params, hyper
        return reconstruct(measurement.y, lambda lengths: jnp.where(measurement.mask, lengths, 0))[None]

    return Solver(solve=solve, hyper={})


def get_reconstruct(config, operator, solver: str) -> Callable[[jax.Array, Callable], jax.Array]:
    """Returns reconstruct(y, fill) -> x of filtered backprojection.

    `fill` maps line integrals of x + 1, in pixels, to those with something in place of unknown rays; `solver` is who
    asks. Raises UserError unless `operator` is a `ParallelBeam`.
    """
    window, task = config.baselines.fbp_window, config.task.name
    if not isinstance(operator, ct.ParallelBeam):
        raise UserError(f"solver {solver!r} reconstructs CT, task.name {task!r} is not one: choose other solvers")

    def reconstruct(y, fill):
        shape = operator.image_shape(y.shape)
        air = ct.project(jnp.ones((1, *shape[1:])), operator.angles)
        return ct.fbp(fill(operator.scale(shape[1]) * y + air), operator.angles, window) - 1

    return reconstruct
