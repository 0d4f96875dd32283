"""Noise levels estimated from measurements alone: medians over what has little signal and all of the noise.

Median magnitudes ignore the few large values that edges leave. What signal remains adds to the noise, so both estimates
are upper bounds in expectation: exact for noise alone, too large by an amount that depends on the image.
"""

from collections.abc import Iterable

import numpy as np

from msm.infra.errors import UserError

_NORMAL_MEDIAN = 0.6744897501960817  # median of |n|, n ~ N(0, 1)
_RAYLEIGH_MEDIAN = np.sqrt(2 * np.log(2))  # median of |n|, n complex with variance 1 per real scalar
_OUTER = 0.1  # share of the acquired entries, the farthest out, and of the image's rows that noise is estimated from
LEAST_DETAILS = 100  # fewer say little: the standard error would be above 12 %


def outer_noise(kspace: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(C,) float64: noise per real scalar of each coil of a scan without a noise scan; an upper bound.

    Where there is nothing but noise, it is the median magnitude over that of the Rayleigh distribution, sqrt(2 ln 2),
    with a standard error of 0.72 / sqrt(entries). Two places have little signal, and the smaller result is taken: the
    tenth of the acquired entries farthest from the centre; and, for masks of lines, the tenth of the image's rows at
    its upper and lower edge, often air, seen by the farther half of the lines (the inverse transform along the readout
    needs no other lines).

    Args:
      kspace: (S,C,H,W) complex64, centred, 0 where not acquired.
      mask: (1,1,1,W) or (S,1,1,W) bool for lines, (1,1,H,W) or (S,1,H,W) for entries.
    """
    height, width = kspace.shape[2:]
    row, column = np.meshgrid(*(np.abs(np.arange(n) - n // 2) / n for n in (height, width)), indexing="ij")
    distance = np.hypot(row, column)
    masks = np.broadcast_to(mask[:, 0], (len(kspace), height, width))

    def median(values, choose) -> np.ndarray:
        """(C,) of the magnitudes at the places that `choose` finds in the mask of each slice."""
        chosen = [v[:, choose(m)] for v, m in zip(values, masks, strict=True) if m.any()]
        return np.median(np.abs(np.concatenate(chosen, axis=1)), axis=1) if chosen else np.zeros(kspace.shape[1])

    found = [median(kspace, lambda m: m & (distance >= np.quantile(distance[m], 1 - _OUTER)))]
    if mask.shape[-2] == 1:
        rows = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(kspace, -2), axis=-2, norm="ortho"), -2)
        edge = row >= 0.5 - _OUTER / 2
        found.append(median(rows, lambda m: edge & m & (column >= np.median(column[m]))))
    return np.min(found, axis=0).astype(np.float64) / _RAYLEIGH_MEDIAN


def diagonal_details(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(n,) float: finest diagonal Haar coefficients (a - b - c + d) / 2 of the 2x2 blocks that were acquired whole.

    White noise keeps its standard deviation in them and a plane of any slope vanishes. Blocks do not overlap, and one
    whose four values are the same in every channel is left out: saturated, or padding.

    Args:
      image: (H,W,K) float; what it holds outside the mask is not read.
      mask: (H,W) bool.
    """
    height, width = (n // 2 * 2 for n in mask.shape)
    corners = [(row, column) for row in (0, 1) for column in (0, 1)]
    a, b, c, d = (image[row:height:2, column:width:2] for row, column in corners)
    whole = np.logical_and.reduce([mask[row:height:2, column:width:2] for row, column in corners])
    whole &= ~np.all((a == b) & (a == c) & (a == d), axis=-1)
    return ((a - b - c + d) / 2)[whole].ravel()


def pixel_noise(pictures: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """Noise per pixel and channel of pictures (image, mask) of one camera, in their units; an upper bound.

    The median magnitude of all their `diagonal_details` over that of the normal distribution (Donoho and Johnstone,
    Biometrika 81:425, 1994); for noise alone its standard error is 1.17 / sqrt(details) of it. Texture of the scale of
    a pixel counts as noise, and noise that was clipped at black or white is missed.

    Raises UserError where fewer than 100 details are left.
    """
    details = np.concatenate([np.zeros(0), *(diagonal_details(image, mask) for image, mask in pictures)])
    if details.size < LEAST_DETAILS:
        raise UserError(
            f"noise cannot be estimated: {details.size} blocks of 2 x 2 acquired pixels are not constant, at least "
            f"{LEAST_DETAILS} are needed; give the noise as a number"
        )
    return float(np.median(np.abs(details)) / _NORMAL_MEDIAN)
