"""Reconstructed volumes in the formats that others read: npz, PNG, NIfTI (nibabel), DICOM (pydicom).

Arrays are (S,H,W): slices, rows from the top, columns. Files appear whole or not at all. Orientation in the patient is
not known to the program (raw files say it in scanner-specific ways), and no file claims one.
"""

import dataclasses
import hashlib
import importlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from msm.infra.atomic import atomic_write_bytes, atomic_write_npz
from msm.infra.errors import UserError
from msm.reports import figures

NOTICE = "Research reconstruction by measurement score-based diffusion. Not for diagnosis."
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


@dataclasses.dataclass(frozen=True)
class Volume:
    """One reconstructed scan.

    Attributes:
      name: of the scan, part of file names.
      image: (S,H,W) complex64, mean of the samples, in the units of the raw file's k-space.
      std: (S,H,W) float32 standard deviation of the magnitude over samples, same units; None for one sample.
      pixel_mm: (rows, columns, slice thickness) in mm; None if the raw file does not tell.
      facts: what else belongs to it: plain texts and numbers, e.g. 'patient_id', 'protocol'.
    """

    name: str
    image: np.ndarray
    std: np.ndarray | None
    pixel_mm: tuple[float, float, float] | None
    facts: Mapping[str, Any]


def _optional(package: str, what: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"{what} files need the package {package}: pip install {package}, or leave them out") from error


def write_npz(folder: Path, volume: Volume) -> None:
    """NAME.npz: `complex`, `magnitude`, `std` if there is one, `pixel_mm` if known."""
    arrays = {
        "complex": volume.image,
        "magnitude": np.abs(volume.image),
        "std": volume.std,
        "pixel_mm": volume.pixel_mm,
    }
    atomic_write_npz(folder / f"{volume.name}.npz", **{k: np.asarray(v) for k, v in arrays.items() if v is not None})


def write_png(folder: Path, volume: Volume) -> None:
    """NAME.png: the magnitudes of all slices, each in a window of its own, and NAME_std.png likewise."""
    sheets = {volume.name: volume.image}
    sheets |= {} if volume.std is None else {f"{volume.name}_std": volume.std.astype(np.complex64)}
    for name, images in sheets.items():
        atomic_write_bytes(folder / f"{name}.png", figures.encode_png(figures.image_grid(images)))


def write_nifti(folder: Path, volume: Volume) -> None:
    """NAME.nii.gz and NAME_std.nii.gz: float32 with axes (column, row from the bottom, slice) and voxel sizes in mm.

    Viewers, whose second axis points up, show a slice as it is stored here. Codes of qform and sform are 0: unknown.
    """
    nibabel = _optional("nibabel", "NIfTI")
    rows, columns, thickness = volume.pixel_mm or (1.0, 1.0, 1.0)
    parts = {volume.name: np.abs(volume.image)} | ({} if volume.std is None else {f"{volume.name}_std": volume.std})
    for name, values in parts.items():
        data = np.ascontiguousarray(values[:, ::-1].transpose(2, 1, 0), np.float32)
        image = nibabel.Nifti1Image(data, None)
        image.header.set_zooms((columns, rows, thickness or 1.0))
        image.header.set_xyzt_units("mm" if volume.pixel_mm else "unknown")
        image.header["descrip"] = NOTICE[:79].encode()
        atomic_write_bytes(folder / f"{name}.nii.gz", _gzip(image.to_bytes()))


def _gzip(data: bytes) -> bytes:
    import gzip

    return gzip.compress(data, mtime=0)


def write_dicom(folder: Path, volume: Volume) -> None:
    """NAME_dicom/0001.dcm ...: one 16-bit grey file per slice, magnitudes by RescaleSlope in the volume's units.

    Secondary capture (modality MR, derived): the standard's MR image would have to state a position and orientation in
    the patient. Identifiers follow from name and content, so the same volume gives the same files.
    """
    pydicom, uid = _optional("pydicom", "DICOM"), _optional("pydicom.uid", "DICOM")
    magnitude = np.abs(volume.image).astype(np.float64)
    slope = float(magnitude.max()) / 65535 or 1.0
    pixels = np.rint(magnitude / slope).astype("<u2")
    content = hashlib.sha256(volume.name.encode() + pixels.tobytes()).hexdigest()
    study, series = (uid.generate_uid(entropy_srcs=[content, kind]) for kind in ("study", "series"))
    for number, picture in enumerate(pixels, start=1):
        data = pydicom.Dataset()
        data.SOPClassUID, data.SOPInstanceUID = (
            _SECONDARY_CAPTURE,
            uid.generate_uid(entropy_srcs=[content, str(number)]),
        )
        data.StudyInstanceUID, data.SeriesInstanceUID, data.InstanceNumber = study, series, number
        data.Modality, data.ConversionType, data.ImageType = "MR", "WSD", ["DERIVED", "SECONDARY"]
        data.PatientName, data.PatientID = "", str(volume.facts.get("patient_id", ""))[:64]
        data.PatientBirthDate = data.PatientSex = data.StudyDate = data.StudyTime = data.StudyID = ""
        data.AccessionNumber = data.ReferringPhysicianName = ""
        data.SeriesNumber, data.SeriesDescription = 1, f"MSM {volume.name}"[:64]
        data.ProtocolName = str(volume.facts.get("protocol", ""))[:64]
        data.Manufacturer = str(volume.facts.get("vendor", ""))[:64]
        data.ImageComments = data.DerivationDescription = NOTICE
        data.BurnedInAnnotation = "NO"
        if volume.pixel_mm:
            data.PixelSpacing = [f"{size:.6g}" for size in volume.pixel_mm[:2]]
            data.SliceThickness = f"{volume.pixel_mm[2]:.6g}"
        data.Rows, data.Columns = picture.shape
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit = 15
        data.RescaleSlope, data.RescaleIntercept, data.RescaleType = f"{slope:.10g}", "0", "US"
        top = float(np.percentile(magnitude, figures.WINDOW_PERCENTILE)) or slope
        data.WindowCenter, data.WindowWidth = f"{top / 2:.10g}", f"{max(top, slope):.10g}"
        data.PixelData = picture.tobytes()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        buffer = io.BytesIO()
        data.save_as(buffer, enforce_file_format=True)
        atomic_write_bytes(folder / f"{volume.name}_dicom" / f"{number:04d}.dcm", buffer.getvalue())


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
            _optional(NEEDED[name], name)
