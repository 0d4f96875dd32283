"""One estimate in few network calls: the msm solver without noise, from a warm start.

A plug-and-play iteration (Venkatakrishnan et al. 2013; with a falling noise level as in DPIR, Zhang et al. 2021, arXiv
2008.13751): denoise the whole measurement, move to the posterior mean with regard to the data, and go on from there

    zhat <- T (x0 + (H^H H + mu I)^-1 H^H (y - H x0)),   x0 = T^H D_sigma(u),   u <- zhat

Where `msm_fast.mask_keep` is 0 the network sees one mask of p(S) per level, and entries outside it keep their values.
With `msm_fast.finish_sigma` the last call denoises at that level and its estimate is the result: what the data's own
noise leaves in the picture goes. It has no posterior spread. What each part is worth: docs/results/few-calls.md,
written by benchmarks/quality_vs_nfe.py.
"""

from msm.solvers.msm import get_msm_solver
from msm.solvers.registry import SOLVERS, Solver

# What `config.msm_fast` does not say: one call per level.
PRESET = {"step": "plug_and_play", "order": 1, "w": 1, "mask_order": "iid", "reinject": False, "weight": "count"}


@SOLVERS.register("msm_fast")
def get_msm_fast_solver(config, experiment) -> Solver:
    """The msm solver with `PRESET` and the settings of `config.msm_fast` in place of those of `config.solver`."""
    config = config.copy_and_resolve_references()
    config.solver.update(PRESET)
    config.solver.update(config.msm_fast)
    return get_msm_solver(config, experiment)
