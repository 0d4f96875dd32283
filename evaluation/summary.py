"""Image quality of reconstructions: metrics per slice and per volume, their statistics, and the summary.

Pure numpy; no files. The single measures are in `metrics`. What travels between the functions:

  round    plain dict of arrays, the content of one rounds/*.npz: 'example_id' (N,), 'mask' (N,...), where there are
           references 'reference' (N,...), where these do not know all pixels 'unknown' (N,H,W,1) bool, where slices
           belong to volumes 'volume' (N,) names and 'slice' (N,) the scanner's numbers there, 'aspect' (N,) height over
           width of a pixel, and for every solver '<solver>/mean' (N,...), '<solver>/seconds' (N,), and where it draws
           samples '<solver>/std' (N,H,W) float32, '<solver>/sample' (N,...), one posterior sample, and with references
           '<solver>/level' and '<solver>/crps' of `calibration`
  row      dict of one slice and one solver: 'example_id', 'volume' and 'slice' if known, 'solver', 'seconds', and where
           there are references the metrics, and the POSTERIOR figures where the solver has a std map; or of one volume
           and one solver, see `measure_volumes`
  summary  dict that becomes summary.json, see `summarize`

  summarize_samples(samples) -> mean, std            after a solver has run
  merge_rounds(rounds) -> round                      padding dropped, ordered by example_id
  merge_by_shape(rounds) -> [round]                  likewise, one for each shape of images
  measure_round(round) -> rows                       every slice and solver of the round
  measure_volumes(round) -> rows                     every volume and solver of the round
  summarize(rows, primary, run, nfe) -> summary
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from msm.evaluation.calibration import COVERAGES, HEAD_THRESHOLD, POSTERIOR, head_of, posterior_figures
from msm.evaluation.metrics import METRICS, STANDARD, Metric, error_map, has_content, natural_range, nmse, psnr, ssim
from msm.infra.errors import UserError
from msm.operators.measurement import PADDING_ID

__all__ = ["METRICS", "POSTERIOR", "error_map", "natural_range", "nmse", "posterior_figures", "psnr", "ssim"]

NOT_METRICS = ("example_id", "volume", "slice", "slices", "solver")  # what a row holds besides numbers to average
NO_REFERENCES = "Image quality is not measured: these scans have no reference images."
NO_VOLUMES = "Figures per volume are absent: the data are single images, not slices of volumes."

DEFINITIONS = {
    "images compared": (
        "MRI: magnitudes of the complex images. Real images: all channels in [-1, 1]. Of posterior samples, the mean "
        "is compared, taken of complex values before the magnitude. No result is rescaled, masked or cropped, but for "
        "pixels under metal implants, which are 0 in both images."
    ),
    **{metric.name: metric.definition for metric in STANDARD},
    "data range": "MRI: the largest reference magnitude of the slice. Real images: 2.",
    "per volume": (
        "All evaluated slices of one subject together, as fastMRI does (Zbontar et al., arXiv 1811.08839). Data "
        "range: the volume's largest reference magnitude. PSNR and NMSE over all its voxels at once; SSIM is the mean "
        "over its slices, with the volume's data range and the window above (fastMRI's is uniform, 7 x 7). Differs "
        "from the mean over slices by up to several dB: compare like with like."
    ),
    "mean, standard error": (
        "Over slices, or over volumes where the table says so; the standard error is the sample standard deviation "
        "divided by the square root of their number."
    ),
    "ci95": (
        "95 % percentile bootstrap interval of the mean, 2000 resamplings of the slices, fixed seed. Slices of one "
        "person are not independent: the interval speaks of these slices, not of other people."
    ),
    "gain": "Mean over slices of the difference of the two solvers on the same slice, with its standard error.",
    "nfe": "Network function evaluations per posterior sample.",
    "seconds": "Wall-clock seconds per slice, all posterior samples together, without compilation.",
    "pictures": (
        "Drawn as stored, first row on top. MRI: the magnitudes of a slice share one grey window, from 0 to the 98.5th "
        "percentile of the reference magnitude. Real images: in their own colours, -1 black and 1 white, what exceeds "
        "that is cut off. Images are interpolated where enlarged; masks, errors and std maps show every pixel. "
        "Errors of all methods share one scale per slice; what exceeds it has the scale's last colour."
    ),
    "std map": "Per pixel, standard deviation over posterior samples of the magnitude (MRI) or channels (real images).",
    "head": f"Pixels whose reference magnitude exceeds {HEAD_THRESHOLD:.0%} of the slice's largest.",
    "std_error_correlation": "Pearson correlation over the head of the std map with the absolute error of the mean.",
    "spread_to_error": (
        "Root mean square of the std map over the head, divided by that of the mean's error; a calibrated posterior of "
        "K samples gives about sqrt(K / (K + 1)); lower means overconfident."
    ),
    **{
        f"coverage_{round(100 * level)}": (
            f"Share of the head's pixels whose reference lies in the central {level:.0%} interval of Student's t "
            f"about the samples' mean; {level} is calibrated, less is overconfident."
        )
        for level in COVERAGES
    },
    "crps": (
        "Continuous ranked probability score of the samples, E|X - reference| - E|X - X'| / 2, mean over the head; "
        "in units of the image, lower is better."
    ),
}


def summarize_samples(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns mean and standard-deviation map of posterior samples.

    Args:
      samples: (K,B,H,W) complex64 or (K,B,H,W,channels) float32.

    Returns:
      mean: (B,...) of the samples' type, over K.
      std: (B,H,W) float32 with K - 1 in the denominator, of magnitudes (complex) or the root mean square over channels
        (real); None if K is 1.
    """
    samples = np.asarray(samples)
    mean = samples.mean(axis=0)
    if samples.shape[0] < 2:
        return mean, None
    std = (np.abs(samples) if np.iscomplexobj(samples) else samples).std(axis=0, ddof=1)
    return mean, (std if np.iscomplexobj(samples) else np.sqrt(np.mean(std**2, axis=-1))).astype(np.float32)


