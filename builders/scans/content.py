"""What of a scan has content: slices with signal, maps with support; and k-space that coil maps come from."""

import logging

import numpy as np

from msm.builders.raw import RawVolume
from msm.builders.raw.volume import coarser, crop_readout
from msm.builders.scans import steps
from msm.infra.errors import UserError

_EMPTY = 1e-10  # of the largest energy of a slice: rounding of float32
LEAST_NOISE = 1e-6  # noise / scale below that is rounding: nothing of a scanner


def signal(kspace: np.ndarray) -> np.ndarray:
    """(S,) bool of (S,C,H,W): which slices hold more than rounding. Raises UserError where none does."""
    energy = np.array([float(np.sum(np.abs(values).astype(np.float64) ** 2)) for values in kspace])
    if not energy.any():
        raise UserError("the slices that are asked for are 0 throughout; choose others by --slices")
    return energy > _EMPTY * energy.max()


def support(maps: np.ndarray) -> np.ndarray:
    """(S,) bool of coil maps (S,C,H,W): which slices have them anywhere. Raises UserError where none has."""
    found = np.array([bool(values.any()) for values in maps])
    if not found.any():
        raise UserError(
            "coil maps are 0 everywhere: the acquired centre of k-space is noise, or too small; try --maps lowres, or "
            "give a scan with maps or more central lines"
        )
    return found


def doubts(empty: list[int], noise_std: float) -> list[str]:
    """What a user must be told of a scan: the numbers of slices that hold nothing, and noise that no scanner has."""
    told = []
    if empty:
        told.append(f"{len(empty)} slices without content left out: {', '.join(map(str, empty))}")
    if noise_std < LEAST_NOISE:
        told.append(
            f"noise is {noise_std:.1e} of the scale, less than any scanner's: simulated, or its mask is unknown"
        )
    for line in told:
        logging.warning("%s", line)
    return told


def separate(
    raw: RawVolume, chosen: np.ndarray, shape: tuple[int, int], crop: str
) -> tuple[np.ndarray, np.ndarray] | None:
    """A separate calibration scan at the shape of the examples: k-space (S,C,H,W), mask (1,1,H,W); None without one."""
    if raw.calibration is None or raw.calibration_mask is None:
        return None
    kspace = raw.calibration[chosen]
    if crop == "resolution":
        return steps.fit(kspace, raw.calibration_mask[None], shape, crop)
    kspace = np.swapaxes(crop_readout(np.swapaxes(crop_readout(kspace, shape[0]), -1, -2), shape[1]), -1, -2)
    mask = raw.calibration_mask[0]
    for axis in (0, 1):
        mask = coarser(mask, axis, shape[axis])
    return kspace, mask[None, None]
