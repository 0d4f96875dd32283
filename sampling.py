"""Reverse-time sampling with stochastic partial scores (Park et al. 2025, Algorithm 1), as one scan over noise levels.

The sampler works in the variable u = z_t / alpha = z + sigma n, in which a step does not depend on the schedule's
alpha:

    u' = zhat + sqrt(sigma'^2 - f^2) eps + f xi,   eps = (u - zhat) / sigma

with f the fresh part of the noise: 'ddim' f = eta sigma' sqrt(1 - sigma'^2/sigma^2) (Song et al. 2021; eta 1 is
ancestral sampling), 'renoise' f = eta sigma' (the published posterior solver). 'plug_and_play' has no noise, u' =
zhat (DPIR of Zhang et al. 2021, arXiv 2008.13751): with data consistency an estimate in few calls, not a sample. With
`order` 2 the step takes, in place of zhat, the line through the last two estimates over log sigma, at the step's
middle (DPM-Solver++ 2M of Lu et al. 2022, arXiv 2211.01095, which has eta 0 and 1): no further network call.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import pairwise

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from msm.infra.registry import Registry
from msm.models.denoiser import Denoised
from msm.operators.masks import MaskDistribution, get_masks, mask_sequence
from msm.operators.operator import per_example
from msm.operators.randomness import draw_noise_of, example_keys, split_keys
from msm.operators.transform import Transform
from msm.predictor_corrector import PCSettings, get_pc_sampler, get_score_fn
from msm.sde_lib import Schedule


@dataclass(frozen=True)
class SamplerSettings:
    """What is static about a sampler; see configs/default.py for each meaning."""

    num_levels: int
    w: int = 1
    mask_order: str = "iid"
    reinject: bool = False
    weight: str = "count"
    step: str = "ddim"
    order: int = 1
    start_sigma: float = math.inf
    finish_sigma: float = 0.0


def get_settings(section) -> SamplerSettings:
    """Reads the static switches from `config.sampling` or `config.solver`."""
    names = [field.name for field in fields(SamplerSettings) if field.name in section]
    return SamplerSettings(**{name: section[name] for name in names})


@flax.struct.dataclass
class _Carry:
    """Scan state: u (B,...) noisy measurement, zhat its last estimate, covered (B, mask) for complementary masks."""

    u: jax.Array
    zhat: jax.Array
    covered: jax.Array


def fresh_share(step: str, eta, sigma, sigma_next):
    """Standard deviation f of the fresh noise in a step from sigma to sigma_next; f <= sigma_next for eta in [0,1]."""
    if step == "renoise":
        return eta * sigma_next
    return eta * sigma_next * jnp.sqrt(jnp.maximum(0.0, 1.0 - (sigma_next / sigma) ** 2))


def reverse_step(zhat, eps, noise, sigma_next, fresh):
    """u' = zhat + sqrt(sigma'^2 - f^2) eps + f noise; sigma' = 0 returns zhat."""
    return zhat + jnp.sqrt(jnp.maximum(0.0, sigma_next**2 - fresh**2)) * eps + fresh * noise


def extrapolations(sigmas: Sequence[float]) -> list[float]:
    """How far a second-order step looks beyond the last two estimates: h_i / (2 h_{i-1}), h the steps of log sigma.

    0 where there is nothing to look from, the first step, and where it would not matter, the last one, to sigma 0.
    """
    steps = [math.log(here / after) for here, after in pairwise(sigmas)]
    inner = [after / (2 * before) for before, after in pairwise(steps)]
    return [0.0, *inner, 0.0][: len(sigmas)]


def get_levels(settings: SamplerSettings, schedule: Schedule) -> dict[str, jax.Array]:
    """Returns what a step of the scan is told about its level, each (levels,): t, sigma, those beside it, `ahead`.

    And `projected`: whether the level's estimate is moved to the data. With `finish_sigma` the last level is of that
    noise and its estimate stays the network's own, without the noise of the data.
    """
    finish = settings.finish_sigma > 0
    times = schedule.grid(settings.num_levels - finish, settings.start_sigma)
    with jax.ensure_compile_time_eval():  # the levels are static, also where this is called while tracing
        if finish:
            times = np.append(times, np.asarray(schedule.level(jnp.float32(settings.finish_sigma))))
        sigmas = [float(v) for v in schedule.sigma(jnp.asarray(times))]
    return {
        "index": jnp.arange(len(times)),
        "t": jnp.asarray(times),
        "sigma": jnp.asarray(sigmas),
        "next": jnp.asarray([*sigmas[1:], 0.0]),
        "previous": jnp.asarray([jnp.inf, *sigmas[:-1]]),
        "ahead": jnp.asarray(extrapolations(sigmas)),
        "projected": jnp.arange(len(times)) < len(times) - finish,
    }


