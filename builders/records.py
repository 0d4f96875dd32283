"""Fields that the records of every multi-coil store are made of."""

import numpy as np
import tensorflow_datasets as tfds


def complex_tensor(*shape: int | None) -> tfds.features.Tensor:
    """complex64 of a shape, None for a length that differs; complex values survive the TF-free reader only as bytes."""
    return tfds.features.Tensor(shape=shape, dtype=np.complex64, encoding=tfds.features.Encoding.BYTES)


def scalar(dtype) -> tfds.features.Tensor:
    """A single number."""
    return tfds.features.Tensor(shape=(), dtype=dtype)
