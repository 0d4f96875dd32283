"""Image quality of reconstructions: metrics per slice, their aggregation with confidence intervals, and the summary.

Pure numpy and scikit-image; no JAX, no files. What travels between the functions:

  round    plain dict of arrays, the content of one rounds/*.npz: 'example_id' (N,), 'reference' (N,...), 'mask'
           (N,...), and for every solver '<solver>/mean' (N,...), '<solver>/seconds' (N,), and where it draws samples
           '<solver>/std' (N,H,W) float32 and '<solver>/sample' (N,...), one posterior sample
  row      dict of one slice and one solver: 'example_id', 'solver', the METRICS, 'seconds', and the POSTERIOR figures
           where the solver has a std map
  summary  dict that becomes summary.json, see `summarize`

  summarize_samples(samples) -> mean, std            after a solver has run
  merge_rounds(rounds) -> round                      padding dropped, ordered by example_id
  measure_round(round, data_range=None) -> rows      every solver of the round
  summarize(rows, primary, run, nfe) -> summary
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from skimage.metrics import structural_similarity

from infra.errors import UserError

METRICS = ("psnr", "ssim", "nmse")
POSTERIOR = ("std_error_correlation", "spread_to_error")
HEAD_THRESHOLD = 0.05  # of the largest reference magnitude: separates the head from the air around it
PADDING_ID = -1
_SSIM_WINDOW = 11  # pixels, of a Gaussian of sigma 1.5 cut off at 3.5 sigma

DEFINITIONS = {
    "images compared": (
        "MRI: magnitudes of the complex images. Real images: all channels in [-1, 1]. Of posterior samples, the mean "
        "is compared, taken of complex values before the magnitude. No result is rescaled, masked or cropped."
    ),
    "psnr": "Peak signal-to-noise ratio per slice in dB, 10 log10(data range^2 / mean square error); higher is better.",
    "ssim": (
        "Structural similarity per slice, scikit-image's structural_similarity(gaussian_weights=True, sigma=1.5, "
        "use_sample_covariance=False); 1 is perfect."
    ),
    "nmse": "Normalised mean squared error per slice, |reference - result|^2 / |reference|^2; lower is better.",
    "data range": "MRI: the largest reference magnitude of the slice. Real images: 2.",
    "mean, standard error": "Over slices; the standard error is the sample standard deviation divided by sqrt(slices).",
    "ci95": (
        "95 % percentile bootstrap interval of the mean, 2000 resamplings of the slices, fixed seed. Slices of one "
        "person are not independent: the interval speaks of these slices, not of other people."
    ),
    "gain": "Mean over slices of the difference of the two solvers on the same slice, with its standard error.",
    "nfe": "Network function evaluations per posterior sample.",
    "seconds": "Wall-clock seconds per slice, all posterior samples together, without compilation.",
    "pictures": (
        "Drawn as stored, first row on top. Images of a slice share one grey window, from 0 to the 98.5th percentile "
        "of the reference magnitude, and are interpolated where enlarged; masks, errors and std maps show every pixel. "
        "Errors of all methods share one scale per slice; what exceeds it has the scale's last colour."
    ),
    "std map": "Per pixel, standard deviation over posterior samples of the magnitude (MRI) or channels (real images).",
    "head": f"Pixels whose reference magnitude exceeds {HEAD_THRESHOLD:.0%} of the slice's largest.",
    "std_error_correlation": "Pearson correlation over the head of the std map with the absolute error of the mean.",
    "spread_to_error": (
        "Root mean square of the std map over the head, divided by that of the mean's error; a calibrated posterior of "
        "K samples gives about sqrt(K / (K + 1)); lower means overconfident."
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


def comparable(image: np.ndarray) -> np.ndarray:
    """Returns what metrics compare, float64: the magnitude of a complex image, a real image as it is."""
    image = np.asarray(image)
    return (np.abs(image) if np.iscomplexobj(image) else image).astype(np.float64)


def natural_range(reference: np.ndarray) -> float:
    """Data range of one slice: the largest magnitude of a complex reference, 2 for real images in [-1, 1]."""
    return float(np.abs(reference).max()) if np.iscomplexobj(reference) else 2.0


def _check_pair(reference: np.ndarray, result: np.ndarray) -> None:
    if reference.shape != result.shape:
        raise UserError(
            f"reference {reference.shape} and reconstruction {result.shape} differ in shape: same store and config?"
        )


def psnr(reference: np.ndarray, result: np.ndarray, data_range: float) -> float:
    """Peak signal-to-noise ratio of one slice in dB; inf if equal, nan if `result` is not finite.

    Args:
      reference, result: (H,W) complex or (H,W,channels) real, equal shapes.
      data_range: peak value, in units of the images.
    """
    _check_pair(reference, result)
    error = float(np.mean((comparable(reference) - comparable(result)) ** 2))
    return math.inf if error == 0 else float(10 * np.log10(data_range**2 / error))


def ssim(reference: np.ndarray, result: np.ndarray, data_range: float) -> float:
    """Structural similarity of one slice (arguments of `psnr`), see DEFINITIONS. UserError below 11 x 11 pixels."""
    _check_pair(reference, result)
    if min(reference.shape[:2]) < _SSIM_WINDOW:
        raise UserError(
            f"SSIM needs images of at least {_SSIM_WINDOW} x {_SSIM_WINDOW} pixels, not {reference.shape[:2]}"
        )
    options: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    options |= {"data_range": data_range, "channel_axis": -1 if reference.ndim == 3 else None}
    value: Any = structural_similarity(comparable(reference), comparable(result), **options)
    return float(value)


def nmse(reference: np.ndarray, result: np.ndarray) -> float:
    """Squared error of one slice over the reference's energy (arguments of `psnr`); nan for an all-zero reference."""
    _check_pair(reference, result)
    energy = float(np.sum(comparable(reference) ** 2))
    return float(np.sum((comparable(reference) - comparable(result)) ** 2)) / energy if energy else math.nan


