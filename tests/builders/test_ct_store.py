"""CT slices as data: the embedded chests, volumes of every kind of file, stores of them and what training reads."""

import io
import tarfile
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest

from msm import datasets
from msm.builders.ct import store as ct
from msm.builders.ct import volumes
from msm.builders.pictures.folder import Division
from msm.builders.pictures.store import Images, Settings, unit_range
from msm.builders.store import prepare_store
from msm.configs import lung64_ct, tasks
from msm.configs.rules.check import find_problems
from msm.infra.errors import UserError
from msm.tools import build_demo_data
from tests.builders.test_demo_data import nrrd as packed_nrrd
from tests.helpers.checks import message_of


def volume(seed=0, shape=(3, 40, 36)):
    """(N,H,W) int16 whose first slice, top row and left column differ from all others."""
    values = np.random.default_rng(seed).integers(-900, 900, shape).astype(np.int16)
    values[0], values[:, 0], values[:, :, 0] = 100, 200, 300
    return values


# --- the embedded chests


def test_shipped_file_has_the_expected_content():
    assert build_demo_data.content_hash(ct.SOURCE) == build_demo_data.LUNGS_SHA256
    with np.load(ct.SOURCE, allow_pickle=False) as arrays:
        assert {name: arrays[name].shape for name in arrays.files} == {
            name: (count, 128, 128) for name, count in ct.SLICES.items()
        }
        for name in arrays.files:
            values = arrays[name]
            assert values.dtype == np.int16 and values.min() == -1000
            assert np.all(values % build_demo_data.LUNGS_STEP == 0)
            assert np.median(values[:, :4]) < -990  # air above a patient who lies on the back
    assert ct.SOURCE.stat().st_size < 1.5e6


