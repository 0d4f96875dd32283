"""Tuning: trials of hyper-parameters on examples that do not change, and what they found, in the workdir.

Process 0 owns the file of the study; the others are told what to try.
"""

import logging
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from msm import datasets
from msm.evaluation.calibration import COVERAGE_NAMES, COVERAGES, coverage
from msm.evaluation.conformal import GUARANTEE, conformal_level
from msm.evaluation.held_out import Judged, Objective, get_objective
from msm.experiment import Experiment
from msm.infra import preemption, rounds, sharding, workdir
from msm.infra.atomic import atomic_write_bytes, drop_unfinished
from msm.infra.errors import UserError
from msm.infra.progress import Progress
from msm.modes import tuned
from msm.modes.study import SAMPLER, Study, best_of
from msm.reports import figures, tuning_figures
from msm.reports.evaluation_page import write_metrics_csv
from msm.solvers import get_solver
from msm.solvers.registry import Range, Solver, temper


@dataclass(frozen=True)
class Plan:
    """What a search looks for, and on what.

    Attributes:
      experiment: of the task, with tune.num_samples as eval.num_samples.
      solver: whose hyper-parameters are searched.
      objective: by which they are judged.
      search: where to look for each.
      batches: this process's share of the examples.
      info: the manifest of the data.
    """

    experiment: Experiment
    solver: Solver
    objective: Objective
    search: Mapping[str, Range]
    batches: Sequence[Judged]
    info: Mapping[str, Any]


def plan(config: ConfigDict) -> Plan:
    """The search of `config.tune`. Raises UserError for what is missing, does not fit or leaves nothing to search."""
    config = config.copy_and_resolve_references()
    settings, config.eval.num_samples = config.tune, config.tune.num_samples
    info = datasets.dataset_info(config, config.eval.acquisition)
    experiment = Experiment.for_task(config)
    solver = get_solver(config, experiment, settings.solver)
    objective = get_objective(config, experiment.operator)
    search = solver.spread if objective.of_spread else solver.search
    if config.eval.tuned:  # perhaps the very file that this search writes: what is searched begins as configured
        found = tuned.apply(config.eval.tuned, {settings.solver: solver})[settings.solver]
        solver = replace(found, hyper={**found.hyper, **{name: solver.hyper[name] for name in search}})
    if not search:
        raise UserError(
            f"tune.solver is {settings.solver!r}: it declares no hyper-parameter to search by tune.objective "
            f"{settings.objective!r}; choose another"
        )
    read = datasets.eval_batches if objective.needs_references else datasets.measurement_batches
    batches = [objective.judge(b) for b in read(config, settings.split, settings.batch_size, settings.max_examples)]
    return Plan(experiment, solver, objective, search, batches, info)


def name_of(config, solver: Solver, params: Any, info: Mapping[str, Any]) -> str:
    """Name of the search: trials of another task, data, network, solver or objective must not be compared with these.

    Args:
      config: with tune.num_samples as eval.num_samples.
      params: of the network, or None.
      info: the store's manifest.
    """
    settings = config.tune.to_dict()
    for name in ("trials", "batch_size", "folder"):
        settings.pop(name)
    told = {"acquisition": config.eval.acquisition, "hyper": dict(solver.hyper), "search": dict(solver.search)}
    stamp = rounds.stamp(config, params, info, tune=settings, **told)
    return f"{config.tune.solver} {config.tune.objective} {zlib.crc32(stamp.encode()):08x}"


def count_together(planned: Plan) -> Plan:
    """The plan, whose batches know `counts` and `floor` of the examples of all processes."""
    batches = [
        replace(
            batch,
            counts=sharding.gather_rows(batch.counts),
            floor=None if batch.floor is None else sharding.gather_rows(batch.floor),
        )
        for batch in planned.batches
    ]
    return replace(planned, batches=batches)


def require_hidden(planned: Plan) -> None:
    """Raises UserError where no example of all processes has anything to judge by; after `count_together`."""
    config = planned.experiment.config
    if not any(batch.counts.any() for batch in planned.batches):
        raise UserError(f"{config.data.dir}, {config.tune.split!r} has nothing to hide: choose another tune.split")


