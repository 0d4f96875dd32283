"""Filtered backprojection, the classical reconstruction of computed tomography: R^-1 of many noiseless views.

Images have air at -1 (x = HU / 1000), and few views of a constant that ends at the rim of the image would leave streaks
of their own. So what is filtered is the sinogram of x + 1, which is 0 in air; R 1 is known, which makes that exact.
"""

import jax.numpy as jnp

from infra.errors import UserError
from operators import ct
from operators.measurement import Measurement
from solvers.registry import SOLVERS, Solver


@SOLVERS.register("fbp")
def get_fbp_solver(config, experiment) -> Solver:
    """Returns the solver x = FBP(scale y + R 1) - 1 of window `config.baselines.fbp_window`; no hyper-parameter.

    Masked rays count as 0, so that their streaks are what a metal trace that is left out costs. Raises UserError unless
    `experiment.operator` is a `ParallelBeam`.
    """
    operator, window = experiment.operator, config.baselines.fbp_window
    if not isinstance(operator, ct.ParallelBeam):
        raise UserError(
            f"solver 'fbp' reconstructs CT, task.name {config.task.name!r} is not one: choose other solvers"
        )

    def solve(key, params, measurement: Measurement, hyper):
        del key, params, hyper
        shape = operator.image_shape(measurement.y.shape)
        air = operator.forward(jnp.ones((1, *shape[1:])), measurement.mask, None)
        lengths = operator.scale(shape[1]) * (measurement.y + air)
        return ct.fbp(lengths, operator.angles, window)[None] - 1

    return Solver(solve=solve, hyper={})
