"""Centred orthonormal Fourier transform over the last two axes: image (H,W) <-> k-space (H,W)."""

import jax
import jax.numpy as jnp
import numpy as np

AXES = (-2, -1)


def fft2c(x: jax.Array) -> jax.Array:
    """Image (...,H,W) complex64 -> k-space (...,H,W), unitary, zero frequency at index (H//2, W//2). Any size."""
    return _centred(x, jnp.fft.fft2)


def ifft2c(k: jax.Array) -> jax.Array:
    """k-space (...,H,W) complex64 -> image (...,H,W); the inverse and the adjoint of `fft2c`."""
    return _centred(k, jnp.fft.ifft2)


def _centred(x, transform):
    # For even sizes shifting by half is a multiplication by +-1 in the other domain: cheaper than moving memory.
    if all(x.shape[axis] % 2 == 0 for axis in AXES):
        sign = _checkerboard(x.shape[-2], x.shape[-1])
        half = x.shape[-2] // 2 + x.shape[-1] // 2
        return transform(x * sign, norm="ortho") * (sign * (-1.0) ** half)
    return jnp.fft.fftshift(transform(jnp.fft.ifftshift(x, AXES), norm="ortho"), AXES)


def _checkerboard(height: int, width: int) -> np.ndarray:
    """(H,W) float32 array of (-1)^(row + column)."""
    return (1.0 - 2.0 * (np.add.outer(np.arange(height), np.arange(width)) % 2)).astype(np.float32)
