"""Distances between two sets of image features: Fréchet, its value without finite-sample bias, and a kernel distance.

Pure numpy in float64; features are (N,D), one row per image, and their order never matters. Heusel et al. 2017
(arXiv 1706.08500) for the Fréchet distance, Chong and Forsyth 2020 (arXiv 1911.07023) for its extrapolation, Binkowski
et al. 2018 (arXiv 1801.01401) for the kernel distance.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from msm.infra.errors import UserError

_SUBSETS = 15  # sizes in an extrapolation, equally spaced
_SPLITS = 20  # random choices of as many images of both sets
_BLOCK = 1024  # rows of a kernel matrix held at a time

DEFINITIONS = {
    "frechet": (
        "Fréchet distance of the Gaussians fitted to the features of the drawn and of the reference images, "
        "|m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)), covariances with N - 1; 0 is equal. Biased upwards, about as 1 / "
        "number of images: values of sets of other sizes are not comparable."
    ),
    "frechet_extrapolated": (
        "The Fréchet distance that endlessly many images would have: a line in 1 / (share of both sets) fitted to "
        f"{_SUBSETS} random subsets, read off at 0. Only where subsets of at least twice as many images as features "
        "exist on both sides."
    ),
    "kernel": (
        "Squared maximum mean discrepancy with the kernel (x.y / D + 1)^3, unbiased for any number of images, so it "
        "may be a little below 0; 0 is equal."
    ),
    "n drawn, n real": (
        "The same distances at one size n, half of the reference images or all drawn ones if those are fewer: of n "
        "random drawn images to n random reference images, and of n random reference images to n others. Mean and "
        f"standard deviation over {_SPLITS} random choices. Both have the same bias: images that are distributed as "
        "the reference images are have the mean of the real ones; a mean above it by several of their standard "
        "deviations tells of a difference. Real images have the kernel distance 0 on average, so of that only the "
        "standard deviation is given. Neighbouring slices of a person fall on both sides, which makes mean and "
        "standard deviation of the real images smaller than those of independent ones."
    ),
}


def as_features(values: Any, what: str) -> np.ndarray:
    """Returns (N,D) float64 in an order of its own, so that nothing below depends on the order given.

    Raises UserError unless there are at least two rows, all finite.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or len(values) < 2 or not values.shape[1]:
        raise UserError(
            f"features of the {what} have shape {values.shape}: at least two rows (images, features) needed"
        )
    if not np.isfinite(values).all():
        raise UserError(f"features of the {what} are not finite: look at the images, or at what computed the features")
    return values[np.lexsort(values.T[::-1])]


