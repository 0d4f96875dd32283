"""Simulated multi-coil acquisitions of magnitude images: phase, coil maps, mask and noise, each drawn once per example.

Everything here is a pure function of (settings, example id): an example is the same in every store that
shares its settings, whichever other examples the store holds.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from msm.operators.masks import MaskDistribution, get_masks

# One random stream per ingredient, so that e.g. another coil count leaves phase and mask as they are.
_PHASE, _MAPS, _NOISE = range(3)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a simulated acquisition depends on.

    Attributes:
      image_size: rows and columns of the image, at most the size of the source images.
      num_coils: receive coils.
      mask: name of the mask distribution.
      acceleration: nominal R; a line outside the ACS is acquired with probability 1/R.
      acs_lines: central lines that are always acquired.
      noise_std: standard deviation of the noise per real and per imaginary entry, in units of the scaled image.
      seed: of the dataset; with an example's id it determines the example.
    """

    image_size: int = 64
    num_coils: int = 4
    mask: str = "cartesian_random"
    acceleration: float = 4.0
    acs_lines: int = 6
    noise_std: float = 0.005
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Simulated:
    """One example before scaling and noise.

    Attributes:
      image: (H,W) complex64, the reference.
      maps: (C,H,W) complex64 with sum_c |C_c|^2 = 1 everywhere.
      mask: (W,) bool, the acquired lines.
    """

    image: np.ndarray
    maps: np.ndarray
    mask: np.ndarray


def fft2c(image: np.ndarray) -> np.ndarray:
    """Centred orthonormal 2-D Fourier transform over the last two axes (operators.fourier is single precision)."""
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image, axes=axes), norm="ortho"), axes=axes)


def ifft2c(kspace: np.ndarray) -> np.ndarray:
    """Inverse of `fft2c`, and its adjoint."""
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, axes=axes), norm="ortho"), axes=axes)


def crop_kspace(images: np.ndarray, size: int) -> np.ndarray:
    """Real (..., H, W) -> real (..., size, size) of the same brightness: what a scanner of lower resolution sees.

    Keeps the central size x size of k-space (an ideal low pass, so edges ring by a few per cent, as in real scans) and
    takes the real part, which drops the unpaired Nyquist line's imaginary remainder.
    """
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return np.asarray(images, np.float64)
    top, left = height // 2 - size // 2, width // 2 - size // 2
    kspace = fft2c(images)[..., top : top + size, left : left + size]
    return np.real(ifft2c(kspace)) * (size / np.sqrt(height * width))


def _masks(settings: Settings) -> MaskDistribution:
    config = ConfigDict({"masks": {"name": settings.mask}, "data": {"image_size": settings.image_size}})
    config.masks.update(acceleration=settings.acceleration, acs_lines=settings.acs_lines)
    return get_masks(config)


def draw_masks(settings: Settings, example_ids: Sequence[int]) -> np.ndarray:
    """(N,W) bool, one draw per example from the distribution that `operators/masks.py` defines by that name."""
    masks, key = _masks(settings), jax.random.key(settings.seed)
    draw = jax.jit(jax.vmap(lambda example_id: masks.sample(jax.random.fold_in(key, example_id))))
    return np.asarray(draw(np.asarray(example_ids, np.int32)))[:, 0, 0]


