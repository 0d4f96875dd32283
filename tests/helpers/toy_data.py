"""A small multi-coil acquisition of a phantom, for tests that must not depend on the data store."""

import numpy as np
import scipy.ndimage
from skimage.data import shepp_logan_phantom
from skimage.transform import resize

from msm.operators.measurement import Measurement


def phantom(size: int, count: int, seed: int = 0) -> np.ndarray:
    """(count,size,size) complex64: turned head phantoms of magnitude about 1 with smooth phase."""
    rng = np.random.default_rng(seed)
    grid = np.linspace(-1, 1, size)
    images = []
    for index in range(count):
        head = resize(scipy.ndimage.rotate(shepp_logan_phantom(), 13 * index, reshape=False, order=1), (size, size))
        a, b, c = rng.uniform(-1, 1, 3)
        images.append(2 * head * np.exp(1j * (a * grid[:, None] + b * grid[None] + c)))
    return np.stack(images).astype(np.complex64)


def smooth_coils(size: int, count: int) -> np.ndarray:
    """(count,size,size) complex64 sensitivity maps with sum_c |C_c|^2 = 1: Gaussian lobes around the image."""
    grid = np.linspace(-1, 1, size)
    angles = 2 * np.pi * np.arange(count) / count
    row, column = np.meshgrid(grid, grid, indexing="ij")
    maps = [
        np.exp(-((row - np.cos(a)) ** 2 + (column - np.sin(a)) ** 2) + 1j * (np.cos(a) * column + a)) for a in angles
    ]
    maps = np.stack(maps)
    return (maps / np.sqrt(np.sum(np.abs(maps) ** 2, 0))).astype(np.complex64)


def column_masks(size: int, count: int, acs: int = 6, keep: float = 0.3, seed: int = 1) -> np.ndarray:
    """(count,1,1,size) bool: central lines always, the others with probability `keep`."""
    masks = np.random.default_rng(seed).random((count, 1, 1, size)) < keep
    masks[..., size // 2 - acs // 2 : size // 2 + acs // 2] = True
    return masks


def fourier(x: np.ndarray) -> np.ndarray:
    """Centred orthonormal FFT over the last two axes, written independently of the operators under test."""
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(x, axes), norm="ortho"), axes).astype(np.complex64)


def acquisition(
    size: int = 32, count: int = 3, coils: int = 4, noise_std: float = 0.005
) -> tuple[Measurement, np.ndarray]:
    """Returns a batch of undersampled scans and the images (count,size,size) that they were made from."""
    images = phantom(size, count)
    maps = np.broadcast_to(smooth_coils(size, coils), (count, coils, size, size))
    mask = column_masks(size, count)
    rng = np.random.default_rng(2)
    noise = rng.normal(size=maps.shape) + 1j * rng.normal(size=maps.shape)
    y = np.where(mask, fourier(maps * images[:, None]) + noise_std * noise, 0).astype(np.complex64)
    noise_stds = np.full(count, noise_std, np.float32)
    return Measurement(y, mask, np.array(maps), noise_stds, np.arange(count, dtype=np.int32)), images
