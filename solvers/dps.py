"""Diffusion posterior sampling: the prior's reverse step, then one down the misfit's gradient through the network.

Chung et al., Diffusion posterior sampling for general noisy inverse problems, ICLR 2023 (arXiv 2209.14687), algorithm
1, for images u = x + sigma n (variance exploding, as Aali et al. 2024 use it; the paper's own steps are of variance
preserving images). From sigma to sigma', with f^2 = sigma'^2 (1 - sigma'^2 / sigma^2),

    x0 = D(u, sigma),   r = y - H x0(u)
    u' = x0 + sqrt(sigma'^2 - f^2) (u - x0) / sigma + f xi - zeta / |r| grad_u |r|^2

the ancestral step of Ho et al. 2020. zeta / |r| is the published step size. Needs a prior of clean images that the
network gives for a whole measurement.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from msm.infra.values import Section, Setting, choice, integer, number
from msm.operators.measurement import Measurement
from msm.operators.operator import Operator, per_example
from msm.sampling import fresh_share, reverse_step
from msm.solvers.ancestral import get_ancestral_solver, see_whole
from msm.solvers.registry import SECTIONS, SOLVERS, Range, Solver

SEARCH = {"zeta": Range(0.01, 10.0, log=True)}


SECTIONS.register("dps")(
    Section(
        "Of the solvers dps and a_dps",
        {
            "num_levels": Setting(100, integer(1), "each a network call and its gradient"),
            "zeta": Setting(1.0, number(0), "step down the data's misfit, in units of the image"),
            "mask": Setting(
                "drawn", choice("drawn", "own"),
                "a_dps: what the network is given, drawn (published: one draw per sample) or own (the scan's)",
            ),
        },
    )
)  # fmt: skip


@SOLVERS.register("dps")
def get_dps_solver(config, experiment) -> Solver:
    """Returns the solver; `config.dps` {num_levels, zeta}, hyper: zeta."""

    def get_update(estimate, measurement, copies, keys, hyper):
        del measurement, keys
        return get_dps_update(experiment.operator, estimate, copies, see_whole(copies), hyper["zeta"])

    settings = config.dps
    return get_ancestral_solver(
        config, experiment, settings.num_levels, get_update, {"zeta": settings.zeta}, SEARCH, differentiated=True
    )


def get_dps_update(operator: Operator, estimate: Callable, copies: Measurement, mask: jax.Array, zeta) -> Callable:
    """Returns update(u, fresh, level) -> u', see `get_ancestral_solver`; the network sees T u inside `mask`."""
    y, measured, maps = copies.y, copies.mask, copies.maps

    def update(u, fresh, level):
        x0, transposed = jax.vjp(lambda v: estimate(v, mask, level["t"]), u)
        residual = y - operator.forward(x0, measured, maps)
        # minus half the gradient of |r|^2, as a displacement of u: JAX's transpose of a complex map lacks the conjugate
        (ascent,) = transposed(jnp.conj(operator.adjoint(residual, measured, maps)))
        norm = jnp.sqrt(jnp.sum(jnp.abs(residual) ** 2, axis=tuple(range(1, y.ndim))))
        share = fresh_share("ddim", 1.0, level["sigma"], level["next"])
        moved = reverse_step(x0, (u - x0) / level["sigma"], fresh, level["next"], share)
        return moved + 2 * zeta * jnp.conj(ascent) / per_example(jnp.maximum(norm, 1e-12), u)

    return update
