"""The page about drawn images: the images, their distances to held-out ones, and how near they come to training data.

One HTML file beside its PNG files, with no script and nothing from elsewhere, as the report of an evaluation.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from msm.infra.atomic import atomic_write_bytes, atomic_write_text
from msm.reports.evaluation_page import render
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
    about, window = _KINDS[run["kind of images"]]
    page = render(
        "samples.html", run, [*run.get("notes", ()), about], shown=min(run["images"], 64), window=window,
        distances=_distance_table(summary["distances"]), copies=_memorisation_table(summary["memorisation"]),
        pairs=_pairs(rows) if pairs is not None else [], definitions=_definitions(summary),
    )  # fmt: skip
    atomic_write_text(folder / "report.html", page)
    return folder / "report.html"


def _value(number: float, std: float = math.nan) -> str:
    """The number, and its standard deviation where there is one; a dash for neither."""
    spread = f"\u00b1 {std:.2g}" if math.isfinite(std) else ""
    return f"{number:.4g} {spread}".strip() if math.isfinite(number) else spread or "\u2013"


def _definitions(summary: Mapping[str, Any]) -> Mapping[str, str]:
    """What the page's words mean; nothing where it has neither distances nor copies to speak of."""
    return summary["definitions"] if summary["distances"] or summary["memorisation"] else {}


def _distance_table(distances: Mapping[str, Any]) -> dict[str, Any] | None:
    if not distances:
        return None
    equal = distances["equal_sizes"]
    columns = {
        "drawn to reference, all": distances,
        f"{equal['images']} drawn to {equal['images']} reference": equal["drawn"],
        f"{equal['images']} real: reference to other reference": equal["real"],
    }
    if "between_splits" in equal:
        size = equal["between_splits"]["images"]
        columns[f"between splits: {size} other held-out to {size} reference"] = equal["between_splits"]
    names = (
        ("frechet", "Fréchet"),
        ("frechet_extrapolated", "Fréchet, extrapolated"),
        ("kernel", "kernel (MMD\u00b2)"),
    )

    def cells(key: str) -> list[str]:
        return [_value(found.get(key, math.nan), found.get(f"{key}_std", math.nan)) for found in columns.values()]

    counts = (
        f"{distances['drawn']} drawn, {distances['references']} reference images, {distances['features']} features. "
        "Compare the columns of one number of images only: the fewer, the larger the Fréchet distance of equal sets."
    )
    rows = [[name, *cells(key)] for key, name in names]
    return {"columns": list(columns), "rows": rows, "notes": [counts, *distances["warnings"]]}


def _memorisation_table(table: Mapping[str, Any]) -> dict[str, Any] | None:
    if not table:
        return None
    rows = []
    for kind, entry in table.items():
        cells = [" / ".join(_value(entry[name][k]) for k in ("min", "median", "max")) for name in _FIGURES]
        rows.append([kind, entry["images"], "\u2013" if entry["flagged"] is None else entry["flagged"], *cells])
    notes = [
        f"{entry['not_judged']} {kind} images {_UNJUDGED}." for kind, entry in table.items() if entry["not_judged"]
    ]
    figures = [f"{name}: min / median / max" for name in _FIGURES.values()]
    return {"columns": ["images", "checked", "flagged", *figures], "rows": rows, "notes": notes}


def _pairs(rows: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    nearest = sorted((row for row in rows if row["kind"] == "drawn"), key=lambda row: row["distance"])
    flags = {True: "yes", False: "", None: "not judged"}
    return [[row["image_id"], row["nearest_id"], f"{row['distance']:.3f}", flags[row["flagged"]]] for row in nearest]
