"""Posterior solvers, one short file each; importing this package files them all in the registry."""

from solvers import cg_sense, l1_wavelet, msm, zero_filled  # noqa: F401  (imported for their registration)
from solvers.registry import SOLVERS, Solver


def get_solver(config, experiment, name: str) -> Solver:
    """Returns the solver `name` for an experiment. Raises UserError for an unknown name."""
    return SOLVERS[name](config, experiment)
