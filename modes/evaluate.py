"""Rounds of evaluation: what one depends on, solving one batch with every solver, and the report over all of them."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from msm import datasets
from msm.builders import store
from msm.evaluation import summary as evaluation
from msm.evaluation.calibration import calibration_maps
from msm.evaluation.metrics import Metric, get_metrics
from msm.experiment import Experiment
from msm.infra import rounds, sharding
from msm.modes import tuned
from msm.operators.measurement import EvalExample
from msm.operators.shape import told
from msm.operators.tasks import Task
from msm.reports import evaluation_page as page
from msm.reports.viewer import film_of
from msm.solvers import get_solver
from msm.solvers.registry import Solver


@dataclass(frozen=True)
class Plan:
    """What an evaluation computes, and what its report says of it.

    Attributes:
      experiment: of the task, `Experiment.for_task`.
      solvers: by name, with the hyper-parameters that are used.
      measures, absent: of `get_metrics`.
      batches: this process's share of every round.
      info: the manifest of the data.
    """

    experiment: Experiment
    solvers: dict[str, Solver]
    measures: Sequence[Metric]
    absent: Mapping[str, str]
    batches: Sequence[EvalExample]
    info: dict[str, Any]

    @property
    def network(self) -> bool:
        """Whether any solver calls the network."""
        return any(solver.nfe for solver in self.solvers.values())


def plan(config: ConfigDict) -> Plan:
    """The evaluation of `config.eval` on the store. Raises UserError for what is missing or does not fit."""
    settings = config.eval
    info = datasets.dataset_info(config)
    experiment = Experiment.for_task(config)
    solvers = {name: get_solver(config, experiment, name) for name in settings.solvers}
    solvers = tuned.apply(settings.tuned, solvers) if settings.tuned else solvers
    measures, absent = get_metrics(config)
    batches = list(datasets.eval_batches(config, settings.split, settings.batch_size, settings.max_examples))
    return Plan(experiment, solvers, measures, absent, batches, info)


def stamp_of(config: ConfigDict, solvers: Mapping[str, Solver], params: Any, info: Mapping[str, Any]) -> str:
    """What a finished round depends on; a round of another stamp is computed again."""
    settings = config.eval.to_dict()
    for name in ("checkpoint", "tuned", "metrics", "lpips_network", "lpips_weights"):
        settings.pop(name)  # the parameters themselves count, not where they lie; measured is afterwards
    told = {name: (dict(solver.hyper), solver.nfe, solver.num_samples) for name, solver in solvers.items()}
    return rounds.stamp(config, params, info, eval=settings, solvers=told)


def solve(planned: Plan, params: Any, folder: Path) -> list[rounds.Round]:
    """Every round of the plan, those in `folder` from there."""
    experiment, compiled = planned.experiment, {}
    runners = {n: sharding.data_parallel_solve(s.solve, experiment.mesh) for n, s in planned.solvers.items()}

    def compute(number: int) -> dict[str, np.ndarray]:
        return solve_round(experiment, planned.solvers, runners, compiled, params, planned.batches[number])

    stamp = stamp_of(experiment.config, planned.solvers, params, planned.info)
    return rounds.run_rounds(folder, [stamp] * len(planned.batches), compute, "eval")


def solve_round(experiment, solvers: dict[str, Solver], runners, compiled, params, example) -> dict[str, np.ndarray]:
    """Runs every solver on one batch, of which `example` is this process's share; returns the round of the whole batch.

    The first call fills `compiled`, so that seconds hold no compilation.
    """
    key = sharding.replicate(jax.random.key(experiment.config.seed), experiment.mesh)
    measurement = sharding.shard_batch(example.measurement, experiment.mesh)
    batch_size = measurement.example_id.shape[0]
    arrays = {
        "example_id": example.measurement.example_id,
        **({} if example.reference is None else {"reference": example.reference}),
        **({} if example.volume is None else {"volume": example.volume}),
        **({} if example.slice is None else {"slice": example.slice}),
        **({} if example.unknown is None else {"unknown": example.unknown}),
        "mask": example.measurement.mask,
    }
    if example.measurement.mask[0].size == 1:  # all of y is measured: y itself is the picture to show
        arrays["measured"] = example.measurement.y
    for name, solver in solvers.items():
        arguments = (key, params, measurement, dict(solver.hyper))
        place = name, measurement.y.shape
        begin, first = time.monotonic(), place not in compiled
        if first:
            compiled[place] = runners[name].lower(*arguments).compile()
            logging.info("%s: compiled in %.0f s, solving", name, time.monotonic() - begin)
            begin = time.monotonic()
        samples = sharding.local_rows(compiled[place](*arguments), axis=1)
        seconds = (time.monotonic() - begin) / batch_size
        if first:
            logging.info("%s: %.3g s a slice", name, seconds)
        mean, std = evaluation.summarize_samples(samples)
        arrays[f"{name}/mean"] = mean
        arrays[f"{name}/seconds"] = np.full(len(mean), seconds, np.float32)
        if std is not None:
            arrays[f"{name}/std"], arrays[f"{name}/sample"] = std, samples[0]
            arrays |= {f"{name}/{kind}": values for kind, values in film_of(samples).items()}
        if std is not None and example.reference is not None:
            maps = calibration_maps(samples, example.reference)
            arrays |= {f"{name}/{kind}": values for kind, values in maps.items()}
    return {name: sharding.gather_rows(rows) for name, rows in arrays.items()}


def report(
    planned: Plan, done: Sequence[rounds.Round], folder: Path, origin: Mapping[str, Any], command: str
) -> dict[str, Any]:
    """Reads the rounds and writes the report, see `write_report`; returns the summary, which other processes lack."""
    if jax.process_index() != 0:
        return {}
    return write_report(planned, [this.arrays() for this in done], folder, origin, command)


def write_report(
    planned: Plan, done: Sequence[Mapping[str, np.ndarray]], folder: Path, origin: Mapping[str, Any], command: str
) -> dict[str, Any]:
    """Measures all rounds and writes metrics.csv, volumes.csv, summary.json and the page; returns the summary."""
    experiment, solvers, info = planned.experiment, planned.solvers, planned.info
    config, task = experiment.config, experiment.task
    assert task is not None  # of `Experiment.for_task`
    settings, images = config.eval, config.data.num_coils == 0
    groups, known = evaluation.merge_by_shape(done), info.get("volumes", {})
    for merged in groups:
        aspects = [known.get(str(name), {}).get("aspect", 1.0) for name in merged.get("volume", ())]
        merged |= {"aspect": np.array(aspects)} if set(aspects) - {1.0} else {}
    pixels = {tuple(found["pixel_mm"]) for found in known.values() if "pixel_mm" in found}
    rows = [row for merged in groups for row in evaluation.measure_round(merged, measures=planned.measures)]
    volumes = [row for merged in groups for row in evaluation.measure_volumes(merged)]
    what = info.get("scan", f"{settings.split} {'images' if images else 'scans'}")
    facts = {
        "title": f"Reconstruction of {what}",
        "notes": info.get("notes", []),
        "command": command,
        **origin,
        "images" if images else "slices": sum(len(merged["example_id"]) for merged in groups),
        "image size": ", ".join(sorted({told(_shape_of(merged)) for merged in groups})),
        **({"pixel (mm)": " x ".join(f"{size:g}" for size in min(pixels))} if len(pixels) == 1 else {}),
        **({} if images else {"coils": config.data.num_coils}),
        **_measurement_facts(config, task, info, groups),
        **({} if "scan" in info else {"split": f"{settings.split} of {config.data.dir}"}),
        "seed": config.seed,
        "hyper-parameters": {name: dict(s.hyper) for name, s in solvers.items() if s.hyper},
        **({"tuned by": settings.tuned} if settings.tuned else {}),
    }
    primary = "msm" if "msm" in solvers else settings.solvers[-1]
    summary = evaluation.summarize(
        rows,
        primary,
        facts,
        nfe={name: s.nfe for name, s in solvers.items()},
        num_samples={name: s.num_samples for name, s in solvers.items()},
        definitions={measure.name: measure.definition for measure in planned.measures},
        volumes=volumes,
        absent=planned.absent,
    )
    page.write_metrics_csv(folder / "metrics.csv", rows)
    page.write_metrics_csv(folder / "volumes.csv", volumes)
    page.write_summary(folder / "summary.json", summary)
    written = page.write_report(folder, summary, rows, groups)
    logging.info("%s\nreport: %s", evaluation.format_table(summary), written)
    return summary


def _shape_of(merged: dict[str, np.ndarray]) -> tuple[int, int]:
    """Rows and columns of the images of a round."""
    return merged[f"{evaluation.solver_names(merged)[0]}/mean"].shape[1:3]


def _measurement_facts(config: ConfigDict, task: Task, info: dict[str, Any], groups: list[dict]) -> dict[str, Any]:
    """What the report says about the task: its parameters, how much of y is measured, its noise."""
    facts: dict[str, Any] = {"task": config.task.name}
    if config.task.name == "acquired":
        noise_std, acceleration = store.noise_std(info), info.get("acceleration", {})
        facts |= {f"acceleration, {name}": _of_split(value, config.eval.split) for name, value in acceleration.items()}
    else:
        noise_std = config.task.noise_std
        facts |= {"task's settings": {name: config.task[name] for name in (*task.settings, "seed")}}
        if task.draw_mask is not None:
            facts["acceleration, effective"] = round(
                1 / float(np.mean([mask.mean() for g in groups for mask in g["mask"]])), 2
            )
    noise = "noise std" if config.data.num_coils == 0 else "noise std per real and imaginary entry"
    return facts | {noise: noise_std}


def _of_split(value, split: str):
    return round(value[split], 2) if isinstance(value, dict) else value
