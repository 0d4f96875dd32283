"""The ADM U-Net (Dhariwal & Nichol 2021, arXiv 2105.05233) as MSM uses it, with an optional space-to-depth stem.

With `patch_size` 1 it equals the published PyTorch network number for number: scale-shift normalisation, down- and
upsampling inside residual blocks, "legacy" attention order, no dropout. Blocks carry that network's names
(`input_blocks_3_0` is `input_blocks.3.0`), so a state dict maps over by exchange/torch_import.py.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from msm.infra.errors import UserError
from msm.infra.registry import nearest
from msm.models import layers
from msm.models.levels import attention_levels, size_unit
from msm.models.registry import MODELS

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
RESAMPLE = {"": lambda x: x, "down": layers.avg_pool2, "up": layers.nearest_up2}


class ResBlock(nn.Module):
    """norm, SiLU, resample, conv; norm with scale and shift from the time, SiLU, conv (zero at first); plus a skip.

    (B,H,W,C), (B,E) -> (B,H',W',features), where `resample` is "" (same size), "down" (half) or "up" (double).
    """

    features: int
    resample: str = ""
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, embedding_BxE):
        resample = RESAMPLE[self.resample]
        h = resample(nn.silu(layers.GroupNorm(name="in_norm")(x)))
        h = layers.Conv3x3(self.features, self.dtype, name="in_conv")(h)
        film = layers.Linear(2 * self.features, name="time")(nn.silu(embedding_BxE))
        scale, shift = jnp.split(film, 2, axis=-1)
        h = nn.silu(layers.GroupNorm(name="out_norm")(h, scale, shift))
        h = layers.Conv3x3(self.features, self.dtype, name="out_conv")(h)
        x = resample(x)
        if x.shape[-1] != self.features:
            x = layers.Linear(self.features, self.dtype, name="skip")(x)
        return x + h


class AttentionBlock(nn.Module):
    """Residual self-attention over all positions: (B,H,W,C) -> (B,H,W,C). `head_channels` -1: use `num_heads`."""

    num_heads: int
    head_channels: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        b, h, w, c = x.shape
        heads = self.num_heads if self.head_channels == -1 else c // self.head_channels
        if heads < 1 or c % heads or (self.head_channels != -1 and c % self.head_channels):
            raise UserError(
                f"attention over {c} channels does not split into heads (model.num_heads={self.num_heads}, "
                f"model.num_head_channels={self.head_channels}): choose a divisor of {c}"
            )
        y = layers.GroupNorm(name="norm")(x).reshape(b, h * w, c)
        y = layers.self_attention(layers.Linear(3 * c, self.dtype, name="qkv")(y), heads)
        return x + layers.Linear(c, self.dtype, name="proj_out")(y).reshape(x.shape)


class ADM(nn.Module):
    """U-Net from (B,H,W,C) float32 and times (B,) float32 to (B,H,W,C) float32; any H and W, padded inside.

    Attributes:
      channels: real channels of the image, in and out.
      num_channels, channel_mult: level l has `num_channels * channel_mult[l]` channels and H / (patch_size 2^l) rows.
      attention_levels: levels with self-attention; the middle block always has it.
      num_heads, num_head_channels: heads of an attention, or -1 and the former: channels of a head.
      patch_size: space-to-depth factor before the first convolution, undone after the last; 1 is the published net.
      dtype: compute type. Parameters, normalisation statistics, softmax, time embedding and output layer are float32.
      remat: recompute each block in the backward pass.
    """

    channels: int
    num_channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    attention_levels: tuple[int, ...]
    num_heads: int
    num_head_channels: int
    patch_size: int = 1
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, t_B: jax.Array) -> jax.Array:
        rows, columns = x_BxHxWxC.shape[1:3]
        x_BxHxWxC = self._padded(x_BxHxWxC)
        embedding = layers.timestep_embedding(t_B, self.num_channels)
        embedding = layers.Linear(4 * self.num_channels, name="time_embed_0")(embedding)
        embedding = layers.Linear(4 * self.num_channels, name="time_embed_2")(nn.silu(embedding))

        h = layers.space_to_depth(x_BxHxWxC, self.patch_size)
        h = layers.Conv3x3(self.num_channels * self.channel_mult[0], self.dtype, name="input_blocks_0_0")(h)
        skips = [h]
        for level, mult in enumerate(self.channel_mult):
            for _ in range(self.num_res_blocks):
                name = f"input_blocks_{len(skips)}"
                h = self._blocks(h, embedding, name, mult, "ra" if level in self.attention_levels else "r")
                skips.append(h)
            if level + 1 < len(self.channel_mult):
                h = self._blocks(h, embedding, f"input_blocks_{len(skips)}", mult, "d")
                skips.append(h)

        h = self._blocks(h, embedding, "middle_block", self.channel_mult[-1], "rar")

        index = 0
        for level, mult in reversed(list(enumerate(self.channel_mult))):
            for i in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                kinds = "ra" if level in self.attention_levels else "r"
                kinds += "u" if level and i == self.num_res_blocks else ""
                h = self._blocks(h, embedding, f"output_blocks_{index}", mult, kinds)
                index += 1

        h = nn.silu(layers.GroupNorm(name="out_norm")(h.astype(jnp.float32)))
        h = layers.Conv3x3(self.channels * self.patch_size**2, name="out_conv")(h)
        return layers.depth_to_space(h, self.patch_size)[:, :rows, :columns]

    def _blocks(self, h, embedding, name: str, mult: int, kinds: str):
        """Applies blocks `name`_0, `name`_1, ...: r residual, d residual down, u residual up, a attention."""
        res_block = nn.remat(ResBlock) if self.remat else ResBlock
        attention = nn.remat(AttentionBlock) if self.remat else AttentionBlock
        for j, kind in enumerate(kinds):
            if kind == "a":
                h = attention(self.num_heads, self.num_head_channels, self.dtype, name=f"{name}_{j}")(h)
            else:
                resample = {"r": "", "d": "down", "u": "up"}[kind]
                block = res_block(self.num_channels * mult, resample, self.dtype, name=f"{name}_{j}")
                h = block(h, embedding)
        return h

    def _padded(self, x: jax.Array) -> jax.Array:
        if x.ndim != 4 or x.shape[-1] != self.channels:
            raise UserError(f"the network takes (batch, rows, columns, {self.channels}) images, not {x.shape}")
        return layers.pad_to_unit(x, size_unit(self.patch_size, len(self.channel_mult)))


@MODELS.register("adm")
def get_adm(config: ConfigDict, in_channels: int) -> ADM:
    """Builds the U-Net from `config.model` and `config.data.image_size`.

    `attention_resolutions` are sizes of feature maps, i.e. after space-to-depth: a 64-pixel image with patch_size 2 and
    three levels has feature maps of 32, 16 and 8. Sizes that no level has are ignored, as in the published code, so
    that one list may serve several image sizes. Images of other sizes than `image_size` have attention at the same
    levels; a config of another size needs the list of `models.levels.attention_at`.

    Raises:
      UserError: unknown dtype, or a number that is not positive.
    """
    model = config.model
    if model.dtype not in DTYPES:
        raise UserError(
            f"model.dtype {model.dtype!r} is unknown{nearest(model.dtype, DTYPES)} (known: {', '.join(DTYPES)})"
        )
    for key in ("num_channels", "num_res_blocks", "num_heads", "patch_size"):
        if getattr(model, key) < 1:
            raise UserError(f"model.{key} is {getattr(model, key)}: it must be at least 1")
    if not model.channel_mult or any(m < 1 for m in model.channel_mult):
        raise UserError(f"model.channel_mult is {tuple(model.channel_mult)}: give one factor of at least 1 per level")
    return ADM(
        channels=in_channels,
        num_channels=model.num_channels,
        channel_mult=tuple(model.channel_mult),
        num_res_blocks=model.num_res_blocks,
        attention_levels=attention_levels(model, config.data.image_size),
        num_heads=model.num_heads,
        num_head_channels=model.num_head_channels,
        patch_size=model.patch_size,
        dtype=DTYPES[model.dtype],
        remat=model.remat,
    )
