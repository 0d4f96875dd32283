"""DDNM: at every level the estimate keeps its part in the null space of H and takes the rest from the data.

Wang et al., Zero-shot image restoration using denoising diffusion null-space model, ICLR 2023 (arXiv 2212.00490). From
sigma to sigma', with eps = (u - x0) / sigma the network's noise,

    x0 <- x0 + H^+ (y - H x0),   u' = x0 + sqrt(1 - eta^2) sigma' eps + eta sigma' xi

Published with eta 0.85 and 100 levels. The msm solver's `pseudo_inverse` on whole measurements differs in eps, which it
takes anew from the corrected x0. H^+ amplifies noise; `ddnm.consistency` 'least_squares' weighs the data by their noise
instead, (H^H H + mu I)^-1 H^H as in solvers/guidance.py, which is what DDNM+ does by singular values. Needs a prior of
clean images that the network gives for a whole measurement.
"""

from msm.infra.values import Section, Setting, choice, integer, number
from msm.sampling import fresh_share, reverse_step
from msm.solvers.ancestral import get_ancestral_solver, see_whole
from msm.solvers.guidance import CONSISTENCY
from msm.solvers.registry import SECTIONS, SOLVERS, Range, Solver

SECTIONS.register("ddnm")(
    Section(
        "Of the solver ddnm, as published",
        {
            "num_levels": Setting(100, integer(1), "noise levels from the largest to the smallest"),
            "consistency": Setting(
                "pseudo_inverse", choice("pseudo_inverse", "least_squares"),
                "published or least_squares, which weighs the data by their noise",
            ),
            "eta": Setting(0.85, number(0, 1), "share of fresh noise in a step"),
        },
    )
)  # fmt: skip


@SOLVERS.register("ddnm")
def get_ddnm_solver(config, experiment) -> Solver:
    """Returns the solver; `config.ddnm` {num_levels, consistency, eta}, hyper: eta."""
    settings, sigma_data = config.ddnm, config.denoiser.sigma_data

    def get_update(estimate, measurement, copies, keys, hyper):
        del keys
        move = CONSISTENCY[settings.consistency](experiment.operator, measurement, copies)
        whole = see_whole(copies)

        def update(u, fresh, level):
            x0 = estimate(u, whole, level["t"])
            eps = (u - x0) / level["sigma"]
            mu = copies.noise_std**2 * (level["sigma"] ** -2 + sigma_data**-2)  # read by least_squares alone
            kept = move(x0, copies.y, mu, 1.0)
            return reverse_step(kept, eps, fresh, level["next"], fresh_share("renoise", hyper["eta"], 0, level["next"]))

        return update

    return get_ancestral_solver(
        config, experiment, settings.num_levels, get_update, {"eta": settings.eta}, {"eta": Range(0.0, 1.0)}
    )