def get_calls(
    settings: SamplerSettings, schedule: Schedule, transform: Transform, denoise, correct, symmetry
) -> Callable:
    """Returns calls(carry, drawn, maps, level, keys, eta) -> sum of the w partial estimates of a level, u after them.

    `drawn` (w,B,...) are the masks, `keys` those of noise and of symmetries; the others are those of `get_sampler`.
    """
    w = settings.w

    def partial_estimate(u, mask, maps, t, keys):
        """One call on the entries of u inside mask; u and mask may stack several draws along the batch axis."""
        s_t = u * per_example(schedule.alpha(t), u)
        if symmetry is None:
            out = denoise(s_t, mask, maps, t)
            s0, eps = out.s0, out.eps
        else:  # the network is shown another image, and what it says is moved back
            move, back = symmetry
            out = denoise(*move(keys, s_t, mask, maps), t)
            s0, eps = back(keys, out.s0), back(keys, out.eps)
        return s0 if correct is None else jnp.where(mask, correct(s0, mask), 0), eps

    def independent_calls(carry, drawn, maps, level, keys, eta):
        """All w masks look at the same u: one batched call of w * B. Returns sum_i s0_i and the unchanged u."""
        del eta

        def stack(a):
            return None if a is None else jnp.broadcast_to(a, (w, *a.shape)).reshape(-1, *a.shape[1:])

        flat = drawn.reshape(-1, *drawn.shape[2:])
        t = jnp.full((flat.shape[0],), level["t"])
        moved = jax.vmap(partial(split_keys, keys[1]))(level["index"] * w + jnp.arange(w)).reshape(-1)
        s0, _ = partial_estimate(stack(carry.u), flat, stack(maps), t, moved)
        return jnp.sum(s0.reshape(w, *carry.u.shape), axis=0), carry.u

    def reinjecting_calls(carry, drawn, maps, level, keys, eta):
        """The masks act one after the other: each estimate is put back into u at the noise level of t."""
        fresh = fresh_share("ddim", eta, level["previous"], level["sigma"])

        def call(state, draw):
            u, total = state
            mask, index = draw
            t, moved = jnp.full((u.shape[0],), level["t"]), split_keys(keys[1], level["index"] * w + index)
            s0, eps = partial_estimate(u, mask, maps, t, moved)
            xi = draw_noise_of(transform, keys[0], (level["index"] + 1) * (w + 1) + index, u.shape)
            return (jnp.where(mask, reverse_step(s0, eps, xi, level["sigma"], fresh), u), total + s0), None

        (u, total), _ = jax.lax.scan(call, (carry.u, jnp.zeros_like(carry.u)), (drawn, jnp.arange(w)))
        return total, u

    return reinjecting_calls if settings.reinject else independent_calls


def aggregate(settings: SamplerSettings, probability: jax.Array, total, drawn, zhat) -> jax.Array:
    """The level's estimate of each entry from the sum over its masks; entries that none drew keep `zhat`."""
    if settings.weight == "population":
        return total / (settings.w * jnp.maximum(probability, 1e-6))
    count = jnp.sum(drawn, axis=0)
    return jnp.where(count > 0, total / jnp.maximum(count, 1), zhat)


