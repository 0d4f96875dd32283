"""DICOM files of a reconstructed volume: a series of slices, and the std map as a Parametric Map (highdicom).

With a known position and orientation the slices are MR images, without them secondary captures, which need not state
where they lie. Identifiers follow from name and content, so the same volume gives the same files.
"""

import hashlib
import io
import logging
from pathlib import Path
from typing import Any

import numpy as np

from msm.infra.atomic import atomic_write_bytes
from msm.reports import figures
from msm.reports.volumes import NOTICE, Volume, optional

SECONDARY_CAPTURE, MR_IMAGE = "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.4"
_UTF8 = "ISO_IR 192"


def write(folder: Path, volume: Volume) -> None:
    """NAME_dicom/0001.dcm ...: one 16-bit grey file per slice, magnitudes by RescaleSlope in the volume's units.

    A file has the number of its slice in the scanner's count, from 1, as its name and as InstanceNumber. The std map is
    NAME_std.dcm, a Parametric Map, where the position is known and highdicom is installed; else a series as the first,
    NAME_std_dicom/.
    """
    optional("pydicom", "DICOM")
    magnitude = np.abs(volume.image).astype(np.float64)
    content = hashlib.sha256(volume.name.encode() + np.ascontiguousarray(volume.image).tobytes()).hexdigest()
    slices = _write_series(folder / f"{volume.name}_dicom", volume, magnitude, content, 1, f"MSM {volume.name}")
    if volume.std is None:
        return
    std = np.asarray(volume.std, np.float64)
    if volume.placement is not None:
        try:
            import highdicom  # noqa: F401
        except ImportError:
            logging.warning("the std map becomes a plain DICOM series: pip install highdicom for a Parametric Map")
        else:
            atomic_write_bytes(folder / f"{volume.name}_std.dcm", _parametric_map(volume, slices, content))
            return
    _write_series(folder / f"{volume.name}_std_dicom", volume, std, content, 2, f"MSM {volume.name} std")


def _write_series(folder: Path, volume: Volume, values: np.ndarray, content: str, number: int, what: str) -> list[Any]:
    """Writes one series of slices and returns their data sets."""
    slope = float(f"{float(values.max()) / 65535 or 1.0:.10g}")
    pixels = np.rint(values / slope).clip(0, 65535).astype("<u2")
    top = float(np.percentile(values, figures.WINDOW_PERCENTILE)) or slope
    written = []
    for place, (slice_number, picture) in enumerate(zip(volume.numbers, pixels, strict=True)):
        data = _common(volume, content, number, what)
        data.InstanceNumber = slice_number + 1
        data.SOPInstanceUID = _uid(content, f"{number}/{slice_number}")
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        _add_place(data, volume, place)
        data.Rows, data.Columns = picture.shape
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit = 15
        data.RescaleSlope, data.RescaleIntercept, data.RescaleType = f"{slope:.10g}", "0", "US"
        data.WindowCenter, data.WindowWidth = f"{top / 2:.10g}", f"{max(top, slope):.10g}"
        data.PixelData = picture.tobytes()
        atomic_write_bytes(folder / f"{slice_number + 1:04d}.dcm", _bytes(data))
        written.append(data)
    return written


def _uid(content: str, kind: str) -> Any:
    return optional("pydicom.uid", "DICOM").generate_uid(entropy_srcs=[content, kind])


