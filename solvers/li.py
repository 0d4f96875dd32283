"""Linear interpolation across the metal trace, then filtered backprojection: the classical metal artefact reduction.

W. A. Kalender, R. Hebel and J. Ebersberger, Reduction of CT artifacts caused by metallic implants, Radiology 164, 1987.
"""

from msm.operators.measurement import Measurement
from msm.operators.metal import interpolate
from msm.solvers.fbp import get_reconstruct
from msm.solvers.registry import SOLVERS, Solver


@SOLVERS.register("li")
def get_li_solver(config, experiment) -> Solver:
    """Returns the solver FBP(interpolated lengths); window `config.baselines.fbp_window`, no hyper-parameter.

    Raises UserError unless `experiment.operator` is a `ParallelBeam`.
    """
    reconstruct = get_reconstruct(config, experiment.operator, "li")

    def solve(key, params, measurement: Measurement, hyper):
        del key, params, hyper
        return reconstruct(measurement.y, lambda lengths: interpolate(lengths, measurement.mask))[None]

    return Solver(solve=solve, hyper={})
