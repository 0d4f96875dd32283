"""What an evaluation writes: tables (*.csv), summary.json and report.html with its pictures, each whole or not at all.

The report is one HTML page beside a folder of pictures, with nothing from elsewhere: it opens offline and can be
sent as it is. What it shows is put together here and in `viewer`; how, the templates say. It says nothing of what is
absent. Rows, summaries and rounds are described in `evaluation`.
"""

import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from msm.evaluation.calibration import COVERAGE_NAMES
from msm.evaluation.summary import choose_slices, levels_in_head
from msm.infra.atomic import atomic_write_bytes, atomic_write_text
from msm.infra.errors import UserError
from msm.reports.figures import label, measured_figure, quality_plot, reliability_plot, slice_figure
from msm.reports.viewer import viewer_of

_COLUMNS = {  # metric: heading, digits, whether the largest (1) or the smallest (-1) mean is the best
    "psnr": ("PSNR (dB)", 2, 1),
    "ssim": ("SSIM", 3, 1),
    "nmse": ("NMSE", 4, -1),
    "lpips": ("LPIPS", 3, -1),
    "seconds": ("seconds per slice", 3, 0),
}
_UNCERTAINTY_COLUMNS = {
    "std_error_correlation": ("std map, correlation with |error|", 2, 1),
    "spread_to_error": ("spread over error", 2, 0),
    **{name: (f"in the {name.removeprefix('coverage_')} % interval", 3, 0) for name in COVERAGE_NAMES},
    "crps": ("CRPS", 5, -1),
}
PLOT = "psnr_per_slice.png"
_PAPER = "as published"
_PAPER_COLUMNS = {  # beside the standard ones, in a table of their own
    "psnr": _COLUMNS["psnr"],
    "psnr_paper": (f"PSNR (dB), {_PAPER}", 2, 1),
    "ssim": _COLUMNS["ssim"],
    "ssim_paper": (f"SSIM, {_PAPER}", 3, 1),
    "lpips": _COLUMNS["lpips"],
    "lpips_paper": (f"LPIPS, {_PAPER}", 3, -1),
}


