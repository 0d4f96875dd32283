"""Training losses from measurements alone; optimizer.py turns one into the step that every device runs."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from msm.infra.registry import Registry
from msm.models import unrolled as ssdu
from msm.models.denoiser import Denoised, get_loss_weight
from msm.operators.acquisition import Acquisition
from msm.operators.augment import get_augment_fn
from msm.operators.image_augment import get_image_augment_fn
from msm.operators.masks import MaskDistribution, get_always_fn, thin
from msm.operators.measurement import Array, Measurement
from msm.operators.operator import per_example
from msm.operators.randomness import draw_noise, example_keys, split_keys
from msm.operators.transform import Transform
from msm.sde_lib import Schedule

LossFn = Callable[[Any, Measurement, jax.Array], jax.Array]
LOSSES: Registry[Callable[..., LossFn]] = Registry("loss")


def get_loss_fn(
    config,
    schedule: Schedule,
    transform: Transform,
    masks: MaskDistribution,
    denoise: Callable[..., Denoised],
) -> LossFn:
    """Returns loss(params, measurement, key) -> (B,) float32, the loss of each example.

    Random numbers of an example derive from `key` and its id, so its loss does not depend on its batch-mates. Raises
    UserError for an unknown `config.loss.name`.
    """
    return LOSSES[config.loss.name](config, schedule, transform, masks, denoise)


@dataclass(frozen=True)
class Problem:
    """What a loss judges, whatever the measurement.

    Attributes:
      denoise: denoise(s_t, mask, maps, t) -> Denoised, parameters bound.
      schedule, transform: see `get_loss_fn`.
      weight: weight(sigma (B,)) -> (B,).
      reduction: 'observed' divides by the number of observed real scalars, 'all' by the number of all (published code).
    """

    denoise: Callable[..., Denoised]
    schedule: Schedule
    transform: Transform
    weight: Callable[[jax.Array], jax.Array]
    reduction: str = "observed"


def msm_loss(
    problem: Problem, measurement: Measurement, noise: jax.Array, t: jax.Array, judged: jax.Array | None = None
) -> jax.Array:
    """The noiseless MSM loss (docs/method.md): weight(sigma_t) mean |s - s0_hat|^2 over the mask, for each example.

    Args:
      problem: see `Problem`.
      measurement: s and its mask; values of s outside it are not read by the network.
      noise: N(0,1) per real scalar, shape of s.
      t: (B,) levels.
      judged: bool, compare the estimate of the whole measurement here instead; None for the mask.

    Returns:
      (B,) float32.
    """
    s, mask, schedule = measurement.y, measurement.mask, problem.schedule
    sigma = schedule.sigma(t)
    s_t = jnp.where(mask, per_example(schedule.alpha(t), s) * (s + per_example(sigma, s) * noise), 0)
    out = problem.denoise(s_t, mask, measurement.maps, t)
    where, estimate = (mask, out.s0) if judged is None else (judged, out.z0)
    error = jnp.where(where, s - estimate, 0)
    counted = where if problem.reduction == "observed" else jnp.ones_like(where)
    return problem.weight(sigma) * real_mean(error, error, observed_scalars(problem.transform, counted, s.shape))


def real_mean(values: jax.Array, other: jax.Array, count: jax.Array) -> jax.Array:
    """(B,): the real inner product <values, other> of each example, divided by `count`."""
    return jnp.sum((jnp.conj(values) * other).real, axis=tuple(range(1, values.ndim))) / count


def observed_scalars(transform: Transform, mask, shape: tuple[int, ...]) -> jax.Array:
    """(B,): how many real scalars of a measurement of this shape lie inside the mask."""
    return transform.real_scalars * jnp.sum(jnp.broadcast_to(mask, shape), axis=tuple(range(1, len(shape))))


def sure(denoised, shifted, s, probe, rho, tau, count) -> jax.Array:
    """Stein's unbiased risk estimate of |D(s) - x|^2 / m for s = x + rho n, without x (method.md section 3).

    |D(s) - s|^2/m - rho^2 + 2 rho^2/(tau m) <b, D(s + tau b) - D(s)>

    Args:
      denoised, shifted: D(s) and D(s + tau b), shape of s, 0 outside the mask.
      s, probe: the noisy measurement and b ~ N(0,1) per real scalar, both 0 outside the mask.
      rho: (B,) noise standard deviation per real scalar.
      tau: step of the finite difference, in units of s.
      count: (B,) m, number of observed real scalars.

    Returns:
      (B,) float32.
    """
    divergence = real_mean(probe, shifted - denoised, count) / tau
    return real_mean(denoised - s, denoised - s, count) - rho**2 + 2 * rho**2 * divergence


def msm_sure_loss(
    problem: Problem,
    measurement: Measurement,
    noise: jax.Array,
    probe: jax.Array,
    t: jax.Array,
    tau: float,
    count: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The two terms of the loss for noisy measurements (method.md section 3), each (B,) float32 and not yet summed.

    With u = s + sqrt(sigma^2 - rho^2) n where sigma > rho, and a = 1 - rho^2/sigma^2, the first term is
    weight(sigma) mean |s - a D_sigma(u) - (1 - a) u|^2: by Tweedie its minimiser denoises to the noise-free s. Where
    sigma <= rho there is no data of so little noise: y1 = D_rho(s), kept constant, takes its place, and the term is
    weight(sigma) mean |y1 - D_sigma(y1 + sigma n)|^2. The second term is `sure` of D_rho, not weighted.

    Args:
      problem, measurement, noise, t: as in `msm_loss`; rho is the measurement's noise_std, more than 0.
      probe: N(0,1) per real scalar, shape of s.
      tau: step of the finite difference in `sure`.
      count: m of `sure`, if it is not to be the number of observed real scalars.

    The three network calls are two: D_rho(s) and D_rho(s + tau b) share one of twice the batch.
    """
    schedule, transform, denoise = problem.schedule, problem.transform, problem.denoise
    mask, maps, rho = measurement.mask, measurement.maps, measurement.noise_std
    s, probe = jnp.where(mask, measurement.y, 0), jnp.where(mask, probe, 0)
    sigma, level = schedule.sigma(t), schedule.level(rho)

    def twice(a) -> Any:
        return None if a is None else jnp.concatenate([a, a])

    both = per_example(twice(schedule.alpha(level)), s) * jnp.concatenate([s, s + tau * probe])
    clean, shifted = jnp.split(denoise(both, twice(mask), twice(maps), twice(level)).s0, 2)
    observed = observed_scalars(transform, mask, s.shape)
    risk = sure(clean, shifted, s, probe, rho, tau, observed if count is None else count)

    above = sigma > rho
    target = jnp.where(per_example(above, s), s, jax.lax.stop_gradient(clean))
    added = jnp.where(above, jnp.sqrt(jnp.maximum(sigma**2 - rho**2, 0)), sigma)
    u = jnp.where(mask, target + per_example(added, s) * noise, 0)
    s0 = denoise(per_example(schedule.alpha(t), s) * u, mask, maps, t).s0
    share = per_example(jnp.where(above, 1 - (rho / sigma) ** 2, 1), s)
    error = target - share * s0 - (1 - share) * u
    total = observed if problem.reduction == "observed" else observed_scalars(transform, jnp.ones_like(mask), s.shape)
    return problem.weight(sigma) * real_mean(error, error, total), risk


