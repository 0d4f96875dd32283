"""Is the spread of posterior samples as large as their error? Intervals, coverage and proper scores, in numpy.

If truth and K samples are draws of one Gaussian, (truth - mean) / (std sqrt(1 + 1/K)) follows Student's t with K - 1
degrees of freedom, which makes intervals exact for few samples too (Gelman et al., Bayesian Data Analysis, 3.2).

  interval_levels     per entry, the smallest central interval that holds the truth
  coverage            how often the intervals of COVERAGES hold it
  ensemble_crps       continuous ranked probability score of the samples themselves
  gaussian_crps       the same of a Gaussian
  calibration_maps    both of images, per pixel
  posterior_figures   the figures of one slice, over its head
"""

import math
from collections.abc import Sequence

import numpy as np

from msm.evaluation.metrics import comparable, error_map

COVERAGES = (0.5, 0.8, 0.9, 0.95)
COVERAGE_NAMES = tuple(f"coverage_{round(100 * level)}" for level in COVERAGES)
POSTERIOR = ("std_error_correlation", "spread_to_error", *COVERAGE_NAMES, "crps")
HEAD_THRESHOLD = 0.05  # of the largest reference magnitude: separates the head from the air around it


def interval_levels(samples: np.ndarray, truth: np.ndarray, noise_std: float | np.ndarray = 0.0) -> np.ndarray:
    """Returns per entry the level of the smallest central interval that holds the truth, in [0, 1].

    Of a calibrated posterior they are uniform: an interval of level L holds the truth where the result is at most L.

    Args:
      samples: (K,...) real, K > 1.
      truth: (...) real.
      noise_std: of noise that the truth has and the samples lack, broadcastable; its variance is added.
    """
    count = samples.shape[0]
    samples = np.asarray(samples, np.float64)
    spread = np.sqrt(samples.var(axis=0, ddof=1) * (1 + 1 / count) + np.square(noise_std))
    error = np.abs(np.asarray(truth, np.float64) - samples.mean(axis=0))
    score = np.divide(error, spread, out=np.where(error > 0, np.inf, 0.0), where=spread > 0)
    from scipy import stats  # takes half a second to load, which most starts need not wait for

    return 1 - 2 * stats.t.sf(score, count - 1)


def coverage(levels: np.ndarray, nominal: Sequence[float] = COVERAGES) -> list[float]:
    """Returns for each nominal level the share of `levels`, see `interval_levels`, that are at most so large."""
    return [float(np.mean(levels <= level)) for level in nominal]


def ensemble_crps(samples: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Returns (...) E|X - truth| - E|X - X'| / 2 of samples (K,...), without bias in K > 1; lower is better.

    In units of the entries; for one sample it would be the absolute error. Ferro 2014, doi 10.1002/qj.2270.
    """
    count = samples.shape[0]
    ordered = np.sort(np.asarray(samples, np.float64), axis=0)
    weights = (2 * np.arange(count) - count + 1).reshape(-1, *[1] * (ordered.ndim - 1))
    pairs = np.sum(weights * ordered, axis=0) / (count * (count - 1))  # sum of |x_i - x_j| over pairs i < j
    return np.mean(np.abs(ordered - truth), axis=0) - pairs


def gaussian_crps(mean: np.ndarray, std: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Returns the continuous ranked probability score of N(mean, std^2), std > 0; Gneiting et al. 2005, equation 5."""
    score = (truth - mean) / std
    from scipy import stats

    return std * (score * (2 * stats.norm.cdf(score) - 1) + 2 * stats.norm.pdf(score) - 1 / np.sqrt(np.pi))


def calibration_maps(samples: np.ndarray, reference: np.ndarray) -> dict[str, np.ndarray]:
    """Returns 'level' and 'crps', float32 per pixel, of magnitudes (complex) or channels (real).

    Args:
      samples: (K,B,H,W) complex or (K,B,H,W,channels) real, K > 1.
      reference: (B,H,W) or (B,H,W,channels).
    """
    drawn, truth = comparable(samples), comparable(reference)
    maps = {"level": interval_levels(drawn, truth), "crps": ensemble_crps(drawn, truth)}
    return {name: array.astype(np.float32) for name, array in maps.items()}


def head_of(reference: np.ndarray) -> np.ndarray:
    """Returns bool (H,W): where the largest channel of the reference exceeds HEAD_THRESHOLD of the slice's."""
    strength = np.abs(reference).max(axis=-1) if reference.ndim == 3 else np.abs(reference)
    return strength > HEAD_THRESHOLD * strength.max()


def posterior_figures(
    reference: np.ndarray, mean: np.ndarray, std: np.ndarray, level: np.ndarray, crps: np.ndarray
) -> dict[str, float]:
    """Does the spread of the samples say where the mean is wrong, and by how much? The POSTERIOR figures of one slice.

    All are nan where they are not defined: without a head, or where error or spread is constant or not finite.

    Args:
      reference, mean: (H,W) complex or (H,W,channels) real.
      std: (H,W) float, see `evaluation.summarize_samples`.
      level, crps: of `calibration_maps`.
    """
    head = head_of(reference)
    error, spread = error_map(reference, mean)[head], np.asarray(std, np.float64)[head]
    if (
        head.sum() < 2
        or not (np.isfinite(error).all() and np.isfinite(spread).all())
        or min(np.ptp(error), np.ptp(spread)) == 0
    ):
        return dict.fromkeys(POSTERIOR, math.nan)
    return {
        "std_error_correlation": float(np.corrcoef(spread, error)[0, 1]),
        "spread_to_error": float(np.sqrt(np.mean(spread**2) / np.mean(error**2))),
        **dict(zip(COVERAGE_NAMES, coverage(level[head]), strict=True)),
        "crps": float(np.mean(crps[head], dtype=np.float64)),
    }
