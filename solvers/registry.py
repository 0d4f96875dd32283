"""What a posterior solver is, and the table that finds one by name."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from msm.infra.registry import Registry
from msm.infra.values import Section
from msm.operators.measurement import Measurement

Hyper = Mapping[str, float | jax.Array]
SolveFn = Callable[[jax.Array, Any, Measurement, Hyper], jax.Array]


@dataclasses.dataclass(frozen=True)
class Range:
    """Where tuning looks for the best value of a hyper-parameter: from `low` to `high`, evenly in its logarithm or not.

    A logarithmic range starts above 0.
    """

    low: float
    high: float
    log: bool = False

    def nearest(self, value: float) -> float:
        """The value of the range that is nearest to `value`."""
        return min(max(float(value), self.low), self.high)


@dataclasses.dataclass(frozen=True)
class Solver:
    """A way to reconstruct images from measurements, with its settings' defaults.

    Attributes:
      solve: `solve(key, params, measurement, hyper) -> samples` of shape (num_samples, *x.shape): complex64 (K,B,H,W)
        for MRI, float32 (K,B,H,W,ch) for images. Pure and jit-able; `hyper` is traced, so that tuning never recompiles.
        The result of one example depends on its own acquisition, its example_id and `key`, never on its batch-mates.
        Deterministic solvers return K = 1 and ignore `key` and `params` (both may be None).
      hyper: default hyper-parameters by name; pass `{**solver.hyper, **changes}` to `solve`.
      search: for those of `hyper` that `--mode tune` searches, where; a hyper-parameter without effect is not in it.
      spread: the same for `temperature`, which changes how far the samples lie apart and not their mean, see `temper`;
        empty for solvers that draw none.
      num_samples: K, posterior samples per scan.
      nfe: network calls per sample; 0 for classical methods.
      gradients: how many of these calls are also differentiated, a backward pass each.
    """

    solve: SolveFn
    hyper: Mapping[str, float]
    search: Mapping[str, Range] = dataclasses.field(default_factory=dict)
    spread: Mapping[str, Range] = dataclasses.field(default_factory=dict)
    num_samples: int = 1
    nfe: int = 0
    gradients: int = 0


def temper(samples, temperature):
    """Samples (K,...) about their mean, `temperature` times as far from it; the mean stays. numpy or JAX."""
    mean = samples.mean(axis=0)
    return mean + temperature * (samples - mean)


SolverFactory = Callable[[Any, Any], Solver]  # get_x_solver(config, experiment) -> Solver

SOLVERS: Registry[SolverFactory] = Registry("solver")
# The settings that solvers declare beside themselves: a section `config.NAME` of its own for each entry.
SECTIONS: Registry[Section] = Registry("section of settings")
