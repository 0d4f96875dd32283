"""The XML header of ISMRMRD files, which fastMRI files carry too: matrix sizes, fields of view, limits."""

import dataclasses
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np

from msm.infra.errors import UserError

_NAMESPACE = "{http://www.ismrm.org/ISMRMRD}"


@dataclasses.dataclass(frozen=True)
class Header:
    """What the readers need of the first encoding.

    Attributes:
      encoded: (x, y, z) samples of the encoded space; x is the readout.
      recon: (x, y, z) pixels of the image that the scanner would make.
      encoded_mm, recon_mm: fields of view in mm.
      centre: index of the line, `kspace_encode_step_1`, through the centre of k-space.
      trajectory: 'cartesian' or another word.
      calibration: 'embedded', 'separate' ... for parallel imaging, or ''.
      facts: scanner, field strength, protocol and patient, as far as they are there.
    """

    encoded: tuple[int, int, int]
    recon: tuple[int, int, int]
    encoded_mm: tuple[float, float, float]
    recon_mm: tuple[float, float, float]
    centre: int
    trajectory: str
    calibration: str
    facts: dict[str, Any]

    def rows_without_oversampling(self, rows: int) -> int:
        """How many of the image's `rows` along the readout lie in the field of view of the reconstruction."""
        share = self.recon_mm[0] / self.encoded_mm[0] if self.encoded_mm[0] > 0 < self.recon_mm[0] else 0
        share = share or self.recon[0] / self.encoded[0]
        return min(rows, max(1, round(rows * share)))

    def fov(self, cropped: bool) -> dict[str, tuple[float, float, float]]:
        """{'fov_mm': ...} as in `RawVolume.header`, with the readout's oversampling removed or not; {} if not told."""
        rows = self.recon_mm[0] if cropped else self.encoded_mm[0]
        thickness = self.recon_mm[2] or self.encoded_mm[2]
        return {"fov_mm": (rows, self.encoded_mm[1], thickness)} if min(rows, self.encoded_mm[1]) > 0 else {}


def parse_header(text: str | bytes, path: Path) -> Header:
    """Parses the XML. Raises UserError if it is no ISMRMRD header or has no encoding."""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise UserError(
            f"{path}: the ISMRMRD header is not well-formed XML ({error}); export the file again"
        ) from error
    namespace = _NAMESPACE if root.tag.startswith(_NAMESPACE) else ""

    def find(*tags: str) -> str:
        return root.findtext("/".join(namespace + tag for tag in tags), "").strip()

    def triple(kind, space: str, group: str):
        x, y, z = (find("encoding", space, group, axis) for axis in "xyz")
        try:
            found = kind(x), kind(y), kind(z)
            if not np.isfinite(found).all():
                raise ValueError(found)
            return found
        except ValueError as error:
            where = f"encoding/{space}/{group}"
            raise UserError(f"{path}: the ISMRMRD header has no {where} of three numbers; export it again") from error

    encoded = triple(int, "encodedSpace", "matrixSize")
    if min(encoded) < 1:
        raise UserError(f"{path}: the ISMRMRD header has an encoded matrix of {encoded}; export the file again")
    centre = find("encoding", "encodingLimits", "kspace_encoding_step_1", "center")
    facts = {
        "vendor": find("acquisitionSystemInformation", "systemVendor"),
        "model": find("acquisitionSystemInformation", "systemModel"),
        "field_T": find("acquisitionSystemInformation", "systemFieldStrength_T"),
        "protocol": find("measurementInformation", "protocolName"),
        "patient_id": find("subjectInformation", "patientID"),
        "patient_name": find("subjectInformation", "patientName"),
    }
    return Header(
        encoded=encoded,
        recon=triple(int, "reconSpace", "matrixSize"),
        encoded_mm=triple(float, "encodedSpace", "fieldOfView_mm"),
        recon_mm=triple(float, "reconSpace", "fieldOfView_mm"),
        centre=int(centre) if centre.isdigit() else encoded[1] // 2,
        trajectory=find("encoding", "trajectory").lower() or "cartesian",
        calibration=find("encoding", "parallelImaging", "calibrationMode").lower(),
        facts={name: value for name, value in facts.items() if value},
    )
