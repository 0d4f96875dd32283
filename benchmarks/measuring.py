"""Measuring one solver on one split, and tables that a second start goes on with; for the comparisons beside this."""

import csv
import dataclasses
import io
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from msm.evaluation import summary as evaluation
from msm.evaluation.metrics import natural_range, psnr, ssim
from msm.infra import rounds
from msm.infra.atomic import atomic_write_text
from msm.infra.errors import UserError
from msm.operators.measurement import PADDING_ID, EvalExample
from msm.solvers.registry import Solver


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a solver reached.

    Attributes:
      psnr, ssim: (slices,) of the magnitude of the mean of the samples; range: the slice's largest reference magnitude.
      seconds: per slice, without compilation.
      megabytes: of the compiled program: arguments, result and what it needs between them.
    """

    psnr: np.ndarray
    ssim: np.ndarray
    seconds: float
    megabytes: float


def measure(solver: Solver, key: jax.Array, params: Any, batches: Sequence[EvalExample]) -> Measured:
    """Compiles the solver once and runs it on batches of one shape, which have references."""
    hyper, rows, seconds = dict(solver.hyper), [], 0.0
    compiled = jax.jit(solver.solve).lower(key, params, batches[0].measurement, hyper).compile()
    for batch in batches:
        begin = time.monotonic()
        samples = np.asarray(compiled(key, params, batch.measurement, hyper))
        seconds += time.monotonic() - begin
        mean, _ = evaluation.summarize_samples(samples)
        kept = batch.measurement.example_id != PADDING_ID
        references: Any = batch.reference
        for reference, image in zip(references[kept], mean[kept], strict=True):
            rows.append([metric(reference, image, natural_range(reference)) for metric in (psnr, ssim)])
    sizes = compiled.memory_analysis()
    size = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
    table = np.asarray(rows)
    return Measured(table[:, 0], table[:, 1], seconds / len(rows), size / 1e6)


def read_table(path: Path, column: str) -> dict[str, dict[str, str]]:
    """Returns the rows of a CSV file by what they have in `column`; nothing where there is no file."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {row[column]: row for row in csv.DictReader(file)}


def write_table(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """Writes rows of the same columns, as `read_table` reads them."""
    rows, text = list(rows), io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write_text(path, text.getvalue())


def check_same(out: Path, config, rows: Mapping[str, Any], *also: Any) -> None:
    """Keeps in `out` what its table is of; `also` is what it depends on besides the config's settings.

    Raises UserError if the rows that are there are of something else, or nobody knows of what.
    """
    path, measured = out / "table_of.txt", config.eval.to_dict()
    for name in ("solvers", "metrics", "folder", "checkpoint", "tuned", "lpips_network", "lpips_weights"):
        measured.pop(name)
    now = repr((config.seed, config.data.dir, rounds.settings_of(config), measured, also))
    if rows and (not path.exists() or path.read_text() != now):
        raise UserError(f"{out} holds a table of other settings, data or network: choose another --out")
    atomic_write_text(path, now)
