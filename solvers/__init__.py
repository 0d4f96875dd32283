"""Posterior solvers, one short file each; importing this package files every one of them in the registry."""

import importlib
import pkgutil

from msm.solvers.registry import SOLVERS, Solver

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def get_solver(config, experiment, name: str) -> Solver:
    """Returns the solver `name` for an experiment. Raises UserError for an unknown name."""
    return SOLVERS[name](config, experiment)
