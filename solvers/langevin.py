"""Annealed Langevin dynamics guided by the gradient of a likelihood (Jalal et al., NeurIPS 2021, arXiv 2108.01368).

The corrector 'ald' alone follows score(x) + grad_x log N(alpha y; H x, variance), variance = (gamma alpha sigma)^2 +
(alpha noise_std)^2; in the form of Song et al. (ICLR 2022). See solvers/guidance.py.
"""

from msm.predictor_corrector import PCSettings
from msm.solvers.guidance import Guidance, get_guided_solver, get_likelihood_gradient
from msm.solvers.registry import SOLVERS, Solver


@SOLVERS.register("langevin")
def get_langevin_solver(config, experiment) -> Solver:
    """Returns the solver; settings from `config.score_sde.langevin`, hyper: snr, gamma."""
    own = config.score_sde.langevin

    def get_guidance(measurement, copies, hyper):
        del measurement
        gradient = get_likelihood_gradient(experiment, copies, hyper["gamma"])
        return Guidance(guide=lambda x, noise, level: gradient(x, None, level))

    return get_guided_solver(
        config,
        experiment,
        PCSettings(own.num_levels, "none", "ald", own.corrector_steps),
        hyper={"snr": own.snr, "gamma": own.gamma},
        get_guidance=get_guidance,
    )
