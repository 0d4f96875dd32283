"""Reads CT volumes as Hounsfield units: DICOM series, NIfTI, NRRD and npz files.

A volume is (N,H,W) int16, axial slices from feet to head, as radiologists look at them: the front of the patient on
top, the patient's left on the right side. Files say how their axes lie, and arrays are turned accordingly; npz files
say nothing and are taken to lie so.
"""

import math
import os
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np

from msm.builders.border import check_size, reason
from msm.builders.ct import dicom
from msm.builders.ct.hounsfield import gate
from msm.builders.numpy_files import Archive
from msm.infra.errors import UserError

_TO_RAS = np.diag([-1.0, -1.0, 1.0])  # from DICOM's axes (left, back, head)
_SPACES = {"left-posterior-superior": _TO_RAS, "LPS": _TO_RAS, "right-anterior-superior": np.eye(3), "RAS": np.eye(3)}


def axial(values: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """(N,H,W) int16 of a volume (I,J,K) whose steps along its axes are the columns of `directions` (3,3).

    Directions in (right, front, head). Oblique volumes are not resampled: each axis counts as the nearest of the three.
    """
    affine = np.eye(4)
    affine[:3, :3] = directions
    turned = nibabel.orientations.apply_orientation(
        values,
        nibabel.orientations.ornt_transform(
            nibabel.orientations.io_orientation(affine), nibabel.orientations.axcodes2ornt(("L", "P", "S"))
        ),
    )
    return np.ascontiguousarray(np.clip(np.rint(turned), -32768, 32767).astype(np.int16).transpose(2, 1, 0))


def read_nifti(path: Path) -> np.ndarray:
    """Volume of a NIfTI file, scaled as its header says."""
    image: Any = nibabel.load(path)
    shape = tuple(image.shape)
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        raise UserError(f"has the shape {shape} instead of one volume of 3 axes: save each volume as a file")
    dtype = image.get_data_dtype()
    if dtype.kind not in "iuf":
        raise UserError(f"holds {dtype} values, which are no Hounsfield units: convert it to grey values")
    if not (getattr(image, "header", None) and any(image.header.get(name, 0) for name in ("sform_code", "qform_code"))):
        raise UserError("does not say how its axes lie (sform and qform codes are 0): save it with its orientation")
    count = math.prod(shape)
    check_size("the volume", 4 * count, 4)
    there = image.file_map["image"].filename or str(path)
    most = os.path.getsize(there) * (_MOST_PACKED if str(there).lower().endswith(".gz") else 1)
    if count * dtype.itemsize > most:
        raise UserError(f"is shorter than its shape {shape} says: it was cut; copy it again")
    values = image.get_fdata(dtype=np.float32).reshape(shape[:3])
    return axial(gate(values), image.affine[:3, :3])


def read_nrrd(path: Path) -> np.ndarray:
    """Volume of a NRRD file with one scalar per voxel and a space of left or right, back or front, head."""
    with path.open("rb") as file:
        header = nrrd.read_header(file)
        if {"data file", "datafile"} & set(header):
            raise UserError("has its values in another file (detached header), which is not followed: save it as one")
        sizes = [int(n) for n in header.get("sizes", ())]
        if not sizes or min(sizes) < 1:
            raise UserError(f"has sizes {sizes}, which are none: save it again")
        check_size("the volume", 4 * math.prod(sizes), 8)
        values = nrrd.read_data(header, file, str(path))
    if values.ndim != 3 or header.get("space") not in _SPACES:
        raise UserError(f"has {values.ndim} axes and space {header.get('space')!r} instead of 3 and {sorted(_SPACES)}")
    directions = np.asarray(header.get("space directions"), float)
    if directions.shape != (3, 3) or not np.isfinite(directions).all() or not np.linalg.det(directions):
        raise UserError("does not say how its axes lie (space directions): save it with its orientation")
    return axial(gate(values), _SPACES[header["space"]] @ directions.T)


def read_npz(path: Path) -> np.ndarray:
    """The only array of an npz file, (N,H,W) in Hounsfield units."""
    with Archive(path) as arrays:
        if len(arrays.names) != 1 or (values := arrays[arrays.names[0]]).ndim != 3:
            raise UserError("must hold one array (slices, rows, columns)")
    if values.dtype.kind not in "iufb":
        raise UserError(f"holds {values.dtype} values, which are no Hounsfield units: convert it to grey values")
    return np.clip(np.rint(gate(values)), -32768, 32767).astype(np.int16)


_READERS = {".nii": read_nifti, ".nii.gz": read_nifti, ".img": read_nifti, ".nrrd": read_nrrd, ".npz": read_npz}
SUFFIXES = (*_READERS, *dicom.SUFFIXES)
_MOST_PACKED = 1100  # times that gzip can shrink anything


def read(path: Path) -> np.ndarray:
    """The volume in a NIfTI, NRRD or npz file. Raises UserError for whatever is wrong with it."""
    suffix = next(s for s in _READERS if path.name.lower().endswith(s))
    try:
        volume = _READERS[suffix](path)
    except UserError:
        raise
    except Exception as error:  # three libraries raise what they like for a damaged file, MemoryError among it
        raise UserError(reason(error)) from error
    if not len(volume):
        raise UserError("has no slice")
    return volume


def read_series(paths: list[Path]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(Volumes by name, why others and single slices were left out) of a patient's DICOM files: `dicom.read_series`."""
    series, left_out = dicom.read_series(paths)
    found = {}
    for name, (values, steps) in series.items():
        try:
            found[name] = axial(gate(values), _TO_RAS @ steps)
        except UserError as error:
            left_out[name] = str(error)
    return found, left_out
