"""Training losses from measurements alone, and the optimiser step that every device runs."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from models.denoiser import Denoised, get_loss_weight, per_example
from operators.augment import get_augment_fn
from operators.masks import MaskDistribution
from operators.measurement import Measurement
from operators.transform import Transform
from registry import Registry
from sde_lib import Schedule

LossFn = Callable[[Any, Measurement, jax.Array], jax.Array]
LOSSES: Registry[Callable[..., LossFn]] = Registry("loss")


@flax.struct.dataclass
class TrainState:
    """Everything a run needs to go on; learning rate, EMA rate and other settings come from the config instead."""

    step: jax.Array
    params: Any
    ema_params: Any
    opt_state: Any


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


def example_keys(key: jax.Array, example_id: jax.Array) -> jax.Array:
    """(B,) keys, one per example: fold_in(key, id)."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(example_id)


def msm_loss(denoise, schedule, transform, weight, s, mask, maps, noise, t, reduction="observed") -> jax.Array:
    """The noiseless MSM loss (docs/method.md): weight(sigma_t) mean |s - s0_hat|^2 over the mask, for each example.

    Args:
      denoise: denoise(s_t, mask, maps, t), parameters bound.
      schedule, transform: see `get_loss_fn`.
      weight: weight(sigma (B,)) -> (B,).
      s: measurement, shape of y; its values outside `mask` are not read by the network.
      mask: bool, what the network is given.
      maps: coil maps or None.
      noise: N(0,1) per real scalar, shape of s.
      t: (B,) levels.
      reduction: 'observed' divides by the number of observed real scalars, 'all' by the number of all (published code).

    Returns:
      (B,) float32.
    """
    sigma = schedule.sigma(t)
    s_t = jnp.where(mask, per_example(schedule.alpha(t), s) * (s + per_example(sigma, s) * noise), 0)
    out = denoise(s_t, mask, maps, t)
    axes = tuple(range(1, s.ndim))
    error = jnp.sum(jnp.where(mask, jnp.abs(s - out.s0) ** 2, 0), axis=axes)
    seen = jnp.broadcast_to(mask, s.shape) if reduction == "observed" else jnp.ones(s.shape, bool)
    return weight(sigma) * error / (transform.real_scalars * jnp.sum(seen, axis=axes))


@LOSSES.register("msm")
def get_msm_loss(config, schedule, transform, masks, denoise) -> LossFn:
    """MSM for (nearly) noiseless measurements: denoise a random share of what was acquired, one level per example."""
    augment = get_augment_fn(config)
    weight = get_loss_weight(config)
    always = masks.inclusion_probability() >= 1.0
    min_keep = config.loss.min_keep

    def thin(key, mask):
        """Keeps a random share of the acquired entries, and all that p(S) always keeps."""
        share_key, keep_key = jax.random.split(key)
        share = jax.random.uniform(share_key, minval=min_keep, maxval=1.0)
        return mask & (always | (jax.random.uniform(keep_key, mask.shape) < share))

    def loss(params, measurement, key):
        keys = example_keys(key, measurement.example_id)
        augment_key, thin_key, level_key, noise_key = (
            jax.vmap(lambda k, n=n: jax.random.fold_in(k, n))(keys) for n in range(4)
        )
        if min_keep < 1:  # before the symmetries: they move the lines that p(S) always keeps
            measurement = measurement.replace(mask=jax.vmap(thin)(thin_key, measurement.mask))
        measurement = augment(augment_key, measurement)
        t = jax.vmap(schedule.sample)(level_key)
        noise = jax.vmap(lambda k: transform.noise(k, measurement.y.shape[1:]))(noise_key)

        def bound(s_t, mask, maps, t):
            return denoise(params, s_t, mask, maps, t)

        return msm_loss(
            bound,
            schedule,
            transform,
            weight,
            measurement.y,
            measurement.mask,
            measurement.maps,
            noise,
            t,
            config.loss.reduction,
        )

    return loss


def get_optimizer(config) -> optax.GradientTransformation:
    """AdamW with linear warm-up, then constant or cosine decay to zero at `training.num_steps`, and norm clipping."""
    optim = config.optim
    total = config.training.num_steps
    warmup = min(optim.warmup_steps, total - 1)
    tails = {
        "cosine": lambda: optax.cosine_decay_schedule(optim.learning_rate, max(1, total - warmup)),
        "constant": lambda: optax.constant_schedule(optim.learning_rate),
    }
    ramp = optax.linear_schedule(optim.learning_rate / max(1, warmup), optim.learning_rate, warmup)
    rate = optax.join_schedules([ramp, tails[optim.decay]()], [warmup])
    clip = optax.clip_by_global_norm(optim.grad_clip) if optim.grad_clip else optax.identity()
    return optax.chain(clip, optax.adamw(rate, weight_decay=optim.weight_decay))


def init_state(params, optimizer: optax.GradientTransformation) -> TrainState:
    """State at step 0; the EMA starts from the parameters."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.array, params),
        opt_state=optimizer.init(params),
    )


def get_step_fn(config, loss_fn: LossFn, optimizer: optax.GradientTransformation, axis_name: str = "batch") -> Callable:
    """Returns step(state, measurement, key) -> (state, metrics), to be mapped over devices along `axis_name`.

    Each device sees its share of the global batch; gradients and loss are averaged over `axis_name`. `key` is the
    run's: the step folds in its number. Metrics: loss, grad_norm (before clipping).
    """
    optim = config.optim

    def mean_loss(params, measurement, key):
        return jnp.mean(loss_fn(params, measurement, key))

    def gradients(params, measurement, key):
        if optim.accumulate == 1:
            return jax.value_and_grad(mean_loss)(params, measurement, key)
        split = jax.tree.map(lambda a: a.reshape(optim.accumulate, -1, *a.shape[1:]), measurement)

        def add(total, part):
            return jax.tree.map(jnp.add, total, jax.value_and_grad(mean_loss)(params, part, key)), None

        zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        total, _ = jax.lax.scan(add, zero, split)
        return jax.tree.map(lambda a: a / optim.accumulate, total)

    def step(state: TrainState, measurement: Measurement, key: jax.Array):
        loss, grads = gradients(state.params, measurement, jax.random.fold_in(key, state.step))
        loss, grads = jax.lax.pmean((loss, grads), axis_name)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # The average forgets the initial weights quickly: early in a run its memory is a tenth of the run so far.
        rate = jnp.minimum(optim.ema_rate, (1.0 + state.step) / (10.0 + state.step))
        ema = jax.tree.map(lambda old, new: rate * old + (1.0 - rate) * new, state.ema_params, params)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        return TrainState(step=state.step + 1, params=params, ema_params=ema, opt_state=opt_state), metrics

    return step
