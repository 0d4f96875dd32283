"""Levels of a U-Net: their feature maps, the image sizes that they divide, and which of them have attention."""

from collections.abc import Collection

from ml_collections import ConfigDict

from msm.operators.shape import Size, rows_and_columns


def size_unit(patch_size: int, num_levels: int) -> int:
    """Networks pad rows and columns of images to multiples of this: patch_size * 2^(levels-1)."""
    return patch_size * 2 ** (num_levels - 1)


def level_sizes(image_size: Size, patch_size: int, num_levels: int) -> tuple[int, ...]:
    """Feature-map size of each level along the longer side of an image, which is padded to the `size_unit`.

    It is that side over patch_size, then half of it, and so on.
    """
    unit = size_unit(patch_size, num_levels)
    padded = -(-max(rows_and_columns(image_size)) // unit) * unit
    return tuple(padded // patch_size // 2**level for level in range(num_levels))


def attention_levels(model: ConfigDict, image_size: Size) -> tuple[int, ...]:
    """The levels, 0 the finest, whose feature maps have one of `model.attention_resolutions` along the longer side."""
    sizes = level_sizes(image_size, model.patch_size, len(model.channel_mult))
    return tuple(level for level, size in enumerate(sizes) if size in tuple(model.attention_resolutions))


def attention_at(
    image_size: Size, model: ConfigDict, resolutions: Collection[int], trained_size: Size
) -> tuple[int, ...]:
    """The attention resolutions at `image_size` of a network trained at `trained_size` with `resolutions`.

    They are the feature-map sizes that the same levels have there: (8,) of 64 pixels is (12,) of 96. Sizes that no
    level has are left out. Of `model` only the levels are read.
    """
    sizes = (level_sizes(size, model.patch_size, len(model.channel_mult)) for size in (trained_size, image_size))
    return tuple(new for old, new in zip(*sizes, strict=True) if old in resolutions)
