"""The page about drawn images: the images, their distances to held-out ones, and how near they come to training data.

One HTML file beside its PNG files, with no script and nothing from elsewhere, as the report of an evaluation.
"""

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infra.atomic import atomic_write_bytes, atomic_write_text
from infra.figures import encode_png, image_grid
from infra.report import _STYLE as STYLE
from infra.report import _run_table as run_table

_FIGURES = {
    "distance": "distance to the nearest training acquisition",
    "over_second": "nearest / second nearest",
    "over_held_out": "nearest / held-out median",
}


def one_line(summary: Mapping[str, Any]) -> str:
    """The result in one line, for the log."""
    parts = [f"{summary['run']['images']} images"]
    distances = summary["distances"]
    if distances:
        floor = distances["floor"]
        parts.append(f"Fréchet distance {distances['frechet']:.4g} (floor {floor['frechet']:.4g})")
        parts.append(f"kernel distance {distances['kernel']:.4g} (floor {floor['kernel']:.4g})")
    drawn = summary["memorisation"].get("drawn")
    if drawn:
        parts.append(f"{drawn['flagged']} of {drawn['images']} checked flagged as copies")
    return ", ".join(parts)


def write_report(
    folder: Path, summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], pairs: np.ndarray | None
) -> Path:
    """Writes `folder`/report.html and nearest.png beside the grid.png that is there; returns the page's path.

    Args:
      summary: 'run', 'distances' (of `frechet.compare` or empty), 'memorisation' (of `memorisation.summarize`) and
        'definitions'.
      rows: of `memorisation.rows_of`.
      pairs: (2,K,...) drawn images and the zero-filled training acquisitions nearest to them, nearest first; None: no
        such check was made.
    """
    if pairs is not None:
        picture = image_grid(np.concatenate(list(pairs)), columns=pairs.shape[1])
        atomic_write_bytes(folder / "nearest.png", encode_png(picture))
    run = summary["run"]
    title = html.escape(run["title"])
    notes = [*run.get("notes", ()), "Research software: drawn images show no person, and are not for diagnosis."]
    shown = min(run["images"], 64)
    page = [
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>',
        f'<meta name="viewport" content="width=device-width">\n<style>{STYLE}</style>\n</head>',
        f"<body>\n<h1>{title}</h1>",
        *(f'<p class="note">{html.escape(note)}</p>' for note in notes),
        run_table({key: value for key, value in run.items() if key not in ("title", "notes")}),
        f"<h2>The first {shown} images</h2>",
        '<img src="grid.png" alt="Drawn images, row by row in the order of their numbers">',
        '<p class="note">Each in a grey window up to its own maximum; none was left out.</p>',
        "<h2>Distance to held-out images</h2>",
        _distance_table(summary["distances"]),
        "<h2>Copies of training data</h2>",
        _memorisation_table(summary["memorisation"]),
        *(_pairs(rows) if pairs is not None else ()),
        "<h2>Definitions</h2>\n<dl>",
        *(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in summary["definitions"].items()),
        "</dl>\n</body>\n</html>\n",
    ]
    atomic_write_text(folder / "report.html", "\n".join(page))
    return folder / "report.html"


def _value(number: float) -> str:
    return f"{number:.4g}" if math.isfinite(number) else "&ndash;"


def _distance_table(distances: Mapping[str, Any]) -> str:
    if not distances:
        return '<p class="note">None: there are no reference images, or fewer than two drawn ones.</p>'
    columns = (distances, distances["floor"], distances.get("between_splits", {}))
    lines = [
        "<tr><th>distance</th><th>drawn to reference</th><th>floor: halves of the reference</th>"
        "<th>between splits: other held-out images to reference</th></tr>",
        *(
            f"<tr><td>{name}</td>{''.join(f'<td>{_value(c.get(key, math.nan))}</td>' for c in columns)}</tr>"
            for key, name in (
                ("frechet", "Fréchet"),
                ("frechet_extrapolated", "Fréchet, extrapolated"),
                ("kernel", "kernel (MMD&sup2;)"),
            )
        ),
    ]
    counts = (
        f"{distances['drawn']} drawn, {distances['references']} reference images, {distances['features']} features."
    )
    notes = (f'<p class="note">{html.escape(note)}</p>' for note in (counts, *distances["warnings"]))
    return "<table>\n" + "\n".join(lines) + "\n</table>\n" + "\n".join(notes)


def _memorisation_table(table: Mapping[str, Any]) -> str:
    if not table:
        return '<p class="note">Not checked: sampling.check_images is 0.</p>'
    heads = "".join(f"<th>{name}<br>min / median / max</th>" for name in _FIGURES.values())
    lines = [f"<tr><th>images</th><th>checked</th><th>flagged</th>{heads}</tr>"]
    for kind, entry in table.items():
        cells = (" / ".join(_value(entry[name][k]) for k in ("min", "median", "max")) for name in _FIGURES)
        cells = "".join(f"<td>{cell}</td>" for cell in cells)
        lines.append(f"<tr><td>{kind}</td><td>{entry['images']}</td><td>{entry['flagged']}</td>{cells}</tr>")
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _pairs(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    nearest = sorted((row for row in rows if row["kind"] == "drawn"), key=lambda row: row["distance"])
    lines = ["<tr><th>drawn image</th><th>nearest acquisition</th><th>distance</th><th>flagged</th></tr>"]
    for row in nearest:
        flagged = "yes" if row["flagged"] else ""
        cells = (row["image_id"], row["nearest_id"], f"{row['distance']:.3f}", flagged)
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return [
        "<h3>Drawn images nearest to training data (top) and those acquisitions, zero-filled (bottom)</h3>",
        '<img src="nearest.png" alt="Above, drawn images; below each, its nearest training acquisition, zero-filled">',
        '<p class="note">As drawn and as acquired: not mirrored or moved to fit each other.</p>',
        "<details><summary>Every checked image</summary>\n<table>\n" + "\n".join(lines) + "\n</table></details>",
    ]
