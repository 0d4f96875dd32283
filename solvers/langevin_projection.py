"""Annealed Langevin dynamics with one projection onto the data per noise level (Song et al., ICLR 2022).

The corrector 'ald' alone, without a predictor; the last image moves by the share `weight`, too. See
solvers/guidance.py.
"""

from msm.predictor_corrector import PCSettings
from msm.solvers.guidance import get_guided_solver, get_projection_guidance
from msm.solvers.registry import SOLVERS, Solver


@SOLVERS.register("langevin_projection")
def get_langevin_projection_solver(config, experiment) -> Solver:
    """Returns the solver; settings from `config.score_sde.langevin_projection`, hyper: snr, weight."""
    own = config.score_sde.langevin_projection
    return get_guided_solver(
        config,
        experiment,
        PCSettings(own.num_levels, "none", "ald", own.corrector_steps),
        hyper={"snr": own.snr, "weight": own.weight},
        get_guidance=get_projection_guidance(config, experiment),
    )
