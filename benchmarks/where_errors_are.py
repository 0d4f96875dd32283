"""Where the decibels are lost: a network's errors by place in k-space, by noise level, and on scans it has seen.

  python benchmarks/where_errors_are.py --config=configs/brain64_msm.py \
      --checkpoint=pretrained/brain64_msm --out=workdir/where --config.eval.split=validation

Writes where.md and where.json into --out and prints the former, of multi-coil scans:
  1. error by distance from the centre of k-space, in acquired and in missing entries, of every solver of `--solver`;
  2. error of denoising by noise level, on partial inputs as training shows them and on whole ones as solvers show them,
     beside wavelet shrinkage, and what noise and alias the inputs have;
  3. held-out error (as --mode=tune) of every solver on the splits train, validation and test: no reference is used.
1 and 2 look at the references of `eval.split`.
"""

import json
from pathlib import Path

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from msm import datasets
from msm.configs.rules import check as config_check
from msm.evaluation import held_out, where
from msm.experiment import Experiment
from msm.infra import checkpoints, command_line
from msm.infra.atomic import atomic_write_text
from msm.infra.errors import UserError
from msm.operators.measurement import PADDING_ID
from msm.solvers import get_solver

FLAGS = flags.FLAGS
SIGMAS = (0.005, 0.01, 0.03, 0.1, 0.3, 1.0)
SPLITS = ("train", "validation", "test")


def solve_batches(experiment, name: str, params, batches) -> list[np.ndarray]:
    """The mean of the samples of a solver, (B,...) of every batch of measurements."""
    solver = get_solver(experiment.config, experiment, name)
    solve = jax.jit(solver.solve)
    key = jax.random.key(experiment.config.seed)
    return [np.asarray(solve(key, params, batch, dict(solver.hyper))).mean(axis=0) for batch in batches]


def place_table(experiment, params, batches) -> list[dict]:
    """One row per solver and kind of entry: the zones of `where.error_by_zone`, means over scans."""
    rows = []
    for name in FLAGS.solver:
        solved = solve_batches(experiment, name, params, [batch.measurement for batch in batches])
        found: dict[tuple[str, str], list[np.ndarray]] = {}
        for batch, x in zip(batches, solved, strict=True):
            kept = np.asarray(batch.measurement.example_id) != PADDING_ID
            errors = where.error_by_zone(experiment.transform, x, batch.reference, batch.measurement)
            for place, values in errors.items():
                found.setdefault(place, []).append(values[kept])
        for kind in ("missing", "acquired"):
            zones = {zone: float(np.mean(np.concatenate(found[zone, kind]))) for zone in where.ZONES}
            rows.append({"solver": name, "entries": kind, **zones})
    return rows


def split_table(experiment, params) -> list[dict]:
    """One row per solver: the held-out error on each split that there is, with at most as many scans as `eval` has."""
    config, rows = experiment.config, [{"solver": name} for name in FLAGS.solver]
    objective = held_out.OBJECTIVES["held_out"](config, experiment.operator)
    settings = config.eval
    for split in SPLITS:
        read = datasets.measurement_batches(config, split, settings.batch_size, FLAGS.scans)
        judged = [objective.judge(batch) for batch in read]
        for row in rows:
            solved = solve_batches(experiment, row["solver"], params, [batch.measurement for batch in judged])
            scores = [batch.score(x[None])[batch.counts] for batch, x in zip(judged, solved, strict=True)]
            row[split] = float(np.mean(np.concatenate(scores)))
    return rows


def markdown(rows: list[dict]) -> str:
    def text(value) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    lines = [list(rows[0]), ["---"] * len(rows[0]), *([text(row[name]) for name in rows[0]] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report(tables: dict[str, list[dict]]) -> str:
    heads = {
        "place": "Error over energy of the entries, missing or acquired, by distance from the centre of k-space "
        "(below 1/8 of the size, below 1/4, beyond); zones add up",
        "level": "Mean square error of denoising over sigma^2 on the entries that are shown; standard deviation over "
        "sigma of the noise and of the alias in the network's input",
        "split": "Held-out error, without references",
    }
    return "\n\n".join(f"{heads[name]}:\n\n{markdown(rows)}" for name, rows in tables.items()) + "\n"


def main(_: list[str]) -> None:
    config = FLAGS.config
    config_check.check(config, "eval")
    if config.data.num_coils == 0:
        raise UserError(
            "benchmarks/where_errors_are.py looks at k-space: give the config of a scan (data.num_coils > 0)"
        )
    out = Path(FLAGS.out)
    experiment = Experiment.for_task(config)
    settings = config.eval
    batches = list(datasets.eval_batches(config, settings.split, settings.batch_size, FLAGS.scans))
    if batches[0].reference is None:
        raise UserError(f"{config.data.dir} has no references of split {settings.split!r}: take another eval.split")
    params = checkpoints.load_ema_params(FLAGS.checkpoint, experiment.template_params())[0]
    kept = np.concatenate([np.asarray(batch.measurement.example_id) != PADDING_ID for batch in batches])
    measurement = jax.tree.map(lambda *arrays: np.concatenate(arrays)[kept], *(batch.measurement for batch in batches))
    reference = np.concatenate([np.asarray(batch.reference) for batch in batches])[kept]
    tables = {
        "place": place_table(experiment, params, batches),
        "level": where.by_level(experiment, params, reference, measurement, SIGMAS, config.seed),
        "split": split_table(experiment, params),
    }
    atomic_write_text(out / "where.json", json.dumps(tables, indent=2) + "\n")
    text = report(tables)
    atomic_write_text(out / "where.md", text)
    print(text)


if __name__ == "__main__":
    config_flags.DEFINE_config_file(
        "config", None, "Config of the network: configs/NAME.py or configs/NAME.py:VARIANT."
    )
    flags.DEFINE_string("checkpoint", None, "Workdir whose parameters to look at.")
    flags.DEFINE_string("out", None, "Folder to write to.")
    flags.DEFINE_multi_string("solver", ["cg_sense", "l1_wavelet", "msm_fast"], "Solvers, one flag each.")
    flags.DEFINE_integer("scans", 24, "At most so many scans of a split, evenly spread; 0: all.")
    flags.mark_flags_as_required(["config", "checkpoint", "out"])
    command_line.start(main)
