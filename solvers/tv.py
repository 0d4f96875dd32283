"""Total variation: the image whose edges are few, by a primal-dual iteration.

x = argmin_x 1/2 |S T x - y|^2 + lam sum_pixels |D x|,   D the two forward differences (isotropic, periodic)

    x+ = x - step_x (T^H (S T x - y) + D^H u)
    u+ = project(u + step_u D (2 x+ - x))  onto |u| <= lam at every pixel

Source: Condat, J. Optim. Theory Appl. 2013; converges for 1/step_x - 8 step_u >= 1/2, as |S T| <= 1 and |D|^2 <= 8.
The counterpart of BART's `pics -R T:3:0:lam`.
"""

import jax
import jax.numpy as jnp

from operators.measurement import Measurement
from operators.transform import normal
from solvers.registry import SOLVERS, Solver

ITERATIONS = 300
STEP_X, STEP_U = 0.5, 0.15  # 2 - 8 * 0.15 = 0.8 >= 1/2
AXES = (1, 2)


def gradient(x: jax.Array) -> jax.Array:
    """(B,H,W,...) -> (2,B,H,W,...): periodic forward differences along rows and columns."""
    return jnp.stack([jnp.roll(x, -1, axis) - x for axis in AXES])


def gradient_adjoint(u: jax.Array) -> jax.Array:
    """The adjoint of `gradient`: minus the divergence."""
    return (jnp.roll(u[0], 1, AXES[0]) - u[0]) + (jnp.roll(u[1], 1, AXES[1]) - u[1])


@SOLVERS.register("tv")
def get_tv_solver(config, experiment) -> Solver:
    """Returns the solver. Needs `experiment.transform`; hyper: lam, the weight of the edges, in units of the image."""
    del config
    transform = experiment.transform

    def solve(key, params, measurement: Measurement, hyper):
        del key, params
        mask, maps, lam = measurement.mask, measurement.maps, hyper["lam"]
        rhs = transform.adjoint(jnp.where(mask, measurement.y, 0), maps)

        def project(u):
            length = jnp.sqrt(jnp.sum(jnp.abs(u) ** 2, axis=0))
            return u * jnp.where(length > lam, lam / jnp.where(length > lam, length, 1), 1)

        def step(_, carry):
            x, u = carry
            x_new = x - STEP_X * (normal(transform, x, mask, maps) - rhs + gradient_adjoint(u))
            return x_new, project(u + STEP_U * gradient(2 * x_new - x))

        x, _ = jax.lax.fori_loop(0, ITERATIONS, step, (rhs, jnp.zeros_like(gradient(rhs))))
        return x[None]

    return Solver(solve=solve, hyper={"lam": 0.005})
