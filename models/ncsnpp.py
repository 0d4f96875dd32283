"""NCSN++ (Song et al. 2021, arXiv 2011.13456), the score network of the score-SDE papers, with a space-to-depth stem.

With `patch_size` 1 it equals the published Flax network number for number, without its dropout (0 in the published
medical models): BigGAN residual blocks, FIR resampling, sums rescaled by 1/sqrt(2), attention of one head, and the
image itself led down ('input_skip') and up ('output_skip') beside the features. exchange/flax_import.py maps the names.

'fourier' takes the noise level sigma as its time, 'positional' a timestep number. With `scale_by_sigma` the output is
divided by sigma, as a score is.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from msm.infra.errors import UserError
from msm.models import layers
from msm.models.adm import DTYPES
from msm.models.levels import attention_levels, size_unit
from msm.models.ncsnpp_layers import (
    RESAMPLE,
    AttentionBlock,
    FIRConv,
    FourierEmbedding,
    ResBlock,
    group_norm,
    initial_bounds,
    joined,
    positional_embedding,
)
from msm.models.registry import MODELS


class NCSNpp(nn.Module):
    """Score network: (B,H,W,channels) float32, (B,) -> (B,H,W,channels) float32.

    Attributes:
      channels: of the image.
      num_channels: base width.
      channel_mult: width of each level, finest first, in units of `num_channels`.
      num_res_blocks: residual blocks per level on the way down; one more on the way up.
      attention_levels: levels with attention, besides the middle.
      embedding: 'fourier' of log sigma or 'positional'.
      fourier_scale: standard deviation of the frequencies of 'fourier'.
      fir: resample with the (1,3,3,1) filter; False: mean of 2x2 pixels, and repeated ones.
      skip_rescale: divide sums by sqrt(2).
      progressive: how the output grows: 'output_skip' adds images of every level, 'residual' features, 'none'.
      progressive_input: what the image gives to every level: 'input_skip', 'residual' or 'none'.
      scale_by_sigma: divide the output by the time input, sigma.
      centered: images are in [-1,1]; False: in [0,1], the network maps them to [-1,1].
      patch_size: space-to-depth factor of the stem; 1 for none.
      dtype: compute dtype of convolutions and linear maps; parameters are float32.
      remat: recompute each block in the backward pass.
    """

    channels: int
    num_channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    attention_levels: tuple[int, ...]
    embedding: str = "fourier"
    fourier_scale: float = 16.0
    fir: bool = True
    skip_rescale: bool = True
    progressive: str = "output_skip"
    progressive_input: str = "input_skip"
    scale_by_sigma: bool = True
    centered: bool = True
    patch_size: int = 1
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    initial_bounds = staticmethod(initial_bounds)

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, t_B: jax.Array) -> jax.Array:
        rows, columns = x_BxHxWxC.shape[1:3]
        x_BxHxWxC = self._padded(x_BxHxWxC)
        image = layers.space_to_depth(x_BxHxWxC if self.centered else 2.0 * x_BxHxWxC - 1.0, self.patch_size)
        embedding = self._embed(t_B)
        h = layers.Conv3x3(self.num_channels, self.dtype, name="in_conv")(image)
        skips = [h]
        for level, mult in enumerate(self.channel_mult):
            for i in range(self.num_res_blocks):
                h = self._block(h, embedding, f"down_{level}_block_{i}", mult)
                h = self._attention(h, f"down_{level}_attention_{i}", level)
                skips.append(h)
            if level + 1 < len(self.channel_mult):
                h = self._block(h, embedding, f"down_{level}_resample", mult, "down")
                h, image = self._feed(h, image, level)
                skips.append(h)

        h = self._block(h, embedding, "middle_block_0", self.channel_mult[-1])
        h = self._attention(h, "middle_attention")
        h = self._block(h, embedding, "middle_block_1", self.channel_mult[-1])

        out = jnp.zeros(())
        for level, mult in reversed(list(enumerate(self.channel_mult))):
            for i in range(self.num_res_blocks + 1):
                h = self._block(jnp.concatenate([h, skips.pop()], axis=-1), embedding, f"up_{level}_block_{i}", mult)
            h = self._attention(h, f"up_{level}_attention", level)
            h, out = self._grow(h, out, level)
            if level:
                h = self._block(h, embedding, f"up_{level}_resample", mult, "up")
        if self.progressive != "output_skip":
            out = self._image(h, "out")
        out = layers.depth_to_space(out.astype(jnp.float32), self.patch_size)[:, :rows, :columns]
        return out / t_B[:, None, None, None] if self.scale_by_sigma else out

    def _embed(self, t_B):
        if self.embedding == "fourier":
            embedding = FourierEmbedding(self.num_channels, name="fourier")(t_B)
        else:
            embedding = positional_embedding(t_B, self.num_channels)
        embedding = layers.Linear(4 * self.num_channels, name="time_embed_0")(embedding)
        return layers.Linear(4 * self.num_channels, name="time_embed_1")(nn.silu(embedding))

    def _block(self, h, embedding, name: str, mult: int, resample: str = ""):
        block = nn.remat(ResBlock) if self.remat else ResBlock
        features = self.num_channels * mult if not resample else h.shape[-1]
        return block(features, resample, self.fir, self.skip_rescale, self.dtype, name=name)(h, embedding)

    def _attention(self, h, name: str, level: int | None = None):
        """Attention where `level` has it; without a level always."""
        if level is not None and level not in self.attention_levels:
            return h
        attention = nn.remat(AttentionBlock) if self.remat else AttentionBlock
        return attention(self.skip_rescale, self.dtype, name=name)(h)

    def _feed(self, h, image, level: int):
        """Gives h at the next level what the image is there; returns both."""
        if self.progressive_input == "input_skip":
            image = RESAMPLE[self.fir]["down"](image)
            return layers.Linear(h.shape[-1], self.dtype, name=f"down_{level}_input")(image) + h, image
        if self.progressive_input == "residual":
            image = FIRConv(h.shape[-1], "down", self.dtype, name=f"down_{level}_input")(image)
            h = image = joined(image, h, self.skip_rescale)
        return h, image

    def _grow(self, h, out, level: int):
        """Adds what h at this level says of the output; returns both."""
        first = level + 1 == len(self.channel_mult)
        if self.progressive == "output_skip":
            image = self._image(h, f"up_{level}_out")
            return h, image if first else RESAMPLE[self.fir]["up"](out) + image
        if self.progressive == "residual":
            if first:
                normed = nn.silu(group_norm(h, f"up_{level}_grow_norm"))
                return h, layers.Conv3x3(h.shape[-1], self.dtype, name=f"up_{level}_grow_conv")(normed)
            out = FIRConv(h.shape[-1], "up", self.dtype, name=f"up_{level}_grow_conv")(out)
            h = out = joined(out, h, self.skip_rescale)
        return h, out

    def _image(self, h, name: str):
        """norm, SiLU and a convolution to the channels of the image, which is zero at first."""
        h = nn.silu(group_norm(h.astype(jnp.float32), f"{name}_norm"))
        return layers.Conv3x3(self.channels * self.patch_size**2, name=f"{name}_conv")(h)

    def _padded(self, x: jax.Array) -> jax.Array:
        if x.ndim != 4 or x.shape[-1] != self.channels:
            raise UserError(f"the network takes (batch, rows, columns, {self.channels}) images, not {x.shape}")
        return layers.pad_to_unit(x, size_unit(self.patch_size, len(self.channel_mult)))


@MODELS.register("ncsnpp")
def get_ncsnpp(config: ConfigDict, in_channels: int) -> NCSNpp:
    """Builds the network from `config.model`, `config.model.ncsnpp` and `config.data.image_size`.

    `attention_resolutions` are sizes of feature maps, as for 'adm'.
    """
    model, own = config.model, config.model.ncsnpp
    return NCSNpp(
        channels=in_channels,
        num_channels=model.num_channels,
        channel_mult=tuple(model.channel_mult),
        num_res_blocks=model.num_res_blocks,
        attention_levels=attention_levels(model, config.data.image_size),
        patch_size=model.patch_size,
        dtype=DTYPES[model.dtype],
        remat=model.remat,
        **own.to_dict(),
    )
