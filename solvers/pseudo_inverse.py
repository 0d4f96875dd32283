"""The pseudo-inverse of what was acquired, x = H^+ y: of all images that fit the data best the one of least norm.

What an image task starts from: the upsampled, the sharpened, the grey image. It amplifies noise where H is weak.
"""

from msm.operators.measurement import Measurement
from msm.solvers.registry import SOLVERS, Solver


@SOLVERS.register("pseudo_inverse")
def get_pseudo_inverse_solver(config, experiment) -> Solver:
    """Returns the solver x = H^+ y. Needs `experiment.operator`; has no hyper-parameter."""
    del config
    operator = experiment.operator

    def solve(key, params, measurement: Measurement, hyper):
        del key, params, hyper
        return operator.get_pinv(measurement.mask, measurement.maps)(measurement.y)[None]

    return Solver(solve=solve, hyper={})
