"""Where the pixels of a volume lie in the patient, in millimetres, as NIfTI and DICOM state it.

Patient coordinates are those of DICOM and ISMRMRD: towards the left, the back and the head (L, P, S). NIfTI's are
towards the right, the front and the head. A pixel is named by its centre; the middle of the field of view is the pixel
(H//2, W//2), the one that centred Fourier transforms leave in place.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_STRAIGHT = 1e-3  # of a slice step: how far centres may lie from a straight, even row of slices


@dataclasses.dataclass(frozen=True)
class Placement:
    """Position and orientation of S slices.

    Attributes:
      centres: (S,3) mm, of the middle of the field of view of every slice.
      down, along, through: (3,) unit vectors: from row to row, from column to column, through the slice.
    """

    centres: np.ndarray
    down: np.ndarray
    along: np.ndarray
    through: np.ndarray

    def corners(self, shape: tuple[int, int], pixel: Sequence[float]) -> np.ndarray:
        """(S,3) mm: the centre of the first pixel of every slice of `shape`; `pixel`: rows and columns in mm."""
        return self.centres - shape[0] // 2 * pixel[0] * self.down - shape[1] // 2 * pixel[1] * self.along

    def step(self, thickness: float) -> np.ndarray | None:
        """(3,) mm from slice to slice; None where slices do not lie in an even row. One slice: its thickness."""
        if len(self.centres) == 1:
            return (thickness or 1.0) * self.through
        steps = np.diff(self.centres, axis=0)
        mean = steps.mean(axis=0)
        length = float(np.linalg.norm(mean))
        even = length > 0 and np.abs(steps - mean).max() <= max(_STRAIGHT * length, 1e-3)
        return mean if even else None

    def affine(self, shape: tuple[int, int], pixel: Sequence[float]) -> np.ndarray | None:
        """(4,4) float64 of NIfTI for data with axes (column, row from the bottom, slice), to right, front, head in mm.

        `pixel`: rows, columns, thickness in mm. None where slices do not lie in an even row.
        """
        step = self.step(pixel[2])
        if step is None:
            return None
        last_row = self.corners(shape, pixel)[0] + (shape[0] - 1) * pixel[0] * self.down
        affine = np.eye(4)
        affine[:3] = np.stack([pixel[1] * self.along, -pixel[0] * self.down, step, last_row], axis=1)
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def placement_of(header: Mapping[str, Any], slices: Sequence[int]) -> Placement | None:
    """The placement of these slices of a raw file, from its header's 'position_mm' and 'directions'; None without."""
    if "position_mm" not in header or "directions" not in header:
        return None
    centres, axes = np.asarray(header["position_mm"], float)[list(slices)], np.asarray(header["directions"], float)
    return Placement(centres, *axes)
