"""Zero-filled reconstruction: the adjoint of what was acquired, x = T^H S y. The simplest baseline."""

import jax.numpy as jnp

from operators.measurement import Measurement
from solvers.registry import SOLVERS, Solver


@SOLVERS.register("zero_filled")
def get_zero_filled_solver(config, experiment) -> Solver:
    """Returns the solver x = T^H S y. Needs `experiment.transform`; has no hyper-parameter."""
    del config
    transform = experiment.transform

    def solve(key, params, measurement: Measurement, hyper):
        del key, params, hyper
        acquired = jnp.where(measurement.mask, measurement.y, 0)
        return transform.adjoint(acquired, measurement.maps)[None]

    return Solver(solve=solve, hyper={})
