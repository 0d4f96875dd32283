"""The gate of CT volumes: every kind of file gives the phantom's Hounsfield units or one line that says why not."""

import nibabel
import numpy as np
import pytest

from msm.builders.ct import dicom, volumes
from msm.builders.ct import store as ct
from msm.builders.ct.hounsfield import empty_slices, gate
from msm.builders.pictures.folder import Division
from msm.infra.errors import UserError
from tests.helpers.checks import message_of

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed: DICOM is not read")


def phantom(slices: int = 4, size: int = 32) -> np.ndarray:
    """(N,H,W) int16: air, a body that differs from slice to slice, lung and bone off its centre."""
    y, x = np.mgrid[-1 : 1 : 1j * size, -1 : 1 : 1j * size]
    body = np.where((y / 0.8) ** 2 + (x / 0.9) ** 2 < 1, 40, -1000)
    body = np.where((y + 0.1) ** 2 + (x - 0.5) ** 2 < 0.04, -850, body)
    body = np.where((y - 0.5) ** 2 + x**2 < 0.03, 700, body)
    return np.stack([np.where(body == 40, 40 + 10 * i, body) for i in range(slices)]).astype(np.int16)


def dataset(hu: np.ndarray, number: int, series: str = "1.2.3", **changes):
    """A classic CT slice, 5 mm from the last; None as a change deletes the element. stored: what pixels hold."""
    d = pydicom.Dataset()
    d.file_meta = pydicom.dataset.FileMetaDataset()
    d.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    d.SOPClassUID = d.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    stored = changes.pop("stored", hu.astype(int) + 1024)
    d.SOPInstanceUID = d.file_meta.MediaStorageSOPInstanceUID = changes.pop("uid", f"{series}.{number}")
    d.SeriesInstanceUID, d.Modality = series, "CT"
    d.ImagePositionPatient, d.ImageOrientationPatient = [-100, -100, 5 * number], [1, 0, 0, 0, 1, 0]
    d.Rows, d.Columns = hu.shape[-2:]
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
    d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 16, 15, 1
    d.RescaleSlope, d.RescaleIntercept = "1", "-1024"
    for name, value in changes.items():
        if value is None:
            delattr(d, name)
        else:
            setattr(d, name, value)
    d.PixelData = np.asarray(stored).astype("<i2" if d.PixelRepresentation else "<u2").tobytes()
    return d


def save(folder, datasets, suffix: str = ".dcm"):
    folder.mkdir(parents=True, exist_ok=True)
    for i, d in enumerate(datasets):
        d.save_as(folder / f"{i:03d}{suffix}", enforce_file_format=True)
    return volumes.read_series(sorted(folder.iterdir()))


def group(**values):
    """A sequence of one item."""
    item = pydicom.Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return pydicom.sequence.Sequence([item])


def enhanced(values: np.ndarray, rescale_per_frame: bool = False):
    d = dataset(values[0], 1, ImagePositionPatient=None, ImageOrientationPatient=None, RescaleSlope=None,
                RescaleIntercept=None)  # fmt: skip
    d.SOPClassUID = d.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    d.NumberOfFrames = len(values)
    frames, shared = [pydicom.Dataset() for _ in values], pydicom.Dataset()
    shared.PlaneOrientationSequence = group(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    offsets = [1024 + (100 * i if rescale_per_frame else 0) for i in range(len(values))]
    for i, frame in enumerate(frames):
        frame.PlanePositionSequence = group(ImagePositionPatient=[-100, -100, -5 * i])  # from head to feet
        place = frame if rescale_per_frame else shared
        place.PixelValueTransformationSequence = group(
            RescaleSlope="1", RescaleIntercept=str(-offsets[i]), RescaleType="HU"
        )
    d.SharedFunctionalGroupsSequence = pydicom.sequence.Sequence([shared])
    d.PerFrameFunctionalGroupsSequence = pydicom.sequence.Sequence(frames)
    stored = np.stack([v.astype(int) + o for v, o in zip(values, offsets, strict=True)])
    d.PixelData = stored.astype("<i2").tobytes()
    return d


@pytest.mark.parametrize("per_frame", [False, True])
def test_enhanced_files_are_read_frame_by_frame(tmp_path, per_frame):
    values = phantom()
    found, left_out = save(tmp_path / "a", [enhanced(values, per_frame)])
    assert not left_out
    np.testing.assert_array_equal(found["1.2.3"], values[::-1])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"RescaleSlope": None}, "no RescaleSlope and RescaleIntercept"),
        ({"RescaleIntercept": None, "RescaleSlope": None}, "no RescaleSlope and RescaleIntercept"),
        ({"RescaleType": "HU_MOD"}, "of the type 'HU_MOD', not HU"),
        ({"ImageOrientationPatient": None}, "how and where its plane lies"),
        ({"ImagePositionPatient": None}, "how and where its plane lies"),
        ({"RescaleIntercept": "0"}, "none of air"),
        ({"RescaleIntercept": "-2024"}, "none of tissue"),
        ({"NumberOfFrames": 2, "stored": np.zeros((2, 32, 32))}, "2 frames and no position of each"),
        ({"ImagePositionPatient": [-100, -100, 7]}, "at one place that no phase"),
    ],
)  # fmt: skip
def test_series_that_are_no_hounsfield_units_are_told(tmp_path, changes, expected):
    """One bad series leaves the good one beside it alone."""
    good = [dataset(v, i, "1.2.9") for i, v in enumerate(phantom())]
    found, left_out = save(tmp_path / "a", good + [dataset(v, i, **changes) for i, v in enumerate(phantom())])
    assert set(found) == {"1.2.9"} and set(left_out) == {"1.2.3"} and expected in left_out["1.2.3"]


