"""Degradations of images (B,H,W,C) float32 that keep no single pixels: smaller, blurred, grey. All are diagonal in a
known basis, so that pseudo-inverse and damped inverse are exact and cost as much as H itself.

  Downsample     separable matrices, diagonal in the product of their singular vectors
  GaussianBlur, MotionBlur     circular convolutions, diagonal in the Fourier basis
  Grey           one vector per pixel, diagonal in grey and the two colours orthogonal to it

`mask` and `maps` of a measurement are not read: all of y is measured.
"""

import abc
import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from msm.operators.operator import damped_reciprocal, per_example

SPECTRUM_CUTOFF = 0.01  # of a blur, relative to its largest value: frequencies below it count as not measured
CHANNELS = 3


def bicubic_matrix(size: int, factor: int) -> np.ndarray:
    """(size // factor, size) float64: antialiased bicubic downsampling of one axis by an integer factor.

    Keys' cubic (a = -1/2; R. Keys, IEEE TASSP 1981) stretched by the factor, pixel centres at half-integers, the
    weights of every output normalised to sum 1 where the image ends. The convention of jax.image.resize(...,
    'cubic', antialias=True) and, up to rounding, of Pillow and MATLAB.
    """
    centres = factor * (np.arange(size // factor) + 0.5) - 0.5
    d = np.abs(centres[:, None] - np.arange(size)) / factor
    near, far = 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    weights = np.where(d < 1, near, np.where(d < 2, far, 0))
    return weights / weights.sum(axis=1, keepdims=True)


@functools.cache
def _axis(size: int, factor: int) -> dict[str, np.ndarray]:
    """float32 arrays of one axis: matrix A, its pseudo-inverse, V (size, size) and singular values (size,) of A."""
    a = bicubic_matrix(size, factor)
    _, singular, vh = np.linalg.svd(a)
    padded = np.concatenate([singular, np.zeros(size - len(singular))])
    arrays = {"a": a, "pinv": np.linalg.pinv(a), "v": vh.T, "singular": padded}
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def _both_axes(rows: np.ndarray, columns: np.ndarray, x: jax.Array) -> jax.Array:
    """rows x columns^T for every example and channel."""
    return jnp.einsum("ih,bhwc,jw->bijc", rows, x, columns, precision="highest")


@dataclass(frozen=True)
class Downsample:
    """y = A_H x A_W^T, `bicubic_matrix`: (B,H,W,C) -> (B,H/factor,W/factor,C). `factor` must divide H and W."""

    factor: int

    def _axes(self, image_shape):
        return tuple(_axis(size, self.factor) for size in image_shape[1:3])

    def image_shape(self, measurement_shape):
        batch, height, width, channels = measurement_shape
        return (batch, height * self.factor, width * self.factor, channels)

    def norm(self, image_shape):
        rows, columns = self._axes(image_shape)
        return float(rows["singular"][0] * columns["singular"][0])

    def forward(self, x, mask, maps):
        del mask, maps
        rows, columns = self._axes(x.shape)
        return _both_axes(rows["a"], columns["a"], x)

    def adjoint(self, y, mask, maps):
        del mask, maps
        rows, columns = self._axes(self.image_shape(y.shape))
        return _both_axes(rows["a"].T, columns["a"].T, y)

    def normal(self, x, mask, maps):
        return self.adjoint(self.forward(x, mask, maps), mask, maps)

    def get_pinv(self, mask, maps):
        del mask, maps

        def pinv(y):
            rows, columns = self._axes(self.image_shape(y.shape))
            return _both_axes(rows["pinv"], columns["pinv"], y)

        return pinv

    def get_damped_inverse(self, mask, maps):
        del mask, maps

        def solve(b, mu):
            rows, columns = self._axes(b.shape)
            values = (np.multiply.outer(rows["singular"], columns["singular"]) ** 2)[None, :, :, None]
            inside = _both_axes(rows["v"].T, columns["v"].T, b) * damped_reciprocal(values, per_example(mu, b))
            return _both_axes(rows["v"], columns["v"], inside)

        return solve


class _Blur(abc.ABC):
    """Circular convolution with a kernel that is not negative and sums to 1, by the real FFT.

    Frequencies whose gain is below SPECTRUM_CUTOFF of the largest are removed by H itself, not only by its inverse: so
    H^+ is exactly the pseudo-inverse of H. They hold less than SPECTRUM_CUTOFF of the image's content there.
    """

    @abc.abstractmethod
    def kernel(self, shape: tuple[int, int]) -> np.ndarray:
        """(H,W) float64, centre at [0,0], offsets circular; not normalised."""

    def spectrum(self, shape: tuple[int, int]) -> np.ndarray:
        """(H, W//2+1) complex64 gains of the frequencies of rfft2, exactly 0 where they count as not measured."""
        kernel = self.kernel(shape)
        gains = np.fft.fft2(kernel / kernel.sum())
        size = np.round(np.abs(gains), 12)  # equal for a frequency and its negative, in spite of rounding
        return np.where(size < SPECTRUM_CUTOFF * size.max(), 0, gains)[:, : shape[1] // 2 + 1].astype(np.complex64)

    def _filter(self, x, gains):
        frequencies = gains[..., None] * jnp.fft.rfft2(x, axes=(1, 2))
        return jnp.fft.irfft2(frequencies, s=x.shape[1:3], axes=(1, 2))

    def image_shape(self, measurement_shape):
        return measurement_shape

    def norm(self, image_shape):
        del image_shape
        return 1.0  # the gain of frequency 0

    def forward(self, x, mask, maps):
        del mask, maps
        return self._filter(x, self.spectrum(x.shape[1:3]))

    def adjoint(self, y, mask, maps):
        del mask, maps
        return self._filter(y, np.conj(self.spectrum(y.shape[1:3])))

    def normal(self, x, mask, maps):
        del mask, maps
        return self._filter(x, np.abs(self.spectrum(x.shape[1:3])) ** 2)

    def get_pinv(self, mask, maps):
        del mask, maps

        def pinv(y):
            gains = self.spectrum(y.shape[1:3])
            kept = gains != 0
            return self._filter(y, np.where(kept, 1 / np.where(kept, gains, 1), 0))

        return pinv

    def get_damped_inverse(self, mask, maps):
        del mask, maps

        def solve(b, mu):
            values = np.abs(self.spectrum(b.shape[1:3])) ** 2
            return self._filter(b, damped_reciprocal(values, jnp.reshape(mu, (-1, 1, 1))))

        return solve


def _circular_distance(size: int) -> np.ndarray:
    """(size,) distance of every index from index 0, going round."""
    index = np.arange(size)
    return np.minimum(index, size - index)


@dataclass(frozen=True)
class GaussianBlur(_Blur):
    """Convolution with exp(-d^2 / (2 sigma^2)) at integer offsets d; sigma in pixels."""

    sigma: float

    def kernel(self, shape):
        rows, columns = (np.exp(-0.5 * (_circular_distance(size) / self.sigma) ** 2) for size in shape)
        return np.multiply.outer(rows, columns)


@dataclass(frozen=True)
class MotionBlur(_Blur):
    """Convolution with a straight line: a camera that moves by `length` pixels while the shutter is open.

    Attributes:
      length: in pixels.
      angle: of the line in degrees, 0 along a row, counter-clockwise on the screen.
    """

    length: float
    angle: float

    def kernel(self, shape):
        points = 32 * int(np.ceil(self.length))  # of the line, each shared by the four pixels around it
        place = ((np.arange(points) + 0.5) / points - 0.5) * self.length
        turn = np.deg2rad(self.angle)
        rows, columns = -np.sin(turn) * place, np.cos(turn) * place
        kernel = np.zeros(shape)
        row, column = np.floor(rows).astype(int), np.floor(columns).astype(int)
        for i, in_row in ((0, row + 1 - rows), (1, rows - row)):
            for j, in_column in ((0, column + 1 - columns), (1, columns - column)):
                np.add.at(kernel, ((row + i) % shape[0], (column + j) % shape[1]), in_row * in_column)
        return kernel


@dataclass(frozen=True)
class Grey:
    """y = mean over channels: (B,H,W,3) -> (B,H,W,1). H H^H = 1/3, so the pseudo-inverse repeats y in each channel."""

    def image_shape(self, measurement_shape):
        return (*measurement_shape[:3], CHANNELS)

    def norm(self, image_shape):
        del image_shape
        return CHANNELS**-0.5

    def forward(self, x, mask, maps):
        del mask, maps
        return jnp.mean(x, axis=-1, keepdims=True)

    def adjoint(self, y, mask, maps):
        del mask, maps
        return jnp.repeat(y / CHANNELS, CHANNELS, axis=-1)

    def normal(self, x, mask, maps):
        return self.adjoint(self.forward(x, mask, maps), mask, maps)

    def get_pinv(self, mask, maps):
        del mask, maps
        return lambda y: jnp.repeat(y, CHANNELS, axis=-1)

    def get_damped_inverse(self, mask, maps):
        del mask, maps

        def solve(b, mu):
            mean, damping = jnp.mean(b, axis=-1, keepdims=True), per_example(mu, b)
            return damped_reciprocal(1 / CHANNELS, damping) * mean + damped_reciprocal(0.0, damping) * (b - mean)

        return solve
