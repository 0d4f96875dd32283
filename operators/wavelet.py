"""Orthonormal two-dimensional Daubechies-2 wavelet transform with periodic boundaries, in JAX.

Equal to PyWavelets' `wavedec2(x, "db2", "periodization")` in the nested layout of `coeffs_to_array`. Being orthonormal,
its inverse is its adjoint, and soft thresholding its coefficients is an exact proximal step.

Source: I. Daubechies, Ten Lectures on Wavelets, SIAM 1992, section 6.4 (two vanishing moments).
"""

import math

import jax
import jax.numpy as jnp

from msm.infra.errors import UserError

_ROOT3, _SCALE = math.sqrt(3.0), 1.0 / (4.0 * math.sqrt(2.0))
LOW = tuple(_SCALE * v for v in (1 + _ROOT3, 3 + _ROOT3, 3 - _ROOT3, 1 - _ROOT3))
HIGH = tuple(sign * v for sign, v in zip((1, -1, 1, -1), reversed(LOW), strict=True))
AXES = (1, 2)  # rows and columns of (B,H,W) and (B,H,W,channels) alike


def num_levels(size: int, coarsest: int = 16) -> int:
    """Returns how often `size` pixels can be halved with at least `coarsest` left (rounding up)."""
    levels = 0
    while math.ceil(size / 2) >= coarsest:
        size, levels = math.ceil(size / 2), levels + 1
    return levels


def _analyse(x: jax.Array, axis: int) -> jax.Array:
    """One level along one axis: the low half of the result is the approximation, the high half the detail."""
    x = jnp.roll(x, 1, axis)  # low[k] = sum_j LOW[j] x[2k - 1 + j]
    even, odd = (jax.lax.slice_in_dim(x, start, None, 2, axis) for start in (0, 1))
    taps = (even, odd, jnp.roll(even, -1, axis), jnp.roll(odd, -1, axis))
    return jnp.concatenate([sum(f * tap for f, tap in zip(bank, taps, strict=True)) for bank in (LOW, HIGH)], axis)


def _synthesise(c: jax.Array, axis: int) -> jax.Array:
    """The adjoint, hence the inverse, of `_analyse`."""
    low, high = jnp.split(c, 2, axis)
    even = LOW[0] * low + HIGH[0] * high + jnp.roll(LOW[2] * low + HIGH[2] * high, 1, axis)
    odd = LOW[1] * low + HIGH[1] * high + jnp.roll(LOW[3] * low + HIGH[3] * high, 1, axis)
    return jnp.roll(jnp.stack([even, odd], axis + 1).reshape(c.shape), -1, axis)


def _corner_sizes(shape: tuple[int, ...], levels: int) -> list[tuple[int, int]]:
    """Rows and columns of the block that each level transforms, finest first. UserError if they are not whole."""
    height, width = (shape[axis] for axis in AXES)
    if height % 2**levels or width % 2**levels:
        raise UserError(
            f"a wavelet transform of {levels} levels needs rows and columns that divide by {2**levels}, "
            f"not {height} x {width}: pad the image or use fewer levels"
        )
    return [(height >> level, width >> level) for level in range(levels)]


def dwt2(x: jax.Array, levels: int) -> jax.Array:
    """Returns the wavelet coefficients of images.

    Args:
      x: (B,H,W) or (B,H,W,channels), real or complex.
      levels: number of halvings; 2**levels must divide H and W.

    Returns:
      Coefficients of the shape and type of `x`; [:, : H >> levels, : W >> levels] is the coarse image.

    Raises:
      UserError: if H or W does not divide by 2**levels.
    """
    for height, width in _corner_sizes(x.shape, levels):
        corner = _analyse(_analyse(x[:, :height, :width], AXES[0]), AXES[1])
        x = x.at[:, :height, :width].set(corner)
    return x


def idwt2(c: jax.Array, levels: int) -> jax.Array:
    """Returns the images of which `c` are the coefficients: inverse and adjoint of `dwt2`; its arguments and errors."""
    for height, width in reversed(_corner_sizes(c.shape, levels)):
        corner = _synthesise(_synthesise(c[:, :height, :width], AXES[1]), AXES[0])
        c = c.at[:, :height, :width].set(corner)
    return c
