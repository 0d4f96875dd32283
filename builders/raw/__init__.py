"""Readers of raw k-space: fastMRI, ISMRMRD, BART, plain arrays and images with maps, all to one `RawVolume`."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import h5py

from msm.builders.border import reason
from msm.builders.raw import arrays, bart, fastmri, hdf5, images_maps, ismrmrd  # noqa: F401 (they register themselves)
from msm.builders.raw.volume import RAW_READERS, RawVolume
from msm.infra.errors import UserError

__all__ = ["DAMAGED", "RAW_READERS", "RawVolume", "detect_format", "read_raw"]

# What h5py and numpy raise for a file that was cut or changed.
DAMAGED = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def read_raw(path: str | Path, name: str = "", array: Mapping[str, str] | None = None, **settings) -> RawVolume:
    """Reads a file by the reader called `name`, or by the one that `detect_format` finds.

    `settings` are those of the reader, and so is `array` where the file holds plain arrays, which need `axes`. Raises
    UserError for what cannot be read, damaged files among it.
    """
    path = Path(path)
    try:
        return _read(path, name, array or {}, settings)
    except UserError:
        raise
    except Exception as error:  # the border: libraries raise what they like for a damaged file, MemoryError among it
        raise UserError(f"{path} {reason(error)}; copy it again") from error


def _read(path: Path, name: str, array: Mapping[str, str], settings: dict) -> RawVolume:
    if path.is_dir():
        raise UserError(f"{path} is a folder: name one file")
    name = name or detect_format(path)
    reader = RAW_READERS[name]
    settings |= array if name == "array" else {}
    if name != "bart" and not path.is_file():
        raise UserError(f"{path} does not exist; check the path")
    if name == "array" and "axes" not in settings:
        unlike = _unlike(path)
        raise UserError(
            f"{path} holds plain arrays{unlike}: state their axes, e.g. --axes schw (slice, coil, row, column; in "
            "Python array={'axes': 'schw'})"
        )
    if name in ("fastmri", "ismrmrd", "images_maps") and not h5py.is_hdf5(path):
        raise UserError(f"{path} is no HDF5 file, as {name} data are; check the path and the format")
    return reader(path, **settings)


def _unlike(path: Path) -> str:
    """Why an HDF5 file is not taken for one of a format that has a layout; '' for other files."""
    if not h5py.is_hdf5(path):
        return ""
    return " (neither fastMRI's `ismrmrd_header` beside `kspace` nor a group with ISMRMRD's `xml` are in it)"


def detect_format(path: Path) -> str:
    """The name of the reader for a file, by suffix and, for HDF5, by content. Raises UserError if there is none."""
    suffix = path.suffix.lower()
    if suffix in (".cfl", ".hdr"):
        return "bart"
    if not path.is_file():
        raise UserError(f"{path} does not exist; check the path")
    if suffix in (".npy", ".npz"):
        return "array"
    if not h5py.is_hdf5(path):
        raise UserError(f"{path} is no .npy, .npz, .cfl, .hdr or HDF5 file; convert it to one of them")
    with h5py.File(path) as file:
        if hdf5.find(file, "kspace") is not None and hdf5.find(file, "ismrmrd_header") is not None:
            return "fastmri"
        if hdf5.find(file, "x_hat") is not None:
            return "images_maps"
        return "ismrmrd" if ismrmrd.find_groups(file) else "array"