def test_the_file_is_made_of_means_of_the_package(tmp_path):
    """A voxel block at the patient's left front ends up on the right, near the top."""
    chest = np.full((512, 512, 2), -2000, np.int16)  # axes to the left, back and head
    chest[400:408, 40:44, 1] = 1000
    chest[400:404, 40:44, 1] = 5000
    package = tmp_path / "pyradiomics-3.0.1.tar.gz"
    with tarfile.open(package, "w:gz") as archive:
        for name in ("lung1_image.nrrd", "lung2_image.nrrd"):
            content = packed_nrrd(chest)
            entry = tarfile.TarInfo(f"pyradiomics-3.0.1/data/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    arrays = build_demo_data.build_lungs(build_demo_data.read_pyradiomics(package, "lung"))
    assert set(arrays) == {"lung1", "lung2"}
    expected = np.full((2, 128, 128), -1000)
    expected[1, 10, 100:102] = 3000, 1000
    np.testing.assert_array_equal(arrays["lung1"], expected)


def test_splits_of_the_demo_share_no_patient_but_train_and_validation(tmp_path):
    found = ct.Lungs().read(64, tmp_path)
    assert {split: len(pictures) for split, pictures in found.items()} == {"train": 48, "validation": 9, "test": 48}
    assert {p.volume for p in found["test"]} == {"lung1"}
    assert {p.volume for s in ("train", "validation") for p in found[s]} == {"lung2"}
    numbers = {s: {int(p.name.split()[1]) for p in found[s]} for s in ("train", "validation")}
    assert min(abs(a - b) for a in numbers["train"] for b in numbers["validation"]) == ct.MARGIN + 1
    ids = [p.example_id for pictures in found.values() for p in pictures]
    assert len(ids) == len(set(ids))
    few = ct.Lungs(max_slices=4).read(64, tmp_path)["test"]
    assert [p.name for p in few] == ["lung1 0", "lung1 16", "lung1 31", "lung1 47"]
    same = {p.name: p for p in found["test"]}
    assert all(p.example_id == same[p.name].example_id for p in few)


def test_hounsfield_units_become_images():
    """Means over areas of a square padded with air, then the window; x = HU / 1000."""
    slices = np.zeros((1, 4, 6), np.int16)
    slices[0, :2, :2] = 3000, -3000
    images = ct.to_images(slices, 3)
    assert images.shape == (1, 3, 3, 1) and images.dtype == np.int16
    np.testing.assert_array_equal(
        images[0, ..., 0], [[-500 + (3000 - 1000) / 4, -500, -500], [500, 0, 0], [-500, -500, -500]]
    )
    np.testing.assert_array_equal(unit_range(np.array([-1000, 0, 250], np.int16)), np.float32([-1, 0, 0.25]))
    with pytest.raises(UserError, match="4 x 6 pixels, less than 7"):
        ct.to_images(slices, 7)


# --- volumes of files


def test_every_format_gives_the_same_volume(tmp_path):
    """Stored with other axes each: slices from feet to head, front on top, the patient's left on the right."""
    values = volume()
    np.savez(tmp_path / "a.npz", values)
    stored = values.transpose(2, 1, 0)  # to the left, back, head
    nibabel.save(nibabel.Nifti1Image(stored[::-1, ::-1], np.diag([2.0, 2, 5, 1])), tmp_path / "b.nii.gz")
    turned = np.array([[0, 0, -5.0, 0], [0, 2.0, 0, 0], [2.0, 0, 0, 0], [0, 0, 0, 1]])  # head, front, left
    nibabel.save(nibabel.Nifti1Image(stored[:, ::-1].transpose(2, 1, 0), turned), tmp_path / "c.nii")
    header = {"space": "left-posterior-superior", "space directions": np.diag([0.7, 0.7, -5.0])}
    nrrd.write(str(tmp_path / "d.nrrd"), stored[:, :, ::-1], header)
    for name in ("a.npz", "b.nii.gz", "c.nii", "d.nrrd"):
        np.testing.assert_array_equal(volumes.read(tmp_path / name), values, err_msg=name)


def test_nifti_values_are_scaled_as_the_header_says(tmp_path):
    image = nibabel.Nifti1Image((volume() // 2 + 512).transpose(2, 1, 0), np.diag([-1.0, -1, 1, 1]))
    image.header.set_slope_inter(2.0, -1024.0)
    nibabel.save(image, tmp_path / "scaled.nii")
    found = np.asarray(nibabel.load(tmp_path / "scaled.nii").dataobj)
    np.testing.assert_array_equal(volumes.read(tmp_path / "scaled.nii"), np.rint(found).transpose(2, 1, 0))


def write_dicom(folder: Path, values: np.ndarray, uid: str, **changes) -> None:
    """One file per slice, in another order than the slices; HU = 2 stored - 1024, oblique by nothing."""
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed: DICOM is not read")
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(len(values)):
        meta = pydicom.dataset.FileMetaDataset()
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"{uid}.{number}"
        file = pydicom.dataset.FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        file.SeriesInstanceUID, file.Modality = uid, "CT"
        file.Rows, file.Columns = values.shape[1:]
        file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
        file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 1
        file.RescaleSlope, file.RescaleIntercept = 2, -1024
        file.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        file.ImagePositionPatient = [-100, -100, 5 * number]
        for name, value in changes.items():
            setattr(file, name, value)
        file.PixelData = ((values[number].astype(np.int32) + 1024) // 2).astype("<i2").tobytes()
        file.save_as(folder / f"{(7 * number) % 10}.dcm", enforce_file_format=True)


def test_dicom_series_are_sorted_scaled_and_told_apart(tmp_path):
    values = volume() // 2 * 2
    write_dicom(tmp_path / "one", values, "1.2.3")
    write_dicom(tmp_path / "two", values[::-1], "1.2.4")
    write_dicom(tmp_path / "scout", values, "1.2.5", ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    write_dicom(tmp_path / "other", values, "1.2.6", Modality="MR")
    found, left_out = volumes.read_series(sorted(tmp_path.rglob("*.dcm")))
    assert set(found) == {"1.2.3", "1.2.4"} and left_out == {"1.2.5": "is not axial"}
    np.testing.assert_array_equal(found["1.2.3"], values)
    np.testing.assert_array_equal(found["1.2.4"], values[::-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four patients: two with npz files in folders, one with a broken and a good file, one file of its own."""
    place = tmp_path_factory.mktemp("scans")
    for number, name in enumerate(("p1/a.npz", "p1/deeper/b.npz", "p2/a.npz", "p3/a.npz", "p4.npz")):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        np.savez(place / name, volume(number))
    (place / "p3" / "broken.nii.gz").write_bytes(b"nothing")
    np.savez(place / "p3" / "small.npz", volume(9, (2, 8, 8)))
    (place / "p2" / "notes.txt").write_text("passed over")
    return place


def test_a_folder_is_divided_by_patient(folder, tmp_path):
    scans = ct.Scans(folder, Division(counts={"test": 1, "validation": 1}))
    assert set(scans.patients) == {"p1", "p2", "p3", "p4.npz"}
    found = scans.read(32, tmp_path)
    patients = {split: {p.name.split("/")[0].split(" ")[0] for p in found[split]} for split in found}
    assert sum(map(len, patients.values())) == len(set.union(*patients.values())) == 4
    pictures = {p.name: p for split in found for p in found[split]}
    assert len(pictures) == 5 * 3 and pictures["p1/deeper/b.npz 2"].volume == "p1/deeper/b.npz"
    np.testing.assert_array_equal(pictures["p2/a.npz 1"].pixels, ct.to_images(volume(2), 32)[1])
    assert set(scans.problems) == {"p3/broken.nii.gz", "p3/small.npz"} and "8 x 8" in scans.problems["p3/small.npz"]
    assert len({p.example_id for p in pictures.values()}) == 15
    assert message_of(ct.find_patients, tmp_path / "none").startswith(f"{tmp_path}/none has no .nii")


# --- a store of them


@pytest.fixture(scope="module")
def lung_store(tmp_path_factory):
    """Three slices per split, 32 x 32, whole and noiseless: what training a prior reads."""
    place = tmp_path_factory.mktemp("data") / "lungs"
    manifest, _ = prepare_store(place, Images(Settings(image_size=32, drop=0), ct.Lungs(3)))
    return place, manifest


def store_config(place, variant="smoke"):
    config = lung64_ct.get_config(variant)
    config.data.dir, config.data.image_size = str(place), 32
    return config


def test_a_store_holds_one_channel_and_volumes(lung_store):
    place, manifest = lung_store
    assert manifest["kind"] == "ct" and manifest["counts"] == {"train": 3, "validation": 3, "test": 3}
    assert manifest["command"].startswith("python tools/prepare_ct.py --lungs --max_slices 3 --size 32")
    config = store_config(place)
    batch = next(datasets.get_train_iterator(config))
    assert batch.y.shape == (4, 32, 32, 1) and batch.y.dtype == np.float32 and batch.mask.all() and batch.maps is None
    power = np.mean([np.mean(batch.y**2) for batch in (datasets.load_measurements(config, "train"),)])
    assert manifest["sigma_data"] == pytest.approx(np.sqrt(power), abs=1e-3)


def test_evaluation_projects_the_references(lung_store):
    config = store_config(lung_store[0])
    (batch,) = datasets.eval_batches(config, "test", 4)
    assert batch.reference.shape == (4, 32, 32, 1) and -1 <= batch.reference.min() < batch.reference.max() <= 1
    assert batch.measurement.y.shape == (4, 23, 46, 1) and batch.unknown is None
    assert batch.volume.tolist() == ["lung1"] * 4


def test_colours_are_not_taken_for_ct(lung_store, image_store):
    config = store_config(lung_store[0])
    config.transform.name = "identity"
    assert "holds CT slices, but transform.name 'identity' measures pictures" in message_of(
        datasets.dataset_info, config
    )
    config = store_config(image_store)
    config.masks.drop = 6
    assert "holds pictures, but transform.name 'grey'" in message_of(datasets.dataset_info, config)
    config = store_config(lung_store[0] / "none")
    assert "python tools/prepare_ct.py --folder YOURS" in message_of(datasets.dataset_info, config)


@pytest.mark.parametrize("name", tasks.CT)
def test_variants_of_ct_are_sound(name):
    config = lung64_ct.get_config(name)
    assert find_problems(config) == [] and config.eval.folder == config.task.name == name
    config.transform.name = "identity"
    assert any(f"task.name is '{name}'" in problem for problem in find_problems(config))
    config.transform.name, config.task.name = "grey", "colorization"
    assert any("needs acquired or one of CT" in problem for problem in find_problems(config))
