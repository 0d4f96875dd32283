"""Total variation: the image whose edges are few, by a primal-dual iteration.

x = argmin_x 1/2 |H x - y|^2 + lam sum_pixels |D x|,   D the two forward differences (isotropic, periodic)

    x+ = x - step_x (H^H (H x - y) + D^H u)
    u+ = project(u + step_u D (2 x+ - x))  onto |u| <= lam at every pixel

Source: Condat, J. Optim. Theory Appl. 2013; converges for 1/step_x - 8 step_u >= |H|^2/2, as |D|^2 <= 8.
The counterpart of BART's `pics -R T:3:0:lam`.
"""

import jax
import jax.numpy as jnp

from msm.operators.measurement import Measurement
from msm.solvers.registry import SOLVERS, Range, Solver

ITERATIONS = 300
STEP_X, STEP_U = 0.5, 0.15  # for |H| = 1: 2 - 8 * 0.15 = 0.8 >= 1/2; else divided and multiplied by |H|^2
AXES = (1, 2)


def gradient(x: jax.Array) -> jax.Array:
    """(B,H,W,...) -> (2,B,H,W,...): periodic forward differences along rows and columns."""
    return jnp.stack([jnp.roll(x, -1, axis) - x for axis in AXES])


def gradient_adjoint(u: jax.Array) -> jax.Array:
    """The adjoint of `gradient`: minus the divergence."""
    return (jnp.roll(u[0], 1, AXES[0]) - u[0]) + (jnp.roll(u[1], 1, AXES[1]) - u[1])


@SOLVERS.register("tv")
def get_tv_solver(config, experiment) -> Solver:
    """Returns the solver. Needs `experiment.operator`; hyper: lam, the weight of the edges, in units of the image."""
    operator = experiment.operator

    def solve(key, params, measurement: Measurement, hyper):
        del key, params
        mask, maps, lam = measurement.mask, measurement.maps, hyper["lam"]
        rhs = operator.adjoint(measurement.y, mask, maps)
        energy = operator.norm(rhs.shape) ** 2
        step_x, step_u = STEP_X / energy, STEP_U * energy

        def project(u):
            length = jnp.sqrt(jnp.sum(jnp.abs(u) ** 2, axis=0))
            return u * jnp.where(length > lam, lam / jnp.where(length > lam, length, 1), 1)

        def step(_, carry):
            x, u = carry
            x_new = x - step_x * (operator.normal(x, mask, maps) - rhs + gradient_adjoint(u))
            return x_new, project(u + step_u * gradient(2 * x_new - x))

        x, _ = jax.lax.fori_loop(0, ITERATIONS, step, (rhs / energy, jnp.zeros_like(gradient(rhs))))
        return x[None]

    return Solver(solve=solve, hyper={"lam": config.baselines.tv}, search={"lam": Range(1e-5, 0.3, log=True)})
