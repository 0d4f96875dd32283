"""Reconstructed volumes in npz, PNG, NIfTI and DICOM: values, voxel sizes and orientation as they are read back."""

import importlib
import sys

import numpy as np
import pytest
from skimage.io import imread

from msm.reports import volumes as image_files
from msm.reports.volumes import Volume
from tests.builders.test_raw_readers import random_kspace
from tests.helpers.checks import hashes, message_of


@pytest.fixture
def volume() -> Volume:
    image = 40 * random_kspace(3, 6, 8)
    facts = {"patient_id": "p7", "protocol": "AX T2", "vendor": "ACME"}
    return Volume("scan", image, np.abs(image.real) / 10, (0.5, 0.75, 4.0), facts)


def test_npz(volume, tmp_path):
    image_files.write_npz(tmp_path, volume)
    with np.load(tmp_path / "scan.npz") as stored:
        assert set(stored.files) == {"complex", "magnitude", "std", "pixel_mm", "slices"}
        np.testing.assert_array_equal(stored["complex"], volume.image)
        np.testing.assert_array_equal(stored["magnitude"], np.abs(volume.image))
        np.testing.assert_array_equal(stored["std"], volume.std)
        np.testing.assert_array_equal(stored["pixel_mm"], volume.pixel_mm)


def test_png(volume, tmp_path):
    image_files.write_png(tmp_path, volume)
    picture = imread(tmp_path / "scan.png")
    factor = 22  # magnified to at least 128 pixels, with a frame of 2
    assert picture.shape[:2] == (6 * factor + 4, 3 * (8 * factor + 4))
    tile = picture[2:-2:factor, 2 : 2 + 8 * factor : factor, 0]
    expected = np.abs(volume.image[0]) / np.abs(volume.image[0]).max()
    np.testing.assert_allclose(tile / 255, expected, atol=0.003)
    assert (tmp_path / "scan_std.png").exists()


def test_nifti(volume, tmp_path):
    nibabel = pytest.importorskip("nibabel", reason="the package nibabel is not installed")
    image_files.write_nifti(tmp_path, volume)
    for name, expected in (("scan", np.abs(volume.image)), ("scan_std", volume.std)):
        image = nibabel.load(tmp_path / f"{name}.nii.gz")
        values = np.asarray(image.dataobj)
        assert values.dtype == np.float32 and image.header.get_xyzt_units()[0] == "mm"
        np.testing.assert_array_equal(values[:, ::-1].transpose(2, 1, 0), expected)
        np.testing.assert_allclose(image.header.get_zooms(), (0.75, 0.5, 4.0))
        assert image.header["qform_code"] == image.header["sform_code"] == 0
    before = hashes(tmp_path)
    image_files.write_nifti(tmp_path, volume)
    assert hashes(tmp_path) == before


def test_dicom(volume, tmp_path):
    pydicom = pytest.importorskip("pydicom", reason="the package pydicom is not installed")
    image_files.write_dicom(tmp_path, volume)
    files = sorted((tmp_path / "scan_dicom").iterdir())
    read = [pydicom.dcmread(path) for path in files]
    assert [data.InstanceNumber for data in read] == [1, 2, 3]
    for data, expected in zip(read, np.abs(volume.image), strict=True):
        values = np.frombuffer(data.PixelData, "<u2").reshape(6, 8) * float(data.RescaleSlope)
        np.testing.assert_allclose(values, expected, atol=np.abs(volume.image).max() / 65535)
        assert (data.Rows, data.Columns) == (6, 8) and data.PixelSpacing == [0.5, 0.75] and data.SliceThickness == 4
        assert data.PatientID == "p7" and data.Manufacturer == "ACME" and "Not for diagnosis" in data.ImageComments
        assert data.SOPClassUID.name == "Secondary Capture Image Storage" and data.Modality == "MR"
        assert "ImageOrientationPatient" not in data  # which nobody knows
    assert len({data.SOPInstanceUID for data in read}) == 3 and len({data.SeriesInstanceUID for data in read}) == 1
    before = hashes(tmp_path)
    image_files.write_dicom(tmp_path, volume)
    assert hashes(tmp_path) == before


def test_one_sample_of_unknown_geometry(volume, tmp_path):
    plain = Volume("scan", volume.image, None, None, {})
    for write in image_files.WRITERS.values():
        try:
            write(tmp_path, plain)
        except ValueError as error:
            assert "need the package" in str(error)
    assert not list(tmp_path.glob("*std*"))
    assert set(np.load(tmp_path / "scan.npz").files) == {"complex", "magnitude", "slices"}


def test_formats_are_checked_before_anything_is_computed(monkeypatch):
    assert "unknown format 'tiff' (known: npz" in message_of(image_files.check_formats, ["npz", "tiff"])
    monkeypatch.setitem(sys.modules, "nibabel", None)  # as if it were not installed
    with pytest.raises(ImportError):
        importlib.import_module("nibabel")
    assert "pip install nibabel" in message_of(image_files.check_formats, ["nifti"])
    image_files.check_formats(["npz", "png"])
