"""The gate that every CT volume passes, whatever file it comes from: are these Hounsfield units?

A file can be well-formed and hold something else: stored values without the rescale, a display window, another scale,
padding that looks like bone. Air and tissue are in every CT volume, and almost nothing is denser than 4000 HU.
"""

import numpy as np

from msm.infra.errors import UserError

AIR = -1000  # HU
_PADDING = -1100  # what is less dense than air is padding: scanners write -1024, -2000, -3024, -32768
_AIR_BELOW, _TISSUE_ABOVE, _DENSEST = -200, -150, 4000
_SHARE = 1e-3  # of the voxels that must be air, and tissue
_DENSE_SHARE = 0.02  # metal is less than that


def gate(values: np.ndarray) -> np.ndarray:
    """Checks a volume and sets its padding to air.

    Args:
      values: any shape, real numbers in what should be Hounsfield units.

    Returns:
      float32 of the same shape, `AIR` where values were below -1100 HU.

    Raises UserError, without the name of the file: for values that are no numbers or not finite, for a volume without
    air (below -200 HU) or tissue (above -150 HU) in a thousandth of its voxels, and for one with more than 2 % above
    4000 HU.
    """
    if values.dtype.kind not in "iuf":
        raise UserError(f"holds {values.dtype} values, which are no Hounsfield units: convert it to grey values")
    values = values.astype(np.float32)
    if bad := int(values.size - np.isfinite(values).sum()):
        raise UserError(f"has {bad} values that are not finite: set them to air, {AIR}, or convert it again")
    known = values >= _PADDING
    real = values[known]
    found = f"has values from {values.min():g} to {values.max():g}" if values.size else "has no value"
    mend = "apply the rescale slope and intercept, or leave it out"
    if not real.size or np.mean(real < _AIR_BELOW) < _SHARE:
        raise UserError(f"{found}, none of air (below {_AIR_BELOW} HU): no Hounsfield units; {mend}")
    if np.mean(real > _TISSUE_ABOVE) < _SHARE:
        raise UserError(f"{found}, none of tissue (above {_TISSUE_ABOVE} HU): no Hounsfield units; {mend}")
    if np.mean(real > _DENSEST) > _DENSE_SHARE:
        raise UserError(
            f"{found}, more than {_DENSE_SHARE:.0%} of them above {_DENSEST} HU: padding, or no Hounsfield units; "
            f"set padding to air, {AIR}"
        )
    return np.where(known, values, np.float32(AIR))


def empty_slices(volume: np.ndarray) -> list[int]:
    """Numbers of the slices of (N,H,W) without content: one value throughout, or nothing denser than -500 HU."""
    flat = volume.reshape(len(volume), -1)
    return np.flatnonzero((flat.max(axis=1) == flat.min(axis=1)) | (flat.max(axis=1) < AIR // 2)).tolist()