Prepare = Callable[[jax.Array, Measurement], Measurement]


def get_prepare_fn(config, transform: Transform, masks: MaskDistribution) -> Prepare:
    """Returns prepare(keys (B,), measurement) -> Measurement: what a training step makes of a stored acquisition.

    A random share of the acquired entries is left out (`loss.min_keep`) and a random exact symmetry is applied
    (`data.augment`). The ablation `loss.redraw` first draws a fresh mask and fresh noise, as the published code does;
    it needs fully sampled, noiseless acquisitions, which is why it is not MSM.
    """
    augment = get_augment_fn(config)
    always_at = get_always_fn(config, masks)
    min_keep, redraw_std = config.loss.min_keep, config.loss.redraw_noise_std

    def redraw(key, y):
        mask_key, noise_key = jax.random.split(key)
        mask = masks.sample(mask_key)
        return jnp.where(mask, y + redraw_std * transform.noise(noise_key, y.shape), 0), mask

    def keep_share(always, key, mask):
        share_key, keep_key = jax.random.split(key)
        return thin(keep_key, mask, always, jax.random.uniform(share_key, minval=min_keep, maxval=1.0))

    def prepare(keys, measurement):
        if config.loss.redraw:
            y, mask = jax.vmap(redraw)(split_keys(keys, 4), measurement.y)
            noise_std = jnp.full_like(measurement.noise_std, redraw_std)
            measurement = measurement.replace(y=y, mask=mask, noise_std=noise_std)
        if min_keep < 1:  # before the symmetries: they move the lines that p(S) always keeps
            keep = jax.vmap(partial(keep_share, always_at(measurement.y.shape)))
            measurement = measurement.replace(mask=keep(split_keys(keys, 1), measurement.mask))
        return augment(split_keys(keys, 0), measurement)

    return prepare


