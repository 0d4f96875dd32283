"""One estimate in few network calls: the msm solver without noise, from a warm start.

A plug-and-play iteration (Venkatakrishnan et al. 2013; with a falling noise level as in DPIR, Zhang et al. 2021, arXiv
2008.13751): denoise the whole measurement, move to the posterior mean with regard to the data, and go on from there

    zhat <- T (x0 + (H^H H + mu I)^-1 H^H (y - H x0)),   x0 = T^H D_sigma(u),   u <- zhat

Where `msm_fast.mask_keep` is 0 the network sees one mask of p(S) per level, and entries outside it keep their values.
With `msm_fast.finish_sigma` the last call denoises at that level and its estimate is the result: what the data's own
noise leaves in the picture goes. It has no posterior spread. What each part is worth: docs/results/few-calls.md,
written by benchmarks/quality_vs_nfe.py.
"""

from msm.infra.values import Section, Setting, flag, integer, name, number
from msm.solvers.msm import CONSISTENCY, VARIANCES, get_msm_solver
from msm.solvers.registry import SECTIONS, SOLVERS, Solver

# What `config.msm_fast` does not say: one call per level.
PRESET = {"step": "plug_and_play", "order": 1, "w": 1, "mask_order": "iid", "reinject": False, "weight": "count"}


SECTIONS.register("msm_fast")(
    Section(
        "Of the msm_fast solver, in place of those of config.solver (solvers/msm_fast.py)",
        {
            "num_levels": Setting(20, integer(1), "= network calls"),
            "start_sigma": Setting(
                0.3,
                number(above=0),
                "noise level to start from; below the largest: a warm start from CG-SENSE",
            ),
            "mask_keep": Setting(
                1.0, number(0, 1), "density of the masks; 0 draws from p(S), 1 is the whole measurement in one call"
            ),
            "consistency": Setting(
                "least_squares", name(CONSISTENCY.names), "how an estimate is moved to the data, see solvers/msm.py"
            ),
            "damping": Setting(
                1.0, number(0), "of least_squares: how much better than under a white prior the estimate is"
            ),
            "variance": Setting(
                "white", name(VARIANCES.names), "of least_squares, of the network's estimate: white or residual"
            ),
            "symmetry": Setting(True, flag(), "every call sees a random symmetry (data.augment) of the image"),
            "gamma": Setting(1.0, number(0), "step towards the data, 1 is all the way"),
            "finish_sigma": Setting(
                0.0, number(0), "noise level of a last call whose estimate is the result as it is; 0: moved to the data"
            ),
        },
    )
)


@SOLVERS.register("msm_fast")
def get_msm_fast_solver(config, experiment) -> Solver:
    """The msm solver with `PRESET` and the settings of `config.msm_fast` in place of those of `config.solver`."""
    config = config.copy_and_resolve_references()
    config.solver.update(PRESET)
    config.solver.update(config.msm_fast)
    return get_msm_solver(config, experiment)
