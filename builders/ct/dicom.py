"""CT volumes of DICOM files: classic series of one slice a file, and enhanced files of many frames.

Every plane brings its own position, orientation, rescale and padding. A series that cannot be ordered for certain is
told and not guessed: planes at one place are divided by what tells phases apart, or refused.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from msm.builders.border import check_size, reason
from msm.builders.ct.hounsfield import AIR
from msm.infra.errors import UserError

SUFFIXES = (".dcm", ".ima")
_ENHANCED = "1.2.840.10008.5.1.4.1.1.2.1"
_APART = 0.01  # mm, less than any two slices are apart
_PHASES = ("AcquisitionNumber", "TemporalPositionIdentifier", "NominalPercentageOfCardiacPhase", "TriggerTime",
           "ConvolutionKernel", "AcquisitionTime", "ContentTime")  # fmt: skip


def is_dicom(path: Path) -> bool:
    """By suffix, or, of a name without one (archives number such files), by the mark 'DICM' behind 128 bytes."""
    if path.name.lower().endswith(SUFFIXES):
        return True
    if path.suffix[1:].strip("0123456789"):
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:  # told when it is read, if its name says that it is a volume
        return False


@dataclasses.dataclass(frozen=True)
class Plane:
    """One slice and what its file says of it.

    Attributes:
      file: its name; frame: its number in there.
      header: the dataset, without pixels.
      position: (3,) mm of the first pixel, in DICOM's axes (left, back, head).
      across, down: (3,) directions of columns and rows.
      slope, intercept: HU = slope x stored + intercept.
    """

    file: Path
    frame: int
    header: Any
    position: np.ndarray
    across: np.ndarray
    down: np.ndarray
    slope: float
    intercept: float

    def view(self) -> tuple:
        """What the slices of a volume share: rows, columns and the two directions."""
        return self.header.Rows, self.header.Columns, *np.round(np.concatenate([self.across, self.down]), 3).tolist()

    def height(self) -> float:
        """mm along the normal of the plane."""
        return float(np.dot(np.cross(self.across, self.down), self.position))


def read_series(paths: Iterable[Path]) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], dict[str, str]]:
    """Volumes of the DICOM files of one patient, and what was left out.

    Args:
      paths: the files; those of other modalities than CT are passed over.

    Returns:
      ({series or series/phase: (values (rows, columns, N) float32, in HU where the rescale says so, steps (3,3): the
      directions of rows, columns and slices as columns, in DICOM's axes)}, {series or file: why}). Slices are sorted
      along the normal of their plane.

    A localizer, and a slice of another size or orientation than most of its series, leaves only itself out; a series
    without rescale, or with slices at one place that nothing tells apart, only that series.
    """
    import pydicom

    series: dict[str, list[tuple[Path, Any]]] = {}
    left_out: dict[str, str] = {}
    seen: dict[str, str] = {}
    for path in paths:
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
            if header.get("Modality") != "CT" or "Rows" not in header:
                continue
            str(header.get("SOPInstanceUID")), str(header.get("SeriesInstanceUID"))  # values are parsed when asked for
        except Exception as error:  # of one file of many
            left_out[path.name] = reason(error)
            continue
        twin = seen.setdefault(str(header.get("SOPInstanceUID", path)), path.name)
        if twin != path.name:
            left_out[path.name] = f"is the same image as {twin}"
            continue
        series.setdefault(str(header.get("SeriesInstanceUID", "")), []).append((path, header))
    found = {}
    for uid, files in sorted(series.items()):
        try:
            planes = _usable(uid, [plane for path, header in files for plane in _planes(path, header)], left_out)
            for name, chosen in _phases(uid, planes).items():
                chosen = sorted(chosen, key=Plane.height)
                steps = np.stack([chosen[0].down, chosen[0].across, np.cross(chosen[0].across, chosen[0].down)], axis=1)
                found[name] = np.stack(list(_values(chosen)), axis=-1), steps
        except Exception as error:  # of one series of many
            left_out[uid] = reason(error)
    return found, left_out


def _planes(path: Path, header: Any) -> Iterator[Plane]:
    """The frames of a file. Raises UserError where one lacks a position, an orientation or the rescale."""
    frames = int(header.get("NumberOfFrames", 1) or 1)
    enhanced = header.get("SOPClassUID") == _ENHANCED or "PerFrameFunctionalGroupsSequence" in header
    if frames > 1 and not enhanced:
        raise UserError(f"{path.name} has {frames} frames and no position of each: convert it to one file per slice")
    groups = [[header]] * frames
    if enhanced:
        own, shared = (header.get(f"{kind}FunctionalGroupsSequence") or [] for kind in ("PerFrame", "Shared"))
        if len(own) != frames:
            raise UserError(f"{path.name} has {frames} frames and functional groups of {len(own)}: export it again")
        groups = [[frame, *shared, header] for frame in own]

    def find(group: list, sequence: str, name: str) -> Any:
        for place in group:
            inner = place.get(sequence)
            if inner and inner[0].get(name) not in (None, ""):
                return inner[0].get(name)
        return group[-1].get(name)

    for frame, group in enumerate(groups):
        position = find(group, "PlanePositionSequence", "ImagePositionPatient")
        orientation = find(group, "PlaneOrientationSequence", "ImageOrientationPatient")
        scale = [find(group, "PixelValueTransformationSequence", f"Rescale{name}") for name in ("Slope", "Intercept")]
        kind = find(group, "PixelValueTransformationSequence", "RescaleType") or "HU"
        if orientation is None or position is None or len(orientation) != 6 or len(position) != 3:
            raise UserError(f"{path.name} does not say how and where its plane lies (ImageOrientationPatient, "
                            "ImagePositionPatient): leave it out")  # fmt: skip
        if None in scale or "" in scale:
            raise UserError(f"{path.name} has no RescaleSlope and RescaleIntercept: its values are no Hounsfield units")
        if str(kind).upper() not in ("HU", "US"):
            raise UserError(f"{path.name} has values of the type {kind!r}, not HU: leave the series out")
        numbers = np.asarray([*position, *orientation, *scale], float)
        if not np.isfinite(numbers).all() or not numbers[9]:
            raise UserError(
                f"{path.name} has a position, an orientation or a rescale that is no number: export it again"
            )
        yield Plane(path, frame, header, numbers[:3], numbers[3:6], numbers[6:9], *numbers[9:])


def _usable(uid: str, planes: list[Plane], left_out: dict[str, str]) -> list[Plane]:
    """The slices of the view that most have, if it is axial; notes the others. [] for a series that is not axial."""
    slices = []
    for plane in planes:
        if "LOCALIZER" in [str(value).upper() for value in plane.header.get("ImageType", ())]:
            left_out[plane.file.name] = "is a localizer"
        else:
            slices.append(plane)
    views = [plane.view() for plane in slices]
    if len(set(views)) > 1:
        usual = max(dict.fromkeys(views), key=views.count)
        for plane in slices:
            if plane.view() != usual:
                left_out[plane.file.name] = f"has another size or orientation than most of its series, {uid}"
        slices = [plane for plane in slices if plane.view() == usual]
    if len(slices) < 2 or abs(np.cross(slices[0].across, slices[0].down)[2]) < 0.9:
        left_out.setdefault(uid, f"{len(slices)} axial slices: no volume" if len(slices) < 2 else "is not axial")
        return []
    return slices


def _phases(uid: str, planes: list[Plane]) -> dict[str, list[Plane]]:
    """Volumes of a series whose slices all lie apart: the series, or its phases. Raises UserError where none do."""
    if not planes:
        return {}
    if _lie_apart(planes):
        return {uid: planes}
    for name in _PHASES:
        groups: dict[str, list[Plane]] = {}
        for plane in planes:
            groups.setdefault(str(plane.header.get(name, "")), []).append(plane)
        if len(groups) > 1 and all(len(group) > 1 and _lie_apart(group) for group in groups.values()):
            return {f"{uid}/{name} {value}": group for value, group in sorted(groups.items())}
    raise UserError("has several slices at one place that no phase or acquisition number tells apart: split the series")


def _lie_apart(planes: list[Plane]) -> bool:
    return bool(np.all(np.diff(sorted(plane.height() for plane in planes)) > _APART))


def _values(planes: list[Plane]) -> Iterator[np.ndarray]:
    """(rows, columns) float32 of every plane: rescaled, padding set to air."""
    import pydicom

    opened: tuple[Path | None, np.ndarray] = None, np.zeros(0)
    for plane in planes:
        if opened[0] != plane.file:
            frames = int(plane.header.get("NumberOfFrames", 1) or 1)
            check_size(plane.file.name, 4.0 * frames * plane.header.Rows * plane.header.Columns, 4)
            opened = plane.file, pydicom.dcmread(plane.file, force=True).pixel_array
        stored = opened[1]
        if stored.shape[-2:] != (plane.header.Rows, plane.header.Columns):
            raise UserError(f"{plane.file.name} has pixels of {stored.shape}: colours are no Hounsfield units")
        stored = stored.reshape(-1, *stored.shape[-2:])[plane.frame]
        values = stored.astype(np.float32) * np.float32(plane.slope) + np.float32(plane.intercept)
        padding = plane.header.get("PixelPaddingValue")
        if padding is not None:
            ends = sorted(_as_stored(end, stored.dtype) for end in
                          (padding, plane.header.get("PixelPaddingRangeLimit", padding)))  # fmt: skip
            values = np.where((stored >= ends[0]) & (stored <= ends[1]), np.float32(AIR), values)
        yield values


def _as_stored(value: Any, dtype: np.dtype) -> int:
    """A padding value in the sign of the pixels: files state -2000 of unsigned pixels as 63536, and the reverse."""
    bits = 8 * dtype.itemsize
    value = int(value) % (1 << bits)
    return value - (1 << bits) if dtype.kind == "i" and value >= 1 << (bits - 1) else value
