"""Ambient diffusion posterior sampling: DPS with a network that was trained on undersampled measurements alone.

Aali et al., Ambient diffusion posterior sampling, 2024 (arXiv 2403.08728). As solvers/dps.py, but the network sees
S' T u for one mask S' per sample, kept through all levels, and gives E[x | S' T u] in place of the clean prior's
E[x | u]. Published: S' is drawn as in training, from p(S) and thinned (`dps.mask` 'drawn'); what the data say of lines
outside S' then reaches the image through the misfit's gradient alone. 'own' takes the scan's mask instead. Published
too, and not here: 300 Euler steps with added noise; the steps here are those of DPS.
"""

import jax

from msm.operators.masks import thin
from msm.operators.measurement import Measurement
from msm.operators.randomness import split_keys
from msm.solvers.ancestral import get_ancestral_solver
from msm.solvers.dps import SEARCH, get_dps_update
from msm.solvers.registry import SOLVERS, Solver


@SOLVERS.register("a_dps")
def get_a_dps_solver(config, experiment) -> Solver:
    """Returns the solver; `config.dps` {num_levels, zeta, mask} and `config.loss.ambient_keep`, hyper: zeta."""
    settings, masks, keep = config.dps, experiment.masks, config.loss.ambient_keep
    always = masks.inclusion_probability() >= 1.0

    def draw_mask(key):
        draw_key, thin_key = jax.random.split(key)
        return thin(thin_key, masks.sample(draw_key), always, keep)

    def given(copies: Measurement, keys):
        # the levels' noise takes the folds of `keys` from 0 on; this one is beyond them
        return copies.mask if settings.mask == "own" else jax.vmap(draw_mask)(split_keys(keys, 2**31 - 1))

    def get_update(estimate, measurement, copies, keys, hyper):
        del measurement
        return get_dps_update(experiment.operator, estimate, copies, given(copies, keys), hyper["zeta"])

    return get_ancestral_solver(
        config, experiment, settings.num_levels, get_update, {"zeta": settings.zeta}, SEARCH, differentiated=True
    )
