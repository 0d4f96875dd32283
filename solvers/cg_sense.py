"""CG-SENSE: the least-squares image with a small ridge, by conjugate gradients.

x = argmin_x 1/2 |S T x - y|^2 + lam/2 |x|^2 = (T^H S T + lam I)^-1 T^H S y

Source: Pruessmann et al., Advances in sensitivity encoding with arbitrary k-space trajectories, MRM 2001. Equal to
BART's `pics -R Q:lam -i 30`. For images (T the identity) the system is diagonal: y / (1 + lam) where acquired, else 0.
"""

import jax
import jax.numpy as jnp

from operators.measurement import Measurement
from operators.transform import normal
from solvers.registry import SOLVERS, Solver

ITERATIONS = 30


def _inner(a: jax.Array, b: jax.Array) -> jax.Array:
    """Real part of <a, b> of every example, shaped (B,1,...) so that it scales a batch of images."""
    return jnp.sum((jnp.conj(a) * b).real, axis=tuple(range(1, a.ndim)), keepdims=True)


def conjugate_gradients(operator, rhs: jax.Array, iterations: int) -> jax.Array:
    """Solves operator(x) = rhs for every example of a batch on its own, from x = 0.

    Args:
      operator: linear map of (B,...) to (B,...), Hermitian positive definite in every example.
      rhs: (B,...) real or complex.
      iterations: number of steps; one call of `operator` each. Examples that have converged stay where they are.

    Returns:
      x: like `rhs`.
    """

    def step(_, carry):
        x, residual, direction, energy = carry
        image = operator(direction)
        curvature = _inner(direction, image)
        active = (energy > 0) & (curvature > 0)  # an exact zero means solved: dividing by it would make NaN
        length = jnp.where(active, energy / jnp.where(active, curvature, 1), 0)
        x = x + length * direction
        residual = residual - length * image
        new_energy = _inner(residual, residual)
        ratio = jnp.where(active, new_energy / jnp.where(active, energy, 1), 0)
        return x, residual, residual + ratio * direction, new_energy

    start = (jnp.zeros_like(rhs), rhs, rhs, _inner(rhs, rhs))
    return jax.lax.fori_loop(0, iterations, step, start)[0]


@SOLVERS.register("cg_sense")
def get_cg_sense_solver(config, experiment) -> Solver:
    """Returns the solver. Needs `experiment.transform`; hyper: lam, the ridge (the squared operator has norm 1)."""
    del config
    transform = experiment.transform

    def solve(key, params, measurement: Measurement, hyper):
        del key, params
        mask, maps = measurement.mask, measurement.maps
        rhs = transform.adjoint(jnp.where(mask, measurement.y, 0), maps)
        ridge = hyper["lam"]
        return conjugate_gradients(lambda x: normal(transform, x, mask, maps) + ridge * x, rhs, ITERATIONS)[None]

    return Solver(solve=solve, hyper={"lam": 0.01})