def write_metrics_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes one line per row, of slices or of volumes; without any, deletes what an earlier evaluation left.

    A figure that a solver lacks stays empty, one not finite is nan or inf.
    """
    if not rows:
        Path(path).unlink(missing_ok=True)
        return
    names = dict.fromkeys(key for row in rows for key in row)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write_text(path, buffer.getvalue())


def write_summary(path: str | Path, summary: Mapping[str, Any]) -> None:
    """Writes `summary` (of `evaluation.summarize`) as standard JSON; numbers that are not finite become null."""
    atomic_write_text(path, json.dumps(_finite(summary), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_finite(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_report(
    folder: str | Path,
    summary: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    pictures: Mapping[str, np.ndarray] | Sequence[Mapping[str, np.ndarray]],
    fixed: int | None = None,
) -> Path:
    """Writes `folder`/report.html and `folder`/figures/, replacing those of an earlier evaluation.

    Args:
      folder: the evaluation's folder.
      summary: of `evaluation.summarize`; 'run' may hold 'title' and 'notes' (list of sentences) besides what is listed.
      rows: of `evaluation.measure_round`.
      pictures: a merged round, or one of each shape of images; they hold at least the slices of
        `evaluation.choose_slices(rows, summary['primary'], fixed)`. The viewer shows all of the most frequent shape.
      fixed: example id of a slice that is shown whatever its quality; None: the middle one.

    Returns:
      The report's path.

    Raises:
      UserError: `pictures` lacks a slice that the report shows.
    """
    folder = Path(folder)
    chosen = choose_slices(rows, summary["primary"], fixed)
    groups = [pictures] if isinstance(pictures, Mapping) else pictures
    position = {int(key): (group, index) for group in groups for index, key in enumerate(group["example_id"])}
    measured = "reference" in groups[0]
    missing = sorted(set(chosen.values()) - set(position))
    if missing:
        raise UserError(f"no picture of slice {missing[0]} for {folder / 'report.html'}: pass the round that holds it")
    shown = max(groups, key=lambda group: len(group["example_id"]))
    inside = {reason: key for reason, key in chosen.items() if position[key][0] is shown}
    sheets, viewer = viewer_of(shown, rows, inside)
    figures = {**sheets, **({PLOT: quality_plot(rows)} if measured else {})}
    of_groups = [levels_in_head(group) for group in groups]
    levels = {name: np.concatenate([found[name] for found in of_groups]) for name in of_groups[0]}
    if levels:
        figures["reliability.png"] = reliability_plot(levels)
    for key in chosen.values():
        scores = {row["solver"]: row for row in rows if row["example_id"] == key}
        draw = slice_figure if measured else measured_figure
        figures[picture_name(rows, key)] = draw(*position[key], scores)
    for name, data in figures.items():
        atomic_write_bytes(folder / "figures" / name, data)
    atomic_write_text(folder / "report.html", _page(summary, rows, chosen, viewer))
    for stale in (folder / "figures").iterdir():
        if stale.suffix in (".png", ".webp") and stale.name not in figures:  # beside this table it would mislead
            stale.unlink()
    return folder / "report.html"


def slice_name(rows: Sequence[Mapping[str, Any]], key: int) -> str:
    """What people call the slice of example id `key`: '12', 'head.h5, 12' where there are several volumes."""
    row = next(row for row in rows if row["example_id"] == key)
    several = len({row.get("volume") for row in rows}) > 1
    number = str(row.get("slice", key))
    return f"{row['volume']}, {number}" if several and "volume" in row else number


def picture_name(rows: Sequence[Mapping[str, Any]], key: int) -> str:
    """The file name of the picture of that slice; letters that not every file system takes become '_' and a hash."""
    row = next(row for row in rows if row["example_id"] == key)
    volume = str(row.get("volume", "")) if len({row.get("volume") for row in rows}) > 1 else ""
    plain = re.sub(r"[^A-Za-z0-9.-]", "_", volume)[:100]
    if plain != volume:
        plain += "_" + hashlib.sha256(volume.encode()).hexdigest()[:6]
    return f"slice_{plain}{'_' if plain else ''}{row.get('slice', key):05d}.png"


def _text(value: Any) -> str:
    """A plain value in words: short numbers, joined lists, mappings as 'key value' or 'key (...)'."""
    if isinstance(value, Mapping):
        inner = ((k, f"({_text(v)})" if isinstance(v, Mapping) else _text(v)) for k, v in value.items())
        return ", ".join(f"{key} {text}" for key, text in inner)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_text(entry) for entry in value)
    return str(value)


def _number(value: float, digits: int, sign: str = "") -> str:
    return f"{value:{sign}.{digits}f}" if math.isfinite(value) else ("\u221e" if value == math.inf else "not finite")


def render(template: str, run: Mapping[str, Any], notes: Sequence[str], **values: Any) -> str:
    """Returns a page of reports/templates; whatever comes from data is escaped there.

    Args:
      template: a file of reports/templates that extends base.html.
      run: plain values by name for "What was run"; its 'title' and 'notes' are not repeated there.
      notes: sentences below the title.
      values: what the template names besides.
    """
    folder = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=folder, autoescape=True, undefined=jinja2.StrictUndefined)
    facts = [(key.replace("_", " "), _text(value)) for key, value in run.items() if key not in ("title", "notes")]
    title = str(run.get("title", "Reconstruction report"))
    return environment.get_template(template).render(title=title, notes=notes, facts=facts, **values) + "\n"


def _page(
    summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], chosen: Mapping[str, int], viewer: Mapping[str, Any]
) -> str:
    run, primary = summary["run"], summary["primary"]
    medical = ["Research software: not for diagnosis."] if "coils" in run else []
    judged = primary in {row["solver"] for row in rows if "psnr" in row}
    fixed = {"fixed": "fixed choice", "first": "the first", "last": "the last"}
    pictures = [
        {"key": key, "why": fixed.get(reason, f"{reason} PSNR of {label(primary)}"), "file": picture_name(rows, key),
         "name": f"Slice {slice_name(rows, key)}"}
        for reason, key in chosen.items()
    ]  # fmt: skip
    return render(
        "evaluation.html", run, [*run.get("notes", ()), *medical, *summary["absent"].values()], viewer=viewer,
        tables=_quality(summary) if judged else [], gains=_gains(summary), uncertainty=_uncertainty(summary),
        slice_table=_slice_table(rows) if judged else None, chosen=pictures, definitions=_definitions(summary),
    )  # fmt: skip


def _definitions(summary: Mapping[str, Any]) -> dict[str, str]:
    """Those of the definitions that say something of this page; summary.json has all."""
    table = summary["solvers"]
    figures = {metric for entry in table.values() for metric in entry}
    several = any(isinstance(value, Mapping) and value["n"] > 1 for entry in table.values() for value in entry.values())
    judged, drawn = "psnr" in figures, "crps" in figures
    shown = {
        "images compared": judged, "data range": judged, "per volume": bool(summary["volumes"]),
        "mean, standard error": several, "ci95": bool(summary["gains"]), "gain": bool(summary["gains"]),
        "pictures": True, "std map": "std_error_correlation" in figures, "head": drawn,
    }  # fmt: skip
    return {name: text for name, text in summary["definitions"].items() if shown.get(name, name in figures)}


def _quality(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tables per slice and per volume, and beside them what is measured as the published code does."""
    table, volumes, primary = summary["solvers"], summary["volumes"], summary["primary"]
    counts = {solver: (entry["num_samples"], entry["nfe"]) for solver, entry in table.items()}
    number = table[primary]["psnr"]["n"]
    slices = f"Mean over {number} slices" if number > 1 else "One slice"
    found = [_score_table(table, _COLUMNS, primary, counts, heading="Per slice", caption=slices)]
    if volumes:
        sizes = volumes["slices"]
        told = ", ".join(f"{name} ({count} slice{'s' * (count > 1)})" for name, count in sizes.items())
        what = f"Mean over {len(sizes)} volumes" if len(sizes) > 1 else "One volume"
        caption = f"{what}: {told}" if len(sizes) <= 8 else what
        found.append(_score_table(volumes["solvers"], _COLUMNS, primary, heading="Per volume", caption=caption))
    if any("psnr_paper" in entry for entry in table.values()):
        heading = "Per slice, as the published code measures"
        caption = (
            f"{slices}. Columns \u201c{_PAPER}\u201d stretch result and reference to [0, 1] each by itself, which "
            "hides errors of scale and offset: for comparison with published tables only"
        )
        found.append(_score_table(table, _PAPER_COLUMNS, primary, heading=heading, caption=caption))
        found[-1]["errors"] = found[-1]["compared"] = False
    return found


