"""MSM posterior sampling: the stochastic partial-score sampler with a projection-style data-consistency step.

Park et al. 2025 (arXiv 2505.11853), section 4. Every partial estimate moves towards the acquired entries by

    s0 <- s0 - gamma M_y (s0 - y)        (on the entries that the partial mask and y share)

so no gradient passes through the network; gamma = 1 replaces them by the acquired values.
"""

import jax
import jax.numpy as jnp

from losses import example_keys
from operators.masks import get_masks
from sampling import get_sampler, get_settings
from solvers.registry import SOLVERS, Solver


@SOLVERS.register("msm")
def get_msm_solver(config, experiment) -> Solver:
    """K posterior samples per scan in one batched call; static switches from `config.solver`, eta and gamma traced."""
    settings = get_settings(config.solver)
    masks = get_masks(config, density=config.solver.mask_keep)
    num_samples = config.eval.num_samples
    transform = experiment.transform

    def solve(key, params, measurement, hyper):
        def repeat(a):  # (B,...) -> (K * B,...)
            return None if a is None else jnp.broadcast_to(a, (num_samples, *a.shape)).reshape(-1, *a.shape[1:])

        y, acquired, maps = repeat(measurement.y), repeat(measurement.mask), repeat(measurement.maps)
        keys = example_keys(key, measurement.example_id)
        keys = jax.vmap(lambda k: jax.vmap(lambda i: jax.random.fold_in(i, k))(keys))(jnp.arange(num_samples))

        def denoise(s_t, mask, maps, t):
            return experiment.denoise(params, s_t, mask, maps, t)

        def correct(s0, mask):
            # the w calls of a level are stacked along the batch: w copies of (K * B)
            copies = s0.shape[0] // y.shape[0]
            known = jnp.tile(acquired, (copies, *[1] * (acquired.ndim - 1))) & mask
            return s0 - hyper["gamma"] * jnp.where(known, s0 - jnp.tile(y, (copies, *[1] * (y.ndim - 1))), 0)

        run = get_sampler(settings, experiment.schedule, transform, masks, denoise, correct)
        z = run(keys.reshape(-1), maps, y.shape, hyper["eta"])
        x = transform.adjoint(z, maps)
        return x.reshape(num_samples, -1, *x.shape[1:])

    return Solver(
        solve=solve,
        hyper={"gamma": config.solver.gamma, "eta": config.solver.eta},
        num_samples=num_samples,
        nfe=settings.num_levels * settings.w,
    )