def error_map(reference: np.ndarray, result: np.ndarray) -> np.ndarray:
    """Absolute error (H,W) float64: of magnitudes for complex images, root mean square over channels for real ones."""
    difference = np.abs(comparable(reference) - comparable(result))
    return np.sqrt(np.mean(difference**2, axis=-1)) if difference.ndim == 3 else difference


def posterior_figures(reference: np.ndarray, mean: np.ndarray, std: np.ndarray) -> dict[str, float]:
    """Does the std map say where the mean is wrong? The POSTERIOR figures of one slice, nan where undefined.

    Args:
      reference, mean: (H,W) complex or (H,W,channels) real.
      std: (H,W) float, see `summarize_samples`.
    """
    strength = np.abs(reference).max(axis=-1) if reference.ndim == 3 else np.abs(reference)
    head = strength > HEAD_THRESHOLD * strength.max()
    error, spread = error_map(reference, mean)[head], np.asarray(std, np.float64)[head]
    if (
        head.sum() < 2
        or not (np.isfinite(error).all() and np.isfinite(spread).all())
        or min(np.ptp(error), np.ptp(spread)) == 0
    ):
        return dict.fromkeys(POSTERIOR, math.nan)
    correlation = float(np.corrcoef(spread, error)[0, 1])
    return {
        "std_error_correlation": correlation,
        "spread_to_error": float(np.sqrt(np.mean(spread**2) / np.mean(error**2))),
    }


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


def measure_round(
    arrays: Mapping[str, np.ndarray], data_range: float | np.ndarray | None = None
) -> list[dict[str, Any]]:
    """Returns the rows of a round, slice by slice and solver by solver, without padding.

    Args:
      arrays: a round (see the module's docstring).
      data_range: None: `natural_range` of each slice; else a peak value for all slices or one for each, (N,).

    Raises:
      UserError: a reconstruction has another shape than its reference, or images are too small for SSIM.
    """
    rows = []
    ranges = None if data_range is None else np.broadcast_to(data_range, arrays["example_id"].shape)
    for index, example_id in enumerate(arrays["example_id"]):
        if example_id == PADDING_ID:
            continue
        reference = arrays["reference"][index]
        peak = natural_range(reference) if ranges is None else float(ranges[index])
        for solver in solver_names(arrays):
            mean = arrays[f"{solver}/mean"][index]
            row = {"example_id": int(example_id), "solver": solver, "psnr": psnr(reference, mean, peak)}
            row |= {"ssim": ssim(reference, mean, peak), "nmse": nmse(reference, mean)}
            if f"{solver}/seconds" in arrays:
                row["seconds"] = float(arrays[f"{solver}/seconds"][index])
            if f"{solver}/std" in arrays:
                row |= posterior_figures(reference, mean, arrays[f"{solver}/std"][index])
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


