"""Reconstructed volumes in the formats that others read: npz, PNG, NIfTI (nibabel), DICOM (`reports/dicom.py`).

Arrays are (S,H,W): slices, rows from the top, columns. Files appear whole or not at all. Where the raw file tells where
its slices lie in the patient, NIfTI and DICOM say so; else no file claims an orientation.
"""

import dataclasses
import gzip
import hashlib
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from msm.infra.atomic import atomic_write_bytes, atomic_write_npz
from msm.infra.errors import UserError
from msm.reports import figures
from msm.reports.placement import Placement

NOTICE = "Research reconstruction by measurement score-based diffusion. Not for diagnosis."


@dataclasses.dataclass(frozen=True)
class Volume:
    """One reconstructed scan.

    Attributes:
      name: of the scan, part of file names.
      image: (S,H,W) complex64, mean of the samples, in the units of the raw file's k-space.
      std: (S,H,W) float32 standard deviation of the magnitude over samples, same units; None for one sample.
      pixel_mm: (rows, columns, slice thickness) in mm; None if the raw file does not tell.
      facts: what else belongs to it: plain texts and numbers, e.g. 'patient_id', 'protocol'.
      slices: (S,) the scanner's numbers of the slices; empty: 0, 1, ...
      aspect: height over width of a pixel.
      placement: where the slices lie in the patient; None if the raw file does not tell.
    """

    name: str
    image: np.ndarray
    std: np.ndarray | None
    pixel_mm: tuple[float, float, float] | None
    facts: Mapping[str, Any]
    slices: Sequence[int] = ()
    aspect: float = 1.0
    placement: Placement | None = None

    @property
    def numbers(self) -> list[int]:
        """(S,) the scanner's numbers of the slices."""
        return [int(number) for number in self.slices] or list(range(len(self.image)))

    @property
    def spacing(self) -> tuple[float, float, float]:
        """(rows, columns, slice thickness) in mm, or in widths of a pixel where no millimetres are known."""
        return self.pixel_mm or (self.aspect, 1.0, 1.0)


def patient_facts(facts: Mapping[str, Any], rule: str) -> dict[str, Any]:
    """The facts of a volume with its patient's name and id kept, hashed (the id; the name goes) or dropped."""
    known = str(facts.get("patient_id", ""))
    if rule == "keep":
        return dict(facts)
    rest = {name: value for name, value in facts.items() if name not in ("patient_id", "patient_name")}
    hashed = {"patient_id": hashlib.sha256(known.encode(errors="surrogateescape")).hexdigest()[:16]}
    return rest | (hashed if rule == "hash" and known else {})


def optional(package: str, what: str) -> Any:
    """Imports a package that only some formats need. Raises UserError if it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"{what} files need the package {package}: pip install {package}, or leave them out") from error


def write_npz(folder: Path, volume: Volume) -> None:
    """NAME.npz: `complex`, `magnitude`, `std` if there is one, `slices`, `pixel_mm` if known."""
    arrays = {
        "complex": volume.image,
        "magnitude": np.abs(volume.image),
        "std": volume.std,
        "slices": np.array(volume.numbers),
        "pixel_mm": volume.pixel_mm,
    }
    atomic_write_npz(folder / f"{volume.name}.npz", **{k: np.asarray(v) for k, v in arrays.items() if v is not None})


def write_png(folder: Path, volume: Volume) -> None:
    """NAME.png: the magnitudes of all slices, each in a window of its own, and NAME_std.png likewise; true aspect."""
    sheets = {volume.name: volume.image}
    sheets |= {} if volume.std is None else {f"{volume.name}_std": volume.std.astype(np.complex64)}
    for name, images in sheets.items():
        picture = figures.image_grid(images, aspect=volume.aspect)
        atomic_write_bytes(folder / f"{name}.png", figures.encode_png(picture))


def write_nifti(folder: Path, volume: Volume) -> None:
    """NAME.nii.gz and NAME_std.nii.gz: float32 with axes (column, row from the bottom, slice) and voxel sizes in mm.

    Viewers, whose second axis points up, show a slice as it is stored here. With a placement, qform and sform say where
    the volume lies in the patient (code 1); without one, or where slices lie unevenly, their codes are 0: unknown.
    """
    nibabel = optional("nibabel", "NIfTI")
    rows, columns, thickness = volume.spacing
    shape = volume.image.shape[1:]
    affine = volume.placement.affine(shape, volume.spacing) if volume.placement and volume.pixel_mm else None
    parts = {volume.name: np.abs(volume.image)} | ({} if volume.std is None else {f"{volume.name}_std": volume.std})
    for name, values in parts.items():
        data = np.ascontiguousarray(values[:, ::-1].transpose(2, 1, 0), np.float32)
        image = nibabel.Nifti1Image(data, affine)
        if affine is None:
            image.header.set_zooms((columns, rows, thickness or 1.0))
        else:
            image.set_sform(affine, code=1)
            image.set_qform(affine, code=1)
        image.header.set_xyzt_units("mm" if volume.pixel_mm else "unknown")
        image.header["descrip"] = NOTICE[:79].encode()
        atomic_write_bytes(folder / f"{name}.nii.gz", gzip.compress(image.to_bytes(), mtime=0))


def write_dicom(folder: Path, volume: Volume) -> None:
    """NAME_dicom/, see `reports/dicom.py`."""
    from msm.reports import dicom

    dicom.write(folder, volume)


WRITERS = {"npz": write_npz, "png": write_png, "nifti": write_nifti, "dicom": write_dicom}
NEEDED = {"nifti": "nibabel", "dicom": "pydicom"}


def check_formats(names: list[str]) -> None:
    """Raises UserError for an unknown format, or one whose package is not installed, before anything is computed."""
    if not names:
        raise UserError(f"no format is named, so that nothing would be written (known: {', '.join(WRITERS)})")
    for name in names:
        if name not in WRITERS:
            raise UserError(f"unknown format {name!r} (known: {', '.join(WRITERS)})")
        if name in NEEDED:
            optional(NEEDED[name], name)
