"""What a scanner or camera hands over: the types that travel from the data store through training to the solvers."""

from typing import Any

import flax.struct

Array = Any  # jax.Array in compiled code, np.ndarray on the host

PADDING_ID = -1  # example_id of what only fills a batch up


@flax.struct.dataclass
class Measurement:
    """A batch of acquisitions. It has no clean image, so nothing that is given one can learn from clean images.

    Attributes:
      y: acquired values, exactly 0 where `mask` is False. Images (B,H,W,K) float32 in [-1,1] units;
        multi-coil MRI (B,C,H,W) complex64, centred orthonormal k-space, one scale factor per volume.
      mask: bool, broadcastable to `y`: (B,H,W,1) for images, (B,1,1,W) for MRI columns, (B,1,H,W) for 2-D MRI masks.
      maps: (B,C,H,W) complex64 coil sensitivity maps with sum_c |C_c|^2 = 1 on their support, 0 elsewhere; None for
        images.
      noise_std: (B,) float32, standard deviation of the noise per real scalar, in the units of `y`.
      example_id: (B,) int32, unique within the dataset; random numbers are keyed by it (PADDING_ID: padding).
    """

    y: Array
    mask: Array
    maps: Array | None
    noise_std: Array
    example_id: Array


@flax.struct.dataclass
class EvalExample:
    """A batch of acquisitions with their references. Only evaluation and report code may read `reference`.

    Attributes:
      measurement: see `Measurement`.
      reference: (B,H,W) complex64 for MRI, (B,H,W,K) float32 for images; None where there is none.
      volume: (B,) names of the volumes that the slices belong to, '' for none; None where the data have no volumes.
      slice: (B,) int32, the numbers that the slices have there, -1 for none; None where the data have no slices.
      unknown: (B,H,W,1) bool, pixels that the reference says nothing about (metal); None where it says all.
    """

    measurement: Measurement
    reference: Array | None
    volume: Array | None = None
    slice: Array | None = None
    unknown: Array | None = None