@LOSSES.register("msm")
def get_msm_loss(config, schedule, transform, masks, denoise) -> LossFn:
    """MSM for (nearly) noiseless measurements: denoise a random share of what was acquired, one level per example."""
    weight, prepare = get_loss_weight(config), get_prepare_fn(config, transform, masks)
    reduction = config.loss.reduction

    def loss(params, measurement, key):
        keys = example_keys(key, measurement.example_id)
        m = prepare(keys, measurement)
        t = jax.vmap(schedule.sample)(split_keys(keys, 2))
        noise = draw_noise(transform, split_keys(keys, 3), m.y.shape)
        return msm_loss(Problem(partial(denoise, params), schedule, transform, weight, reduction), m, noise, t)

    return loss


@LOSSES.register("msm_sure")
def get_msm_sure_loss(config, schedule, transform, masks, denoise) -> LossFn:
    """MSM for noisy measurements: `msm_sure_loss` with the noise level that travels with each measurement.

    The published code weights the risk like the first term, by 1/sigma_t^2. That is what 'eps' does here; 'edm' weights
    it by 1/c_out^2 at rho, the level it speaks of, which has the same minimiser and less variance.
    """
    weight, prepare = get_loss_weight(config), get_prepare_fn(config, transform, masks)
    published_weight, settings = config.denoiser.parametrization != "edm", config.loss

    def loss(params, measurement, key):
        keys = example_keys(key, measurement.example_id)
        m = prepare(keys, measurement)
        t = jax.vmap(schedule.sample)(split_keys(keys, 2))
        noise, probe = (draw_noise(transform, split_keys(keys, n), m.y.shape) for n in (3, 5))
        count = published_count(config, transform, m.y.shape) if settings.sure_count == "published" else None
        problem = Problem(partial(denoise, params), schedule, transform, weight, settings.reduction)
        fit, risk = msm_sure_loss(problem, m, noise, probe, t, settings.sure_tau, count)
        risk_weight = weight(schedule.sigma(t) if published_weight else m.noise_std)
        return fit + settings.sure_weight * risk_weight * risk

    return loss


def published_count(config, transform: Transform, shape: tuple[int, ...]) -> float:
    """m of the published code: an image's real scalars over R for MRI, over the dropped share (0.4) for images.

    It counts 2.5 times too many for images and forgets the coils; for reproducing published runs only.
    """
    image = math.prod(transform.image_shape(shape)[1:]) * transform.real_scalars
    masks = config.masks
    return image / (round(masks.drop / masks.grid**2, 1) if masks.name == "random_boxes" else masks.acceleration)


@LOSSES.register("ssdu")
def get_ssdu_loss(config, schedule, transform, masks, denoise) -> LossFn:
    """SSDU, see models/unrolled.py: from Theta, a random part of the acquired entries, to the others."""
    augment, always_at = get_augment_fn(config), get_always_fn(config, masks)
    reconstruct = ssdu.get_reconstruct_fn(config, schedule, transform, Acquisition(transform))

    def loss(params, measurement, key):
        keys = example_keys(key, measurement.example_id)
        share = partial(ssdu.split, always=always_at(measurement.y.shape), share=config.ssdu.share)
        theta, judged = jax.vmap(share)(split_keys(keys, 1), measurement.mask)
        given, other = (augment(split_keys(keys, 0), measurement.replace(mask=mask)) for mask in (theta, judged))
        x = reconstruct(partial(denoise, params), given)
        return ssdu.normalised_loss(transform.forward(x, given.maps), given.y, other.mask)

    return loss


