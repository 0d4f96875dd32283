"""Random streams: every example has keys of its own, which depend on its id and never on its batch-mates."""

import jax

from msm.operators.transform import Transform


def example_keys(key: jax.Array, example_id: jax.Array) -> jax.Array:
    """(B,) keys, one per example: fold_in(key, id)."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(example_id)


def split_keys(keys: jax.Array, number: int) -> jax.Array:
    """(B,) keys of the stream `number` of each example: 0 symmetry, 1 share, 2 level, 3 noise, 4 redraw, 5 probe."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def draw_noise(transform: Transform, keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """N(0,1) per real scalar, of the given batched shape, one key per example."""
    return jax.vmap(lambda key: transform.noise(key, shape[1:]))(keys)


def draw_noise_of(transform: Transform, keys: jax.Array, index, shape: tuple[int, ...]) -> jax.Array:
    """N(0,1) per real scalar, of the given batched shape: the draw `index` of each example's key."""
    return jax.vmap(lambda k: transform.noise(jax.random.fold_in(k, index), shape[1:]))(keys)
