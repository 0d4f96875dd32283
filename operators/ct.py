"""Parallel-beam computed tomography: the Radon transform of square pixels, its exact adjoint, filtered backprojection.

Images (B,n,n,K) float32, side of a pixel 1, nothing around them. Sinograms (B,V,D,K) float32: V views at angles
pi v / V, D detector bins of width 1 that cover the diagonal, D = ceil(sqrt(2) n). A bin holds the exact mean over its
width of the line integrals through the image as a function that is constant on every pixel: the shadow of a square
pixel is a trapezoid, and each bin takes its share of it. No shadow reaches more than three bins, so one view costs
3 n^2 additions forwards and as many backwards.

  project, backproject       R and R^T, made of the same weights
  ramp_filter, fbp           filtered backprojection, R^-1 of many noiseless views
  ParallelBeam               R as an operator of solvers, scaled to norm <= 1

At angle 0 rays run along columns; the direction of turning is that of scikit-image's `radon`. A pixel whose distances
from the middle are r rows (down) and c columns falls on the detector at c cos a - r sin a.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from msm.infra.registry import Registry
from msm.operators.conjugate_gradient import conjugate_gradient
from msm.operators.operator import damped_reciprocal, every_copy, per_example

VIEWS_AT_ONCE = 8  # at most so many in parallel: memory for as many copies of the weights of one view
BINS_OF_A_PIXEL = 3  # a shadow is at most sqrt(2) wide
MOST_RAYS = 4096  # with up to so many rays (V D) inverses are computed by singular vectors, exactly
RANK_CUTOFF = 1e-3  # singular values of the scaled operator (at most 0.82) below it are no part of an inverse
PINV_STEPS, PINV_DAMPING = 300, RANK_CUTOFF**2  # of the pseudo-inverse by conjugate gradients


def view_angles(views: int) -> np.ndarray:
    """(V,) float64, the angles pi v / V in radians."""
    return np.pi * np.arange(views) / views


def num_bins(size: int) -> int:
    """D: bins that hold the shadow of n x n pixels at every angle."""
    return math.ceil(math.sqrt(2) * size)


def size_of(bins: int) -> int:
    """n, from D = `num_bins(n)`."""
    return math.floor(bins / math.sqrt(2))


def _places(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances (n^2,) float32 of the rows and of the columns of all pixels from the middle."""
    place = (np.arange(size) - (size - 1) / 2).astype(np.float32)
    return np.repeat(place, size), np.tile(place, size)


def _shadow_below(distance, wide, narrow, xp):
    """Share of a pixel's shadow below `distance` from its middle: boxes of widths `wide` >= `narrow`, convolved."""
    far = xp.abs(distance)
    beyond = xp.clip(((wide + narrow) / 2 - far) / xp.maximum(narrow, 1e-12), 0, 1) ** 2 * narrow / (2 * wide)
    outside = far > (wide - narrow) / 2
    return xp.where(outside, xp.where(distance > 0, 1 - beyond, beyond), 0.5 + distance / wide)


def _weights(size: int, cosine, sine, xp: Any = jnp):
    """Where the pixels fall in one view: first bin (n^2,) int32, and the shares of it and the next two (n^2,3).

    `xp`: jax.numpy, or numpy for tables that are computed once.
    """
    rows, columns = _places(size)
    place = columns * cosine - rows * sine
    wide = xp.maximum(xp.abs(cosine), xp.abs(sine))
    narrow = xp.minimum(xp.abs(cosine), xp.abs(sine))
    half = num_bins(size) / 2
    first = xp.floor(place - (wide + narrow) / 2 + half)
    edges = first[:, None] - half + np.arange(BINS_OF_A_PIXEL + 1)
    below = _shadow_below(edges - place[:, None], wide, narrow, xp)
    return first.astype(np.int32), xp.diff(below, axis=1)


def _blocks(angles: np.ndarray) -> np.ndarray:
    """(blocks, views of one, 2) float32 cosines and sines, filled up with copies of the last angle."""
    blocks = math.ceil(len(angles) / VIEWS_AT_ONCE)
    angles = np.concatenate([angles, np.repeat(angles[-1:], -len(angles) % blocks)])
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32).reshape(blocks, -1, 2)


def project(x: jax.Array, angles: np.ndarray) -> jax.Array:
    """R x: line integrals in units of the image times pixels.

    Args:
      x: (B,n,n,K) float32.
      angles: (V,) in radians, known when the program is compiled.

    Returns:
      (B,V,D,K) float32. Memory beside it: that of VIEWS_AT_ONCE images.
    """
    batch, size, _, channels = x.shape
    pixels = jnp.moveaxis(x, 0, 2).reshape(size * size, -1)

    def view(direction):
        first, weights = _weights(size, *direction)
        bins = jnp.zeros((num_bins(size), pixels.shape[1]), x.dtype)
        for k in range(BINS_OF_A_PIXEL):
            bins = bins.at[first + k].add(weights[:, k, None] * pixels, mode="drop")
        return bins

    bins = jax.lax.map(jax.vmap(view), _blocks(angles))
    bins = bins.reshape(-1, num_bins(size), batch, channels)[: len(angles)]
    return jnp.moveaxis(bins, 2, 0)


