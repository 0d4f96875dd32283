"""MSM posterior sampling: the stochastic partial-score sampler with a projection-style data-consistency step.

Park et al. 2025 (arXiv 2505.11853), section 4: no gradient passes through the network. Two forms of the step:

  entries        every partial estimate moves towards the acquired entries that it holds (published for MRI),
                     s0 <- s0 - gamma M_y (s0 - y)
  least_squares  the aggregated estimate moves to the image that explains the data, x0 = T^H zhat being the prior mean,
                     zhat <- T (x0 + gamma (T^H M_y T + mu I)^-1 T^H M_y (y - T x0)),   mu = damping (noise_std / r)^2
                 with r^2 = sigma^2 sigma_d^2 / (sigma^2 + sigma_d^2), the estimate's variance under a white prior; a
                 good network's is smaller, hence damping > 1. With mu = 0 it is gamma H^+ (y - H x0), H = M_y T.

Several coils see one image: `least_squares` lets them fill in lines, `entries` treats each coil's entries as its own.
"""

from typing import Any

import jax
import jax.numpy as jnp

from losses import example_keys
from operators.inverse import get_damped_inverse
from operators.masks import get_masks
from sampling import get_sampler, get_settings
from solvers.registry import SOLVERS, Solver

START_RIDGE = 0.003  # of the CG-SENSE image that a warm start begins from
MIN_DAMPING = 1e-5  # keeps noiseless problems with a null space solvable in float32


@SOLVERS.register("msm")
def get_msm_solver(config, experiment) -> Solver:
    """K posterior samples per scan in one batched call; static switches from `config.solver`, eta and gamma traced."""
    settings = get_settings(config.solver)
    masks = get_masks(config, density=config.solver.mask_keep)
    num_samples = config.eval.num_samples
    transform = experiment.transform

    def solve(key, params, measurement, hyper):
        def repeat(a) -> Any:  # (B,...) -> (K * B,...)
            return None if a is None else jnp.broadcast_to(a, (num_samples, *a.shape)).reshape(-1, *a.shape[1:])

        y, acquired, maps = repeat(measurement.y), repeat(measurement.mask), repeat(measurement.maps)
        noise_std = repeat(measurement.noise_std)
        keys = example_keys(key, measurement.example_id)
        keys = jax.vmap(lambda k: jax.vmap(lambda i: jax.random.fold_in(i, k))(keys))(jnp.arange(num_samples))

        def denoise(s_t, mask, maps, t):
            return experiment.denoise(params, s_t, mask, maps, t)

        def entries(s0, mask):
            # the w calls of a level are stacked along the batch: w copies of (K * B)
            copies = s0.shape[0] // y.shape[0]
            known = jnp.tile(acquired, (copies, *[1] * (acquired.ndim - 1))) & mask
            return s0 - hyper["gamma"] * jnp.where(known, s0 - jnp.tile(y, (copies, *[1] * (y.ndim - 1))), 0)

        invert = get_damped_inverse(transform, measurement.mask, measurement.maps, config.solver.cg_steps)

        def closer_to_data(x0, mu):
            """The image nearest to x0 that explains y, (T^H M_y T + mu)^-1 (T^H M_y y + mu x0)."""
            residual = transform.adjoint(jnp.where(acquired, y - transform.forward(x0, maps), 0), maps)
            return x0 + hyper["gamma"] * invert(residual, jnp.maximum(mu, MIN_DAMPING))

        def least_squares(zhat, sigma):
            x0 = transform.adjoint(zhat, maps)
            variance = 1.0 / (sigma**-2 + config.denoiser.sigma_data**-2)
            return transform.forward(closer_to_data(x0, hyper["damping"] * noise_std**2 / variance), maps)

        start = jnp.zeros(y.shape, transform.dtype)
        if settings.start_sigma < experiment.schedule.sigma_max:
            nothing = jnp.zeros(transform.image_shape(y.shape), transform.dtype)
            start = transform.forward(closer_to_data(nothing, START_RIDGE * jnp.ones_like(noise_std)), maps)

        consistency = {"entries": {"correct": entries}, "least_squares": {"project": least_squares}}
        run = get_sampler(
            settings, experiment.schedule, transform, masks, denoise, **consistency[config.solver.consistency]
        )
        z = run(keys.reshape(-1), maps, start, hyper["eta"])
        x = transform.adjoint(z, maps)
        return x.reshape(num_samples, -1, *x.shape[1:])

    return Solver(
        solve=solve,
        hyper={name: config.solver[name] for name in ("gamma", "damping", "eta")},
        num_samples=num_samples,
        nfe=len(experiment.schedule.grid(settings.num_levels, settings.start_sigma)) * settings.w,
    )