def mean_and_covariance(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean (D,) and the covariance (D,D), with N - 1 in the denominator."""
    return features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False))


def _root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric root of a positive semi-definite matrix; what rounding leaves of a null space is set to 0.

    Without that, an eigenvalue of 1e-16 becomes 1e-8 in the root, and rank-deficient covariances lose half the digits.
    """
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    floor = len(values) * np.finfo(np.float64).eps * max(float(values[-1]), 0.0)
    return (vectors * np.sqrt(np.where(values > floor, values, 0))) @ vectors.T


def gaussian_distance(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """Fréchet (squared 2-Wasserstein) distance of N(mean1, cov1) and N(mean2, cov2); covariances may be singular.

    |mean1 - mean2|^2 + Tr cov1 + Tr cov2 - 2 Tr (cov1^(1/2) cov2 cov1^(1/2))^(1/2), whose last trace is the sum of the
    singular values of cov1^(1/2) cov2^(1/2): no root of a matrix that is not symmetric, and no complex numbers.
    """
    mean1, mean2 = np.asarray(mean1, np.float64), np.asarray(mean2, np.float64)
    cov1, cov2 = np.atleast_2d(np.asarray(cov1, np.float64)), np.atleast_2d(np.asarray(cov2, np.float64))
    cross = np.linalg.svd(_root(cov1) @ _root(cov2), compute_uv=False).sum()
    return max(0.0, float(np.sum((mean1 - mean2) ** 2) + np.trace(cov1) + np.trace(cov2) - 2 * cross))


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Fréchet distance of the Gaussians fitted to two sets of features."""
    return gaussian_distance(*mean_and_covariance(one), *mean_and_covariance(other))


def kernel_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Unbiased estimate of MMD^2 with k(x,y) = (x.y / D + 1)^3; memory grows with N, not with N^2."""

    def total(a: np.ndarray, b: np.ndarray) -> float:
        blocks = (a[start : start + _BLOCK] @ b.T for start in range(0, len(a), _BLOCK))
        return sum(float(((block / a.shape[1] + 1) ** 3).sum()) for block in blocks)

    def within(a: np.ndarray) -> float:
        diagonal = float(((np.sum(a**2, axis=1) / a.shape[1] + 1) ** 3).sum())
        return (total(a, a) - diagonal) / (len(a) * (len(a) - 1))

    return within(one) + within(other) - 2 * total(one, other) / (len(one) * len(other))


def extrapolated_distance(one: np.ndarray, other: np.ndarray, seed: int = 0) -> float:
    """Fréchet distance extrapolated to endlessly many images; nan where the sets are too small for it.

    The bias of covariances of n and m samples is a/n + b/m to first order. Subsets of the share f of both have the bias
    (a/n + b/m)/f, so a straight line in 1/f through `_SUBSETS` shares ends, at 1/f = 0, in the unbiased value. Below
    about twice as many rows as features the bias is no longer of that form.
    """
    smallest = 2 * one.shape[1] / min(len(one), len(other))
    if smallest > 0.5:
        return math.nan
    rng = np.random.default_rng(seed)
    shares = np.linspace(max(smallest, 0.1), 1, _SUBSETS)
    distances = []
    for share in shares:
        chosen = [a[rng.choice(len(a), max(2, round(share * len(a))), replace=False)] for a in (one, other)]
        distances.append(frechet_distance(*chosen))
    slope_and_value = np.polynomial.polynomial.polyfit(1 / shares, distances, 1)
    return float(slope_and_value[0])


def _over_choices(choose: Callable[[], tuple[np.ndarray, np.ndarray]], size: int) -> dict[str, float]:
    """Both distances of `_SPLITS` pairs of sets of `size` rows: means and standard deviations; nan below two rows."""
    names = ("frechet", "kernel", "frechet_std", "kernel_std")
    if size < 2:
        return dict.fromkeys(names, math.nan)
    pairs = [choose() for _ in range(_SPLITS)]
    found = np.array([(frechet_distance(*pair), kernel_distance(*pair)) for pair in pairs])
    return dict(zip(names, map(float, [*found.mean(axis=0), *found.std(axis=0, ddof=1)]), strict=True))


def of_subsets(one: np.ndarray, other: np.ndarray, size: int, seed: int = 0) -> dict[str, float]:
    """Distances of `size` random rows of `one` to as many of `other`, over `_SPLITS` choices.

    Returns:
      {'frechet', 'kernel', 'frechet_std', 'kernel_std'}: means and standard deviations; nan if `size` is below two.
    """
    rng = np.random.default_rng(seed)

    def choose() -> tuple[np.ndarray, np.ndarray]:
        return one[rng.permutation(len(one))[:size]], other[rng.permutation(len(other))[:size]]

    return _over_choices(choose, size)


def of_halves(features: np.ndarray, size: int, seed: int = 0) -> dict[str, float]:
    """Distances of `size` random rows to as many other rows of one set, at most half of it, over `_SPLITS` choices.

    Returns:
      {'frechet', 'frechet_std', 'kernel_std'}. Without a mean of the kernel distance: over all choices it is 0.
    """
    rng = np.random.default_rng(seed)

    def choose() -> tuple[np.ndarray, np.ndarray]:
        order = rng.permutation(len(features))
        return features[order[:size]], features[order[size : 2 * size]]

    return {name: value for name, value in _over_choices(choose, size).items() if name != "kernel"}


def compare(drawn: Any, reference: Any, others: Any = None) -> dict[str, Any]:
    """Returns every distance between the features (N,D) of drawn and (M,D) of reference images.

    Args:
      others: (L,D), of further real images, whose distance to the reference images is told for comparison.

    Returns:
      {'frechet', 'frechet_extrapolated', 'kernel', 'drawn': N, 'references': M, 'features': D, 'equal_sizes',
      'warnings': sentences}; see DEFINITIONS. 'equal_sizes' holds the 'images' n = min(N, M // 2), what n drawn ones
      have ('drawn', see `of_subsets`) and what n real ones have ('real', see `of_halves`); with `others` also
      'between_splits', as 'drawn', with its own 'images', min(n, L). What cannot be estimated is nan.

    Raises:
      UserError: features are not finite, fewer than two, or of two widths.
    """
    drawn, reference = as_features(drawn, "drawn images"), as_features(reference, "reference images")
    if drawn.shape[1] != reference.shape[1]:
        raise UserError(
            f"drawn images have {drawn.shape[1]} features, reference images {reference.shape[1]}: use one extractor"
        )
    count, dimension = min(len(drawn), len(reference)), drawn.shape[1]
    warnings = []
    if count <= dimension:
        warnings.append(
            f"{len(drawn)} drawn and {len(reference)} reference images for {dimension} features: a covariance is "
            "singular and the Fréchet distance mostly bias; compare it at equal sizes only, and trust the kernel "
            "distance more."
        )
    extrapolated = extrapolated_distance(drawn, reference)
    if math.isnan(extrapolated):
        warnings.append(f"No extrapolation: it needs {4 * dimension} images of each kind.")
    size = min(len(drawn), len(reference) // 2)
    equal = {"images": size, "drawn": of_subsets(drawn, reference, size), "real": of_halves(reference, size)}
    if others is not None:
        others = as_features(others, "other reference images")
        fitting = min(size, len(others))
        equal["between_splits"] = {"images": fitting} | of_subsets(others, reference, fitting)
    return {
        "frechet": frechet_distance(drawn, reference),
        "frechet_extrapolated": extrapolated,
        "kernel": kernel_distance(drawn, reference),
        "drawn": len(drawn),
        "references": len(reference),
        "features": dimension,
        "equal_sizes": equal,
        "warnings": warnings,
    }