def backproject(y: jax.Array, angles: np.ndarray) -> jax.Array:
    """R^T y, the exact adjoint of `project`: (B,V,D,K) -> (B,n,n,K). `angles` as there."""
    size = size_of(y.shape[2])

    def spread(bins, direction):
        first, weights = _weights(size, *direction)
        taps = (weights[:, k, None] * bins.at[first + k].get(mode="fill", fill_value=0) for k in range(BINS_OF_A_PIXEL))
        return sum(taps)

    return _sum_over_views(y, angles, spread)


def _sum_over_views(y: jax.Array, angles: np.ndarray, spread: Callable) -> jax.Array:
    """Sum over views of `spread(bins (D,B*K), (cosine, sine)) -> (n^2,B*K)`, as images (B,n,n,K)."""
    batch, _, bins, channels = y.shape
    size, blocks = size_of(bins), _blocks(angles)
    views = jnp.moveaxis(y, 0, 2).reshape(len(angles), bins, -1)
    views = jnp.pad(views, ((0, blocks[..., 0].size - len(angles)), (0, 0), (0, 0)))

    def add(total, block):
        return total + jnp.sum(jax.vmap(spread)(*block), axis=0), None

    start = jnp.zeros((size * size, views.shape[-1]), y.dtype)
    total, _ = jax.lax.scan(add, start, (views.reshape(*blocks.shape[:2], *views.shape[1:]), jnp.asarray(blocks)))
    return jnp.moveaxis(total.reshape(size, size, batch, channels), 2, 0)


WINDOWS: Registry = Registry("filter")  # gain of a frequency f in [0, 1/2] cycles per bin, beside the ramp's

for _name, _window in {
    "ramp": np.ones_like,
    "shepp_logan": np.sinc,
    "cosine": lambda f: np.cos(np.pi * f),
    "hamming": lambda f: 0.54 + 0.46 * np.cos(2 * np.pi * f),
    "hann": lambda f: 0.5 + 0.5 * np.cos(2 * np.pi * f),
}.items():
    WINDOWS.register(_name)(_window)


def ramp_filter(bins: int, name: str) -> np.ndarray:
    """(L/2+1,) float32 gains for rfft of views zero-padded to L, the least power of two >= 2 D (at least 64).

    The ramp is the transform of its band-limited, sampled kernel (1/4 at 0, -1/(pi k)^2 at odd k, 0 at even k), whose
    sum over L is not exactly 0: sampling |f| itself would lose the mean of the image. Kak and Slaney, Principles of
    Computerized Tomographic Imaging, section 3.3. Raises UserError for an unknown window.
    """
    length = max(64, 2 ** math.ceil(math.log2(2 * bins)))
    k = np.minimum(np.arange(length), length - np.arange(length))
    kernel = np.where(k % 2 == 1, -1 / (np.pi * np.maximum(k, 1)) ** 2, 0)
    kernel[0] = 0.25
    frequencies = np.fft.rfftfreq(length)
    return (np.fft.rfft(kernel).real * WINDOWS[name](frequencies)).astype(np.float32)


def fbp(y: jax.Array, angles: np.ndarray, window: str = "ramp") -> jax.Array:
    """Filtered backprojection: pi/V sum over views of the filtered view, interpolated linearly at every pixel.

    Args:
      y: (B,V,D,K) line integrals, see `project`; V angles evenly spaced over 180 degrees.
      angles: (V,) in radians.
      window: ramp | shepp_logan | cosine | hamming | hann.

    Returns:
      (B,n,n,K).
    """
    bins, gains = y.shape[2], ramp_filter(y.shape[2], window)
    length = 2 * (len(gains) - 1)
    filtered = jnp.fft.irfft(gains[:, None] * jnp.fft.rfft(y, length, axis=2), length, axis=2)[:, :, :bins]
    rows, columns = _places(size_of(bins))

    def interpolate(view, direction):
        place = columns * direction[0] - rows * direction[1] + (bins - 1) / 2
        left = jnp.clip(jnp.floor(place), 0, bins - 2)
        share = (place - left)[:, None]
        index = left.astype(jnp.int32)
        return (1 - share) * view[index] + share * view[index + 1]

    return np.pi / len(angles) * _sum_over_views(filtered, angles, interpolate)


