"""Reads CT volumes as Hounsfield units: DICOM series, NIfTI, NRRD and npz files.

A volume is (N,H,W) int16, axial slices from feet to head, as radiologists look at them: the front of the patient on
top, the patient's left on the right side. Files say how their axes lie, and arrays are turned accordingly; npz files
say nothing and are taken to lie so.
"""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
from nibabel.filebasedimages import ImageFileError

from msm.infra.errors import UserError

DICOM = (".dcm", ".ima")
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
    if len(image.shape) != 3:
        raise UserError(f"has {len(image.shape)} axes instead of 3")
    return axial(image.get_fdata(dtype=np.float32), image.affine[:3, :3])


def read_nrrd(path: Path) -> np.ndarray:
    """Volume of a NRRD file with one scalar per voxel and a space of left or right, back or front, head."""
    values, header = nrrd.read(str(path))
    spaces = {
        "left-posterior-superior": _TO_RAS,
        "LPS": _TO_RAS,
        "right-anterior-superior": np.eye(3),
        "RAS": np.eye(3),
    }
    if values.ndim != 3 or header.get("space") not in spaces:
        raise UserError(f"has {values.ndim} axes and space {header.get('space')!r} instead of 3 and {sorted(spaces)}")
    return axial(values, spaces[header["space"]] @ np.asarray(header["space directions"], float).T)


def read_npz(path: Path) -> np.ndarray:
    """The only array of an npz file, (N,H,W) in Hounsfield units."""
    with np.load(path, allow_pickle=False) as arrays:
        if len(arrays.files) != 1 or arrays[arrays.files[0]].ndim != 3:
            raise UserError("must hold one array (slices, rows, columns)")
        values = arrays[arrays.files[0]]
    if not np.isfinite(values).all():
        raise UserError("has values that are not finite")
    return np.clip(np.rint(values), -32768, 32767).astype(np.int16)


_READERS = {".nii": read_nifti, ".nii.gz": read_nifti, ".nrrd": read_nrrd, ".npz": read_npz}
SUFFIXES = (*_READERS, *DICOM)
# What these readers raise for damaged files; pydicom has no decoder for some compressed pixels (RuntimeError and kin).
BROKEN = (
    UserError, OSError, EOFError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, NotImplementedError,
    zipfile.BadZipFile, zlib.error, nrrd.NRRDError, ImageFileError,
)  # fmt: skip


def read(path: Path) -> np.ndarray:
    """The volume in a NIfTI, NRRD or npz file; raises one of `BROKEN`."""
    suffix = next(s for s in _READERS if path.name.lower().endswith(s))
    volume = _READERS[suffix](path)
    if not len(volume):
        raise UserError("has no slice")
    return volume


def read_series(paths: list[Path]) -> dict[str, np.ndarray]:
    """Volumes of the DICOM files of one patient, by series: those of modality CT that have at least two axial slices.

    Slices are sorted along the normal of their plane; values are slope x stored + intercept. Localizers, reports and
    other modalities are passed over. Raises UserError for slices of one series that differ in size or orientation.
    """
    import pydicom

    series: dict[str, list[Any]] = {}
    for path in paths:
        header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        if header.get("Modality") == "CT" and "ImageOrientationPatient" in header and "Rows" in header:
            series.setdefault(str(header.SeriesInstanceUID), []).append((path, header))
    found = {}
    for uid, slices in sorted(series.items()):
        across, down = np.asarray(slices[0][1].ImageOrientationPatient, float).reshape(2, 3)
        normal = np.cross(across, down)
        if len(slices) < 2 or abs(normal[2]) < 0.9:
            continue
        first = (slices[0][1].Rows, slices[0][1].Columns, *np.round(np.append(across, down), 3))
        for path, header in slices:
            if (header.Rows, header.Columns, *np.round(np.asarray(header.ImageOrientationPatient, float), 3)) != first:
                raise UserError(f"{path.name} has another size or orientation than its series")
        slices.sort(key=lambda entry: float(np.dot(normal, np.asarray(entry[1].ImagePositionPatient, float))))
        planes = []
        for path, header in slices:
            stored = pydicom.dcmread(path, force=True).pixel_array.astype(np.float32)
            planes.append(stored * float(header.get("RescaleSlope", 1)) + float(header.get("RescaleIntercept", 0)))
        steps = np.stack([down, across, normal], axis=1)  # of rows, columns, slices
        found[uid] = axial(np.stack(planes, axis=-1), _TO_RAS @ steps)
    return found
