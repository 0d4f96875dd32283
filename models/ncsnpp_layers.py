"""Layers of NCSN++ that the ADM U-Net does not have, NHWC: FIR resampling, its fused convolutions, embeddings, blocks.

The filter is (1,3,3,1)/8 in both directions, on images that are 0 outside (StyleGAN2's; Karras et al. 2020). It is
written as shifted sums of even and odd samples, which a CPU runs faster than grouped convolutions.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from msm.models import layers

EPSILON = 1e-6  # of all group normalisations
FILTER = (0.125, 0.375, 0.375, 0.125)
AXES = (1, 2)


def initial_bounds(layer_name: str, kernel_shape: tuple[int, ...]) -> tuple[float, float]:
    """Half widths of the initial uniform distributions of a kernel and its bias, as published.

    sqrt(3 scale / mean of fan-in and fan-out), biases 0; scale 1, 0.1 for queries, keys and values, and 0 for the last
    layer of each block and of the network (published: 1e-10, which is 0 at float32's scale of everything else).
    """
    if layer_name.endswith(tuple(layers.ZERO_INIT_LAYERS)):  # that of each level's output has its level before it
        return 0.0, 0.0
    area, (fan_in, fan_out) = math.prod(kernel_shape[:-2]), kernel_shape[-2:]
    fused, scale = (3, 0.1) if layer_name == "qkv" else (1, 1.0)
    return math.sqrt(6 * scale / (area * (fan_in + fan_out // fused))), 0.0


def _shifted(x: jax.Array, offset: int, axis: int) -> jax.Array:
    """y[i] = x[i + offset] for offset -1 or 1, 0 where that is outside."""
    length = x.shape[axis]
    inside = jax.lax.slice_in_dim(x, max(offset, 0), length + min(offset, 0), axis=axis)
    pads = [(0, 0)] * x.ndim
    pads[axis] = (max(-offset, 0), max(offset, 0))
    return jnp.pad(inside, pads)


def fir_down2(x: jax.Array) -> jax.Array:
    """(B,H,W,C) -> (B,H/2,W/2,C): y_i = (x_{2i-1} + 3 x_{2i} + 3 x_{2i+1} + x_{2i+2}) / 8 along both axes."""
    for axis in AXES:
        pairs = x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
        even, odd = (jax.lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in range(2))
        x = 0.375 * (even + odd) + 0.125 * (_shifted(odd, -1, axis) + _shifted(even, 1, axis))
    return x


def fir_up2(x: jax.Array) -> jax.Array:
    """(B,H,W,C) -> (B,2H,2W,C): y_{2i} = (x_{i-1} + 3 x_i) / 4, y_{2i+1} = (3 x_i + x_{i+1}) / 4 along both axes."""
    for axis in AXES:
        pairs = [0.75 * x + 0.25 * _shifted(x, offset, axis) for offset in (-1, 1)]
        x = jnp.stack(pairs, axis=axis + 1).reshape(*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :])
    return x


def _filtered(x: jax.Array, pad: int, gain: float) -> jax.Array:
    """`FILTER` times `gain` along both axes of x with `pad` zeros at every edge: sizes change by 2 pad - 3."""
    for axis in AXES:
        pads = [(pad, pad) if a == axis else (0, 0) for a in range(x.ndim)]
        padded, length = jnp.pad(x, pads), x.shape[axis] + 2 * pad - 3
        taps = jnp.stack([jax.lax.slice_in_dim(padded, i, i + length, axis=axis) for i in range(4)], axis=-1)
        x = taps @ (gain * jnp.asarray(FILTER, x.dtype))
    return x


class FIRConv(nn.Module):
    """3x3 convolution to half ('down') or double ('up') size with the FIR filter before or after it.

    down: filter, then every second output of the convolution; up: convolution of the image with zeros between its
    pixels, then the filter times 4. (B,H,W,C) -> (B,H',W',features).
    """

    features: int
    resample: str
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.zeros, shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        x, numbers = x.astype(self.dtype), ("NHWC", "HWIO", "NHWC")
        if self.resample == "down":
            x = _filtered(x, 2, 1.0)
            return jax.lax.conv_general_dilated(x, kernel, (2, 2), "VALID", dimension_numbers=numbers) + bias
        spread = [(2, 2), (2, 2)]
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), spread, lhs_dilation=(2, 2), dimension_numbers=numbers)
        return _filtered(x, 1, 2.0) + bias


class FourierEmbedding(nn.Module):
    """(sin, cos)(2 pi w log sigma), w fixed random frequencies: (B,) noise levels -> (B,2*features) float32."""

    features: int

    @nn.compact
    def __call__(self, sigma_B):
        frequencies = self.param("frequencies", nn.initializers.zeros, (self.features,))
        phase = 2 * jnp.pi * jnp.log(sigma_B)[:, None] * jax.lax.stop_gradient(frequencies)
        return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)


def positional_embedding(t_B: jax.Array, features: int) -> jax.Array:
    """Sinusoids of t, sines first, frequencies from 1 to 1/10000 inclusive: (B,) -> (B,features), `features` even."""
    half = features // 2
    frequencies = jnp.exp(-math.log(10_000.0) / (half - 1) * jnp.arange(half, dtype=jnp.float32))
    phase = t_B.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)


def group_norm(x: jax.Array, name: str) -> jax.Array:
    """Group normalisation with a quarter of the channels as groups, at most 32."""
    return layers.GroupNorm(EPSILON, max(1, min(x.shape[-1] // 4, layers.MAX_GROUPS)), name=name)(x)


def joined(x: jax.Array, h: jax.Array, rescale: bool) -> jax.Array:
    """x + h, divided by sqrt(2) where `rescale`: then its variance is that of its parts."""
    return (x + h) / math.sqrt(2) if rescale else x + h


RESAMPLE = {
    True: {"": lambda x: x, "down": fir_down2, "up": fir_up2},
    False: {"": lambda x: x, "down": layers.avg_pool2, "up": layers.nearest_up2},
}


class ResBlock(nn.Module):
    """BigGAN's: norm, SiLU, resample, conv, plus the time; norm, SiLU, conv (zero at first); plus a resampled skip.

    (B,H,W,C), (B,E) -> (B,H',W',features); the skip has a 1x1 convolution unless shape and channels stay.
    """

    features: int
    resample: str = ""
    fir: bool = True
    rescale: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, embedding_BxE):
        resample = RESAMPLE[self.fir][self.resample]
        h = resample(nn.silu(group_norm(x, "in_norm")))
        h = layers.Conv3x3(self.features, self.dtype, name="in_conv")(h)
        h = h + layers.Linear(self.features, self.dtype, name="time")(nn.silu(embedding_BxE))[:, None, None]
        h = nn.silu(group_norm(h, "out_norm"))
        h = layers.Conv3x3(self.features, self.dtype, name="out_conv")(h)
        x = resample(x)
        if x.shape[-1] != self.features or self.resample:
            x = layers.Linear(self.features, self.dtype, name="skip")(x)
        return joined(x, h, self.rescale)


class AttentionBlock(nn.Module):
    """Residual self-attention of one head over all positions: (B,H,W,C) -> (B,H,W,C)."""

    rescale: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        b, h, w, c = x.shape
        qkv = layers.Linear(3 * c, self.dtype, name="qkv")(group_norm(x, "norm").reshape(b, h * w, c))
        out = layers.Linear(c, self.dtype, name="proj_out")(layers.self_attention(qkv, 1))
        return joined(x, out.reshape(b, h, w, c), self.rescale)
