"""Steps from raw multi-coil k-space to a training example, each linear in k-space: pure functions on numpy arrays.

k-space is (S,C,H,W) complex64, S slices, H the readout and W the phase encoding, zero frequency at (H//2, W//2),
orthonormal transforms: none of these steps but `whiten` changes the size of the noise in an entry. Masks are bool,
(S,1,1,W) or (1,1,1,W) for lines, (S,1,H,W) or (1,1,H,W) otherwise, and every step keeps them true: an entry that they
call acquired was.
"""

import numpy as np

from msm.builders.demo.simulate import fft2c, ifft2c
from msm.builders.raw.volume import crop_readout
from msm.infra.errors import UserError

CROPS = ("resolution", "fov")
_PADDED = 0.1  # share of the lines that may be missing at either end of a fully sampled scan


def whitening(noise: np.ndarray) -> np.ndarray:
    """(C,C) complex128 matrix A that makes the noise of the coils white: A n has variance 1 per real scalar.

    A = sqrt(2) L^-1 with L L^H the covariance of `noise`, (C,N) samples without signal (Roemer et al., Magn Reson Med
    16:192, 1990). Raises UserError for fewer samples than twice the coils, or coils whose noise is linearly dependent.
    """
    coils, samples = noise.shape
    if samples < 2 * coils:
        raise UserError(f"the noise scan has {samples} samples for {coils} coils; at least {2 * coils} are needed")
    noise = noise.astype(np.complex128)
    covariance = noise @ noise.conj().T / samples
    values = np.linalg.eigvalsh(covariance)
    if values[0] <= 1e-12 * values[-1]:
        power = np.real(np.diag(covariance))
        silent = np.flatnonzero(power <= 1e-12 * power.max()).tolist()
        mend = f"--leave_out_coils {','.join(map(str, silent or ['N']))}"
        raise UserError(f"the noise scan has coils whose noise is 0 or a sum of others'; leave these out by {mend}")
    return np.sqrt(2) * np.linalg.inv(np.linalg.cholesky(covariance))


def combine_coils(matrix: np.ndarray, arrays: np.ndarray) -> np.ndarray:
    """(n,C) matrix on the coils of (S,C,H,W): new coils (S,n,H,W) complex64."""
    return np.einsum("nc,schw->snhw", matrix, arrays, optimize=True).astype(np.complex64)


def compression(kspace: np.ndarray, coils: int) -> np.ndarray:
    """(coils,C) complex128 matrix with orthonormal rows onto the virtual coils of the largest energy.

    They are the leading left singular vectors of the coils x entries matrix of `kspace` (Buehrer et al., Magn Reson Med
    57:1131, 2007), in descending order, each with its largest entry real and positive. White noise stays white.
    """
    flat = np.moveaxis(kspace, 1, 0).reshape(kspace.shape[1], -1).astype(np.complex128)
    _, vectors = np.linalg.eigh(flat @ flat.conj().T)
    rows = vectors[:, ::-1][:, :coils].T
    largest = rows[np.arange(coils), np.argmax(np.abs(rows), axis=1)]
    return (rows * (np.conj(largest) / np.abs(largest))[:, None]).conj()


def fit(kspace: np.ndarray, mask: np.ndarray, shape: tuple[int, int], crop: str) -> tuple[np.ndarray, np.ndarray]:
    """Brings k-space and its mask to `shape`, rows and columns that are at most those of k-space.

    'resolution' keeps the centre of k-space: the field of view stays, pixels grow, lines stay lines whatever the mask.
    'fov' keeps the centre of the image: pixels stay, the field of view shrinks. It mixes the entries of an axis, so it
    needs all of them: along H a mask of lines, along W a fully sampled scan.

    Raises UserError where 'fov' is asked for and cannot be had.
    """
    rows, columns = shape
    if crop == "resolution":
        mask = _centre(mask, -1, columns)
        return _centre(_centre(kspace, -2, rows), -1, columns), mask if mask.shape[-2] == 1 else _centre(mask, -2, rows)
    width = kspace.shape[-1]
    if mask.shape[-2] > 1 or (width > columns and not is_full(mask)):
        raise UserError("--crop fov needs entries that were not acquired; use --crop resolution")
    cropped = crop_readout(np.swapaxes(crop_readout(kspace, rows), -1, -2), columns)
    # Lines that the archive padded at the ends are spread over all lines, so none of them is missing any more.
    return np.swapaxes(cropped, -1, -2), mask if width == columns else np.ones_like(mask[..., :columns])


def _centre(array: np.ndarray, axis: int, size: int) -> np.ndarray:
    """The `size` central entries of an axis: index n//2 becomes size//2."""
    start = array.shape[axis] // 2 - size // 2
    return array[(..., slice(start, start + size), *[slice(None)] * (-1 - axis))]


def is_full(mask: np.ndarray) -> bool:
    """Whether a scan is fully sampled: every line was acquired but for a few at the two ends, at most a tenth each.

    Archives pad k-space there, for the image that they show. (1,1,1,W) bool; a mask with missing rows never is.
    """
    if mask.shape[-2] > 1:
        return False
    acquired = np.flatnonzero(mask.reshape(-1, mask.shape[-1]).all(axis=0))
    most = int(_PADDED * mask.shape[-1])
    ends = acquired.size and acquired[0] <= most and acquired[-1] >= mask.shape[-1] - 1 - most
    return bool(ends and acquired.size == acquired[-1] - acquired[0] + 1)


def zero_filled(kspace: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """(S,H,W) complex: T^H y, the images of acquired k-space, combined by the coil maps."""
    return np.sum(np.conj(maps) * ifft2c(kspace), axis=1)


def volume_scale(kspace: np.ndarray, maps: np.ndarray) -> float:
    """99th percentile of the magnitude of all zero-filled images of a volume."""
    return float(np.percentile(np.abs(zero_filled(kspace, maps)), 99))


def unit_maps(maps: np.ndarray) -> np.ndarray:
    """Coil maps (S,C,H,W) divided by their root sum of squares; 0 where that is at most a tenth of its largest."""
    size = np.sqrt(np.sum(np.abs(maps) ** 2, axis=1, keepdims=True))
    return np.where(size > 0.1 * np.max(size), maps / np.where(size > 0, size, 1), 0).astype(np.complex64)


def fit_maps(maps: np.ndarray, shape: tuple[int, int], crop: str) -> np.ndarray:
    """Known coil maps (S,C,H,W) on the grid of `fit`: cut, or resampled through their Fourier transform."""

    def cut(arrays: np.ndarray) -> np.ndarray:
        return _centre(_centre(arrays, -2, shape[0]), -1, shape[1])

    if crop == "fov" or maps.shape[2:] == shape:
        return cut(maps)
    return ifft2c(cut(fft2c(maps))) * np.sqrt(np.prod(shape) / np.prod(maps.shape[2:]))