def get_sampler(
    settings: SamplerSettings,
    schedule: Schedule,
    transform: Transform,
    masks: MaskDistribution,
    denoise: Callable[..., Denoised],
    correct: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    project: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None,
    symmetry: tuple[Callable, Callable] | None = None,
) -> Callable:
    """Returns sample(keys, maps, start, eta) -> z of the last estimate, shape of `start`.

    Args:
      settings: static switches.
      schedule: levels.
      transform: T, for its noise.
      masks: where the masks of the partial calls are drawn from.
      denoise: denoise(s_t, mask, maps, t) -> Denoised, parameters bound.
      correct: optional data consistency, correct(s0, mask) -> s0, applied to every partial estimate.
      project: optional data consistency, project(zhat, sigma, keys (B,)) -> zhat, applied to the aggregated estimate of
        a level; the keys are the level's own, for what it draws.
      symmetry: optional `operators.augment.get_symmetry_fns`: every call sees a random symmetry of u and of the maps.

    `sample`: keys (B,) one per example; start (B, ...) the measurement that the first level's noise is added to, 0 to
    sample from pure noise; eta a traced float. Memory does not grow with the number of levels, network calls are
    num_levels * w.
    """
    w, levels, probability = settings.w, get_levels(settings, schedule), masks.inclusion_probability()
    calls = get_calls(settings, schedule, transform, denoise, correct, symmetry)
    noise = partial(draw_noise_of, transform)

    def sample(keys, maps, start, eta):
        mask_keys, noise_keys, symmetry_keys, project_keys = (split_keys(keys, n) for n in range(4))

        def level_step(carry, level):
            draw_keys = split_keys(mask_keys, level["index"])
            drawn, covered = jax.vmap(lambda k, c: mask_sequence(masks, k, w, settings.mask_order, c), out_axes=(1, 0))(
                draw_keys, carry.covered
            )
            total, u = calls(carry, drawn, maps, level, (noise_keys, symmetry_keys), eta)
            zhat = aggregate(settings, probability, total, drawn, carry.zhat)
            if project is not None:
                moved = project(zhat, level["sigma"], split_keys(project_keys, level["index"]))
                zhat = jnp.where(level["projected"], moved, zhat)
            target = zhat if settings.order == 1 else zhat + level["ahead"] * (zhat - carry.zhat)
            if settings.step == "plug_and_play":
                return _Carry(target, zhat, covered), None
            eps = (u - target) / level["sigma"]
            xi = noise(noise_keys, (level["index"] + 1) * (w + 1) + w, u.shape)
            fresh = fresh_share(settings.step, eta, level["sigma"], level["next"])
            return _Carry(reverse_step(target, eps, xi, level["next"], fresh), zhat, covered), None

        u = start
        if settings.step != "plug_and_play":
            u = start + levels["sigma"][0] * noise(noise_keys, 0, start.shape)
        covered = jnp.zeros((start.shape[0], *probability.shape), bool)
        final, _ = jax.lax.scan(level_step, _Carry(u, start, covered), levels)
        return final.zhat

    return sample


METHODS: Registry[Callable] = Registry("sampling method")


def get_sampling_fn(config, schedule, transform, denoise) -> Callable:
    """Returns sample(key, params, example_id (B,), maps, shape) -> images x (B, ...): unconditional generation.

    Settings from `config.sampling`; `shape` is that of the full measurement, `maps` the coils the images are seen with.
    """
    return METHODS[config.sampling.method](config, schedule, transform, denoise)


@METHODS.register("msm")
def get_msm_fn(config, schedule, transform, denoise) -> Callable:
    """Park et al.'s Algorithm 1, see `get_sampler`."""
    sampling = config.sampling
    settings = get_settings(sampling)
    masks = get_masks(config, density=sampling.mask_keep)

    def sample(key, params, example_id, maps, shape):
        run = get_sampler(settings, schedule, transform, masks, partial(denoise, params))
        start = jnp.zeros(shape, transform.dtype)
        return transform.adjoint(run(example_keys(key, example_id), maps, start, sampling.eta), maps)

    return sample


@METHODS.register("predictor_corrector")
def get_predictor_corrector_fn(config, schedule, transform, denoise) -> Callable:
    """Song et al.'s sampler, for score models of clean images; see predictor_corrector.py."""
    sampling = config.sampling
    settings = PCSettings(sampling.num_levels, sampling.predictor, sampling.corrector, sampling.corrector_steps)

    def sample(key, params, example_id, maps, shape):
        score = get_score_fn(transform, partial(denoise, params), maps)
        run = get_pc_sampler(settings, schedule, transform, score)
        return run(example_keys(key, example_id), transform.image_shape(shape), sampling.snr)

    return sample