def _score_table(
    table: Mapping[str, Any],
    known: Mapping[str, tuple[str, int, int]],
    primary: str,
    counts: Mapping[str, tuple[int, int]] | None = None,
    heading: str = "",
    caption: str = "",
) -> dict[str, Any]:
    """Solver x metric, mean and standard error; the best mean of a column is marked. `counts`: samples, NFE by solver.

    'errors' and 'compared' say whether any cell has a standard error or is marked as the best.
    """
    columns = {metric: spec for metric, spec in known.items() if any(metric in entry for entry in table.values())}
    best = {}
    for metric, (_, _, sign) in columns.items():
        means = [sign * entry[metric]["mean"] for entry in table.values() if metric in entry]
        best[metric] = max(means) if sign and len(means) > 1 else math.nan  # the only one is not the best

    def cell(entry: Mapping[str, Any], metric: str, digits: int, sign: int) -> dict[str, Any]:
        if metric not in entry:
            return {"number": "\u2013", "best": False, "error": ""}
        mean, error = entry[metric]["mean"], entry[metric]["standard_error"]
        # slices run in batches, so the spread of their seconds says nothing
        spread = "" if metric == "seconds" or entry[metric]["n"] < 2 else _number(error, digits)
        return {"number": _number(mean, digits), "best": bool(sign) and sign * mean == best[metric], "error": spread}

    rows = []
    for solver, entry in table.items():
        cells = [cell(entry, metric, digits, sign) for metric, (_, digits, sign) in columns.items()]
        cells += [{"number": str(count), "best": False, "error": ""} for count in counts[solver]] if counts else []
        rows.append({"name": label(solver), "primary": solver == primary, "cells": cells})
    every = [cell for row in rows for cell in row["cells"]]
    return {
        "heading": heading,
        "caption": caption,
        "columns": [name for name, _, _ in columns.values()] + (["samples", "NFE per sample"] if counts else []),
        "rows": rows,
        "errors": any(cell.get("error") for cell in every),
        "compared": any(cell.get("best") for cell in every),
    }


def _gains(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each other solver: the primary's mean gain over it on the same slices."""
    found = []
    for other, metrics in summary["gains"].items():
        gain = metrics["psnr"]
        low, high = (_number(end, 2, "+") for end in gain["ci95"])
        found.append(
            {"ours": label(summary["primary"]), "theirs": label(other), "mean": _number(gain["mean"], 2, "+"),
             "error": _number(gain["standard_error"], 2), "low": low, "high": high, "positive": gain["positive"],
             "n": gain["n"], "ssim": _number(metrics["ssim"]["mean"], 3, "+")}
        )  # fmt: skip
    return found


def _uncertainty(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """The table of the solvers that draw samples; None where none does."""
    drawn = {solver: entry for solver, entry in summary["solvers"].items() if "crps" in entry}
    if not drawn:
        return None
    number = next(iter(drawn.values()))["crps"]["n"]
    what = f"Mean over the heads of {number} slices" if number > 1 else "The head of one slice"
    return _score_table(drawn, _UNCERTAINTY_COLUMNS, summary["primary"], caption=what)


def _slice_table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every slice's PSNR / SSIM by solver."""
    solvers = list(dict.fromkeys(row["solver"] for row in rows))
    scores = {(row["example_id"], row["solver"]): row for row in rows}
    lines = []
    for key in sorted({row["example_id"] for row in rows}):
        cells = (scores.get((key, solver)) for solver in solvers)
        texts = (f"{_number(c['psnr'], 2)} / {_number(c['ssim'], 3)}" if c and "psnr" in c else "\u2013" for c in cells)
        lines.append([slice_name(rows, key), *texts])
    return {"columns": ["slice", *map(label, solvers)], "rows": lines}
