"""Tuning as a study: its finished trials in an SQLite file, what to try next, and the results in the workdir.

Nothing of an interrupted trial is stored: it is done again. What trial n tries depends on the seed, n and the earlier
trials alone, so a study that was stopped goes on as if it had not been. Process 0 owns the file; the others are told.
"""

import logging
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState

from msm.evaluation.calibration import COVERAGE_NAMES, coverage
from msm.evaluation.held_out import Judged, Objective
from msm.infra import preemption, rounds, sharding, study_file, workdir
from msm.infra.atomic import atomic_write_bytes
from msm.infra.errors import UserError
from msm.infra.progress import Progress
from msm.modes import tuned
from msm.reports import figures, tuning_figures
from msm.reports.evaluation_page import write_metrics_csv
from msm.solvers.registry import Range, Solver, temper

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


def name_of(config, solver: Solver, params: Any, info: Mapping[str, Any]) -> str:
    """Name of the search: trials of another task, data, network, solver or objective must not be compared with these.

    Args:
      config: with tune.num_samples as eval.num_samples.
      params: of the network, or None.
      info: the store's manifest.
    """
    sections = {**rounds.settings_of(config), "tune": config.tune.to_dict()}
    for name in ("trials", "batch_size", "folder"):
        sections["tune"].pop(name)
    data = {name: value for name, value in info.items() if name not in ("notes", "licences", "versions")}
    told = (config.seed, config.eval.acquisition, sections, dict(solver.hyper), dict(solver.search))
    stamp = repr((*told, rounds.checksum(params), rounds.code_checksum(), data))
    return f"{config.tune.solver} {config.tune.objective} {zlib.crc32(stamp.encode()):08x}"


def count_together(batches: Iterable[Judged]) -> list[Judged]:
    """Returns batches of this process's examples with `counts` and `floor` of the examples of all processes."""
    return [
        replace(
            batch,
            counts=sharding.gather_rows(batch.counts),
            floor=None if batch.floor is None else sharding.gather_rows(batch.floor),
        )
        for batch in batches
    ]


def get_solve_fn(experiment, solver: Solver, params, batches: Sequence[Judged]) -> Callable[[Mapping], Iterator]:
    """Returns solve(hyper) -> for each batch, it and its samples (K,B,...); compiles once, at its first call.

    Every trial sees the same examples, masks and noise: keys depend on config.seed and the examples alone. What only
    `temperature` sets apart is not solved twice in a row. `batches` come from `count_together`; samples are of this
    process's examples.
    """
    mesh = experiment.mesh
    compiled = sharding.data_parallel_solve(solver.solve, mesh)
    key = sharding.replicate(jax.random.key(experiment.config.seed), mesh)
    kept: dict[tuple, list[np.ndarray]] = {}

    def samples_of(values: Mapping[str, np.float32]) -> Iterator[np.ndarray]:
        for batch in batches:
            measurement = sharding.shard_batch(batch.measurement, mesh)
            yield sharding.local_rows(compiled(key, params, measurement, values), axis=1)

    def solve(hyper: Mapping[str, float]) -> Iterator[tuple[Judged, np.ndarray]]:
        values = {name: np.float32(value) for name, value in {**solver.hyper, **hyper}.items()}
        if not solver.spread.keys() & hyper.keys():
            yield from zip(batches, samples_of(values), strict=True)
            return
        temperature, values["temperature"] = values["temperature"], np.float32(1)
        settings = tuple(values.items())
        if settings not in kept:
            kept.clear()
            kept[settings] = list(samples_of(values))
        yield from ((batch, temper(drawn, temperature)) for batch, drawn in zip(batches, kept[settings], strict=True))

    return solve


def score_of(solved: Iterable[tuple[Judged, np.ndarray]]) -> float:
    """The mean score over all examples of all processes that count."""
    scores = [sharding.gather_rows(batch.score(samples))[batch.counts] for batch, samples in solved]
    return float(np.mean(np.concatenate(scores), dtype=np.float64))


def levels_of(solve: Callable, names: Sequence[str], chosen: Sequence[Mapping] | None, count: int) -> list[np.ndarray]:
    """For each of `count` settings, of all hidden scalars the level of the smallest interval that holds each, (N,).

    Args:
      solve: of `get_solve_fn`.
      names: of the hyper-parameters.
      chosen: their values, which process 0 knows and tells; None elsewhere.
    """
    given = np.zeros((count, len(names))) if chosen is None else np.array([[h[n] for n in names] for h in chosen])
    together = []
    for values in np.asarray(sharding.from_first(given.astype(np.float32))):
        solved = solve(dict(zip(names, values, strict=True)))
        mine = np.concatenate([batch.levels(samples) for batch, samples in solved if batch.levels is not None])
        row = np.full((1, sharding.gather_rows(np.array([mine.size])).max()), np.nan)  # processes hide unequally many
        row[0, : mine.size] = mine
        whole = sharding.gather_rows(row)
        together.append(whole[~np.isnan(whole)])
    return together


