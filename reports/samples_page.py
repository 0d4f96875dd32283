"""The page about drawn images: the images, their distances to held-out ones, and how near they come to training data.

One HTML file beside its PNG files, with no script and nothing from elsewhere, as the report of an evaluation.
"""

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from msm.infra.atomic import atomic_write_bytes, atomic_write_text
from msm.reports.evaluation_page import STYLE, run_table
from msm.reports.figures import encode_png, image_grid

_KINDS = {  # run's 'kind of images': what drawn ones are, and how they are shown
    "MRI": (
        "Research software: drawn images show no person, and are not for diagnosis.",
        "Each in a grey window up to its own maximum; none was left out.",
    ),
    "colour": (
        "Research software: drawn images show nobody and nothing that exists.",
        "In their own colours; none was left out.",
    ),
}
_UNJUDGED = "cannot be judged to be copies or not without held-out images (sampling.reference_split)"
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
        size, drawn, real = (distances["equal_sizes"][name] for name in ("images", "drawn", "real"))
        beside, chance = f" ({size} images each: too few for a comparison with real ones)", ""
        if size >= 2:
            beside = f" ({size} images each: drawn {drawn['frechet']:.4g}, real {real['frechet']:.4g}"
            beside += f" ± {real['frechet_std']:.2g})"
            chance = f" ({size} real images each: 0 ± {real['kernel_std']:.2g})"
        parts.append(f"Fréchet distance {distances['frechet']:.4g}{beside}")
        parts.append(f"kernel distance {distances['kernel']:.4g}{chance}")
    checked = summary["memorisation"].get("drawn")
    if checked and checked["flagged"] is not None:
        parts.append(f"{checked['flagged']} of {checked['images']} checked flagged as copies")
    if checked and checked["not_judged"]:
        parts.append(f"{checked['not_judged']} {_UNJUDGED}")
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
    about, window = _KINDS[run["kind of images"]]
    notes = [*run.get("notes", ()), about]
    shown = min(run["images"], 64)
    page = [
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>',
        f'<meta name="viewport" content="width=device-width">\n<style>{STYLE}</style>\n</head>',
        f"<body>\n<h1>{title}</h1>",
        *(f'<p class="note">{html.escape(note)}</p>' for note in notes),
        run_table({key: value for key, value in run.items() if key not in ("title", "notes")}),
        f"<h2>The first {shown} images</h2>",
        '<img src="grid.png" alt="Drawn images, row by row in the order of their numbers">',
        f'<p class="note">{window}</p>',
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


def _value(number: float, std: float = math.nan) -> str:
    """The number, and its standard deviation where there is one; a dash for neither."""
    spread = f"&plusmn; {std:.2g}" if math.isfinite(std) else ""
    return f"{number:.4g} {spread}".strip() if math.isfinite(number) else spread or "&ndash;"


def _distance_table(distances: Mapping[str, Any]) -> str:
    if not distances:
        return '<p class="note">None: there are no reference images, or fewer than two drawn ones.</p>'
    equal = distances["equal_sizes"]
    columns = {
        "drawn to reference, all": distances,
        f"{equal['images']} drawn to {equal['images']} reference": equal["drawn"],
        f"{equal['images']} real: reference to other reference": equal["real"],
    }
    if "between_splits" in equal:
        size = equal["between_splits"]["images"]
        columns[f"between splits: {size} other held-out to {size} reference"] = equal["between_splits"]

    def cells(key: str) -> str:
        values = (_value(found.get(key, math.nan), found.get(f"{key}_std", math.nan)) for found in columns.values())
        return "".join(f"<td>{value}</td>" for value in values)

    lines = [
        f"<tr><th>distance</th>{''.join(f'<th>{title}</th>' for title in columns)}</tr>",
        *(
            f"<tr><td>{name}</td>{cells(key)}</tr>"
            for key, name in (
                ("frechet", "Fréchet"),
                ("frechet_extrapolated", "Fréchet, extrapolated"),
                ("kernel", "kernel (MMD&sup2;)"),
            )
        ),
    ]
    counts = (
        f"{distances['drawn']} drawn, {distances['references']} reference images, {distances['features']} features. "
        "Compare the columns of one number of images only: the fewer, the larger the Fréchet distance of equal sets."
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
        flagged = "&ndash;" if entry["flagged"] is None else entry["flagged"]
        lines.append(f"<tr><td>{kind}</td><td>{entry['images']}</td><td>{flagged}</td>{cells}</tr>")
    told = [f"{entry['not_judged']} {kind} images {_UNJUDGED}." for kind, entry in table.items() if entry["not_judged"]]
    return "<table>\n" + "\n".join(lines) + "\n</table>\n" + "".join(f'<p class="note">{note}</p>' for note in told)


def _pairs(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    nearest = sorted((row for row in rows if row["kind"] == "drawn"), key=lambda row: row["distance"])
    lines = ["<tr><th>drawn image</th><th>nearest acquisition</th><th>distance</th><th>flagged</th></tr>"]
    for row in nearest:
        flagged = {True: "yes", False: "", None: "not judged"}[row["flagged"]]
        cells = (row["image_id"], row["nearest_id"], f"{row['distance']:.3f}", flagged)
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return [
        "<h3>Drawn images nearest to training data (top) and those acquisitions, zero-filled (bottom)</h3>",
        '<img src="nearest.png" alt="Above, drawn images; below each, its nearest training acquisition, zero-filled">',
        '<p class="note">As drawn and as acquired: not mirrored or moved to fit each other.</p>',
        "<details><summary>Every checked image</summary>\n<table>\n" + "\n".join(lines) + "\n</table></details>",
    ]
