"""Posterior solvers, one short file each; importing this package files every one of them in the registry."""

import importlib
import pkgutil
import sys
import types

from msm.solvers.registry import SOLVERS, Solver

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def get_solver(config, experiment, name: str) -> Solver:
    """Returns the solver `name` for an experiment. Raises UserError for an unknown name."""
    return SOLVERS[name](config, experiment)


class _Room(types.ModuleType):
    """This package, which `msm.solvers()` calls: a function of that name would vanish at the package's first import."""

    def __call__(self) -> tuple[str, ...]:
        return SOLVERS.names()


sys.modules[__name__].__class__ = _Room