def solver_names(arrays: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Returns the solvers of a round in the order in which they were stored."""
    return tuple(key.removesuffix("/mean") for key in arrays if key.endswith("/mean"))


def merge_rounds(rounds: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Joins rounds to one without padding (example_id -1), ordered by example_id. UserError on a repeated id."""
    if not rounds:
        raise UserError("no evaluation round to read: the evaluation folder is empty; run --mode eval first")
    if any(set(arrays) != set(rounds[0]) for arrays in rounds):
        raise UserError("evaluation rounds hold different solvers: delete the folder's rounds/ and evaluate again")
    merged = {key: np.concatenate([np.asarray(arrays[key]) for arrays in rounds]) for key in rounds[0]}
    ids = merged["example_id"]
    order = np.argsort(ids, kind="stable")
    order = order[ids[order] != PADDING_ID]
    if len(np.unique(ids[order])) != len(order):
        raise UserError("evaluation rounds hold an example twice: delete the folder's rounds/ and evaluate again")
    return {key: value[order] for key, value in merged.items()}


def merge_by_shape(rounds: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """The rounds of every shape of images, each group joined by `merge_rounds`; one where all are alike."""
    groups: dict[tuple[int, ...], list[Mapping[str, np.ndarray]]] = {}
    for arrays in rounds:
        shape = arrays[f"{solver_names(arrays)[0]}/mean"].shape[1:] if solver_names(arrays) else ()
        groups.setdefault(shape, []).append(arrays)
    return [merge_rounds(group) for group in groups.values()] or [merge_rounds(rounds)]


def _real_slices(arrays: Mapping[str, np.ndarray]) -> list[int]:
    """Places of a round that are no padding."""
    return [int(index) for index in np.flatnonzero(arrays["example_id"] != PADDING_ID)]


def _known(arrays: Mapping[str, np.ndarray], name: str, index: int | list[int]) -> np.ndarray:
    """Images of a round with 0 where its 'unknown' says that the reference does not know them."""
    images = arrays[name][index]
    return np.where(arrays["unknown"][index], 0, images) if "unknown" in arrays else images


def measure_round(
    arrays: Mapping[str, np.ndarray],
    data_range: float | np.ndarray | None = None,
    measures: Sequence[Metric] = STANDARD,
) -> list[dict[str, Any]]:
    """Returns the rows of a round, slice by slice and solver by solver, without padding.

    Args:
      arrays: a round (see the module's docstring).
      data_range: None: `natural_range` of each slice; else a peak value for all slices or one for each, (N,).
      measures: what to measure, in this order.

    Raises:
      UserError: a reconstruction has another shape than its reference, or images are too small for SSIM.
    """
    rows = []
    ranges = None if data_range is None else np.broadcast_to(data_range, arrays["example_id"].shape)
    for index in _real_slices(arrays):
        reference = _known(arrays, "reference", index) if "reference" in arrays else None
        reference = None if reference is None or not has_content(reference) else reference
        where: dict[str, Any] = {"example_id": int(arrays["example_id"][index])}
        if "volume" in arrays and arrays["volume"][index]:
            where["volume"] = str(arrays["volume"][index])
        if "slice" in arrays and arrays["slice"][index] >= 0:
            where["slice"] = int(arrays["slice"][index])
        for solver in solver_names(arrays):
            mean = _known(arrays, f"{solver}/mean", index)
            row = {**where, "solver": solver}
            if reference is not None:
                peak = natural_range(reference) if ranges is None else float(ranges[index])
                row |= {measure.name: measure.measure(reference, mean, peak) for measure in measures}
            if f"{solver}/seconds" in arrays:
                row["seconds"] = float(arrays[f"{solver}/seconds"][index])
            if reference is not None and f"{solver}/std" in arrays:
                row |= posterior_figures(
                    reference, mean, *(arrays[f"{solver}/{name}"][index] for name in ("std", "level", "crps"))
                )
            rows.append(row)
    return rows


def levels_in_head(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the interval levels of all the heads' pixels of a round, by solver; {} where none draws samples."""
    drawn = [solver for solver in solver_names(arrays) if f"{solver}/level" in arrays]
    if not drawn:
        return {}
    slices = _real_slices(arrays)
    heads = {index: head_of(arrays["reference"][index]) for index in slices}
    return {name: np.concatenate([arrays[f"{name}/level"][i][heads[i]].ravel() for i in slices]) for name in drawn}


def measure_volumes(arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Returns one row for each volume and solver: 'volume', 'slices', 'solver' and METRICS; see 'per volume' above.

    Without references there is none.

    Args:
      arrays: a round that holds all slices, see `merge_rounds`; slices whose 'volume' is empty belong to none.
    """
    slices: dict[str, list[int]] = {}
    for index in _real_slices(arrays) if {"volume", "reference"} <= set(arrays) else ():
        if arrays["volume"][index]:
            slices.setdefault(str(arrays["volume"][index]), []).append(index)
    rows = []
    for volume, indices in slices.items():
        reference = _known(arrays, "reference", indices)
        if not has_content(reference):
            continue
        peak = natural_range(reference)
        for solver in solver_names(arrays):
            mean = _known(arrays, f"{solver}/mean", indices)
            row: dict[str, Any] = {"volume": volume, "slices": len(indices), "solver": solver}
            ssims = [ssim(one, other, peak) for one, other in zip(reference, mean, strict=True)]
            row |= {"psnr": psnr(reference, mean, peak), "ssim": float(np.mean(ssims)), "nmse": nmse(reference, mean)}
            rows.append(row)
    return rows


def _statistics(values: Sequence[float], resamplings: int, seed: int) -> dict[str, float | int | list[float]]:
    """Mean, standard error (nan for one value), 95 % bootstrap interval and count; not finite if any value is not."""
    sample = np.asarray(values, np.float64)
    count = len(sample)
    if not np.isfinite(sample).all():
        mean = float(sample[0]) if (sample == sample[0]).all() else math.nan
        return {"mean": mean, "standard_error": math.nan, "ci95": [math.nan, math.nan], "n": count}
    error = float(sample.std(ddof=1) / math.sqrt(count)) if count > 1 else math.nan
    draws = np.random.default_rng(seed).integers(0, count, size=(resamplings, count))
    low, high = np.percentile(sample[draws].mean(axis=1), [2.5, 97.5])
    return {"mean": float(sample.mean()), "standard_error": error, "ci95": [float(low), float(high)], "n": count}


def _column(rows: Sequence[Mapping[str, Any]], solver: str, metric: str, unit: str = "example_id") -> dict[Any, float]:
    """One metric of one solver by example id or volume, padding left out."""
    mine = (row for row in rows if row["solver"] == solver and row[unit] != PADDING_ID)
    return {row[unit]: row[metric] for row in mine if metric in row}


def aggregate(
    rows: Sequence[Mapping[str, Any]], resamplings: int = 2000, seed: int = 0, unit: str = "example_id"
) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns {solver: {metric: {mean, standard_error, ci95: [low, high], n}}} over slices, or over `unit` 'volume'.

    Every number of a row but NOT_METRICS is a metric; see DEFINITIONS. Padding rows are not counted. The same rows and
    seed give the same result, whatever the rows' order.
    """
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for solver in dict.fromkeys(row["solver"] for row in rows):
        metrics = dict.fromkeys(key for row in rows if row["solver"] == solver for key in row)
        columns = {metric: _column(rows, solver, metric, unit) for metric in metrics if metric not in NOT_METRICS}
        table[solver] = {
            metric: _statistics([column[key] for key in sorted(column)], resamplings, seed)
            for metric, column in columns.items()
            if column
        }
    return table


def paired_difference(
    rows: Sequence[Mapping[str, Any]], solver: str, baseline: str, metric: str = "psnr", seed: int = 0
) -> dict[str, Any]:
    """Returns statistics of `solver` minus `baseline` on the same slices, e.g. the mean gain in dB.

    As in `aggregate`, and 'positive': on how many of the n slices the difference is above zero.

    Raises:
      UserError: a solver has no rows, or the two were not run on the same slices.
    """
    ours, theirs = (_column(rows, name, metric) for name in (solver, baseline))
    if not ours or set(ours) != set(theirs):
        raise UserError(
            f"cannot compare {metric} of {solver!r} with {baseline!r}: they were not evaluated on the same slices"
        )
    with np.errstate(invalid="ignore"):  # inf - inf of two perfect results is nan, and says so in the table
        gains = [float(np.subtract(ours[key], theirs[key])) for key in sorted(ours)]
    return {**_statistics(gains, 2000, seed), "positive": sum(gain > 0 for gain in gains)}


def summarize(
    rows: Sequence[Mapping[str, Any]],
    primary: str,
    run: Mapping[str, Any],
    nfe: Mapping[str, int],
    num_samples: Mapping[str, int] | None = None,
    definitions: Mapping[str, str] | None = None,
    volumes: Sequence[Mapping[str, Any]] = (),
    absent: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Returns the content of summary.json.

    Args:
      rows: of `measure_round`.
      primary: the solver whose gains over all others are stated and whose slices the report picks.
      run: what was run, label -> value, shown in this order by the report (command, config, step, split, slices,
        accelerations, noise, ...). Further keys of the run go here.
      nfe: network calls per sample by solver.
      num_samples: posterior samples per slice by solver; 1 where absent.
      definitions: what adds to or replaces DEFINITIONS: of further metrics, or 'data range' where `measure_round` was
        given one.
      volumes: of `measure_volumes`.
      absent: what a reader would look for in vain -> a sentence that says why.

    Returns:
      {'run', 'primary', 'solvers': aggregate(rows) with 'nfe' and 'num_samples' added, 'volumes': {'slices': {volume:
      their number}, 'solvers': aggregate(volumes)} or empty, 'gains': {baseline: {metric: statistics}}, 'absent',
      'definitions'}.

    Raises:
      UserError: `primary` has no rows, or the solvers were not run on the same slices.
    """
    table: dict[str, dict[str, Any]] = aggregate(rows)
    if primary not in table:
        raise UserError(f"no result of solver {primary!r} to report (there are: {', '.join(table) or 'none'})")
    for solver, entry in table.items():
        entry["nfe"], entry["num_samples"] = nfe.get(solver, 0), (num_samples or {}).get(solver, 1)
    others = [solver for solver in table if solver != primary]
    measured = [metric for metric in METRICS if metric in table[primary]]
    gains = {o: {metric: paired_difference(rows, primary, o, metric) for metric in measured} for o in others}
    missing = {} if volumes else {"per volume": NO_VOLUMES} if measured else {"image quality": NO_REFERENCES}
    per_volume = {
        "slices": {row["volume"]: row["slices"] for row in volumes},
        "solvers": aggregate(volumes, unit="volume"),
    }
    without = [row for row in rows if measured and row["solver"] == primary and measured[0] not in row]
    if without:
        names = ", ".join(str(row["example_id"]) for row in without)
        missing |= {"slices without content": f"References of {len(without)} slices hold nothing to compare: {names}."}
    return {
        "run": dict(run),
        "primary": primary,
        "solvers": table,
        "volumes": per_volume if volumes else {},
        "gains": gains if measured else {},
        "absent": dict(absent or {}) | missing,
        "definitions": DEFINITIONS | dict(definitions or {}),
    }


def choose_slices(rows: Sequence[Mapping[str, Any]], solver: str, fixed: int | None = None) -> dict[str, int]:
    """Returns the example ids that a report shows, by why: 'worst', 'median' and 'best' PSNR of `solver`, and 'fixed'.

    `fixed` defaults to the middle one of all ids, whatever its quality. A slice keeps its first reason only. Without
    references, 'first' and 'last' take the place of the others.
    """
    column, every = _column(rows, solver, "psnr"), _column(rows, solver, "example_id")
    if not every:
        raise UserError(f"no result of solver {solver!r} to show")
    ids = sorted(every)
    ranked = sorted(column, key=lambda key: (-math.inf if math.isnan(column[key]) else column[key], key))
    reasons = {"first": ids[0], "last": ids[-1]}
    if ranked:
        reasons = {"worst": ranked[0], "median": ranked[len(ranked) // 2], "best": ranked[-1]}
    reasons["fixed"] = ids[len(ids) // 2] if fixed is None or fixed not in every else fixed
    chosen: dict[str, int] = {}
    for reason, key in reasons.items():
        if key not in chosen.values():
            chosen[reason] = key
    return chosen


_TEXT_COLUMNS = {"psnr": ("PSNR (dB)", 2), "ssim": ("SSIM", 3), "nmse": ("NMSE", 4), "lpips": ("LPIPS", 3)}


def _text_cells(entry: Mapping[str, Any], shown: Sequence[str]) -> str:
    """mean +- standard error of one solver, without the latter where there is but one value."""
    cells = []
    for metric in shown:
        digits, value = _TEXT_COLUMNS[metric][1], entry[metric]
        error = f" +- {value['standard_error']:.{digits}f}" if math.isfinite(value["standard_error"]) else ""
        mean = "not finite" if math.isnan(value["mean"]) else f"{value['mean']:.{digits}f}"
        cells.append(f"{mean}{error}".rjust(18))
    return "".join(cells)


def format_table(summary: Mapping[str, Any]) -> str:
    """Returns the summary as plain text: solver x metric, mean +- standard error over slices, then over volumes."""
    entries, volumes = summary["solvers"], summary["volumes"]
    shown = [metric for metric in _TEXT_COLUMNS if all(metric in entry for entry in entries.values())]
    heads = "".join(_TEXT_COLUMNS[metric][0].rjust(18) for metric in shown)
    lines = [f"{'per slice':<14}{heads}{'calls':>7}{'s/slice':>9}"]
    for solver, entry in entries.items():
        calls = entry["nfe"] * entry["num_samples"]
        seconds = f"{entry['seconds']['mean']:.3f}" if "seconds" in entry else "-"
        lines.append(f"{solver:<14}{_text_cells(entry, shown)}{calls:>7}{seconds:>9}")
    if volumes:
        heads = "".join(_TEXT_COLUMNS[metric][0].rjust(18) for metric in METRICS)
        lines.append(f"{'per volume':<14}{heads}")
        lines += [f"{solver:<14}{_text_cells(entry, METRICS)}" for solver, entry in volumes["solvers"].items()]
    return "\n".join(lines)
