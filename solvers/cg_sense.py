"""CG-SENSE: the least-squares image with a small ridge, by conjugate gradients.

x = argmin_x 1/2 |S T x - y|^2 + lam/2 |x|^2 = (T^H S T + lam I)^-1 T^H S y

Source: Pruessmann et al., Advances in sensitivity encoding with arbitrary k-space trajectories, MRM 2001. Equal to
BART's `pics -R Q:lam -i 30`. For images (T the identity) the system is diagonal: y / (1 + lam) where acquired, else 0.
"""

import jax.numpy as jnp

from operators.conjugate_gradient import conjugate_gradient
from operators.measurement import Measurement
from operators.transform import normal
from solvers.registry import SOLVERS, Solver

ITERATIONS = 30


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
        return conjugate_gradient(lambda x: normal(transform, x, mask, maps) + ridge * x, rhs, ITERATIONS)[None]

    return Solver(solve=solve, hyper={"lam": 0.001})
