"""Distances between two sets of image features: Fréchet, its value without finite-sample bias, and a kernel distance.

Pure numpy in float64; features are (N,D), one row per image, and their order never matters. Heusel et al. 2017
(arXiv 1706.08500) for the Fréchet distance, Chong and Forsyth 2020 (arXiv 1911.07023) for its extrapolation, Binkowski
et al. 2018 (arXiv 1801.01401) for the kernel distance.
"""

import math
from typing import Any

import numpy as np

from infra.errors import UserError

_SUBSETS = 15  # sizes in an extrapolation, equally spaced
_SPLITS = 20  # random halves of the reference set
_BLOCK = 1024  # rows of a kernel matrix held at a time

DEFINITIONS = {
    "frechet": (
        "Fréchet distance of the Gaussians fitted to the features of the drawn and of the reference images, "
        "|m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)), covariances with N - 1; 0 is equal. Biased upwards, the more the "
        "fewer images there are."
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
    "floor": (
        f"The same distances between two random halves of the reference set, mean of {_SPLITS} splits: what no sample "
        "of that size can be expected to beat. Neighbouring slices of a person fall into both halves, which makes it "
        "small."
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


def split_half(features: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Returns {'frechet', 'kernel'} between two random halves, mean of `_SPLITS` splits; nan below four rows."""
    half = len(features) // 2
    if half < 2:
        return {"frechet": math.nan, "kernel": math.nan}
    rng, found = np.random.default_rng(seed), []
    for _ in range(_SPLITS):
        order = rng.permutation(len(features))
        pair = features[order[:half]], features[order[half : 2 * half]]
        found.append((frechet_distance(*pair), kernel_distance(*pair)))
    frechet, kernel = np.mean(found, axis=0)
    return {"frechet": float(frechet), "kernel": float(kernel)}


def compare(drawn: Any, reference: Any) -> dict[str, Any]:
    """Returns every distance between the features (N,D) of drawn and (M,D) of reference images.

    Returns:
      {'frechet', 'frechet_extrapolated', 'kernel', 'floor': {'frechet', 'kernel'}, 'drawn': N, 'references': M,
      'features': D, 'warnings': sentences}; see DEFINITIONS. What cannot be estimated is nan.

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
            "singular and the Fréchet distance mostly bias; compare it with its floor only, and trust the kernel "
            "distance more."
        )
    extrapolated = extrapolated_distance(drawn, reference)
    if math.isnan(extrapolated):
        warnings.append(f"No extrapolation: it needs {4 * dimension} images of each kind.")
    return {
        "frechet": frechet_distance(drawn, reference),
        "frechet_extrapolated": extrapolated,
        "kernel": kernel_distance(drawn, reference),
        "floor": split_half(reference),
        "drawn": len(drawn),
        "references": len(reference),
        "features": dimension,
        "warnings": warnings,
    }