@LOSSES.register("ambient")
def get_ambient_loss(config, schedule, transform, masks, denoise) -> LossFn:
    """Ambient diffusion (Daras et al. 2023, arXiv 2305.19256; for MRI Aali et al. 2024, arXiv 2403.08728).

    The network is given a part of the acquired entries, each kept with probability `loss.ambient_keep`, of the noisy
    image, S' (y + sigma T n), and judged on all of them: weight(sigma) mean |S (y - T x0_hat)|^2. Since it cannot know
    which entries it will be judged on, the minimiser is E[x | S' T (x + sigma n)]. MSM's `loss.min_keep` judges the
    kept entries alone.
    """
    weight, augment = get_loss_weight(config), get_augment_fn(config)
    always_at = get_always_fn(config, masks)

    def loss(params, measurement, key):
        keys = example_keys(key, measurement.example_id)
        thinned = partial(thin, always=always_at(measurement.y.shape), share=config.loss.ambient_keep)
        kept = jax.vmap(thinned)(split_keys(keys, 1), measurement.mask)
        given, m = (augment(split_keys(keys, 0), measurement.replace(mask=mask)) for mask in (kept, measurement.mask))
        t = jax.vmap(schedule.sample)(split_keys(keys, 2))
        noise = transform.forward(draw_noise(transform, split_keys(keys, 3), transform.image_shape(m.y.shape)), m.maps)
        problem = Problem(partial(denoise, params), schedule, transform, weight, config.loss.reduction)
        return msm_loss(problem, replace(m, mask=given.mask), noise, t, judged=m.mask)

    return loss


@flax.struct.dataclass
class Completed:
    """Acquisitions with a completion of each: what loss 'fill_in' is given.

    Attributes:
      measurement: (B,...), the acquisitions.
      image: (B,...), estimates of the images of which they are, made from them alone.
    """

    measurement: Measurement
    image: Array


@LOSSES.register("fill_in")
def get_fill_in_loss(config, schedule, transform, masks, denoise) -> Callable[[Any, Completed, jax.Array], jax.Array]:
    """Whole inputs, judged on acquired entries alone: weight(sigma) mean |S (y - T D(x + sigma n))|^2, x a completion.

    The network sees in training what solvers show it, a whole measurement without alias, and no estimate is its target
    (modes/em.py makes the completions anew every `em.steps` steps). For (nearly) noiseless measurements.
    """
    weight, augment = get_loss_weight(config), get_augment_fn(config)

    def loss(params, completed, key):
        m = completed.measurement
        keys = example_keys(key, m.example_id)
        z = augment(split_keys(keys, 0), m.replace(y=transform.forward(completed.image, m.maps))).y
        m = augment(split_keys(keys, 0), m)
        t = jax.vmap(schedule.sample)(split_keys(keys, 2))
        sigma, x = schedule.sigma(t), transform.adjoint(z, m.maps)
        noisy = x + per_example(sigma, x) * draw_noise(transform, split_keys(keys, 3), x.shape)
        z_t = per_example(schedule.alpha(t), z) * transform.forward(noisy, m.maps)
        error = jnp.where(m.mask, m.y - denoise(params, z_t, jnp.ones_like(m.mask), m.maps, t).z0, 0)
        return weight(sigma) * real_mean(error, error, observed_scalars(transform, m.mask, m.y.shape))

    return loss


@LOSSES.register("em")  # with completed images as what it takes for clean ones, see modes/em.py
@LOSSES.register("dsm")
def get_dsm_loss(config, schedule, transform, masks, denoise) -> LossFn:
    """Denoising score matching on clean images (Ho et al. 2020), the oracle: weight(sigma) mean |x - x0_hat|^2.

    x = T^H y of a fully sampled, noiseless acquisition; noise is added to the image, and the network sees T of it
    through the same seam as every other loss, with a mask of ones.
    """
    weight = get_loss_weight(config)
    augment = get_image_augment_fn(config.em.augment) if config.loss.name == "em" else get_augment_fn(config)

    def loss(params, measurement, key):
        keys = example_keys(key, measurement.example_id)
        m = augment(split_keys(keys, 0), measurement)
        t = jax.vmap(schedule.sample)(split_keys(keys, 2))
        sigma = schedule.sigma(t)
        x = transform.adjoint(m.y, m.maps)
        noisy = x + per_example(sigma, x) * draw_noise(transform, split_keys(keys, 3), x.shape)
        z_t = per_example(schedule.alpha(t), m.y) * transform.forward(noisy, m.maps)
        error = x - transform.adjoint(denoise(params, z_t, jnp.ones_like(m.mask), m.maps, t).z0, m.maps)
        return weight(sigma) * real_mean(error, error, transform.to_channels(x)[0].size)

    return loss
