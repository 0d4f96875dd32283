"""Score-SDE sampling guided by the gradient of a likelihood: the baseline of Song et al. (ICLR 2022).

Corrector and predictor follow score(x) + grad_x log N(alpha y + alpha sigma H n; H x, variance), n fresh at every call,
variance = (gamma alpha sigma)^2 + (alpha noise_std)^2. See solvers/guidance.py.
"""

from msm.predictor_corrector import PCSettings
from msm.solvers.guidance import Guidance, get_guided_solver, get_likelihood_gradient
from msm.solvers.registry import SOLVERS, Solver


@SOLVERS.register("baseline")
def get_baseline_solver(config, experiment) -> Solver:
    """Returns the solver; static settings and defaults from `config.score_sde.baseline`, hyper: snr, gamma."""
    own = config.score_sde.baseline
    return get_guided_solver(
        config,
        experiment,
        PCSettings(own.num_levels, own.predictor, own.corrector, own.corrector_steps),
        hyper={"snr": own.snr, "gamma": own.gamma},
        get_guidance=lambda measurement, copies, hyper: Guidance(
            guide=get_likelihood_gradient(experiment, copies, hyper["gamma"])
        ),
    )
