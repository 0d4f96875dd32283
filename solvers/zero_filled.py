"""The adjoint of what was acquired, x = H^H y: for MRI and inpainting the zero-filled image. The simplest baseline."""

from msm.operators.measurement import Measurement
from msm.solvers.registry import SOLVERS, Solver


@SOLVERS.register("zero_filled")
def get_zero_filled_solver(config, experiment) -> Solver:
    """Returns the solver x = H^H y. Needs `experiment.operator`; has no hyper-parameter."""
    del config
    operator = experiment.operator

    def solve(key, params, measurement: Measurement, hyper):
        del key, params, hyper
        return operator.adjoint(measurement.y, measurement.mask, measurement.maps)[None]

    return Solver(solve=solve, hyper={})
