"""Other images from a completed image: its exact symmetries, and turned, zoomed and otherwise weighted ones.

Each works on one example (no batch axis): the image and its support (bool, or None) in, the same out. `flip`, `shift`,
`phase` and `mirror` are those of `operators.augment`. `warp` and `contrast` are no symmetries of a measurement: they
say that a turned head, or one of another weighting, is a head too.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from msm.infra.registry import Registry
from msm.operators.augment import reflect
from msm.operators.measurement import Measurement

IMAGE_AUGMENTATIONS: Registry[Callable] = Registry("image augmentation")

WARPED, CONTRASTED = 0.5, 0.25  # shares of the examples
TURN = 0.35  # radians
ZOOM, STRETCH = 0.13, 0.08  # logarithms: of both axes, of columns against rows
EXPONENT = (-0.5, 0.4)  # logarithm of the power of the magnitude


def get_image_augment_fn(names: tuple[str, ...]) -> Callable[[jax.Array, Measurement], Measurement]:
    """Returns augment(keys (B,), measurement) -> Measurement; y are images, `maps` their support (or None).

    Raises UserError for an unknown name.
    """
    steps = [IMAGE_AUGMENTATIONS[name] for name in names]

    def augment_one(key, x, support):
        for index, step in enumerate(steps):
            x, support = step(jax.random.fold_in(key, index), x, support)
        return x, support

    def augment(keys, measurement):
        x, support = jax.vmap(augment_one)(keys, measurement.y, measurement.maps)
        return measurement.replace(y=x, maps=support)

    return augment


def _of_both(change: Callable, x, support):
    return change(x), None if support is None else change(support)


@IMAGE_AUGMENTATIONS.register("flip")
def flip(key, x, support):
    """(H,W): mirrors rows and columns about the centre index, each with probability 1/2."""
    for axis, flag in zip((-2, -1), jax.random.bernoulli(key, 0.5, (2,)), strict=True):
        x, support = _of_both(lambda a, flag=flag, axis=axis: jnp.where(flag, reflect(a, axis), a), x, support)
    return x, support


@IMAGE_AUGMENTATIONS.register("shift")
def shift(key, x, support):
    """(H,W): moves by up to 1/16 of the size, circularly."""
    most = jnp.asarray(x.shape[-2:]) // 16
    offset = jax.random.randint(key, (2,), -most, most + 1)
    return _of_both(lambda a: jnp.roll(a, offset, (-2, -1)), x, support)


@IMAGE_AUGMENTATIONS.register("phase")
def phase(key, x, support):
    """(H,W) complex: a random global phase."""
    return x * jnp.exp(2j * jnp.pi * jax.random.uniform(key)).astype(x.dtype), support


@IMAGE_AUGMENTATIONS.register("mirror")
def mirror(key, x, support):
    """(H,W,channels): left-right with probability 1/2."""
    flag = jax.random.bernoulli(key, 0.5)
    return _of_both(lambda a: jnp.where(flag, a[:, ::-1], a), x, support)


@IMAGE_AUGMENTATIONS.register("contrast")
def contrast(key, x, support):
    """(H,W) complex, `CONTRASTED` of them: another power of the magnitude, exp(uniform(`EXPONENT`)), the same phase."""
    choose, draw = jax.random.split(key)
    power = jnp.exp(jax.random.uniform(draw, minval=EXPONENT[0], maxval=EXPONENT[1]))
    changed = x * (jnp.abs(x) + 1e-6) ** (power - 1)
    return jnp.where(jax.random.bernoulli(choose, CONTRASTED), changed, x), support


@IMAGE_AUGMENTATIONS.register("warp")
def warp(key, x, support):
    """(H,W) complex, `WARPED` of them: turned by up to `TURN` and zoomed, about the centre, as band-limited images."""
    choose, turn, zoom, stretch = jax.random.split(key, 4)
    angle = jax.random.uniform(turn, minval=-TURN, maxval=TURN)
    rows = jnp.exp(jax.random.uniform(zoom, minval=-ZOOM, maxval=ZOOM))
    columns = rows * jnp.exp(jax.random.uniform(stretch, minval=-STRETCH, maxval=STRETCH))
    chosen = jax.random.bernoulli(choose, WARPED)
    warped = enlarge(rotate(x, angle), rows, columns)
    if support is not None:
        moved = enlarge(rotate(support.astype(x.dtype), angle), rows, columns).real > 0.5
        support = jnp.where(chosen, moved, support)
    return jnp.where(chosen, warped, x), support


def rotate(x: jax.Array, angle) -> jax.Array:
    """(H,W) complex turned about its centre index, by three shears (Paeth 1986), each exact for periodic images."""
    across, down = -jnp.tan(angle / 2), jnp.sin(angle)
    return _shear(_shear(_shear(x, across), down, turned=True), across)


def _shear(x: jax.Array, slope, turned: bool = False) -> jax.Array:
    """Moves row h by slope (h - H//2) columns; with `turned` columns along rows."""
    if turned:
        return _shear(x.T, slope).T
    height, width = x.shape
    offset = slope * (jnp.arange(height) - height // 2)
    ramp = jnp.exp(-2j * jnp.pi * jnp.fft.fftfreq(width) * offset[:, None])
    return jnp.fft.ifft(jnp.fft.fft(x, axis=1) * ramp, axis=1).astype(x.dtype)


def enlarge(x: jax.Array, rows, columns) -> jax.Array:
    """(H,W) complex, `rows` and `columns` times as large about its centre index: the trigonometric interpolant."""
    by_row, by_column = (_resample(size, factor) for size, factor in zip(x.shape, (rows, columns), strict=True))
    return (by_row.astype(x.dtype) @ x) @ by_column.astype(x.dtype).T


def _resample(size: int, factor) -> jax.Array:
    """(size,size): row i holds the weights of the samples in the value at place centre + (i - centre) / factor."""
    centre = size // 2
    place = centre + (jnp.arange(size) - centre) / factor
    distance = place[:, None] - jnp.arange(size)
    near = jnp.abs(jnp.sin(jnp.pi * distance / size)) < 1e-6  # 0/0: the sample itself
    half = jnp.where(near, 1.0, jnp.pi * distance / size)
    kernel = jnp.sin(half * size) / (size * (jnp.tan(half) if size % 2 == 0 else jnp.sin(half)))
    return jnp.where(near, 1.0, kernel)
