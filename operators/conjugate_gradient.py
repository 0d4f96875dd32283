"""Conjugate gradients for a batch of independent linear systems."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

ROUNDING = 1e-6  # relative residual that float32 cannot improve on


def conjugate_gradient(operator: Callable, b: jax.Array, steps: int) -> jax.Array:
    """Solves `operator(x) = b` for Hermitian positive operators, every example of the batch on its own, from x = 0.

    Args:
      operator: maps (B,...) to (B,...), acting on each example separately.
      b: (B,...) real or complex.
      steps: largest number of iterations; fewer run where every example has converged to rounding before, as a whole
        measurement does in one. Memory does not depend on it.

    Its derivative is that of the exact solution, solved for in as many steps.
    """

    def transposed(_, b):  # the operator is Hermitian: its transpose is its conjugate
        return jnp.conj(_solve(operator, jnp.conj(b), steps))

    return jax.lax.custom_linear_solve(operator, b, partial(_solve, steps=steps), transposed)


def _solve(operator: Callable, b: jax.Array, steps: int) -> jax.Array:
    axes = tuple(range(1, b.ndim))

    def dot(p, q):
        return jnp.sum((jnp.conj(p) * q).real, axis=axes, keepdims=True)

    def ratio(p, q):  # an example that has converged (0/0) takes a step of length 0
        return jnp.where(q > 0, p / jnp.where(q > 0, q, 1), 0)

    energy = dot(b, b)

    def unfinished(carry):
        *_, rr, count = carry
        return (count < steps) & jnp.any(rr > ROUNDING**2 * energy)

    def step(carry):
        x, r, p, rr, count = carry
        ap = operator(p)
        length = ratio(rr, dot(p, ap))
        x, r = x + length * p, r - length * ap
        rr_new = dot(r, r)
        return x, r, r + ratio(rr_new, rr) * p, rr_new, count + 1

    return jax.lax.while_loop(unfinished, step, (jnp.zeros_like(b), b, b, energy, 0))[0]
