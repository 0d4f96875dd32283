"""Exact symmetries of a measurement: they return the measurement of another image, made from acquired data only.

Each works on one example (no batch axis): y, mask and maps in, the same out. Noise keeps its distribution, since all
are unitary; the acquired lines stay acquired.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from msm.infra.registry import Registry
from msm.operators.measurement import Measurement

AUGMENTATIONS: Registry[Callable] = Registry("augmentation")


def get_augment_fn(config) -> Callable[[jax.Array, Measurement], Measurement]:
    """Returns augment(keys (B,), measurement) -> Measurement, applying every symmetry of `config.data.augment`."""
    names = config.data.augment
    move, _ = get_symmetry_fns(names)

    def augment(keys, measurement):
        if not names:
            return measurement
        y, mask, maps = move(keys, measurement.y, measurement.mask, measurement.maps)
        return measurement.replace(y=y, mask=mask, maps=maps)

    return augment


def get_symmetry_fns(names: tuple[str, ...]) -> tuple[Callable, Callable]:
    """Returns (move, back) for the symmetries of these names, drawn from keys (B,).

    `move(keys, y, mask, maps) -> (y, mask, maps)` is what `get_augment_fn` does; `back(keys, y)` undoes it for a
    measurement y (B,...) that was moved with these keys.
    """

    def move_one(key, y, mask, maps):
        for index, name in enumerate(names):
            y, mask, maps = AUGMENTATIONS[name](jax.random.fold_in(key, index), y, mask, maps)
        return y, mask, maps

    def back_one(key, y):
        for index, name in reversed(list(enumerate(names))):
            y = _UNDO[name](jax.random.fold_in(key, index), y)
        return y

    return jax.vmap(move_one), jax.vmap(back_one)


def reflect(x: jax.Array, axis: int) -> jax.Array:
    """Mirrors about the centre index N//2 (circular for even N): what commutes with the centred Fourier transform."""
    size = x.shape[axis]
    return jnp.take(x, (2 * (size // 2) - jnp.arange(size)) % size, axis=axis) if size > 1 else x


@AUGMENTATIONS.register("flip")
def flip(key, y, mask, maps):
    """Multi-coil MRI: mirrors rows and columns, each with probability 1/2; k-space, mask and maps mirror alike."""
    for axis, flag in zip((-2, -1), jax.random.bernoulli(key, 0.5, (2,)), strict=True):
        y, mask, maps = (a if a is None else jnp.where(flag, reflect(a, axis), a) for a in (y, mask, maps))
    return y, mask, maps


@AUGMENTATIONS.register("shift")
def shift(key, y, mask, maps):
    """Multi-coil MRI: moves the image by up to 1/16 of its size (circularly): a phase ramp in k-space."""
    for axis, offset, ramp in _ramps(key, y):
        y = y * ramp
        maps = jnp.roll(maps, offset, axis)
    return y, mask, maps


def _ramps(key, y):
    """For both axes: the axis, how far the image moves, and the factor (broadcastable to y) that does it in k-space."""
    for axis, axis_key in zip((-2, -1), jax.random.split(key), strict=True):
        size = y.shape[axis]
        offset = jax.random.randint(axis_key, (), -(size // 16), size // 16 + 1)
        k = jnp.arange(size) - size // 2
        ramp = jnp.exp(-2j * jnp.pi * k * offset / size).astype(y.dtype)
        yield axis, offset, ramp[:, None] if axis == -2 else ramp


@AUGMENTATIONS.register("phase")
def phase(key, y, mask, maps):
    """Multi-coil MRI: multiplies by a random global phase (the receiver's is arbitrary)."""
    return y * _turn(key, y), mask, maps


def _turn(key, y):
    return jnp.exp(2j * jnp.pi * jax.random.uniform(key)).astype(y.dtype)


@AUGMENTATIONS.register("mirror")
def mirror(key, y, mask, maps):
    """Images: left-right mirror with probability 1/2."""
    flag = jax.random.bernoulli(key, 0.5)
    return jnp.where(flag, y[:, ::-1], y), jnp.where(flag, mask[:, ::-1], mask), maps


def _unshift(key, y):
    for _, _, ramp in _ramps(key, y):
        y = y * jnp.conj(ramp)
    return y


_UNDO: dict[str, Callable] = {
    "flip": lambda key, y: flip(key, y, None, None)[0],
    "shift": _unshift,
    "phase": lambda key, y: y * jnp.conj(_turn(key, y)),
    "mirror": lambda key, y: mirror(key, y, y, None)[0],
}
