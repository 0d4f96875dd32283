"""The full measurement z = T x of an image, its adjoint, and how both become real network channels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from msm.infra.registry import Registry
from msm.operators.fourier import COLUMNS, fft2c, ifft2c
from msm.operators.measurement import Array


class Transform(Protocol):
    """T and what belongs to it. Images x and measurements z have a leading batch axis.

    Attributes:
      dtype: of x and z.
      real_scalars: real numbers per entry of z (2 if complex, 1 if real).
      channels: real channels of an image inside the network.
    """

    @property
    def dtype(self) -> Any: ...

    @property
    def real_scalars(self) -> int: ...

    @property
    def channels(self) -> int: ...

    def forward(self, x: jax.Array, maps: Array | None) -> jax.Array:
        """z = T x."""
        ...

    def adjoint(self, z: jax.Array, maps: Array | None) -> jax.Array:
        """T^H z."""
        ...

    def to_channels(self, x: jax.Array) -> jax.Array:
        """Image -> (B,H,W,channels) float32."""
        ...

    def from_channels(self, channels: jax.Array) -> jax.Array:
        """The inverse of `to_channels`."""
        ...

    def noise(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Noise of the shape and type of z (or x), N(0,1) per real scalar."""
        ...

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of x for a given shape of z."""
        ...


TRANSFORMS: Registry[Callable[[], Transform]] = Registry("transform")


def get_transform(config) -> Transform:
    """Returns the transform named by `config.transform.name`. Raises UserError for an unknown name."""
    return TRANSFORMS[config.transform.name]()


def normal(transform: Transform, x: jax.Array, mask: Array, maps: Array | None) -> jax.Array:
    """T^H S T x: what sampling at `mask` (bool, broadcastable to z) and going back does to an image."""
    if type(transform) is MultiCoilFourier and maps is not None and mask.shape[-2] == 1:
        # Masks of whole columns leave the readout alone: its transform cancels, which halves the work.
        z = jnp.where(mask, fft2c(maps * x[..., None, :, :], COLUMNS), 0)
        return jnp.sum(jnp.conj(maps) * ifft2c(z, COLUMNS), axis=-3)
    return transform.adjoint(jnp.where(mask, transform.forward(x, maps), 0), maps)


@TRANSFORMS.register("identity")
@dataclass(frozen=True)
class Identity:
    """T = I: x = z, images (B,H,W,channels) float32: 3 colours, or as 'grey' one."""

    channels: int = 3

    dtype = jnp.float32
    real_scalars = 1

    def forward(self, x, maps):
        del maps
        return x

    def adjoint(self, z, maps):
        del maps
        return z

    def to_channels(self, x):
        return x

    def from_channels(self, channels):
        return channels

    def noise(self, key, shape):
        return jax.random.normal(key, shape)

    def image_shape(self, measurement_shape):
        return measurement_shape


@TRANSFORMS.register("grey")
def get_grey() -> Identity:
    """T = I of images with one channel: grey pictures, CT."""
    return Identity(channels=1)


@TRANSFORMS.register("multicoil_fourier")
class MultiCoilFourier:
    """T = F C: x (B,H,W) complex64 -> z (B,C,H,W) complex64, coil maps then the centred orthonormal FFT.

    With maps normalised to sum_c |C_c|^2 = 1 on their support, T^H T is the identity there and |T| <= 1.
    """

    dtype = jnp.complex64
    real_scalars = 2
    channels = 2

    def forward(self, x, maps):
        return fft2c(maps * x[..., None, :, :])

    def adjoint(self, z, maps):
        return jnp.sum(jnp.conj(maps) * ifft2c(z), axis=-3)

    def to_channels(self, x):
        return jnp.stack([x.real, x.imag], axis=-1)

    def from_channels(self, channels):
        return jax.lax.complex(channels[..., 0], channels[..., 1])

    def noise(self, key, shape):
        real, imaginary = jax.random.normal(key, (2, *shape))
        return jax.lax.complex(real, imaginary)

    def image_shape(self, measurement_shape):
        return (measurement_shape[0], *measurement_shape[2:])


@TRANSFORMS.register("real_fourier")
class RealFourier(MultiCoilFourier):
    """T = F C of images without phase: x (B,H,W) complex64 whose imaginary part is 0, one channel in the network.

    T^H takes the real part of what `multicoil_fourier` has, so that <T x, z> = <x, T^H z> in real arithmetic.
    """

    channels = 1

    def adjoint(self, z, maps):
        return _without_phase(super().adjoint(z, maps))

    def to_channels(self, x):
        return x.real[..., None]

    def from_channels(self, channels):
        return channels[..., 0].astype(jnp.complex64)

    def noise(self, key, shape):
        """As of every transform; real for the two axes of an image."""
        noise = super().noise(key, shape)
        return _without_phase(noise) if len(shape) == 2 else noise


def _without_phase(x: jax.Array) -> jax.Array:
    return x.real.astype(x.dtype)
