"""Score-SDE sampling with projections onto the data (Song et al., ICLR 2022), their solver of choice.

Before every turn of corrector and predictor the image moves by a share `weight` of the way to one that explains the
data, noised afresh to the level of the moment; after the last step all the way, without noise. See solvers/guidance.py.
"""

from msm.predictor_corrector import PCSettings
from msm.solvers.guidance import get_guided_solver, get_projection_guidance
from msm.solvers.registry import SOLVERS, Solver


@SOLVERS.register("projection")
def get_projection_solver(config, experiment) -> Solver:
    """Returns the solver; static settings and defaults from `config.score_sde.projection`, hyper: snr, weight."""
    own = config.score_sde.projection
    return get_guided_solver(
        config,
        experiment,
        PCSettings(own.num_levels, own.predictor, own.corrector, own.corrector_steps),
        hyper={"snr": own.snr, "weight": own.weight},
        get_guidance=get_projection_guidance(config, experiment, last_weight=1.0),
    )
