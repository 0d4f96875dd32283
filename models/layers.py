"""Layers of the U-Net, NHWC: convolution, linear map, group normalisation, resampling, attention arithmetic.

They are written out rather than taken from flax for three reasons: the initial values are those of the published
PyTorch network, statistics stay float32 under bfloat16 compute, and each is the formulation that XLA runs fastest on
a CPU (flax.linen.GroupNorm takes four times as long).
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

# Layers of these names start at zero, so that a new network returns 0 and every block starts as the identity. The name
# is the mark because models/init.py sees parameter paths and nothing else.
ZERO_INIT_LAYERS = frozenset({"out_conv", "proj_out"})
MAX_GROUPS = 32


def uniform_bound(layer_name: str, fan_in: int) -> float:
    """Half width of the initial uniform distribution of a kernel and its bias: PyTorch's default, or 0."""
    return 0.0 if layer_name in ZERO_INIT_LAYERS else 1.0 / math.sqrt(fan_in)


def initial_bounds(layer_name: str, kernel_shape: tuple[int, ...]) -> tuple[float, float]:
    """`uniform_bound` of a kernel and of its bias."""
    bound = uniform_bound(layer_name, math.prod(kernel_shape[:-1]))
    return bound, bound


def _uniform(bound: float):
    return lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -bound, bound) if bound else jnp.zeros(shape)


def pad_to_unit(x: jax.Array, unit: int) -> jax.Array:
    """(B,H,W,C) with rows and columns mirrored on at the ends, up to multiples of `unit`; unchanged if they are."""
    missing = [-size % unit for size in x.shape[1:3]]
    return jnp.pad(x, [(0, 0), *((0, n) for n in missing), (0, 0)], mode="symmetric") if any(missing) else x


