"""T of an image that is there as a whole: nothing but the support on which the coils see it.

With it the losses, the seam `denoise` and the symmetries speak of completed images as they do of measurements.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from msm.operators.measurement import Array
from msm.operators.transform import Transform


@dataclass(frozen=True)
class WholeImage:
    """T x = support x, for images x (B,...) of the transform `of`; z has the shape and type of x.

    `maps` is the support (B,H,W) bool, or None where it is everything; outside it the solvers' images are 0.
    """

    of: Transform

    @property
    def dtype(self) -> Any:
        return self.of.dtype

    @property
    def real_scalars(self) -> int:
        return self.of.real_scalars

    @property
    def channels(self) -> int:
        return self.of.channels

    def forward(self, x: jax.Array, maps: Array | None) -> jax.Array:
        return x if maps is None else jnp.where(maps, x, 0)

    def adjoint(self, z: jax.Array, maps: Array | None) -> jax.Array:
        return self.forward(z, maps)

    def to_channels(self, x: jax.Array) -> jax.Array:
        return self.of.to_channels(x)

    def from_channels(self, channels: jax.Array) -> jax.Array:
        return self.of.from_channels(channels)

    def noise(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return self.of.noise(key, shape)

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return measurement_shape


def support_of(maps: Array | None) -> Array | None:
    """(B,C,H,W) coil maps -> (B,H,W) bool: where any coil sees the image; None without maps. numpy or JAX."""
    return None if maps is None else (abs(maps) ** 2).sum(1) > 0.5  # 1 on the support, 0 elsewhere
