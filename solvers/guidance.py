"""What the four solvers of Song et al. (ICLR 2022, arXiv 2111.08005) share: a predictor-corrector sampler and the data.

A score model of clean images is guided by a measurement in one of two ways. `get_projector`: the image moves to one
that explains the data, noised to the level of the moment, in x/alpha = x0 + sigma n

    u <- u + weight D (y + sigma H n - H u),   D = (H^H H + mu I)^-1 H^H   least_squares
                                               D = H^+                     pseudo_inverse
                                               D = H^H                     adjoint

or, for CT only, by the merge of operators/fourier_slice.py, `fourier_slice`.

For H = M T with unitary T and noiseless data all three are the published merge of T u and the known entries,
T^-1 (weight M y_t + (1 - weight M) T u). With several coils `adjoint` is that merge brought back by T^H, no projection
any more; `pseudo_inverse` is the projection, which amplifies noise; `least_squares` weighs it by the noise of the data,
mu = damping (noise_std / r)^2 with r^-2 = sigma^-2 + sigma_d^-2, so that below the data's noise nothing is merged.

`get_likelihood_gradient`: the score of N(alpha y; H x, (gamma alpha sigma)^2 + (alpha noise_std)^2) is added to that of
the prior.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from msm.infra.registry import Registry
from msm.operators.fourier_slice import FourierSlice
from msm.operators.measurement import Measurement
from msm.operators.operator import MIN_DAMPING, Operator, every_copy, per_example
from msm.operators.randomness import example_keys
from msm.predictor_corrector import Level, PCSettings, get_pc_sampler, get_score_fn, network_calls
from msm.solvers.registry import Hyper, Range, Solver

WEIGHT, GAMMA = Range(0.0, 1.0), Range(0.1, 20.0)  # where the published search looks

# Factories: get(operator, measurement, copies) -> move(u, target, mu, weight), see `get_projector`.
CONSISTENCY: Registry[Callable[[Operator, Measurement, Measurement], Callable]] = Registry("data consistency")


@CONSISTENCY.register("least_squares")
def get_least_squares(operator, measurement, copies):
    """u + weight (H^H H + mu I)^-1 H^H (target - H u)."""
    invert = operator.get_damped_inverse(measurement.mask, measurement.maps)
    mask, maps = copies.mask, copies.maps

    def move(u, target, mu, weight):
        residual = target - operator.forward(u, mask, maps)
        return u + weight * invert(operator.adjoint(residual, mask, maps), jnp.maximum(mu, MIN_DAMPING))

    return move


@CONSISTENCY.register("pseudo_inverse")
def get_pseudo_inverse(operator, measurement, copies):
    """u + weight H^+ (target - H u)."""
    pinv = operator.get_pinv(measurement.mask, measurement.maps)
    mask, maps = copies.mask, copies.maps
    return lambda u, target, mu, weight: u + weight * pinv(target - operator.forward(u, mask, maps))


@CONSISTENCY.register("adjoint")
def get_adjoint(operator, measurement, copies):
    """u + weight H^H (target - H u)."""
    del measurement
    mask, maps = copies.mask, copies.maps
    return lambda u, target, mu, weight: (
        u + weight * operator.adjoint(target - operator.forward(u, mask, maps), mask, maps)
    )


@CONSISTENCY.register("fourier_slice")
def get_fourier_slice(operator, measurement, copies):
    """CT: known views in place of the entries that they are in the image's padded spectrum, as published."""
    size = operator.image_shape(measurement.y.shape)[1]
    slices = FourierSlice(size, operator.views)
    return lambda u, target, mu, weight: slices.merge(u, target, copies.mask, weight)


@dataclasses.dataclass(frozen=True)
class Guidance:
    """What the data do to `get_pc_sampler`; `finish` is applied to its result."""

    pull: Callable[[jax.Array, jax.Array, Level], jax.Array] | None = None
    guide: Callable[[jax.Array, jax.Array, Level], jax.Array] | None = None
    finish: Callable[[jax.Array], jax.Array] = lambda x: x


def get_projector(config, experiment, measurement: Measurement, copies: Measurement) -> Callable:
    """Returns project(u, noise, sigma, weight) -> u, moved towards H u = y + sigma H noise; noise None for none.

    `copies` is `measurement` (B,...) repeated to (K*B,...), the batch of u and noise; sigma and weight are ().
    """
    operator, settings = experiment.operator, config.score_sde
    move = CONSISTENCY[settings.consistency](operator, measurement, copies)
    excess = settings.damping * copies.noise_std**2

    def project(u, noise, sigma, weight):
        added = 0 if noise is None else sigma * operator.forward(noise, copies.mask, copies.maps)
        return move(u, copies.y + added, excess * (sigma**-2 + config.denoiser.sigma_data**-2), weight)

    return project


