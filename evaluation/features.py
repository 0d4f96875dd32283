"""The feature set 'small': 80 (MRI) or 89 (colour) fixed numbers per image, which need no trained network.

Pure numpy in float64. It compares runs on one dataset with each other; it is not the Inception network of published
FIDs, and its distances are not comparable to theirs.
"""

import numpy as np

DEFINITION = (
    "'small', pure numpy, of the magnitude (MRI) or of (image + 1)/2 averaged over the colours (images): "
    "16 intensity quantiles (means of equal shares of the sorted pixels); log10 root mean power in 8 rings of "
    "spatial frequency from 0 to the Nyquist frequency; of a Haar decomposition, mean and median magnitude over root "
    "mean square of 3 orientations at 4 scales (24), which tell edges from noise of equal power; a 4 x 4 mosaic of "
    "mean intensities (16) and one of root-mean-square gradients (16); for colour images also mean, standard deviation "
    "and correlations of the channels (9). 1e-3 is added to what a logarithm is taken of or is divided by. Coarse: it "
    "sees contrast, sharpness, noise and layout, not anatomy. Not comparable to published FIDs, which look through an "
    "Inception network."
)

_QUANTILES, _RINGS, _SCALES, _MOSAIC, _FLOOR = 16, 8, 4, 4, 1e-3


def intensities(images: np.ndarray) -> np.ndarray:
    """(N,H,W) complex or (N,H,W,C) real in [-1,1] -> (N,H,W,channels) float64: magnitudes, or values in [0,1]."""
    if np.iscomplexobj(images):
        return np.abs(images).astype(np.float64)[..., None]
    return (np.asarray(images, np.float64) + 1) / 2


def small_features(images: np.ndarray) -> np.ndarray:
    """Returns the features DEFINITION, (N,80) or, for colour images, (N,89) float64.

    Args:
      images: (N,H,W) complex or (N,H,W,C) real in [-1,1]; at least 4 x 4 pixels.
    """
    channels = intensities(images)
    grey = channels.mean(axis=-1)
    parts = [_quantiles(grey), _rings(grey), _haar(grey), _mosaic(grey), np.sqrt(_mosaic(_gradient_energy(grey)))]
    if channels.shape[-1] == 3:
        parts.append(_colours(channels))
    return np.concatenate(parts, axis=1)


def _shares(values: np.ndarray, count: int) -> np.ndarray:
    """Means of `count` consecutive, equal shares of the last axis (whole entries each)."""
    return np.stack([part.mean(axis=-1) for part in np.array_split(values, count, axis=-1)], axis=-1)


def _quantiles(grey: np.ndarray) -> np.ndarray:
    return _shares(np.sort(grey.reshape(len(grey), -1), axis=-1), _QUANTILES)


def _rings(grey: np.ndarray) -> np.ndarray:
    """log10 of the root mean power per ring, orthonormal transform; the last ring takes the corners too."""
    power = np.abs(np.fft.fft2(grey, norm="ortho")) ** 2
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(grey.shape[1]), np.fft.fftfreq(grey.shape[2]), indexing="ij"))
    ring = np.minimum((frequency * 2 * _RINGS).astype(int), _RINGS - 1).ravel()
    sums = np.stack([np.bincount(ring, weights=image.ravel(), minlength=_RINGS) for image in power])
    return np.log10(np.sqrt(sums / np.maximum(np.bincount(ring, minlength=_RINGS), 1)) + _FLOOR)


def _haar(grey: np.ndarray) -> np.ndarray:
    """Per scale and orientation, mean and median magnitude of Haar coefficients over their root mean square: sparsity.

    Gaussian noise has 0.80 and 0.67, an image of few edges less. A size that is odd at some scale loses its last row or
    column there; scales below two pixels count as 0.
    """
    found, low = [], grey
    for _ in range(_SCALES):
        rows, columns = (size // 2 * 2 for size in low.shape[1:])
        if min(rows, columns) < 2:
            found += [np.zeros(len(grey))] * 6
            continue
        a, b, c, d = (low[:, i:rows:2, j:columns:2] for i in (0, 1) for j in (0, 1))
        for detail in ((a - b + c - d) / 2, (a + b - c - d) / 2, (a - b - c + d) / 2):
            sizes = np.abs(detail).reshape(len(grey), -1)
            scale = np.sqrt((sizes**2).mean(axis=1)) + _FLOOR
            found += [sizes.mean(axis=1) / scale, np.median(sizes, axis=1) / scale]
        low = (a + b + c + d) / 2
    return np.stack(found, axis=1)


def _mosaic(grey: np.ndarray) -> np.ndarray:
    """Means over a grid of _MOSAIC x _MOSAIC tiles, (N,16)."""
    return _shares(_shares(grey, _MOSAIC).swapaxes(1, 2), _MOSAIC).swapaxes(1, 2).reshape(len(grey), -1)


def _gradient_energy(grey: np.ndarray) -> np.ndarray:
    rows, columns = (np.diff(grey, axis=axis, append=grey.take([-1], axis)) for axis in (1, 2))
    return rows**2 + columns**2


def _colours(channels: np.ndarray) -> np.ndarray:
    """Means, standard deviations and the three correlations of the colours (0 for a channel without contrast)."""
    flat = channels.reshape(len(channels), -1, 3)
    mean, std = flat.mean(axis=1), flat.std(axis=1)
    unit = (flat - mean[:, None]) / np.maximum(std, 1e-9)[:, None]
    pairs = [(unit[..., i] * unit[..., j]).mean(axis=1) for i, j in ((0, 1), (0, 2), (1, 2))]
    return np.concatenate([mean, std, np.stack(pairs, axis=1)], axis=1)
