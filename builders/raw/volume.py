"""What every raw-data reader returns, the table of readers, and what they share."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from msm.builders.raw.ismrmrd_header import Header
from msm.infra.errors import UserError
from msm.infra.registry import Registry

MOST_COILS, LEAST_SIDE = 128, 8
_ZERO = 0.01  # more of the entries being 0 is no chance
_ROUNDING = (1e-4, 1e-5, 2e-6)  # of the root mean square: what a transform there and back leaves where 0 was
_SMALLEST, _LARGEST = 1e-25, 1e30  # of the largest magnitude: beyond, noise or energies leave float32
_GAP = 30  # measured values are so much larger than that


@dataclasses.dataclass(frozen=True)
class RawVolume:
    """One scan as the scanner or an archive hands it over, in the units of the file.

    Attributes:
      kspace: (slices,C,H,W) complex64, zero frequency at index (H//2, W//2), exactly 0 where `mask` is False; H is the
        readout, W the phase encoding.
      mask: bool, (1,1,W) for lines acquired over the full readout, else (1,H,W); the same for all slices.
      noise: (C,N) complex64 samples of a scan without signal, or None.
      header: what else the file says: plain numbers and texts by name. The program reads 'patient_id', 'patient_name',
        'fov_mm', (rows, columns, slice thickness) of the image of `kspace` in mm, 'slices', the scanner's numbers of
        the slices, 'position_mm', (slices,3), where the middle of each lies in the patient (towards left, back, head),
        and 'directions', (3,3), unit vectors there down the rows, along the columns and through the slices.
      maps: (slices,C,H,W) complex64 coil maps that the file holds, or None.
      calibration: (slices,C,H,W) complex64 of a separate calibration scan of the same field of view, from which coil
        maps come, or None; calibration_mask: (1,H,W) bool, its entries.
    """

    kspace: np.ndarray
    mask: np.ndarray
    noise: np.ndarray | None = None
    header: dict[str, Any] = dataclasses.field(default_factory=dict)
    maps: np.ndarray | None = None
    calibration: np.ndarray | None = None
    calibration_mask: np.ndarray | None = None


RAW_READERS: Registry[Callable[..., RawVolume]] = Registry("raw-data format")


def raw_volume(
    path: Path,
    kspace: np.ndarray,
    mask: np.ndarray | None = None,
    noise: np.ndarray | None = None,
    header: dict[str, Any] | None = None,
    maps: np.ndarray | None = None,
) -> RawVolume:
    """Checks what a reader found and makes it a `RawVolume`, whose mask is that of `find_acquired`.

    Args:
      path: the file, for messages.
      kspace: (slices,C,H,W) complex, any precision.
      mask: bool (W,) or (H,W) as the file states it, with any axes of length 1 before, or None.
      noise, header, maps: see `RawVolume`.

    Raises UserError for k-space that is not finite, 0 throughout or of a shape that no scan has, for a mask or maps of
    another size, and for slices of different masks.
    """
    check_shape(f"{path}:", kspace.shape)
    bad = [i for i, values in enumerate(kspace) if not np.isfinite(values).all()]
    if bad:
        where = f"{len(bad)} of {len(kspace)} slices, {bad[0]} first"
        raise UserError(
            f"{path}: k-space holds values that are not finite in {where}; set what was not acquired to 0, leave "
            "out the rest, or export it again"
        )
    largest = max(float(np.max(np.abs(values))) for values in kspace)
    if largest and not _SMALLEST < largest < _LARGEST:
        raise UserError(f"{path}: k-space has values up to {largest:.1e}, beyond single precision: multiply it by a "
                        "constant")  # fmt: skip
    kspace = np.asarray(kspace, np.complex64)
    height, width = kspace.shape[2:]
    if mask is not None:
        stated = np.asarray(mask, bool)
        ones = next((axis for axis, n in enumerate(stated.shape[:-1]) if n > 1), stated.ndim - 1)
        mask = stated.reshape(stated.shape[ones:])
        if mask.shape not in ((width,), (height, width)):
            raise UserError(f"{path}: the mask has shape {stated.shape}, k-space {height} rows and {width} columns")
    if maps is not None and (maps.shape != kspace.shape or not np.isfinite(maps).all()):
        raise UserError(f"{path}: coil maps {maps.shape} must be finite and have the shape of k-space, {kspace.shape}")
    acquired = find_acquired(path, kspace, mask)
    return RawVolume(np.where(acquired, kspace, 0), acquired, noise, header or {}, maps)


def check_shape(what: str, shape: tuple[int, ...]) -> None:
    """Raises UserError for a shape (slices,C,H,W) that no scan has: most often the axes are in another order."""
    slices, coils, height, width = shape
    if slices < 1 or not 1 <= coils <= MOST_COILS or min(height, width) < LEAST_SIDE:
        raise UserError(
            f"{what} {slices} slices, {coils} coils, {height} rows and {width} columns are no scan (1 to {MOST_COILS} "
            f"coils, {LEAST_SIDE} rows and columns or more): check the order of the axes"
        )


def find_acquired(path: Path, kspace: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Which entries were acquired: bool (1,1,W) for lines over the full readout, else (1,H,W).

    What was not acquired is 0 in every slice and coil, but for rounding (`rounding_of`); but so may be a value that was
    measured, without noise or in integers. So lines (columns) and rows that are 0 throughout were not acquired,
    whatever the mask says: archives pad k-space with such lines, and partial echoes with such rows. Of the other
    entries the stated `mask` is believed. Without one they all count as measured, if at most 1 % of them are 0, else
    only those that are not 0: a 2-D mask, or an ellipse that was filled up with zeros.

    A slice that is 0 throughout says nothing. Raises UserError where all are, or where one lacks a line or a row that
    others have, or, without `mask`, more than 1 % of their entries: then there is no one mask.

    Args:
      path: the file, for messages.
      kspace: (slices,C,H,W) complex.
      mask: bool (W,) or (H,W), or None.
    """
    nonzero = np.any(np.abs(kspace) > rounding_of(kspace), axis=1)
    if not nonzero.any():
        raise UserError(f"{path}: k-space is 0 throughout; choose another file")
    stated = np.broadcast_to(True if mask is None else mask, kspace.shape[2:])
    numbers = np.flatnonzero(nonzero.any(axis=(1, 2)))
    nonzero = nonzero[numbers] & stated
    found = nonzero.any(axis=0)
    if not found.any():
        raise UserError(f"{path}: k-space is 0 throughout where its mask keeps it; check the mask")
    acquired = found.any(axis=0) & found.any(axis=1, keepdims=True) & stated
    if mask is None and (acquired & ~found).sum() > _ZERO * acquired.sum():
        acquired = found
    for number, entries in zip(numbers, nonzero, strict=True):
        lacking = (found & ~entries).sum()
        differs = any((entries.any(axis) != acquired.any(axis)).any() for axis in (0, 1))
        if differs or (mask is None and lacking > _ZERO * acquired.sum()):
            raise UserError(
                f"{path}: the slices have different masks (slice {number} lacks {lacking} of {acquired.sum()} entries "
                "of the others); split the file into files of one mask each"
            )
    return acquired[None, :1] if (acquired == acquired[:1]).all() else acquired[None]


def with_pixels(path: Path, volume: RawVolume, pixel_mm: str = "", fov_mm: str = "") -> RawVolume:
    """The volume with the pixel size or the field of view that the user states in place of what its file says.

    Args:
      path: the file, for messages.
      volume: as it was read.
      pixel_mm: 'rows,columns' or 'rows,columns,thickness' of a pixel of the image of k-space in mm; one number for
        square pixels; '' for what the file says.
      fov_mm: the same of the whole image.

    Raises UserError for what is no such text, and where both are given.
    """
    if not pixel_mm and not fov_mm:
        return volume
    if pixel_mm and fov_mm:
        raise UserError("--pixel_mm and --fov_mm say the same: give one of them")
    flag, text = ("--pixel_mm", pixel_mm) if pixel_mm else ("--fov_mm", fov_mm)
    try:
        sizes = [float(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not 1 <= len(sizes) <= 3 or not all(0 < size < 1e5 for size in sizes):
        raise UserError(f"{flag} is {text!r}: give rows,columns or rows,columns,thickness in mm, as in 0.9,0.9,3")
    rows, columns = (sizes * 2)[:2] if len(sizes) == 1 else sizes[:2]
    told = volume.header.get("fov_mm", (0, 0, 0))
    height, width = volume.kspace.shape[2:] if pixel_mm else (1, 1)
    thickness = sizes[2] if len(sizes) == 3 else told[2]
    return dataclasses.replace(volume, header=volume.header | {"fov_mm": (rows * height, columns * width, thickness)})


def rounding_of(kspace: np.ndarray) -> float:
    """The magnitude up to which entries of (S,C,H,W) count as 0.

    Where an image was transformed back to k-space, or a program wrote small numbers for 0, what was not acquired is
    1e-7 of the rest. It is told by a gap: few values lie between it and 30 times as much. Without a gap, as in smooth
    simulated data that fall off by degrees, only 0 is 0.
    """
    largest = np.max(np.abs(kspace), axis=(0, 1)).astype(np.float64)
    size = np.sqrt(np.mean(np.abs(kspace).astype(np.float64) ** 2))
    for share in _ROUNDING:
        limit = share * size
        below = int(np.sum(largest <= limit))
        between = int(np.sum((largest > limit) & (largest <= _GAP * limit)))
        if below and between <= _ZERO * below and np.any(largest[largest <= limit] > 0):
            return float(limit)
    return 0.0


def without_oversampling(path: Path, volume: RawVolume, header: Header) -> RawVolume:
    """Removes the rows of the image outside the reconstruction's field of view; tells that of the rest, 'fov_mm'.

    Where other entries than whole lines are missing, all rows are kept: cropping the image would smear the gaps.
    """
    lines = volume.mask.shape[-2] == 1
    kspace, apart, known = volume.kspace, volume.calibration, volume.calibration_mask
    if lines:
        rows = header.rows_without_oversampling(kspace.shape[2])
        kspace = crop_readout(kspace, rows)
        check_shape(f"{path}: without the oversampling that its header tells,", kspace.shape)
        if apart is not None and known is not None:
            apart, known = crop_readout(apart, rows), coarser(known[0], 0, rows)[None]
    facts = volume.header | header.fov(lines)
    return dataclasses.replace(volume, kspace=kspace, header=facts, calibration=apart, calibration_mask=known)


def coarser(mask: np.ndarray, axis: int, size: int) -> np.ndarray:
    """(H,W) bool of a block around the centre, after `crop_readout` to `size` along an axis: as wide a share of it."""
    length = mask.shape[axis]
    known = np.flatnonzero(mask.any(axis=1 - axis)) - length // 2
    low, high = (int(np.trunc(n * size / length)) for n in (known.min(), known.max()))
    place = np.arange(size) - size // 2
    inside = (place >= low) & (place <= high)
    others = mask.any(axis=axis)
    return np.outer(inside, others) if axis == 0 else np.outer(others, inside)


def crop_readout(kspace: np.ndarray, rows: int) -> np.ndarray:
    """Keeps the `rows` central rows of the image: removes readout oversampling. (...,H,W) -> (...,rows,W) complex64.

    Orthonormal transforms along the readout, so that image values and the noise per entry keep their size. The
    receiver's filter made the outer rows of an oversampled readout empty; nothing that was encoded is lost.
    """
    height = kspace.shape[-2]
    if rows == height:
        return kspace
    start = height // 2 - rows // 2
    image = np.fft.ifft(np.fft.ifftshift(kspace, axes=-2), axis=-2, norm="ortho")
    image = np.fft.fftshift(image, axes=-2)[..., start : start + rows, :]
    cropped = np.fft.fft(np.fft.ifftshift(image, axes=-2), axis=-2, norm="ortho")
    return np.fft.fftshift(cropped, axes=-2).astype(np.complex64)