def get_likelihood_gradient(experiment, copies: Measurement, gamma) -> Callable:
    """Returns gradient(x, noise, level): H^H (alpha y + alpha sigma H noise - H x) / variance; noise None for none.

    variance = (gamma alpha sigma)^2 + (alpha noise_std)^2, per real scalar.
    """
    operator = experiment.operator
    y, mask, maps = copies.y, copies.mask, copies.maps

    def gradient(x, noise, level: Level):
        known = level.alpha * level.sigma * noise if noise is not None else 0
        residual = level.alpha * y + operator.forward(known - x, mask, maps)
        variance = level.alpha**2 * ((gamma * level.sigma) ** 2 + copies.noise_std**2)
        return operator.adjoint(residual, mask, maps) / per_example(variance, x)

    return gradient


def get_copies(key: jax.Array, measurement: Measurement, number: int) -> tuple[Measurement, jax.Array]:
    """Returns `number` copies of a batch (B,...), one after the other (number*B,...), and a key of each one's own."""
    size = measurement.noise_std.shape[0]
    copies = jax.tree.map(lambda a: every_copy(jnp.asarray(a), number * size), measurement)
    keys = example_keys(key, measurement.example_id)
    keys = jax.vmap(lambda k: jax.vmap(lambda i: jax.random.fold_in(i, k))(keys))(jnp.arange(number))
    return copies, keys.reshape(-1)


def get_guided_solver(
    config,
    experiment,
    settings: PCSettings,
    hyper: dict[str, float],
    get_guidance: Callable[[Measurement, Measurement, Hyper], Guidance],
) -> Solver:
    """A posterior sampler of clean-data scores: K = `eval.num_samples` samples per scan in one batched call.

    Args:
      config: uses `eval.num_samples`.
      experiment: schedule, transform, operator and denoise.
      settings: of the sampler.
      hyper: `snr`, which is the sampler's, and `weight` or `gamma`.
      get_guidance: get_guidance(measurement (B,...), its copies (K*B,...), hyper) -> Guidance.
    """
    number = config.eval.num_samples
    transform, operator, schedule = experiment.transform, experiment.operator, experiment.schedule

    def solve(key, params, measurement, hyper):
        size = measurement.noise_std.shape[0]
        copies, keys = get_copies(key, measurement, number)

        def denoise(s_t, mask, maps, t):
            return experiment.denoise(params, s_t, mask, maps, t)

        guidance = get_guidance(measurement, copies, hyper)
        score = get_score_fn(transform, denoise, copies.maps)
        sample = get_pc_sampler(settings, schedule, transform, score, guidance.pull, guidance.guide)
        x = guidance.finish(sample(keys, operator.image_shape(copies.y.shape), hyper["snr"]))
        return x.reshape(number, size, *x.shape[1:])

    return Solver(
        solve=solve,
        hyper=hyper,
        search={name: rule for name, rule in get_search(config).items() if name in hyper},
        num_samples=number,
        nfe=len(network_calls(settings, schedule)),
    )


def get_search(config) -> dict[str, Range]:
    """Where the published search looks: for the step sizes of Langevin dynamics further up for MRI than for CT."""
    mri = config.data.num_coils > 0
    return {"snr": Range(0.1, 0.8) if mri else Range(0.0, 0.4), "weight": WEIGHT, "gamma": GAMMA}


def get_projection_guidance(config, experiment, last_weight: float | None = None) -> Callable:
    """Returns get_guidance: `get_projector` before each turn, with `hyper["weight"]`, and at the end without noise.

    The last one is of weight `last_weight`, or the same for None, and of the smallest noise level.
    """

    def get_guidance(measurement, copies, hyper):
        project = get_projector(config, experiment, measurement, copies)
        schedule = experiment.schedule
        last = schedule.sigma(jnp.asarray(schedule.grid(2)))[1]

        def pull(x, noise, level):
            return level.alpha * project(x / level.alpha, noise, level.sigma, hyper["weight"])

        def finish(x):
            return project(x, None, last, hyper["weight"] if last_weight is None else last_weight)

        return Guidance(pull=pull, finish=finish)

    return get_guidance
