"""Volumes in the patient: affine, DICOM position and orientation, std map, names of any script, true aspect."""

import nibabel
import numpy as np
import pydicom
import pytest
from skimage.io import imread

from msm.reports import volumes as image_files
from msm.reports.placement import Placement, placement_of
from msm.reports.volumes import Volume, patient_facts
from tests.helpers.checks import hashes

PIXEL = (0.5, 0.75, 4.0)
DOWN, ALONG = np.array([0.0, 0.6, 0.8]), np.array([1.0, 0.0, 0.0])
THROUGH = np.cross(ALONG, DOWN)


@pytest.fixture
def volume() -> Volume:
    rng = np.random.default_rng(0)
    image = 40 * (rng.normal(size=(3, 6, 9)) + 1j * rng.normal(size=(3, 6, 9))).astype(np.complex64)
    centres = np.array([10.0, -20.0, 30.0]) + 5.0 * np.arange(3)[:, None] * THROUGH
    facts = {"patient_id": "p7", "patient_name": "Müller^Jörg"}
    placement = Placement(centres, DOWN, ALONG, THROUGH)
    return Volume("Köpf", image, np.abs(image.real) / 10, PIXEL, facts, (4, 5, 6), 0.5 / 0.75, placement)


def place_of(slice_: int, row: int, column: int) -> np.ndarray:
    """Where a pixel lies, towards left, back and head: the field of view's middle is the pixel (3, 4) of 6 x 9."""
    centre = np.array([10.0, -20.0, 30.0]) + 5.0 * slice_ * THROUGH
    return centre + (row - 3) * PIXEL[0] * DOWN + (column - 4) * PIXEL[1] * ALONG


def test_nifti_voxels_lie_where_the_pixels_do(volume, tmp_path):
    image_files.write_nifti(tmp_path, volume)
    image = nibabel.load(tmp_path / "Köpf.nii.gz")
    assert image.header["sform_code"] == image.header["qform_code"] == 1
    values = np.asarray(image.dataobj)
    for slice_, row, column in ((0, 0, 0), (2, 5, 8), (1, 3, 4)):
        found = image.affine @ [column, 5 - row, slice_, 1]
        np.testing.assert_allclose(found[:3], place_of(slice_, row, column) * [-1, -1, 1], atol=1e-4)
        assert values[column, 5 - row, slice_] == pytest.approx(np.abs(volume.image[slice_, row, column]))
    np.testing.assert_allclose(image.header.get_zooms(), (0.75, 0.5, 5.0), rtol=1e-6)


def test_dicom_tells_position_orientation_numbers_and_names_of_any_script(volume, tmp_path):
    image_files.write_dicom(tmp_path, volume)
    files = sorted((tmp_path / "Köpf_dicom").iterdir())
    assert [path.name for path in files] == ["0005.dcm", "0006.dcm", "0007.dcm"]
    for slice_, data in enumerate(map(pydicom.dcmread, files)):
        assert data.InstanceNumber == 5 + slice_ and data.SOPClassUID.name == "MR Image Storage"
        assert data.PatientName == "Müller^Jörg" and data.SeriesDescription == "MSM Köpf" and data.PatientID == "p7"
        np.testing.assert_allclose(data.ImagePositionPatient, place_of(slice_, 0, 0), atol=1e-6)
        np.testing.assert_allclose(data.ImageOrientationPatient, [*ALONG, *DOWN], atol=1e-6)
        assert data.PixelSpacing == [0.5, 0.75] and data.SpacingBetweenSlices == 5


def test_the_std_map_is_a_parametric_map_at_the_slices_positions(volume, tmp_path):
    pytest.importorskip("highdicom", reason="the package highdicom is not installed")
    image_files.write_dicom(tmp_path, volume)
    data = pydicom.dcmread(tmp_path / "Köpf_std.dcm")
    assert data.SOPClassUID.name == "Parametric Map Storage" and data.PatientName == "Müller^Jörg"
    frames = np.frombuffer(data.FloatPixelData, "<f4").reshape(3, 6, 9)
    for frame, group in zip(frames, data.PerFrameFunctionalGroupsSequence, strict=True):
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        slice_ = int(np.argmin([np.linalg.norm(position - place_of(s, 0, 0)) for s in range(3)]))
        np.testing.assert_allclose(position, place_of(slice_, 0, 0), atol=1e-6)
        np.testing.assert_array_equal(frame, volume.std[slice_])
    before = hashes(tmp_path)
    image_files.write_dicom(tmp_path, volume)
    assert hashes(tmp_path) == before


def test_uneven_slices_have_no_affine_and_a_header_without_them_no_placement(volume):
    uneven = Placement(volume.placement.centres * [[1], [1], [2]], DOWN, ALONG, THROUGH)
    assert uneven.affine((6, 9), PIXEL) is None
    assert placement_of({"fov_mm": (1, 1, 1)}, [0]) is None
    header = {"position_mm": volume.placement.centres, "directions": [DOWN, ALONG, THROUGH]}
    np.testing.assert_array_equal(placement_of(header, [2, 1]).centres, volume.placement.centres[[2, 1]])


def test_pictures_have_the_true_aspect(volume, tmp_path):
    """6 rows of 0.5 mm and 9 columns of 0.75 mm: 3 x 6.75 mm."""
    image_files.write_png(tmp_path, volume)
    height, width = imread(tmp_path / "Köpf.png").shape[:2]
    assert (width / 3 - 4) / (height - 4) == pytest.approx(6.75 / 3, rel=0.01)


@pytest.mark.parametrize(("rule", "known"), [("keep", "p7"), ("hash", "hash"), ("drop", "")])
def test_the_patient_is_kept_hashed_or_dropped(volume, rule, known):
    facts = patient_facts({**volume.facts, "protocol": "AX"}, rule)
    assert facts["protocol"] == "AX" and ("patient_name" in facts) == (rule == "keep")
    told = facts.get("patient_id", "")
    assert told == known if rule != "hash" else (len(told) == 16 and "p7" not in told)
