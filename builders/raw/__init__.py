"""Readers of raw k-space: archives, ISMRMRD, BART, plain arrays, images with maps; all to one `RawVolume`."""

import inspect
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import h5py

from msm.builders.border import reason
from msm.builders.raw import (
    arrays,  # noqa: F401 (they register themselves)
    bart,  # noqa: F401
    calgary_campinas,  # noqa: F401
    cmrxrecon,  # noqa: F401
    fastmri,  # noqa: F401
    hdf5,
    images_maps,  # noqa: F401
    ismrmrd,
    skm_tea,  # noqa: F401
)
from msm.builders.raw.selection import without_coils
from msm.builders.raw.volume import RAW_READERS, RawVolume
from msm.infra.errors import UserError

__all__ = ["CONVERTERS", "DAMAGED", "RAW_READERS", "RawVolume", "detect_format", "read_raw"]

# Formats of scanners, by suffix, and the command of the ISMRMRD project that converts them.
CONVERTERS = {
    ".dat": "siemens_to_ismrmrd -f {} -o SCAN.h5 (twix files of several measurements: add -z N)",
    ".lab": "philips_to_ismrmrd -f {} -o SCAN.h5",
    ".7": "ge_to_ismrmrd -v {} -o SCAN.h5",
}
# What h5py and numpy raise for a file that was cut or changed.
DAMAGED = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def read_raw(
    path: str | Path, name: str = "", array: Mapping[str, str] | None = None, leave_out_coils: str = "", **settings
) -> RawVolume:
    """Reads a file by the reader called `name`, or by the one that `detect_format` finds.

    Args:
      path: the file.
      name: of the reader; '' for the one that the content tells.
      array: settings of the reader where the file holds plain arrays, which need `axes`.
      leave_out_coils: numbers of coils with commas, e.g. broken ones.
      settings: those of the reader.

    Raises UserError for what cannot be read, damaged files among it, and for a setting that the format does not have.
    """
    path = Path(path)
    try:
        return without_coils(_read(path, name, array or {}, settings), leave_out_coils)
    except UserError:
        raise
    except Exception as error:  # the border: libraries raise what they like for a damaged file, MemoryError among it
        raise UserError(f"{path} {reason(error)}; copy it again") from error


def _read(path: Path, name: str, array: Mapping[str, str], settings: dict) -> RawVolume:
    if path.is_dir():
        raise UserError(f"{path} is a folder: name one file")
    name = name or detect_format(path)
    reader = RAW_READERS[name]
    known = inspect.signature(reader).parameters
    settings |= {setting: value for setting, value in array.items() if name == "array" or setting == "key" in known}
    if unknown := [setting for setting in settings if setting not in known]:
        raise UserError(f"{path} is read as {name}, which has no --{unknown[0]}: leave it out or choose --format")
    if name != "bart" and not path.is_file():
        raise UserError(f"{path} does not exist; check the path")
    if name == "array" and "axes" not in settings:
        unlike = _unlike(path)
        raise UserError(
            f"{path} holds plain arrays{unlike}: state their axes, e.g. --axes schw (slice, coil, row, column; in "
            "Python array={'axes': 'schw'}), or the archive by --format, e.g. calgary_campinas"
        )
    if name in ("fastmri", "ismrmrd", "images_maps", "calgary_campinas", "skm_tea") and not h5py.is_hdf5(path):
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
    if suffix in CONVERTERS:
        raise UserError(f"{path} is a scanner's own format: convert it first, {CONVERTERS[suffix].format(path)}")
    if not path.is_file():
        raise UserError(f"{path} does not exist; check the path")
    if suffix in (".npy", ".npz"):
        return "array"
    if suffix == ".mat":
        return "cmrxrecon"
    if not h5py.is_hdf5(path):
        raise UserError(f"{path} is no .npy, .npz, .mat, .cfl, .hdr or HDF5 file; convert it to one of them")
    with h5py.File(path) as file:
        if hdf5.find(file, "kspace") is not None and hdf5.find(file, "ismrmrd_header") is not None:
            return "fastmri"
        if hdf5.find(file, "x_hat") is not None:
            return "images_maps"
        if hdf5.find(file, "maps") is not None and getattr(hdf5.find(file, "kspace"), "ndim", 0) == 5:
            return "skm_tea"
        return "ismrmrd" if ismrmrd.find_groups(file) else "array"