def run(study: Study | None, names: Sequence[str], evaluate: Callable[[Mapping], float], total: int) -> None:
    """Does the trials that are missing from `total`; `study` is process 0's, None on all others.

    Raises Stopped after SIGTERM or SIGINT, with the trial finished.
    """
    done = int(sharding.from_first(np.int32(0 if study is None else len(study.trials))))
    logging.info("tuning %s: %d of %d trials are there already", ", ".join(names), min(done, total), total)
    with preemption.watch() as notice, Progress(total, done, "tune", unit="trial") as progress:
        for number in range(done, total):
            hyper = dict.fromkeys(names, 0.0) if study is None else study.suggest()
            told = sharding.from_first(np.array([hyper[name] for name in names], np.float32))
            try:
                value = evaluate(dict(zip(names, told, strict=True)))
            except (FloatingPointError, jax.errors.JaxRuntimeError) as error:
                if number == done or jax.process_count() > 1:  # nothing has worked so far, or others wait for this one
                    raise
                logging.warning("trial %d raised: %s", number, error)
                value = np.nan
            if not np.isfinite(value):
                logging.warning("trial %d failed: its value is %s with %s", number, value, _text(hyper))
            if study is not None:
                study.record(hyper, value)
            progress.update(number + 1, value=value)
            if notice.reached(number) and number + 1 < total:
                notice.stop(f"trial {number + 1} of {total}")


def _text(hyper: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in hyper.items())


def write(
    experiment, solver: Solver, objective: Objective, batches: Sequence[Judged], study: Study,
    solve: Callable, folder: Path, facts: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Writes trials.csv, history.png, slices.png and the solver's entry of best.json; returns that entry.

    For an objective of the samples' spread also reliability.png, of the hidden entries before and after.

    Args:
      solve: of `get_solve_fn`.
      facts: further lines of the entry.

    Raises UserError if all trials failed.
    """
    config, settings = experiment.config, experiment.config.tune
    trials, importance = study.trials, study.importance
    rows = [{"trial": t.number, "value": "failed" if t.value is None else t.value, **t.hyper} for t in trials]
    write_metrics_csv(folder / "trials.csv", rows)
    best = best_of(trials, objective.minimise)
    if best is None:
        raise UserError(f"all {len(trials)} trials failed, see {folder / 'trials.csv'}: nothing in them was finite")
    floors = [batch.floor[batch.counts] for batch in batches if batch.floor is not None]
    floor = float(np.mean(np.concatenate(floors))) if floors else None
    atomic_write_bytes(folder / "history.png", tuning_figures.tuning_history(trials, best, settings.objective, floor))
    search = solver.spread if objective.of_spread else solver.search
    atomic_write_bytes(
        folder / "slices.png", tuning_figures.tuning_slices(trials, best, settings.objective, search, importance)
    )
    covered = {}
    if objective.of_spread:
        found = levels_of(solve, list(search), [trials[0].hyper, best.hyper], 2)
        levels: dict[str, np.ndarray] = dict(zip(("defaults", "tuned"), found, strict=True))
        atomic_write_bytes(folder / "reliability.png", figures.reliability_plot(levels))
        covered = {name: dict(zip(COVERAGE_NAMES, coverage(found), strict=True)) for name, found in levels.items()}
    entry = {
        "hyper": {**solver.hyper, **best.hyper},
        "objective": settings.objective,
        "value": best.value,
        "defaults": {"hyper": dict(trials[0].hyper), "value": trials[0].value},
        **({} if floor is None else {"noise_floor": floor}),
        **({"coverage of hidden entries": covered} if covered else {}),
        "definition": objective.definition,
        **({"importance": importance} if importance else {}),
        "trial": best.number,
        "trials": len(trials),
        "failed": sum(trial.value is None for trial in trials),
        "search": {name: {"low": r.low, "high": r.high, "log": r.log} for name, r in search.items()},
        "sampler": SAMPLER,
        "task": config.task.name,
        "split": f"{settings.split} of {config.data.dir}",
        "examples": int(sum(batch.counts.sum() for batch in batches)),
        "samples per example": solver.num_samples,
        "seed": config.seed,
        **facts,
        "run": workdir.describe_run(),
    }
    tuned.add(folder / "best.json", settings.solver, entry)
    at_first = "failed" if trials[0].value is None else f"{trials[0].value:.5g} with {_text(trials[0].hyper)}"
    logging.info(
        "best of %d trials: %s %.5g with %s (defaults: %s)%s\nreport: %s", len(trials), settings.objective, best.value,
        _text(best.hyper), at_first, "" if floor is None else f"; noise alone gives {floor:.3g}", folder / "best.json",
    )  # fmt: skip
    return entry
