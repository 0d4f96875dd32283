"""A study: the finished trials of a search in an SQLite file, and what to try next.

Nothing of an interrupted trial is stored: it is done again. What trial n tries depends on the seed, n and the earlier
trials alone, so a study that was stopped goes on as if it had not been.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState

from msm.infra import study_file
from msm.solvers.registry import Range

SAMPLER = "tree-structured Parzen estimator (Optuna), after the defaults and 9 random trials"
RANDOM_TRIALS = 10  # the defaults' included: before them the estimator has nothing to go by


@dataclass(frozen=True)
class Trial:
    """A finished trial; `value` is None if it failed, that is if it gave a number that is not finite."""

    number: int
    hyper: Mapping[str, float]
    value: float | None


class Study:
    """The finished trials of one search, in a file that may hold other searches too.

    Args:
      path: of the SQLite file, made if missing.
      name: of the search: equal names continue each other.
      search: what is searched.
      defaults: the hyper-parameters of the first trial, moved into their ranges.
      seed: of the suggestions.
      minimise: whether small values are good.

    Raises UserError if the file is empty, damaged or cannot be written.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        search: Mapping[str, Range],
        defaults: Mapping[str, float],
        seed: int,
        minimise: bool,
    ):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._path = path
        self._first = {key: found.nearest(defaults[key]) for key, found in search.items()}
        self._space: dict[str, BaseDistribution] = {
            key: FloatDistribution(r.low, r.high, log=r.log) for key, r in search.items()
        }
        self._seed, self._direction = seed, StudyDirection.MINIMIZE if minimise else StudyDirection.MAXIMIZE
        self._storage = study_file.open_storage(path)
        with study_file.writing(path):
            self._study = optuna.create_study(
                storage=self._storage, study_name=name, direction=self._direction, load_if_exists=True
            )

    def __enter__(self) -> "Study":
        return self

    def __exit__(self, *_: object) -> None:
        study_file.close(self._storage)

    @property
    def importance(self) -> dict[str, float]:
        """Share of each hyper-parameter in what tells the best tenth of the trials from the others; shares sum to 1.

        By functional ANOVA of the Parzen estimates (Watanabe, Bansal and Hutter 2023). Empty where there is but one
        hyper-parameter, or before there are `RANDOM_TRIALS` that did not fail.
        """
        if len(self._space) < 2 or sum(trial.value is not None for trial in self.trials) < RANDOM_TRIALS:
            return {}
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found = optuna.importance.get_param_importances(self._study, evaluator=evaluator)
        return {name: float(found[name]) for name in self._space}

    @property
    def trials(self) -> list[Trial]:
        """The finished trials in order."""
        return [Trial(t.number, t.params, t.value) for t in self._study.get_trials(deepcopy=False)]

    def suggest(self) -> dict[str, float]:
        """What the next trial tries."""
        past = self._study.get_trials(deepcopy=False)
        if not past:
            return dict(self._first)
        seed = int(np.random.SeedSequence((self._seed, len(past))).generate_state(1)[0])
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=RANDOM_TRIALS)
        asked = optuna.create_study(direction=self._direction, sampler=sampler)  # in memory: nothing unfinished on disk
        asked.add_trials(past)
        return asked.ask(self._space).params

    def record(self, hyper: Mapping[str, float], value: float) -> None:
        """Stores a trial; a value that is not finite makes it a failed one, which the search does not learn from.

        Raises UserError if it cannot be written.
        """
        finite = bool(np.isfinite(value))
        state = TrialState.COMPLETE if finite else TrialState.FAIL
        trial = optuna.trial.create_trial(
            state=state, params=dict(hyper), distributions=self._space, value=value if finite else None
        )
        with study_file.writing(self._path):
            self._study.add_trial(trial)


def best_of(trials: Iterable[Trial], minimise: bool) -> Trial | None:
    """The best finished trial, of equal ones the first; None if all failed."""
    sign = 1 if minimise else -1
    finite = [(sign * trial.value, trial.number, trial) for trial in trials if trial.value is not None]
    return min(finite)[2] if finite else None
