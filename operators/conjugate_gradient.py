"""Conjugate gradients for a batch of independent linear systems."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def conjugate_gradient(operator: Callable, b: jax.Array, steps: int) -> jax.Array:
    """Solves `operator(x) = b` for Hermitian positive operators, every example of the batch on its own, from x = 0.

    Args:
      operator: maps (B,...) to (B,...), acting on each example separately.
      b: (B,...) real or complex.
      steps: number of iterations, static; memory does not depend on it.
    """
    axes = tuple(range(1, b.ndim))

    def dot(p, q):
        return jnp.sum((jnp.conj(p) * q).real, axis=axes, keepdims=True)

    def ratio(p, q):  # an example that has converged (0/0) takes a step of length 0
        return jnp.where(q > 0, p / jnp.where(q > 0, q, 1), 0)

    def step(carry, _):
        x, r, p, rr = carry
        ap = operator(p)
        length = ratio(rr, dot(p, ap))
        x, r = x + length * p, r - length * ap
        rr_new = dot(r, r)
        return (x, r, r + ratio(rr_new, rr) * p, rr_new), None

    (x, *_), _ = jax.lax.scan(step, (jnp.zeros_like(b), b, b, dot(b, b)), length=steps)
    return x
