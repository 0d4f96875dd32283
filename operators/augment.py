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
    steps = [AUGMENTATIONS[name] for name in config.data.augment]

    def augment_one(key, y, mask, maps):
        for index, step in enumerate(steps):
            y, mask, maps = step(jax.random.fold_in(key, index), y, mask, maps)
        return y, mask, maps

    def augment(keys, measurement):
        if not steps:
            return measurement
        y, mask, maps = jax.vmap(augment_one)(keys, measurement.y, measurement.mask, measurement.maps)
        return measurement.replace(y=y, mask=mask, maps=maps)

    return augment


def reflect(x: jax.Array, axis: int) -> jax.Array:
    """Mirrors about the centre index N//2 (circular for even N): what commutes with the centred Fourier transform."""
    size = x.shape[axis]
    return jnp.take(x, (2 * (size // 2) - jnp.arange(size)) % size, axis=axis) if size > 1 else x


@AUGMENTATIONS.register("flip")
def flip(key, y, mask, maps):
    """Multi-coil MRI: mirrors rows and columns, each with probability 1/2; k-space, mask and maps mirror alike."""
    for axis, flag in zip((-2, -1), jax.random.bernoulli(key, 0.5, (2,)), strict=True):
        y, mask, maps = (jnp.where(flag, reflect(a, axis), a) for a in (y, mask, maps))
    return y, mask, maps


@AUGMENTATIONS.register("shift")
def shift(key, y, mask, maps):
    """Multi-coil MRI: moves the image by up to 1/16 of its size (circularly): a phase ramp in k-space."""
    for axis, axis_key in zip((-2, -1), jax.random.split(key), strict=True):
        size = y.shape[axis]
        offset = jax.random.randint(axis_key, (), -(size // 16), size // 16 + 1)
        k = jnp.arange(size) - size // 2
        ramp = jnp.exp(-2j * jnp.pi * k * offset / size).astype(y.dtype)
        y = y * (ramp[:, None] if axis == -2 else ramp)
        maps = jnp.roll(maps, offset, axis)
    return y, mask, maps


@AUGMENTATIONS.register("phase")
def phase(key, y, mask, maps):
    """Multi-coil MRI: multiplies by a random global phase (the receiver's is arbitrary)."""
    return y * jnp.exp(2j * jnp.pi * jax.random.uniform(key)).astype(y.dtype), mask, maps


@AUGMENTATIONS.register("mirror")
def mirror(key, y, mask, maps):
    """Images: left-right mirror with probability 1/2."""
    flag = jax.random.bernoulli(key, 0.5)
    return jnp.where(flag, y[:, ::-1], y), jnp.where(flag, mask[:, ::-1], mask), maps