@jax.custom_vjp
def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3 convolution with zero padding: (B,H,W,C), (3,3,C,D) -> (B,H,W,D).

    The gradient by x is written out as a convolution with the flipped kernel, its channels swapped in memory. JAX's own
    swaps them by name, which XLA's CPU backend has only plain code for inside loops, several times slower: there live
    the posterior samplers that differentiate the network. Reverse mode alone: `jax.jvp` is refused.
    """
    return _conv3x3(x, kernel)


def _conv3x3(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _conv3x3_forward(x, kernel):
    return _conv3x3(x, kernel), (x, kernel)


def _conv3x3_backward(saved, gradient):
    x, kernel = saved
    flipped = jnp.swapaxes(jnp.flip(kernel, (0, 1)), 2, 3)
    (by_kernel,) = jax.vjp(lambda k: _conv3x3(x, k), kernel)[1](gradient)
    return _conv3x3(gradient, flipped), by_kernel


conv3x3.defvjp(_conv3x3_forward, _conv3x3_backward)


class Conv3x3(nn.Module):
    """3x3 convolution with zero padding: (B,H,W,C) -> (B,H,W,features), kernel (3,3,C,features) float32."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        fan_in = 9 * x.shape[-1]
        init = _uniform(uniform_bound(self.name or "", fan_in))
        kernel = self.param("kernel", init, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", init, (self.features,))
        x, kernel, bias = x.astype(self.dtype), kernel.astype(self.dtype), bias.astype(self.dtype)
        return conv3x3(x, kernel) + bias


class Linear(nn.Module):
    """Affine map of the last axis, C -> features, kernel (C,features) float32; serves as 1x1 convolution, too."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        fan_in = x.shape[-1]
        init = _uniform(uniform_bound(self.name or "", fan_in))
        kernel = self.param("kernel", init, (fan_in, self.features))
        bias = self.param("bias", init, (self.features,))
        return x.astype(self.dtype) @ kernel.astype(self.dtype) + bias.astype(self.dtype)


def num_groups(channels: int, most: int = MAX_GROUPS) -> int:
    """Returns the largest divisor of `channels` that is at most `most`: 32 for every published size, 24 for 48."""
    return max(g for g in range(1, min(channels, most) + 1) if channels % g == 0)


def _group_mean(per_channel_BxC: jax.Array, most: int) -> jax.Array:
    """Means over the channels of each of at most `most` groups, repeated for each channel: (B,C) -> (B,C)."""
    batch, channels = per_channel_BxC.shape
    grouped = per_channel_BxC.reshape(batch, num_groups(channels, most), -1)
    return jnp.broadcast_to(grouped.mean(-1, keepdims=True), grouped.shape).reshape(batch, channels)


class GroupNorm(nn.Module):
    """Group normalisation, optionally followed by `* (1 + scale) + shift` per example and channel (FiLM).

    Computes in float32 and returns x's dtype. Each statistic is a mean over positions (which keeps channels on vector
    lanes) followed by one over the few channels of a group, and both affine maps are one multiply-add per pixel.
    """

    epsilon: float = 1e-5
    most_groups: int = MAX_GROUPS

    @nn.compact
    def __call__(self, x_BxHxWxC, scale_BxC=None, shift_BxC=None):
        channels = x_BxHxWxC.shape[-1]
        weight = self.param("scale", lambda _, shape: jnp.ones(shape), (channels,))
        bias = self.param("bias", lambda _, shape: jnp.zeros(shape), (channels,))
        x = x_BxHxWxC.astype(jnp.float32)
        centred = x - _group_mean(x.mean((1, 2)), self.most_groups)[:, None, None, :]
        variance_BxC = _group_mean(jnp.square(centred).mean((1, 2)), self.most_groups)
        gain_BxC = jax.lax.rsqrt(variance_BxC + self.epsilon) * weight
        if scale_BxC is not None:
            gain_BxC = gain_BxC * (1 + scale_BxC)
            bias = bias * (1 + scale_BxC) + shift_BxC
        else:
            bias = bias[None]
        return (centred * gain_BxC[:, None, None, :] + bias[:, None, None, :]).astype(x_BxHxWxC.dtype)


def avg_pool2(x: jax.Array) -> jax.Array:
    """Mean over 2x2 blocks: (B,H,W,C) -> (B,H/2,W/2,C). As a reshape, which is far faster on CPU than a window."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def nearest_up2(x: jax.Array) -> jax.Array:
    """Repeats every pixel 2x2 times: (B,H,W,C) -> (B,2H,2W,C), as a broadcast rather than a gather."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def space_to_depth(x: jax.Array, p: int) -> jax.Array:
    """Stacks p x p blocks on the channels: (B,H,W,C) -> (B,H/p,W/p,p*p*C); row by row, channel fastest."""
    b, h, w, c = x.shape
    return x.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h // p, w // p, p * p * c)


def depth_to_space(x: jax.Array, p: int) -> jax.Array:
    """Inverse of `space_to_depth`: (B,H,W,p*p*C) -> (B,pH,pW,C)."""
    b, h, w, c = x.shape
    return x.reshape(b, h, w, p, p, c // (p * p)).transpose(0, 1, 3, 2, 4, 5).reshape(b, h * p, w * p, c // (p * p))


def timestep_embedding(t_B: jax.Array, dim: int, max_period: float = 10_000.0) -> jax.Array:
    """Sinusoids of t, cosines first: (B,) -> (B,dim) float32; t may be fractional. An odd `dim` ends in a zero."""
    half = dim // 2
    frequencies = jnp.exp(-math.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    phase = t_B.astype(jnp.float32)[:, None] * frequencies
    embedding = jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, dim % 2)))


def self_attention(qkv_BxNx3C: jax.Array, num_heads: int) -> jax.Array:
    """Softmax attention over N positions: (B,N,3C) -> (B,N,C); the softmax is float32.

    The channels are ordered head by head, and q, k, v within a head (the "legacy" order of the published network).
    Both q and k are scaled by channels^(-1/4), which keeps their product in range in half precision.
    """
    b, n, c3 = qkv_BxNx3C.shape
    qkv = qkv_BxNx3C.reshape(b, n, num_heads, 3, c3 // (3 * num_heads))
    q, k, v = qkv[:, :, :, 0], qkv[:, :, :, 1], qkv[:, :, :, 2]
    scale = q.shape[-1] ** -0.25
    logits = jnp.einsum("bnhc,bmhc->bhnm", q * scale, k * scale)
    weights = jax.nn.softmax(logits.astype(jnp.float32), axis=-1).astype(v.dtype)
    return jnp.einsum("bhnm,bmhc->bnhc", weights, v).reshape(b, n, c3 // 3)
