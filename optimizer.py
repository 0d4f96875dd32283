"""The optimiser step that every device runs, on one flat vector of parameters, and the state that it hands on.

A network has hundreds of small arrays, and a program that updates, averages, checks and selects each of them takes a
compiler minutes. So the step holds parameters, their average and the optimiser's moments as one vector each: `Layout`
takes them apart at the network and at the border to checkpoints, which keep the network's tree.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from msm.operators.measurement import Measurement


@flax.struct.dataclass
class TrainState:
    """Everything a run needs to go on; learning rate, EMA rate and other settings come from the config instead.

    Attributes:
      step: () int32, steps done.
      params, ema_params: (N,) float32 each; in a checkpoint the network's tree (`Layout.to_tree`).
      opt_state: of Optax, whose moments are laid out as the parameters are.
    """

    step: jax.Array
    params: Any
    ema_params: Any
    opt_state: Any


class Layout:
    """Where each array of a parameter tree lies in one vector: in the order of the tree's leaves, each row by row.

    Args:
      params: tree of float32 arrays, or of anything with their shapes and types.

    Attributes:
      size: N, numbers in all.

    Raises ValueError for an array of another type, which a common vector would round.
    """

    def __init__(self, params: Any):
        leaves, self._structure = jax.tree.flatten(params)
        if others := sorted({str(leaf.dtype) for leaf in leaves} - {"float32"}):
            raise ValueError(f"parameters are float32, not {', '.join(others)}")
        self._shapes = [tuple(leaf.shape) for leaf in leaves]
        ends = np.cumsum([math.prod(shape) for shape in self._shapes])
        self._ends = [int(end) for end in ends]
        self.size = self._ends[-1]

    def flatten(self, tree: Any) -> Any:
        """(N,): the arrays of a tree one after another; numpy in, numpy out, so that nothing is compiled for it."""
        leaves = self._structure.flatten_up_to(tree)
        on_host = all(isinstance(leaf, np.ndarray | np.generic) for leaf in leaves)
        library: Any = np if on_host else jnp
        return library.concatenate([library.reshape(leaf, -1) for leaf in leaves])

    def unflatten(self, vector: Any) -> Any:
        """The tree of arrays that `flatten` made a vector of; of a numpy vector they are views."""
        starts = [0, *self._ends[:-1]]
        leaves = [
            vector[start:end].reshape(shape) for start, end, shape in zip(starts, self._ends, self._shapes, strict=True)
        ]
        return jax.tree.unflatten(self._structure, leaves)

    def to_tree(self, state: Any) -> Any:
        """The state as checkpoints hold it: every vector of N numbers as the network's tree, counters as they are."""
        return jax.tree.map(lambda leaf: self.unflatten(leaf) if leaf.shape == (self.size,) else leaf, state)

    def from_tree(self, state: Any) -> Any:
        """The inverse of `to_tree`."""

        def is_params(node) -> bool:
            return jax.tree.structure(node) == self._structure

        return jax.tree.map(lambda n: self.flatten(n) if is_params(n) else n, state, is_leaf=is_params)


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


def init_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """State at step 0 of a tree of parameters; the average starts from them."""
    flat = Layout(params).flatten(params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=flat,
        ema_params=flat.copy(),
        opt_state=jax.jit(optimizer.init)(flat),
    )


def all_finite(tree: Any) -> jax.Array:
    """() bool: no number in the tree is NaN or infinite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def get_step_fn(
    config,
    loss_fn: Callable[[Any, Measurement, jax.Array], jax.Array],
    optimizer: optax.GradientTransformation,
    layout: Layout,
    axis_name: str = "batch",
) -> Callable:
    """Returns step(state, measurement, key) -> (state, metrics), to be mapped over devices along `axis_name`.

    Each device sees its share of the global batch; gradients and loss are averaged over `axis_name`. `key` is the
    run's: the step folds in its number. Where loss, gradient norm or an updated parameter is not finite, the step is
    skipped: it counts, and parameters, their average and the optimiser stay as they are, so they are always finite.
    Metrics: loss, grad_norm (before clipping), skipped (0 or 1).

    Args:
      config: uses optim.
      loss_fn: loss(params, measurement, key) -> (B,), of the network's tree of parameters.
      optimizer: see `get_optimizer`; it sees one vector.
      layout: of that tree.
    """
    optim = config.optim

    def mean_loss(params, measurement, key):
        return jnp.mean(loss_fn(params, measurement, key))

    def gradient(params, measurement, key):
        # Not the gradient with respect to the vector: through `unflatten` it would be a sum of padded vectors.
        loss, grads = jax.value_and_grad(mean_loss)(layout.unflatten(params), measurement, key)
        return loss, layout.flatten(grads)

    def gradients(params, measurement, key):
        if optim.accumulate == 1:
            return gradient(params, measurement, key)
        split = jax.tree.map(lambda a: a.reshape(optim.accumulate, -1, *a.shape[1:]), measurement)

        def add(total, part):
            return jax.tree.map(jnp.add, total, gradient(params, part, key)), None

        total, _ = jax.lax.scan(add, (jnp.zeros(()), jnp.zeros_like(params)), split)
        return jax.tree.map(lambda a: a / optim.accumulate, total)

    def step(state: TrainState, measurement: Measurement, key: jax.Array):
        loss, grads = gradients(state.params, measurement, jax.random.fold_in(key, state.step))
        loss, grads = jax.lax.pmean((loss, grads), axis_name)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        # The average forgets the initial weights quickly: early in a run its memory is a tenth of the run so far.
        rate = jnp.minimum(optim.ema_rate, (1.0 + state.step) / (10.0 + state.step))
        ema = rate * state.ema_params + (1.0 - rate) * params
        norm = optax.tree.norm(grads)
        finite = all_finite((loss, norm, params))
        old = (state.params, state.ema_params, state.opt_state)
        new = jax.tree.map(lambda after, before: jnp.where(finite, after, before), (params, ema, opt_state), old)
        metrics = {"loss": loss, "grad_norm": norm, "skipped": 1 - finite.astype(jnp.int32)}
        return TrainState(state.step + 1, *new), metrics

    return step