def _column(rows: Sequence[Mapping[str, Any]], solver: str, metric: str) -> dict[int, float]:
    """One metric of one solver by example id, padding left out."""
    mine = (row for row in rows if row["solver"] == solver and row["example_id"] != PADDING_ID)
    return {row["example_id"]: row[metric] for row in mine if metric in row}


def aggregate(
    rows: Sequence[Mapping[str, Any]], resamplings: int = 2000, seed: int = 0
) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns {solver: {metric: {mean, standard_error, ci95: [low, high], n}}} over slices.

    Every number of a row but its id is a metric; see DEFINITIONS. Padding rows are not counted. The same rows and seed
    give the same result, whatever the rows' order.
    """
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for solver in dict.fromkeys(row["solver"] for row in rows):
        metrics = dict.fromkeys(key for row in rows if row["solver"] == solver for key in row)
        columns = {
            metric: _column(rows, solver, metric) for metric in metrics if metric not in ("example_id", "solver")
        }
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
) -> dict[str, Any]:
    """Returns the content of summary.json.

    Args:
      rows: of `measure_round`.
      primary: the solver whose gains over all others are stated and whose slices the report picks.
      run: what was run, label -> value, shown in this order by the report (command, config, step, split, slices,
        accelerations, noise, ...). Further keys of the run go here.
      nfe: network calls per sample by solver.
      num_samples: posterior samples per slice by solver; 1 where absent.
      definitions: what replaces entries of DEFINITIONS, e.g. 'data range' where `measure_round` was given one.

    Returns:
      {'run', 'primary', 'solvers': aggregate(rows) with 'nfe' and 'num_samples' added, 'gains': {baseline: {metric:
      statistics}}, 'definitions'}.

    Raises:
      UserError: `primary` has no rows, or the solvers were not run on the same slices.
    """
    table: dict[str, dict[str, Any]] = aggregate(rows)
    if primary not in table:
        raise UserError(f"no result of solver {primary!r} to report (there are: {', '.join(table) or 'none'})")
    for solver, entry in table.items():
        entry["nfe"], entry["num_samples"] = nfe.get(solver, 0), (num_samples or {}).get(solver, 1)
    others = [solver for solver in table if solver != primary]
    gains = {other: {metric: paired_difference(rows, primary, other, metric) for metric in METRICS} for other in others}
    return {
        "run": dict(run),
        "primary": primary,
        "solvers": table,
        "gains": gains,
        "definitions": DEFINITIONS | dict(definitions or {}),
    }


def choose_slices(rows: Sequence[Mapping[str, Any]], solver: str, fixed: int | None = None) -> dict[str, int]:
    """Returns the example ids that a report shows, by why: 'worst', 'median' and 'best' PSNR of `solver`, and 'fixed'.

    `fixed` defaults to the middle one of all ids, whatever its quality. A slice keeps its first reason only.
    """
    column = _column(rows, solver, "psnr")
    if not column:
        raise UserError(f"no result of solver {solver!r} to show")
    ids = sorted(column)
    ranked = sorted(ids, key=lambda key: (-math.inf if math.isnan(column[key]) else column[key], key))
    reasons = {"worst": ranked[0], "median": ranked[len(ranked) // 2], "best": ranked[-1]}
    reasons["fixed"] = ids[len(ids) // 2] if fixed is None or fixed not in column else fixed
    chosen: dict[str, int] = {}
    for reason, key in reasons.items():
        if key not in chosen.values():
            chosen[reason] = key
    return chosen


def format_table(summary: Mapping[str, Any]) -> str:
    """Returns the summary's solver x metric table as plain text, mean +- standard error over slices."""
    lines = [f"{'solver':<14}{'PSNR (dB)':>16}{'SSIM':>18}{'NMSE':>18}{'calls':>7}{'s/slice':>9}"]
    for solver, entry in summary["solvers"].items():
        cells = [
            f"{entry[metric]['mean']:.{digits}f} +- {entry[metric]['standard_error']:.{digits}f}"
            for metric, digits in (("psnr", 2), ("ssim", 3), ("nmse", 4))
        ]
        calls = entry["nfe"] * entry["num_samples"]
        seconds = entry["seconds"]["mean"] if "seconds" in entry else math.nan
        lines.append(f"{solver:<14}{cells[0]:>16}{cells[1]:>18}{cells[2]:>18}{calls:>7}{seconds:>9.3f}")
    return "\n".join(lines)