def _common(volume: Volume, content: str, number: int, what: str) -> Any:
    """A data set with what all slices of a series share. Texts are UTF-8: names of any script."""
    pydicom, uid = optional("pydicom", "DICOM"), optional("pydicom.uid", "DICOM")
    facts, data = volume.facts, pydicom.Dataset()
    data.SpecificCharacterSet = _UTF8
    data.SOPClassUID = SECONDARY_CAPTURE if volume.placement is None else MR_IMAGE
    data.StudyInstanceUID, data.SeriesInstanceUID = _uid(content, "study"), _uid(content, f"series {number}")
    data.Modality, data.ImageType = "MR", ["DERIVED", "SECONDARY"]
    data.PatientName, data.PatientID = str(facts.get("patient_name", ""))[:64], str(facts.get("patient_id", ""))[:64]
    data.PatientBirthDate = data.PatientSex = data.StudyDate = data.StudyTime = data.StudyID = ""
    data.AccessionNumber = data.ReferringPhysicianName = ""
    data.SeriesNumber, data.SeriesDescription = number, what[:64]
    data.ProtocolName = str(facts.get("protocol", ""))[:64]
    data.Manufacturer = str(facts.get("vendor", ""))[:64]
    data.ImageComments = data.DerivationDescription = NOTICE
    data.BurnedInAnnotation = "NO"
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    return data


def _add_place(data: Any, volume: Volume, place: int) -> None:
    """Adds spacing, and where it is known position and orientation of one slice."""
    if volume.pixel_mm:
        data.PixelSpacing = [f"{size:.6g}" for size in volume.pixel_mm[:2]]
        data.SliceThickness = f"{volume.pixel_mm[2]:.6g}"
    elif volume.aspect != 1:
        ratio = (volume.aspect, 1.0) if volume.aspect > 1 else (1.0, 1 / volume.aspect)
        data.PixelAspectRatio = [round(1000 * size) for size in ratio]
    if volume.placement is None:
        data.ConversionType = "WSD"
        return
    corner = volume.placement.corners(volume.image.shape[1:], volume.spacing)[place]
    axes = np.concatenate([volume.placement.along, volume.placement.down])
    data.ImagePositionPatient = [f"{value:.9g}" for value in corner]
    data.ImageOrientationPatient = [f"{value:.9g}" for value in axes]
    data.FrameOfReferenceUID = _uid(data.StudyInstanceUID, "frame of reference")
    data.PositionReferenceIndicator = ""
    data.ScanningSequence, data.SequenceVariant, data.ScanOptions, data.MRAcquisitionType = "RM", "NONE", "", "2D"
    data.EchoTime = data.EchoTrainLength = data.RepetitionTime = ""
    step = volume.placement.step(volume.spacing[2])
    if step is not None and len(volume.image) > 1:
        data.SpacingBetweenSlices = f"{float(np.linalg.norm(step)):.6g}"


def _bytes(data: Any) -> bytes:
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _parametric_map(volume: Volume, slices: list[Any], content: str) -> bytes:
    """The std map as float32 frames at the positions of the slices, in the volume's units."""
    import highdicom
    from pydicom.sr.codedict import codes

    assert volume.std is not None
    std = np.ascontiguousarray(volume.std, np.float32)
    top = float(std.max()) or 1.0
    mapping = highdicom.pm.RealWorldValueMapping(
        lut_label="STD",
        lut_explanation="Standard deviation over posterior samples",
        unit=codes.UCUM.NoUnits,
        value_range=(0.0, top),
        intercept=0.0,
        slope=1.0,
    )
    data = highdicom.pm.ParametricMap(
        source_images=slices,
        pixel_array=std,
        series_instance_uid=_uid(content, "series std"),
        series_number=2,
        sop_instance_uid=_uid(content, "std"),
        instance_number=1,
        manufacturer=str(volume.facts.get("vendor", "")) or "unknown",
        manufacturer_model_name="MSM",
        software_versions="MSM",
        device_serial_number="0",
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[highdicom.VOILUTTransformation(window_center=top / 2, window_width=top)],
        content_label="STD",
        content_description="Uncertainty",
    )
    fixed = {"DA": "20000101", "TM": "000000", "DT": "20000101000000"}
    for element in data.iterall():  # of the time of writing: the same volume gives the same file
        if element.VR in fixed and element.value:
            element.value = fixed[element.VR]
        elif element.keyword == "DimensionOrganizationUID":
            element.value = _uid(content, "dimensions")
    data.SeriesDescription = f"MSM {volume.name} std"[:64]
    return _bytes(data)