def search(planned: Plan, params: Any, folder: Path, origin: Mapping[str, Any], command: str) -> dict[str, Any]:
    """Does the trials that are missing and writes the results into `folder`; see `run_lib.tune`."""
    config, solver, objective = planned.experiment.config, planned.solver, planned.objective
    names, settings = list(planned.search), planned.experiment.config.tune
    solve = get_solve_fn(planned.experiment, solver, params, planned.batches)

    def evaluate_trial(hyper: Mapping[str, float]) -> float:
        return score_of(solve(hyper))

    if jax.process_index() != 0:
        run(None, names, evaluate_trial, settings.trials)
        if objective.of_spread:
            levels_of(solve, names, None, 2)
        return {}
    drop_unfinished(folder)
    name = name_of(config, solver, params, planned.info)
    path = folder / "study.db"
    with Study(path, name, planned.search, solver.hyper, config.seed, objective.minimise) as trials:
        run(trials, names, evaluate_trial, settings.trials)
        return write(planned, trials, solve, folder, {**origin, "command": command})


def get_solve_fn(
    experiment: Experiment, solver: Solver, params, batches: Sequence[Judged]
) -> Callable[[Mapping], Iterator]:
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


def levels_of(
    solve: Callable, names: Sequence[str], chosen: Sequence[Mapping] | None, count: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each of `count` settings, of all hidden scalars the level of the smallest interval that holds each, (N,),
    and the id of its example, (N,).

    Args:
      solve: of `get_solve_fn`.
      names: of the hyper-parameters.
      chosen: their values, which process 0 knows and tells; None elsewhere.
    """
    given = np.zeros((count, len(names))) if chosen is None else np.array([[h[n] for n in names] for h in chosen])
    together = []
    for values in np.asarray(sharding.from_first(given.astype(np.float32))):
        solved = solve(dict(zip(names, values, strict=True)))
        mine = np.concatenate([[b.levels(samples), b.owners] for b, samples in solved if b.levels is not None], axis=1)
        row = np.full((1, 2, sharding.gather_rows(np.array([mine.shape[1]])).max()), np.nan)  # unequally many
        row[0, :, : mine.shape[1]] = mine
        levels, owners = np.concatenate(list(sharding.gather_rows(row)), axis=1)
        there = ~np.isnan(levels)
        together.append((levels[there], owners[there].astype(int)))
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


def conformal_levels(levels: np.ndarray, owners: np.ndarray) -> dict[str, Any]:
    """{'coverage_50': nominal level to ask for, ..., 'guarantee': what that promises}; None where nothing is promised.

    Of the defaults: what was tuned on the very scans promises nothing for others.
    """
    scans = [levels[owners == owner] for owner in np.unique(owners)]
    found = [conformal_level(scans, wanted) for wanted in COVERAGES]
    told = {name: level if np.isfinite(level) else None for name, level in zip(COVERAGE_NAMES, found, strict=True)}
    return {**told, "guarantee": GUARANTEE}


def write(planned: Plan, study: Study, solve: Callable, folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Writes trials.csv, history.png, slices.png and the solver's entry of best.json; returns that entry.

    For an objective of the samples' spread also reliability.png, of the hidden entries before and after.

    Args:
      solve: of `get_solve_fn`.
      facts: further lines of the entry.

    Raises UserError if all trials failed.
    """
    solver, objective, batches = planned.solver, planned.objective, planned.batches
    config, settings, search = planned.experiment.config, planned.experiment.config.tune, planned.search
    trials, importance = study.trials, study.importance
    rows = [{"trial": t.number, "value": "failed" if t.value is None else t.value, **t.hyper} for t in trials]
    write_metrics_csv(folder / "trials.csv", rows)
    best = best_of(trials, objective.minimise)
    if best is None:
        raise UserError(f"all {len(trials)} trials failed, see {folder / 'trials.csv'}: nothing in them was finite")
    floors = [batch.floor[batch.counts] for batch in batches if batch.floor is not None]
    floor = float(np.mean(np.concatenate(floors))) if floors else None
    atomic_write_bytes(folder / "history.png", tuning_figures.tuning_history(trials, best, settings.objective, floor))
    atomic_write_bytes(
        folder / "slices.png", tuning_figures.tuning_slices(trials, best, settings.objective, search, importance)
    )
    of_spread: dict[str, Any] = {}
    if objective.of_spread:
        found = levels_of(solve, list(search), [trials[0].hyper, best.hyper], 2)
        levels = {name: held for name, (held, _) in zip(("defaults", "tuned"), found, strict=True)}
        atomic_write_bytes(folder / "reliability.png", figures.reliability_plot(levels))
        of_spread["coverage of hidden entries"] = {
            name: dict(zip(COVERAGE_NAMES, coverage(held), strict=True)) for name, held in levels.items()
        }
        of_spread["conformal levels of the defaults"] = conformal_levels(*found[0])
    entry = {
        "hyper": {**solver.hyper, **best.hyper},
        "objective": settings.objective,
        "value": best.value,
        "defaults": {"hyper": dict(trials[0].hyper), "value": trials[0].value},
        **({} if floor is None else {"noise_floor": floor}),
        **of_spread,
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
