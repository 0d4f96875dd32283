"""Centred orthonormal Fourier transform of images and of their rows: image (H,W) <-> k-space (H,W)."""

import jax
import jax.numpy as jnp
import numpy as np

BOTH, COLUMNS = (-2, -1), (-1,)


def fft2c(x: jax.Array, axes: tuple[int, ...] = BOTH) -> jax.Array:
    """Image (...,H,W) complex64 -> k-space (...,H,W), unitary, zero frequency at index (H//2, W//2). Any size.

    `axes` = COLUMNS transforms along W only: image -> (row, k-space column).
    """
    return _centred(x, jnp.fft.fftn, axes)


def ifft2c(k: jax.Array, axes: tuple[int, ...] = BOTH) -> jax.Array:
    """k-space (...,H,W) complex64 -> image (...,H,W); the inverse and the adjoint of `fft2c`."""
    return _centred(k, jnp.fft.ifftn, axes)


def _centred(x, transform, axes):
    # For even sizes shifting by half is a multiplication by +-1 in the other domain: cheaper than moving memory.
    if all(x.shape[axis] % 2 == 0 for axis in axes):
        sign = _alternating(x.shape, axes)
        half = sum(x.shape[axis] // 2 for axis in axes)
        return transform(x * sign, axes=axes, norm="ortho") * (sign * np.float32((-1) ** half))
    return jnp.fft.fftshift(transform(jnp.fft.ifftshift(x, axes), axes=axes, norm="ortho"), axes)


def _alternating(shape: tuple[int, ...], axes: tuple[int, ...]) -> np.ndarray:
    """(H,W), (H,1) or (1,W) float32 array of (-1)^(sum of the indices along `axes`)."""
    rows, columns = (np.arange(shape[axis]) if axis in axes else np.zeros(1, int) for axis in BOTH)
    return (1 - 2 * (np.add.outer(rows, columns) % 2)).astype(np.float32)
