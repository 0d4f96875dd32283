"""MSM posterior sampling: the stochastic partial-score sampler with a projection-style data-consistency step.

Park et al. 2025 (arXiv 2505.11853), section 4: no gradient passes through the network. H is what was measured, T the
full measurement in which the sampler works (the identity for images). Three forms of the step:

  entries         every partial estimate moves towards the acquired entries that it holds (published for MRI),
                      s0 <- s0 - gamma M_y (s0 - y)
                  for H = M_y T only: acquisitions and inpainting
  pseudo_inverse  the aggregated estimate moves to the nearest image with the measured values (published for images),
                      zhat <- T (x0 - gamma H^+ (H x0 - y)),   x0 = T^H zhat
  least_squares   the same with regard to noise: x0 being the prior mean, towards the posterior mean
                      zhat <- T (x0 + gamma (H^H H + mu I)^-1 H^H (y - H x0)),   mu = damping (noise_std / r)^2
                  with r^2 the estimate's variance. With mu -> 0 it becomes pseudo_inverse.

The posterior of which this is the mean has covariance (H^H H / noise_std^2 + I / r^2)^-1; of it least_squares
returns by `solver.conditional`:

  draw            a sample: noise_std n is added to y and r n' to x0 before the step (perturb and MAP, Papandreou and
                  Yuille 2010; with the next level's noise a split Gibbs sampler, Vono et al. 2019)
  mean            the mean: samples then have but half of the posterior's covariance (tests/oracle/test_posterior.py)

and r^2 is by `solver.variance`:

  white           sigma^2 sigma_d^2 / (sigma^2 + sigma_d^2), that of a white prior
  residual        what the acquired entries say, (|y - H x0|^2 - noise) / |H n|^2 with every entry weighted by one over
                  the probability that it is acquired, at most that of a white prior. A mean over all directions: those
                  in which an image is still open have nearly sigma^2, so that samples are narrower than with white

Several coils see one image: the last two let them fill in lines, `entries` treats each coil's entries as its own. The
published settings are named in configs/tasks.py.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from msm.infra.registry import Registry
from msm.operators.acquisition import Acquisition
from msm.operators.augment import get_symmetry_fns
from msm.operators.masks import get_masks
from msm.operators.measurement import Measurement
from msm.operators.operator import MIN_DAMPING, Operator, every_copy, per_example
from msm.operators.randomness import draw_noise_of, example_keys
from msm.sampling import get_levels, get_sampler, get_settings
from msm.solvers.registry import SOLVERS, Range, Solver, temper

START_RIDGE = 0.003  # of the Tikhonov image that a warm start begins from
LEAST = 0.01  # of the white prior's variance, below which no residual leads

SEARCH = {"gamma": Range(0.1, 2.0)}  # gamma >= 2 overshoots the data by what it missed them
SEARCH_ETA = {"eta": Range(0.0, 1.0)}  # plug_and_play has no noise
SEARCH_DAMPING = {"damping": Range(0.03, 100.0, log=True)}  # only least_squares has one
SPREAD = {"temperature": Range(0.25, 8.0, log=True)}


@SOLVERS.register("msm")
def get_msm_solver(config, experiment) -> Solver:
    """K posterior samples per scan in one batched call; static switches from `config.solver`, `hyper` traced."""
    settings = get_settings(config.solver)
    masks = get_masks(config, density=config.solver.mask_keep)
    num_samples = config.eval.num_samples if settings.step != "plug_and_play" else 1  # without noise there is but one
    schedule, transform, operator = experiment.schedule, experiment.transform, experiment.operator
    symmetry = get_symmetry_fns(config.data.augment) if config.solver.symmetry else None

    def solve(key, params, measurement, hyper):
        def repeat(a) -> Any:  # (B,...) -> (K * B,...)
            return None if a is None else jnp.broadcast_to(a, (num_samples, *a.shape)).reshape(-1, *a.shape[1:])

        copies = jax.tree.map(repeat, measurement)
        keys = example_keys(key, measurement.example_id)
        keys = jax.vmap(lambda k: jax.vmap(lambda i: jax.random.fold_in(i, k))(keys))(jnp.arange(num_samples))

        def denoise(s_t, mask, maps, t):
            return experiment.denoise(params, s_t, mask, maps, t)

        nothing = jnp.zeros(operator.image_shape(copies.y.shape), transform.dtype)
        start = transform.forward(nothing, copies.maps)
        if settings.start_sigma < schedule.sigma_max:
            closer_to_data = get_damped_step(operator, measurement, copies, hyper["gamma"])
            start = transform.forward(
                closer_to_data(nothing, START_RIDGE * jnp.ones_like(copies.noise_std)), copies.maps
            )
        step = CONSISTENCY[config.solver.consistency](config, experiment, measurement, copies, hyper)
        run = get_sampler(settings, schedule, transform, masks, denoise, symmetry=symmetry, **step)
        x = transform.adjoint(run(keys.reshape(-1), copies.maps, start, hyper["eta"]), copies.maps)
        return temper(x.reshape(num_samples, -1, *x.shape[1:]), hyper["temperature"])

    return Solver(
        solve=solve,
        hyper={name: config.solver[name] for name in ("gamma", "damping", "eta", "temperature")},
        search={
            **SEARCH,
            **(SEARCH_ETA if settings.step != "plug_and_play" else {}),
            **(SEARCH_DAMPING if config.solver.consistency == "least_squares" else {}),
        },
        spread=SPREAD if num_samples > 1 else {},
        num_samples=num_samples,
        nfe=len(get_levels(settings, schedule)["t"]) * settings.w,
    )


def get_damped_step(operator: Operator, measurement: Measurement, copies: Measurement, gamma) -> Callable:
    """Returns step(x0, mu, added=0): for gamma = 1 the image (H^H H + mu I)^-1 (H^H (y + added) + mu x0).

    It explains y near x0. `copies` is `measurement` (B,...) repeated to (K*B,...), the batch of x0, mu and `added`.
    """
    invert = operator.get_damped_inverse(measurement.mask, measurement.maps)
    y, mask, maps = copies.y, copies.mask, copies.maps

    def step(x0, mu, added: float | jax.Array = 0.0):
        residual = operator.adjoint(y + added - operator.forward(x0, mask, maps), mask, maps)
        return x0 + gamma * invert(residual, jnp.maximum(mu, MIN_DAMPING))

    return step


# Factories: what the sampler is to do with its partial (`correct`) or aggregated (`project`) estimates.
CONSISTENCY: Registry[Callable[..., dict[str, Callable]]] = Registry("data consistency")


@CONSISTENCY.register("entries")
def get_entries(config, experiment, measurement, copies, hyper):
    """s0 - gamma M_y (s0 - y) on the entries that s0 holds."""
    del config, experiment, measurement

    def correct(s0, mask):
        # the w calls of a level are stacked along the batch: w copies of (K * B)
        y, acquired = (every_copy(a, s0.shape[0]) for a in (copies.y, copies.mask))
        return s0 - hyper["gamma"] * jnp.where(acquired & mask, s0 - y, 0)

    return {"correct": correct}


@CONSISTENCY.register("least_squares")
def get_least_squares(config, experiment, measurement, copies, hyper):
    """T (x0 + gamma (H^H H + mu I)^-1 H^H (y - H x0)), x0 = T^H zhat; with 'draw' of perturbed y and x0."""
    transform, settings = experiment.transform, config.solver
    step = get_damped_step(experiment.operator, measurement, copies, hyper["gamma"])
    estimate = VARIANCES[settings.variance](config, experiment, copies)
    draw = settings.conditional == "draw" and settings.step != "plug_and_play"

    def project(zhat, sigma, keys):
        x0 = transform.adjoint(zhat, copies.maps)
        variance = estimate(x0, sigma, keys)
        added = 0.0
        if draw:
            spread = per_example(jnp.sqrt(variance), x0)
            added = per_example(copies.noise_std, copies.y) * draw_noise_of(transform, keys, 0, copies.y.shape)
            x0 = x0 + spread * draw_noise_of(transform, keys, 1, x0.shape)
        moved = step(x0, hyper["damping"] * copies.noise_std**2 / variance, added)
        return transform.forward(moved, copies.maps)

    return {"project": project}


# Factories: estimate(x0 (K*B,...), sigma, keys) -> (K*B,) the variance of x0 per real scalar.
VARIANCES: Registry[Callable[..., Callable]] = Registry("variance")


@VARIANCES.register("white")
def get_white(config, experiment, copies):
    """sigma^2 sigma_d^2 / (sigma^2 + sigma_d^2)."""
    del experiment
    sigma_data = config.denoiser.sigma_data

    def estimate(x0, sigma, keys):
        del keys
        return jnp.full(x0.shape[:1], 1.0 / (sigma**-2 + sigma_data**-2))

    return estimate


@VARIANCES.register("residual")
def get_residual(config, experiment, copies):
    """(|y - H x0|^2 - its noise) / |H n|^2, n ~ N(0,1), entries weighted by 1 / P(acquired) where H acquires entries.

    Between `LEAST` and 1 of the white prior's: x0 is no better than the noise lets one see, and no worse than without
    a network.
    """
    operator, transform, white = experiment.operator, experiment.transform, get_white(config, experiment, copies)
    y, mask, maps = copies.y, copies.mask, copies.maps
    weight = jnp.ones(())
    probability = experiment.masks.inclusion_probability()
    of_this_size = all(n in (1, m) for n, m in zip(probability.shape[::-1], y.shape[::-1], strict=False))
    if isinstance(operator, Acquisition) and of_this_size:
        weight = 1 / jnp.maximum(probability, 1e-3)

    def energy(a):
        return jnp.sum(weight * jnp.abs(jnp.where(mask, a, 0)) ** 2, axis=tuple(range(1, y.ndim)))

    noise = copies.noise_std**2 * transform.real_scalars * energy(jnp.ones(y.shape))

    def estimate(x0, sigma, keys):
        probe = draw_noise_of(transform, keys, 2, x0.shape)
        found = energy(y - operator.forward(x0, mask, maps)) - noise
        most = white(x0, sigma, keys)
        return jnp.clip(found / jnp.maximum(energy(operator.forward(probe, mask, maps)), 1e-12), LEAST * most, most)

    return estimate


@CONSISTENCY.register("pseudo_inverse")
def get_pseudo_inverse(config, experiment, measurement, copies, hyper):
    """T (x0 - gamma H^+ (H x0 - y)), x0 = T^H zhat."""
    del config
    transform, operator = experiment.transform, experiment.operator
    pinv = operator.get_pinv(measurement.mask, measurement.maps)

    def project(zhat, sigma, keys):
        del sigma, keys
        x0 = transform.adjoint(zhat, copies.maps)
        moved = x0 - hyper["gamma"] * pinv(operator.forward(x0, copies.mask, copies.maps) - copies.y)
        return transform.forward(moved, copies.maps)

    return {"project": project}
