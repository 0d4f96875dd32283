"""What an evaluation writes: tables (*.csv), summary.json and report.html with its pictures, each whole or not at all.

The report is one HTML page beside a folder of PNG files, with no script and nothing from elsewhere: it opens offline
and can be sent as it is. Rows, summaries and rounds are described in `evaluation`.
"""

import csv
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from msm.evaluation.calibration import COVERAGE_NAMES
from msm.evaluation.summary import choose_slices, levels_in_head
from msm.infra.atomic import atomic_write_bytes, atomic_write_text
from msm.infra.errors import UserError
from msm.reports.figures import label, measured_figure, quality_plot, reliability_plot, slice_figure

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: #1a1a1a; background: #fff;
  max-width: 1400px; margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; }
h2 { font-size: 1.25rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc; padding-bottom: .2rem; }
h3 { font-size: 1.02rem; margin: 1.6rem 0 .3rem; }
table { border-collapse: collapse; margin: .6rem 0; }
th, td { padding: .3rem 1rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid #e3e3e3; font-variant-numeric: tabular-nums; }
th { border-bottom: 2px solid #999; vertical-align: bottom; white-space: normal; }
.run th { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tr.primary { background: #eef5fb; }
.run th { border: 0; font-weight: 600; vertical-align: top; } .run td { border: 0; text-align: left; }
.run th, .run td { padding: .1rem 1.2rem .1rem 0; } .run td { white-space: normal; }
code { font-size: .92em; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; display: block; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem 1.2rem; }
.error { color: #777; font-size: .88em; } .note { color: #444; } summary { cursor: pointer; }
@media print { body { margin: 0; } section { break-inside: avoid; } }
"""

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
    pictures: Mapping[str, np.ndarray],
    fixed: int | None = None,
) -> Path:
    """Writes `folder`/report.html and `folder`/figures/*.png, replacing those of an earlier evaluation.

    Args:
      folder: the evaluation's folder.
      summary: of `evaluation.summarize`; 'run' may hold 'title' and 'notes' (list of sentences) besides what is listed.
      rows: of `evaluation.measure_round`.
      pictures: a round that holds at least the slices of `evaluation.choose_slices(rows, summary['primary'], fixed)`.
      fixed: example id of a slice that is shown whatever its quality; None: the middle one.

    Returns:
      The report's path.

    Raises:
      UserError: `pictures` lacks a slice that the report shows.
    """
    folder = Path(folder)
    chosen = choose_slices(rows, summary["primary"], fixed)
    position = {int(key): index for index, key in enumerate(pictures["example_id"])}
    missing = sorted(set(chosen.values()) - set(position))
    if missing:
        raise UserError(f"no picture of slice {missing[0]} for {folder / 'report.html'}: pass the round that holds it")
    figures = {PLOT: quality_plot(rows)} if "reference" in pictures else {}
    levels = levels_in_head(pictures)
    if levels:
        figures["reliability.png"] = reliability_plot(levels)
    for key in chosen.values():
        scores = {row["solver"]: row for row in rows if row["example_id"] == key}
        draw = slice_figure if "reference" in pictures else measured_figure
        figures[f"slice_{key:05d}.png"] = draw(pictures, position[key], scores)
    for name, data in figures.items():
        atomic_write_bytes(folder / "figures" / name, data)
    atomic_write_text(folder / "report.html", _page(summary, rows, chosen))
    for stale in (folder / "figures").glob("*.png"):
        if stale.name not in figures:  # of an earlier evaluation: beside this table it would mislead
            stale.unlink()
    return folder / "report.html"


def _text(value: Any) -> str:
    """HTML of a plain value: short numbers, joined lists, mappings as 'key value' or 'key (...)', escaped text."""
    if isinstance(value, Mapping):
        inner = ((k, f"({_text(v)})" if isinstance(v, Mapping) else _text(v)) for k, v in value.items())
        return ", ".join(f"{html.escape(str(key))} {text}" for key, text in inner)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_text(entry) for entry in value)
    return html.escape(str(value))


def _number(value: float, digits: int, sign: str = "") -> str:
    return f"{value:{sign}.{digits}f}" if math.isfinite(value) else ("&infin;" if value == math.inf else "not finite")


def _page(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], chosen: Mapping[str, int]) -> str:
    run = summary["run"]
    title = html.escape(str(run.get("title", "Reconstruction report")))
    medical = "coils" in run
    notes = [*run.get("notes", ()), *(["Research software: not for diagnosis."] if medical else [])]
    return "\n".join(
        [
            f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>',
            f'<meta name="viewport" content="width=device-width">\n<style>{STYLE}</style>\n</head>',
            f"<body>\n<h1>{title}</h1>",
            *(f'<p class="note">{html.escape(note)}</p>' for note in notes),
            run_table({key: value for key, value in run.items() if key not in ("title", "notes")}),
            "<h2>Image quality</h2>",
            _quality(summary),
            _gains(summary),
            _uncertainty(summary),
            "<h2>Slices</h2>",
            *(_slice_qualities(rows) if summary["primary"] in {r["solver"] for r in rows if "psnr" in r} else ()),
            *(_slice_section(reason, key, label(summary["primary"])) for reason, key in chosen.items()),
            "<h2>Definitions</h2>\n<dl>",
            *(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in summary["definitions"].items()),
            "</dl>\n</body>\n</html>\n",
        ]
    )


def run_table(run: Mapping[str, Any]) -> str:
    """The heading 'What was run' and a table of plain values by name, as HTML; the value of 'command' as code."""

    def cell(key: str, value: Any) -> str:
        return f"<code>{_text(value)}</code>" if key == "command" else _text(value)

    lines = (f"<tr><th>{html.escape(key.replace('_', ' '))}</th><td>{cell(key, v)}</td></tr>" for key, v in run.items())
    return '<h2>What was run</h2>\n<table class="run">\n' + "\n".join(lines) + "\n</table>"


def _quality(summary: Mapping[str, Any]) -> str:
    """The tables per slice and per volume, and beside them what is measured as the published code does."""
    table, volumes, primary = summary["solvers"], summary["volumes"], summary["primary"]
    counts = {solver: (entry["num_samples"], entry["nfe"]) for solver, entry in table.items()}
    slices = f"Mean over {table[primary]['seconds']['n']} slices"
    lines = ["<h3>Per slice</h3>", _score_table(table, _COLUMNS, primary, counts), _caption(slices)]
    if volumes:
        sizes = volumes["slices"]
        told = ", ".join(f"{name} ({count} slice{'s' * (count > 1)})" for name, count in sizes.items())
        what = f"Mean over {len(sizes)} volumes" if len(sizes) > 1 else "One volume"
        lines += ["<h3>Per volume</h3>", _score_table(volumes["solvers"], _COLUMNS, primary)]
        lines.append(_caption(f"{what}: {told}" if len(sizes) <= 8 else what, len(sizes) > 1))
    if any("psnr_paper" in entry for entry in table.values()):
        lines += ["<h3>Per slice, as the published code measures</h3>", _score_table(table, _PAPER_COLUMNS, primary)]
        lines.append(
            f'<p class="note">{slices}. Columns \u201c{_PAPER}\u201d stretch result and reference to [0, 1] each by '
            "itself, which hides errors of scale and offset: for comparison with published tables only.</p>"
        )
    lines += [f'<p class="note">{html.escape(why)}</p>' for why in summary["absent"].values()]
    return "\n".join(lines)


def _caption(what: str, several: bool = True, compared: bool = True) -> str:
    told = f"{html.escape(what)}{' &plusmn; standard error' if several else ''}.{' Bold: best.' if compared else ''}"
    return f'<p class="note">{told}</p>'


def _score_table(
    table: Mapping[str, Any],
    known: Mapping[str, tuple[str, int, int]],
    primary: str,
    counts: Mapping[str, tuple[int, int]] | None = None,
) -> str:
    """Solver x metric, mean and standard error; the best mean of a column is bold. `counts`: samples, NFE by solver."""
    columns = {metric: spec for metric, spec in known.items() if any(metric in entry for entry in table.values())}
    best = {}
    for metric, (_, _, sign) in columns.items():
        means = [sign * entry[metric]["mean"] for entry in table.values() if metric in entry]
        best[metric] = max(means) if sign and len(means) > 1 else math.nan  # the only one is not the best

    def cell(entry: Mapping[str, Any], metric: str, digits: int, sign: int) -> str:
        if metric not in entry:
            return "<td>&ndash;</td>"
        mean, error = entry[metric]["mean"], entry[metric]["standard_error"]
        number = _number(mean, digits)
        number = f"<strong>{number}</strong>" if sign and sign * mean == best[metric] else number
        if metric == "seconds" or entry[metric]["n"] < 2:  # slices run in batches, so their spread says nothing
            return f"<td>{number}</td>"
        return f'<td>{number} <span class="error">&plusmn; {_number(error, digits)}</span></td>'

    heads = "".join(f"<th>{heading}</th>" for heading, _, _ in columns.values())
    lines = [f"<tr><th>Method</th>{heads}{'<th>samples</th><th>NFE per sample</th>' if counts else ''}</tr>"]
    for solver, entry in table.items():
        cells = "".join(cell(entry, metric, digits, sign) for metric, (_, digits, sign) in columns.items())
        cells += "".join(f"<td>{count}</td>" for count in counts[solver]) if counts else ""
        mark = ' class="primary"' if solver == primary else ""
        lines.append(f"<tr{mark}><td>{html.escape(label(solver))}</td>{cells}</tr>")
    return '<table class="scores">\n' + "\n".join(lines) + "\n</table>"


def _gains(summary: Mapping[str, Any]) -> str:
    """One line per other solver: the primary's mean gain over it on the same slices."""
    lines = []
    for other, metrics in summary["gains"].items():
        gain = metrics["psnr"]
        low, high = (_number(end, 2, "+") for end in gain["ci95"])
        ours, theirs = (html.escape(label(name)) for name in (summary["primary"], other))
        lines.append(
            f"<li>{ours} over {theirs}: <strong>{_number(gain['mean'], 2, '+')} dB</strong> &plusmn; "
            f"{_number(gain['standard_error'], 2)} (95 % interval {low} to {high}; higher on {gain['positive']} of "
            f"{gain['n']} slices); SSIM {_number(metrics['ssim']['mean'], 3, '+')}.</li>"
        )
    return '<h3>Gain in PSNR per slice</h3>\n<ul class="gains">\n' + "\n".join(lines) + "\n</ul>" if lines else ""


def _uncertainty(summary: Mapping[str, Any]) -> str:
    """The table of the solvers that draw samples and their reliability; nothing where none does."""
    drawn = {solver: entry for solver, entry in summary["solvers"].items() if "crps" in entry}
    if not drawn:
        return ""
    slices = next(iter(drawn.values()))["crps"]["n"]
    return "\n".join(
        [
            "<h2>Uncertainty</h2>",
            _score_table(drawn, _UNCERTAINTY_COLUMNS, summary["primary"]),
            _caption(f"Mean over the heads of {slices} slices", compared=len(drawn) > 1),
            '<img src="figures/reliability.png" alt="Share of pixels inside intervals, over the intervals\' level">',
        ]
    )


def _slice_qualities(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [f'<img src="figures/{PLOT}" alt="PSNR of every slice, one line per method">', _slice_table(rows)]


def _slice_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Every slice's PSNR / SSIM by solver, folded away."""
    solvers = list(dict.fromkeys(row["solver"] for row in rows))
    scores = {(row["example_id"], row["solver"]): row for row in rows}
    lines = ["<tr><th>slice</th>" + "".join(f"<th>{html.escape(label(solver))}</th>" for solver in solvers) + "</tr>"]
    for key in sorted({row["example_id"] for row in rows}):
        cells = (scores.get((key, solver)) for solver in solvers)
        texts = (f"{_number(c['psnr'], 2)} / {_number(c['ssim'], 3)}" if c else "&ndash;" for c in cells)
        lines.append(f"<tr><td>{key}</td>" + "".join(f"<td>{text}</td>" for text in texts) + "</tr>")
    return (
        "<details><summary>PSNR (dB) / SSIM of every slice</summary>\n<table>\n" + "\n".join(lines) + "\n</table>\n"
        '<p class="note">metrics.csv holds every number of every slice.</p></details>'
    )


def _slice_section(reason: str, key: int, name: str) -> str:
    fixed = {"fixed": "fixed choice", "first": "the first", "last": "the last"}
    why = fixed.get(reason, f"{reason} PSNR of {html.escape(name)}")
    return (
        f"<section><h3>Slice {key}: {why}</h3>\n"
        f'<img src="figures/slice_{key:05d}.png" alt="Slice {key}: mask, reconstructions, and what they are judged by">'
        "</section>"
    )
