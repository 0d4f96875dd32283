"""CG-SENSE, or Tikhonov regularisation: the least-squares image with a small ridge.

x = argmin_x 1/2 |H x - y|^2 + lam/2 |x|^2 = (H^H H + lam I)^-1 H^H y

With coils by conjugate gradients, which need no more memory than the data; source: Pruessmann et al., Advances in
sensitivity encoding with arbitrary k-space trajectories, MRM 2001; equal to BART's `pics -R Q:lam -i 30`. For images
by the operator's closed form: there the solver goes by the name 'tikhonov'.
"""

import jax.numpy as jnp

from msm.operators.conjugate_gradient import conjugate_gradient
from msm.operators.measurement import Measurement
from msm.solvers.registry import SOLVERS, Range, Solver

ITERATIONS = 30


@SOLVERS.register("tikhonov")
@SOLVERS.register("cg_sense")
def get_cg_sense_solver(config, experiment) -> Solver:
    """Returns the solver. Needs `experiment.operator`; hyper: lam, the ridge (the squared operator has norm <= 1)."""
    operator = experiment.operator

    def solve(key, params, measurement: Measurement, hyper):
        del key, params
        mask, maps, ridge = measurement.mask, measurement.maps, hyper["lam"]
        rhs = operator.adjoint(measurement.y, mask, maps)
        if maps is None:
            x = operator.get_damped_inverse(mask, maps)(rhs, jnp.full(rhs.shape[0], ridge))
        else:
            x = conjugate_gradient(lambda v: operator.normal(v, mask, maps) + ridge * v, rhs, ITERATIONS)
        return x[None]

    return Solver(solve=solve, hyper={"lam": config.baselines.ridge}, search={"lam": Range(1e-5, 1.0, log=True)})