@pytest.mark.parametrize("padding", [-2000, 30000, (-2000, -1990), 63536])
def test_padding_becomes_air(tmp_path, padding):
    """Whatever it is after the rescale: a bone-white frame at 30000, or -3024."""
    values = phantom()
    stored = values.astype(int) + 1024
    more = {"PixelRepresentation": 0 if padding == 63536 else 1}
    first = padding[0] if isinstance(padding, tuple) else padding
    stored[:, :6] = first
    if isinstance(padding, tuple):
        stored[:, 3:6] = more["PixelPaddingRangeLimit"] = padding[1]
    slices = []
    for i, v in enumerate(stored):
        slices.append(dataset(values[i], i, stored=v, **more))
        slices[-1].add_new("PixelPaddingValue", "US" if padding == 63536 else "SS", first)
    found, _ = save(tmp_path / "a", slices)
    values[:, :6] = -1000
    np.testing.assert_array_equal(found["1.2.3"], values)


def test_odd_slices_leave_out_themselves_alone(tmp_path):
    """A localizer, a slice of another size, and a second copy of a file."""
    values = phantom()
    slices = [dataset(v, i) for i, v in enumerate(values)]
    scout = dataset(values[0], 7, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    coronal = dataset(values[0], 8, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    small = dataset(values[0, :16], 9)
    found, left_out = save(tmp_path / "a", [*slices, scout, coronal, small, slices[2]])
    np.testing.assert_array_equal(found["1.2.3"], values)
    assert left_out["004.dcm"] == "is a localizer" and left_out["007.dcm"] == "is the same image as 002.dcm"
    assert all("another size or orientation" in left_out[name] for name in ("005.dcm", "006.dcm"))


def test_two_phases_in_one_series_are_two_volumes(tmp_path):
    one, two = phantom(), phantom() + np.int16(7)
    slices = [dataset(v, i, AcquisitionNumber=1) for i, v in enumerate(one)]
    slices += [dataset(v, i, AcquisitionNumber=2, uid=f"9.{i}") for i, v in enumerate(two)]
    found, left_out = save(tmp_path / "a", slices)
    assert not left_out
    np.testing.assert_array_equal(found["1.2.3/AcquisitionNumber 1"], one)
    np.testing.assert_array_equal(found["1.2.3/AcquisitionNumber 2"], two)


def test_files_without_suffix_are_dicom_by_their_mark(tmp_path):
    save(tmp_path / "a", [dataset(v, i) for i, v in enumerate(phantom())], suffix="")
    (tmp_path / "a" / "README").write_text("no scan")
    assert dicom.is_dicom(tmp_path / "a" / "000") and not dicom.is_dicom(tmp_path / "a" / "README")
    assert len(ct.find_patients(tmp_path)["a"]) == 4


AFFINE = np.diag([2.0, 2, 5, 1])


def nifti(path, values, affine=AFFINE, patch=()):
    nibabel.Nifti1Image(values.transpose(2, 1, 0)[::-1, ::-1], affine).to_filename(path)
    raw = bytearray(path.read_bytes())
    for offset, value in patch:
        raw[offset : offset + 4] = np.float32(value).tobytes()
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("slope", [0, np.nan])
def test_nifti_without_a_slope_holds_values_as_they_are(tmp_path, slope):
    path = nifti(tmp_path / "v.nii", phantom(), patch=[(112, slope), (116, slope)])
    np.testing.assert_array_equal(volumes.read(path), phantom())


def test_nifti_of_one_time_and_pairs_of_files(tmp_path):
    stored = phantom().transpose(2, 1, 0)[::-1, ::-1]
    nibabel.Nifti1Image(stored[..., None], AFFINE).to_filename(tmp_path / "v.nii")
    nibabel.Nifti1Pair(stored, AFFINE).to_filename(tmp_path / "w.img")
    for name in ("v.nii", "w.img"):
        np.testing.assert_array_equal(volumes.read(tmp_path / name), phantom())


def test_nifti_that_cannot_be_believed(tmp_path):
    values = phantom().astype(np.float32)
    values[0, :3] = np.nan
    told = {
        "not finite": nifti(tmp_path / "a.nii", values),
        "none of air": nifti(tmp_path / "b.nii", (phantom() + 1000).astype(np.float32) / 4095),
        "no Hounsfield units": nifti(tmp_path / "c.nii", phantom().astype(np.complex64)),
        "sform and qform codes are 0": nifti(tmp_path / "d.nii", phantom(), None),
    }
    nibabel.Nifti1Image(np.stack([phantom()] * 3, -1), np.eye(4)).to_filename(tmp_path / "e.nii")
    told["save each volume as a file"] = tmp_path / "e.nii"
    for text, path in told.items():
        assert text in message_of(volumes.read, path)
    for patch in ([(112, 1), (116, np.nan)], [(108, 348)]):  # an offset that is no number, data that begin too early
        with pytest.raises(UserError):
            volumes.read(nifti(tmp_path / "f.nii", phantom(), patch=patch))


def test_the_gate_knows_other_scales_from_hounsfield_units():
    values = phantom().astype(np.float32)
    np.testing.assert_array_equal(gate(values), values)
    padded = values.copy()
    padded[:, :4] = -3024
    np.testing.assert_array_equal(gate(padded)[:, :4], -1000)
    padded[:, 4:] += 1024  # padding below air hides no offset
    dense = values.copy()
    dense[:, :4] = 64511
    for wrong in (values + 1024, values / 1000, np.clip((values + 160) / 400, 0, 1) * 255, padded, dense):
        assert "HU" in message_of(gate, wrong)
    metal = values.copy()
    metal[:, 15, 15] = 12000
    np.testing.assert_array_equal(gate(metal), metal)


def test_slices_without_content_are_left_out_and_counted(tmp_path):
    values = phantom(5)
    values[1], values[4] = -1000, -1000 + np.random.default_rng(0).integers(0, 30, values[4].shape)
    assert empty_slices(values) == [1, 4]
    for name in ("p1", "p2"):
        np.savez(tmp_path / f"{name}.npz", values + np.int16(name == "p2"))
    scans = ct.Scans(tmp_path, Division(counts={"test": 1, "validation": 0}))
    found = scans.read(32, tmp_path)
    assert next(p.name for p in found["test"]).endswith(" 0") and len(found["test"]) == len(found["train"]) == 3
    assert scans.problems["p1.npz, slices without content"] == "2 of 5 slices hold nothing but air: 1, 4"


def test_the_same_volume_is_in_one_split_only(tmp_path):
    """Test keeps it, whatever the format."""
    for name, values in (("a", phantom()), ("b", phantom()), ("c", phantom(3))):
        np.savez(tmp_path / f"{name}.npz", values)
    (tmp_path / "test.txt").write_text("b.npz\n")
    nifti(tmp_path / "d.nii", phantom())
    scans = ct.Scans(tmp_path, Division({"test": tmp_path / "test.txt"}, {"validation": 0}))
    found = scans.read(32, tmp_path)
    assert {p.volume for p in found["train"]} == {"c.npz"} and {p.volume for p in found["test"]} == {"b.npz"}
    assert scans.problems == dict.fromkeys(("a.npz", "d.nii"), "is the same volume as b.npz")
