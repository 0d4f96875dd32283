"""The damped inverse of an acquisition, (T^H S T + mu I)^-1 b, for many b and mu at the cost of preparing it once."""

from collections.abc import Callable

import jax.numpy as jnp

from operators.conjugate_gradient import conjugate_gradient
from operators.fourier import COLUMNS, fft2c, ifft2c
from operators.measurement import Array
from operators.transform import MultiCoilFourier, Transform, normal


def get_damped_inverse(transform: Transform, mask: Array, maps: Array | None, cg_steps: int) -> Callable:
    """Returns solve(b, mu) for a batch of B acquisitions.

    Where masks keep whole columns the rows of a multi-coil image are independent problems of size W: they are solved
    exactly, by one eigendecomposition per row that serves every b and mu (memory (B,H,W,W) complex64). Elsewhere
    `cg_steps` conjugate-gradient iterations do it.

    Args:
      transform: T.
      mask: bool, broadcastable to (B,...) measurements.
      maps: (B,C,H,W) complex64 or None.
      cg_steps: iterations where the problem does not fall into rows.

    Rounding grows with the condition, by about 1/mu: results agree between batch sizes to 1e-7/mu relative, not better.

    `solve` takes b (K*B,...), K copies of the batch one after the other, and mu (K*B,) > 0; it returns an image like b.
    """
    if isinstance(transform, MultiCoilFourier) and maps is not None and mask.shape[-2] == 1:
        return _row_solver(mask, maps)

    def solve(b, mu):
        copies = b.shape[0] // mask.shape[0]
        every_mask, every_maps = (
            None if a is None else jnp.tile(a, (copies, *[1] * (a.ndim - 1))) for a in (mask, maps)
        )
        damping = mu.reshape(-1, *[1] * (b.ndim - 1))
        return conjugate_gradient(lambda x: normal(transform, x, every_mask, every_maps) + damping * x, b, cg_steps)

    return solve


def _row_solver(mask: Array, maps: Array) -> Callable:
    """Row h of T^H S T is sum_c diag(C_c*) P diag(C_c), with P = F^H S F the same W x W projection for all rows."""
    width = maps.shape[-1]
    unit = jnp.eye(width, dtype=maps.dtype)
    keep = jnp.reshape(mask, (-1, 1, width))
    projection = ifft2c(jnp.where(keep, fft2c(unit, COLUMNS), 0), COLUMNS)  # (B,W,W), row j: P applied to unit vector j
    projection = jnp.swapaxes(projection, -1, -2)
    coils = jnp.einsum("bchi,bchj->bhij", jnp.conj(maps), maps)
    values, vectors = jnp.linalg.eigh(coils * projection[:, None])  # (B,H,W), (B,H,W,W)

    def solve(b, mu):
        stacked = b.reshape(-1, *values.shape)
        inside = jnp.einsum("bhij,kbhi->kbhj", jnp.conj(vectors), stacked)
        inside = inside / (jnp.maximum(values, 0) + mu.reshape(stacked.shape[0], -1, 1, 1))
        return jnp.einsum("bhij,kbhj->kbhi", vectors, inside).reshape(b.shape)

    return solve
