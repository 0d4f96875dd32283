"""The damped inverse of an acquisition, (T^H S T + mu I)^-1 b, for many b and mu at the cost of preparing it once."""

from collections.abc import Callable

import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from msm.operators.conjugate_gradient import conjugate_gradient
from msm.operators.fourier import COLUMNS, fft2c, ifft2c
from msm.operators.measurement import Array
from msm.operators.operator import damped_reciprocal, every_copy, per_example
from msm.operators.transform import Identity, MultiCoilFourier, Transform, normal

RANK_CUTOFF = 1e-5  # eigenvalues of T^H S T (at most 1) below it are rounding in float32: no part of a pseudo-inverse


def get_damped_inverse(transform: Transform, mask: Array, maps: Array | None, cg_steps: int) -> Callable:
    """Returns solve(b, mu) for a batch of B acquisitions.

    Where masks keep whole columns the rows of a multi-coil image are independent problems of size W: they are solved
    exactly, by one eigendecomposition per row that serves every b and mu (memory (B,H,W,W) complex64). Where T is the
    identity the system is diagonal. Elsewhere `cg_steps` conjugate-gradient iterations do it.

    Args:
      transform: T.
      mask: bool, broadcastable to (B,...) measurements.
      maps: (B,C,H,W) complex64 or None.
      cg_steps: iterations where the problem is neither diagonal nor falls into rows.

    Rounding grows with the condition, by about 1/mu: results agree between batch sizes to 1e-7/mu relative, not better.

    `solve` takes b (K*B,...), K copies of the batch one after the other, and mu (K*B,) >= 0; it returns an image like
    b. With mu = 0 it is the pseudo-inverse (T^H S T)^+ b, for b in the range of T^H S (conjugate gradients: as far as
    their steps lead).
    """
    if falls_into_rows(transform, mask, maps):
        return _row_solver(mask, maps)
    if type(transform) is Identity:  # of a subclass T may be anything
        return lambda b, mu: damped_reciprocal(every_copy(mask, b.shape[0]), per_example(mu, b)) * b

    def solve(b, mu):
        every_mask, every_maps = (every_copy(a, b.shape[0]) for a in (mask, maps))
        damping = per_example(mu, b)
        return conjugate_gradient(lambda x: normal(transform, x, every_mask, every_maps) + damping * x, b, cg_steps)

    return solve


def falls_into_rows(transform: Transform, mask: Array, maps: Array | None) -> bool:
    """Whether T^H S T leaves the rows of an image to themselves: multi-coil MRI with masks of whole columns."""
    return type(transform) is MultiCoilFourier and maps is not None and mask.shape[-2] == 1


def _row_matrices(mask: Array, maps: Array):
    """(B,H,W,W): row h of T^H S T is sum_c diag(C_c*) P diag(C_c), with P = F^H S F the same W x W for all rows."""
    width = maps.shape[-1]
    unit = jnp.eye(width, dtype=maps.dtype)
    keep = jnp.reshape(mask, (-1, 1, width))
    projection = ifft2c(jnp.where(keep, fft2c(unit, COLUMNS), 0), COLUMNS)  # (B,W,W), row j: P applied to unit vector j
    projection = jnp.swapaxes(projection, -1, -2)
    coils = jnp.einsum("bchi,bchj->bhij", jnp.conj(maps), maps)
    return coils * projection[:, None]


def solve_rows(mask: Array, maps: Array, b, mu):
    """(T^H S T + mu I)^-1 b exactly, once, where `falls_into_rows`: one Cholesky factor per row.

    Args:
      mask: (B,1,1,W) bool.
      maps: (B,C,H,W) complex64.
      b: (B,H,W) complex64.
      mu: (B,) > 0. Rounding grows with its inverse.
    """
    shifted = _row_matrices(mask, maps) + per_example(mu, b)[..., None] * jnp.eye(b.shape[-1], dtype=b.dtype)
    factor = jnp.linalg.cholesky(shifted)
    half = solve_triangular(factor, b[..., None], lower=True)
    return solve_triangular(factor, half, lower=True, trans="C")[..., 0]


def _row_solver(mask: Array, maps: Array) -> Callable:
    values, vectors = jnp.linalg.eigh(_row_matrices(mask, maps))  # (B,H,W), (B,H,W,W)
    certain = jnp.where(values > RANK_CUTOFF, values, 0)

    def solve(b, mu):
        stacked = b.reshape(-1, *values.shape)
        damping = mu.reshape(stacked.shape[0], -1, 1, 1)
        inside = jnp.einsum("bhij,kbhi->kbhj", jnp.conj(vectors), stacked)
        inside = inside * damped_reciprocal(jnp.where(damping > 0, jnp.maximum(values, 0), certain), damping)
        return jnp.einsum("bhij,kbhj->kbhi", vectors, inside).reshape(b.shape)

    return solve