@functools.lru_cache(maxsize=2)
def _singular_system(size: int, views: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """U (V D, r), values (r,), V (n^2, r) float32 of the scaled operator, without values below RANK_CUTOFF."""
    count, bins = size * size, num_bins(size)
    matrix = np.zeros((views, bins + BINS_OF_A_PIXEL, count))
    for view, angle in enumerate(view_angles(views)):
        first, weights = _weights(size, np.cos(angle), np.sin(angle), np)
        for k in range(BINS_OF_A_PIXEL):
            matrix[view, first + k, np.arange(count)] += weights[:, k]
    matrix = matrix[:, :bins].reshape(-1, count) / ParallelBeam(views).scale(size)
    energy, left = np.linalg.eigh(matrix @ matrix.T)
    kept = energy > RANK_CUTOFF**2
    values, left = np.sqrt(energy[kept]), left[:, kept]
    right = matrix.T @ left / values
    return left.astype(np.float32), values.astype(np.float32), right.astype(np.float32)


@dataclass(frozen=True)
class ParallelBeam:
    """y = R x / scale: V views of images (B,n,n,K); |R| / scale <= 1.

    A mask (B,V,D,1) says which rays are known (a metal trace is not); one with a single entry per example says that
    all are. Then, and with at most MOST_RAYS rays, both inverses are exact up to RANK_CUTOFF, by singular vectors that
    are computed once for a geometry. Otherwise conjugate gradients do them: the damped inverse with `cg_steps`, the
    pseudo-inverse with PINV_STEPS and a damping that halves what singular values of RANK_CUTOFF see.

    Attributes:
      views: V.
      cg_steps: of the damped inverse where rays are masked or too many.
    """

    views: int
    cg_steps: int = 20

    @property
    def angles(self) -> np.ndarray:
        """(V,) in radians."""
        return view_angles(self.views)

    def scale(self, size: int) -> float:
        """sqrt(V D), a bound of |R| (Schur's test): a pixel has V shadows of mass 1, a bin's sum to at most D."""
        return math.sqrt(self.views * num_bins(size))

    def measurement_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """(B,V,D,K) of images (B,n,n,K)."""
        batch, size, _, channels = image_shape
        return (batch, self.views, num_bins(size), channels)

    def image_shape(self, measurement_shape):
        batch, _, bins, channels = measurement_shape
        return (batch, size_of(bins), size_of(bins), channels)

    def norm(self, image_shape):
        del image_shape
        return 1.0

    def forward(self, x, mask, maps):
        del maps
        return jnp.where(mask, project(x, self.angles) / self.scale(x.shape[1]), 0)

    def adjoint(self, y, mask, maps):
        del maps
        return backproject(jnp.where(mask, y, 0), self.angles) / self.scale(size_of(y.shape[2]))

    def normal(self, x, mask, maps):
        return self.adjoint(self.forward(x, mask, maps), mask, maps)

    def get_pinv(self, mask, maps):
        def pinv(y):
            batch, size, *_ = self.image_shape(y.shape)
            if self._is_exact(mask, size):
                left, values, right = _singular_system(size, self.views)
                return _combine(right, _coefficients(left, y) / values[:, None], size)
            b = self.adjoint(y, every_copy(mask, batch), maps)
            return self._solve(b, jnp.full(batch, PINV_DAMPING), mask, PINV_STEPS)

        return pinv

    def get_damped_inverse(self, mask, maps):
        del maps

        def solve(b, mu):
            size = b.shape[1]
            if not self._is_exact(mask, size):
                return self._solve(b, mu, mask, self.cg_steps)
            _, values, right = _singular_system(size, self.views)
            inside, rest = _coefficients(right, b), b
            for _ in range(2):  # the second time removes the rounding of the first, which 1/mu would amplify
                rest = rest - _combine(right, _coefficients(right, rest), size)
            inside = inside * damped_reciprocal(values[:, None] ** 2, mu[:, None, None])
            return _combine(right, inside, size) + rest * damped_reciprocal(0.0, per_example(mu, b))

        return solve

    def _is_exact(self, mask, size: int) -> bool:
        return mask[0].size == 1 and self.views * num_bins(size) <= MOST_RAYS

    def _solve(self, b, mu, mask, steps: int):
        every_mask, damping = every_copy(mask, b.shape[0]), per_example(mu, b)
        return conjugate_gradient(lambda x: self.normal(x, every_mask, None) + damping * x, b, steps)


def _coefficients(vectors: np.ndarray, data: jax.Array) -> jax.Array:
    """(B,r,K) of images or sinograms (B,.,.,K) in the singular vectors (m,r)."""
    flat = data.reshape(data.shape[0], -1, data.shape[3])
    transposed = np.ascontiguousarray(vectors.T)  # else the compiler does it, slowly
    return jnp.einsum("rm,bmk->brk", transposed, flat, precision="highest")


def _combine(right: np.ndarray, coefficients: jax.Array, size: int) -> jax.Array:
    """Images (B,n,n,K) of the coefficients (B,r,K) in the singular vectors (n^2,r)."""
    flat = jnp.einsum("mr,brk->bmk", right, coefficients, precision="highest")
    return flat.reshape(flat.shape[0], size, size, -1)
