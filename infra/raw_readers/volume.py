"""What every raw-data reader returns, the table of readers, and what they share."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from infra.errors import UserError
from registry import Registry


@dataclasses.dataclass(frozen=True)
class RawVolume:
    """One scan as the scanner or an archive hands it over, in the units of the file.

    Attributes:
      kspace: (slices,C,H,W) complex64, zero frequency at index (H//2, W//2), exactly 0 where `mask` is False; H is the
        readout, W the phase encoding.
      mask: bool, (1,1,W) for lines acquired over the full readout, else (1,H,W); the same for all slices.
      noise: (C,N) complex64 samples of a scan without signal, or None.
      header: what else the file says: plain numbers and texts by name. The program reads 'patient_id', and 'fov_mm',
        (rows, columns, slice thickness) of the image of `kspace` in mm.
      maps: (slices,C,H,W) complex64 coil maps that the file holds, or None.
    """

    kspace: np.ndarray
    mask: np.ndarray
    noise: np.ndarray | None = None
    header: dict[str, Any] = dataclasses.field(default_factory=dict)
    maps: np.ndarray | None = None


RAW_READERS: Registry[Callable[..., RawVolume]] = Registry("raw-data format")


def raw_volume(
    path: Path,
    kspace: np.ndarray,
    mask: np.ndarray | None = None,
    noise: np.ndarray | None = None,
    header: dict[str, Any] | None = None,
    maps: np.ndarray | None = None,
) -> RawVolume:
    """Checks what a reader found and makes it a `RawVolume`.

    A line (column of k-space) that is exactly 0 over all slices, coils and rows was not acquired, whatever the file's
    mask says: archives pad k-space with such lines. Without `mask`, all other lines were.

    Args:
      path: the file, for messages.
      kspace: (slices,C,H,W) complex, any precision.
      mask: bool (W,) or (H,W) as the file states it, or None.
      noise, header, maps: see `RawVolume`.

    Raises UserError for k-space that is empty, not finite or 0 throughout, or for a mask or maps of another size.
    """
    if 0 in kspace.shape:
        raise UserError(f"{path}: k-space has shape {kspace.shape}, so it is empty")
    kspace = np.asarray(kspace, np.complex64)
    if not np.isfinite(kspace).all():
        raise UserError(f"{path}: k-space holds values that are not finite; export it again")
    height, width = kspace.shape[2:]
    acquired = np.any(kspace != 0, axis=(0, 1, 2))
    if not acquired.any():
        raise UserError(f"{path}: k-space is 0 throughout; choose another file")
    if mask is not None and mask.shape not in ((width,), (height, width)):
        raise UserError(f"{path}: the mask has shape {mask.shape}, k-space {height} rows and {width} columns")
    if maps is not None and (maps.shape != kspace.shape or not np.isfinite(maps).all()):
        raise UserError(f"{path}: coil maps {maps.shape} must be finite and have the shape of k-space, {kspace.shape}")
    acquired = acquired if mask is None else acquired & np.asarray(mask, bool)
    acquired = acquired.reshape(1, -1, width)
    if (acquired == acquired[:, :1]).all():
        acquired = acquired[:, :1]
    return RawVolume(np.where(acquired, kspace, 0), acquired, noise, header or {}, maps)


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
