"""What of a raw file is taken: frames of a series in time, one of several repetitions, all coils but some."""

import dataclasses

import numpy as np

from msm.builders.raw.volume import RawVolume
from msm.infra.errors import UserError


def frames_of(text: str, count: int, what: str = "frames") -> list[int]:
    """Numbers that 'START:STOP' or 'N' chooses of `count` frames; '' only where there is one.

    Raises UserError, without the name of the file, for a choice that is none.
    """
    if not text:
        if count > 1:
            raise UserError(f"holds {count} {what}: --frames : takes all as slices, --frames 0 the first")
        return [0] * count
    try:
        ends = [int(part) if part else None for part in text.split(":")]
        chosen = list(range(count))[slice(*ends)] if len(ends) == 2 else [range(count)[int(text)]]
    except (ValueError, TypeError, IndexError):
        chosen = []
    if not chosen:
        raise UserError(f"--frames {text} takes none of the {count} {what}: give N or START:STOP, e.g. 0:10")
    return chosen


def without_coils(raw: RawVolume, text: str) -> RawVolume:
    """The scan without the coils that '0,3' names. Raises UserError for other numbers, and where none is left."""
    count = raw.kspace.shape[1]
    try:
        dropped = {int(part) for part in text.split(",") if part.strip()}
    except ValueError:
        dropped = {-1}
    if not dropped <= set(range(count)) or len(dropped) == count:
        raise UserError(f"--leave_out_coils {text}: give numbers from 0 to {count - 1} with commas, not all of them")
    if not dropped:
        return raw
    kept = [i for i in range(count) if i not in dropped]

    def of(array: np.ndarray | None, axis: int) -> np.ndarray | None:
        return None if array is None else np.take(array, kept, axis=axis)

    return dataclasses.replace(
        raw,
        kspace=raw.kspace[:, kept],
        noise=of(raw.noise, 0),
        maps=of(raw.maps, 1),
        calibration=of(raw.calibration, 1),
    )
