"""SSDU (Yaman et al. 2020): one reconstruction from all acquired lines, in as many network calls as it has unrolls.

For a network that was trained with loss 'ssdu'; see models/unrolled.py at the root for the equations.
"""

from functools import partial

from msm.models import unrolled as ssdu
from msm.solvers.registry import SOLVERS, Solver


@SOLVERS.register("ssdu")
def get_ssdu_solver(config, experiment) -> Solver:
    """Returns the solver: K = 1 image, no hyper-parameters; settings from `config.ssdu`, those of training."""
    reconstruct = ssdu.get_reconstruct_fn(config, experiment.schedule, experiment.transform, experiment.operator)

    def solve(key, params, measurement, hyper):
        del key, hyper
        return reconstruct(partial(experiment.denoise, params), measurement)[None]

    return Solver(solve=solve, hyper={}, nfe=config.ssdu.unrolls)