def inclusion_probability(settings: Settings) -> np.ndarray:
    """(W,) float32: with which probability `draw_masks` acquires each line."""
    return np.asarray(_masks(settings).inclusion_probability())[0, 0]


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    axis = (np.arange(size) - size // 2) / (size / 2)
    return np.meshgrid(axis, axis, indexing="ij")  # rows, columns in [-1,1)


def draw_phase(size: int, rng: np.random.Generator) -> np.ndarray:
    """(H,W) float64 smooth phase in radians: a constant, a tilt and a few waves of at most 1.5 periods over the image.

    It stands for transmit phase and field inhomogeneity; the constant is uniform on the circle.
    """
    rows, columns = _grid(size)
    phase = rng.uniform(-np.pi, np.pi) + rng.normal(0, 0.6) * rows + rng.normal(0, 0.6) * columns
    for _ in range(4):
        frequency = rng.uniform(-1.5, 1.5, 2) * np.pi / 2
        phase = phase + rng.normal(0, 0.3) * np.cos(
            frequency[0] * rows + frequency[1] * columns + rng.uniform(-np.pi, np.pi)
        )
    return phase


def draw_maps(num_coils: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """(C,H,W) complex64 smooth coil sensitivity maps with sum_c |C_c|^2 = 1 on the whole field of view.

    Coils sit on a ring around the head, roughly evenly; magnitude falls off with the squared distance and phase winds
    slowly around the coil. Dividing by the root sum of squares makes T^H T the identity on every pixel (so the
    reference is the coil-combined image), at the price that absolute receive shading is not simulated.
    """
    rows, columns = _grid(size)
    start, maps = rng.uniform(0, 2 * np.pi), []
    for coil in range(num_coils):
        angle = start + 2 * np.pi * (coil + rng.uniform(-0.2, 0.2)) / num_coils
        radius = rng.uniform(1.1, 1.35)
        down, right = rows - radius * np.sin(angle), columns - radius * np.cos(angle)
        magnitude = 1.0 / (0.35 + down**2 + right**2)
        inward = -(down * np.sin(angle) + right * np.cos(angle))  # distance from the coil along its axis
        across = right * np.sin(angle) - down * np.cos(angle)
        maps.append(magnitude * np.exp(1j * (np.arctan2(across, inward + 0.6) + rng.uniform(-np.pi, np.pi))))
    stacked = np.stack(maps)
    return (stacked / np.sqrt(np.sum(np.abs(stacked) ** 2, axis=0))).astype(np.complex64)


def _rng(settings: Settings, example_id: int, stream: int) -> np.random.Generator:
    return np.random.default_rng((settings.seed, example_id, stream))


def simulate(magnitude: np.ndarray, mask: np.ndarray, settings: Settings, example_id: int) -> Simulated:
    """Draws phase and coil maps of one example.

    Args:
      magnitude: (N,N) non-negative, any unit; brought to `image_size` by k-space crop, ringing below 0 set to 0.
      mask: (W,) bool, the example's row of `draw_masks`.
      settings: what to simulate.
      example_id: with `settings.seed` it fixes every draw.

    Returns:
      The example in the units of `magnitude`.
    """
    size = settings.image_size
    magnitude = np.maximum(crop_kspace(magnitude, size), 0.0)
    phase = draw_phase(size, _rng(settings, example_id, _PHASE))
    return Simulated(
        image=(magnitude * np.exp(1j * phase)).astype(np.complex64),
        maps=draw_maps(settings.num_coils, size, _rng(settings, example_id, _MAPS)),
        mask=mask,
    )


def zero_filled(example: Simulated) -> np.ndarray:
    """(H,W) complex: T^H S T x, the adjoint image of the acquired lines without noise."""
    kspace = np.where(example.mask, fft2c(example.maps * example.image), 0.0)
    return np.sum(np.conj(example.maps) * ifft2c(kspace), axis=0)


def volume_scale(examples: list[Simulated]) -> float:
    """Scale factor of a volume: 99th percentile of the magnitude of its zero-filled images."""
    return float(np.percentile([np.abs(zero_filled(example)) for example in examples], 99))


def acquire(example: Simulated, scale: float, settings: Settings, example_id: int, full: bool = False) -> np.ndarray:
    """(C,H,n) complex64: the acquired k-space columns, in ascending order, of the image divided by `scale`.

    `full` acquires every line without noise (training data of the oracle); otherwise the example's one noise draw is
    added after scaling, so that `noise_std` is in the units of the data.
    """
    kspace = fft2c(example.maps * (example.image / scale))
    if full:
        return kspace.astype(np.complex64)
    acquired = kspace[..., example.mask]
    real, imaginary = _rng(settings, example_id, _NOISE).standard_normal((2, *acquired.shape))
    return (acquired + settings.noise_std * (real + 1j * imaginary)).astype(np.complex64)
