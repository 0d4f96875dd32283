"""Seeded damage of every format that is read: values, or one line; no other exception, and no memory for a claim."""

import os
from pathlib import Path

import h5py
import nibabel
import nrrd
import numpy as np
import pydicom
import pytest
from PIL import Image

from msm.builders import border
from msm.builders.ct import store as ct
from msm.builders.ct import volumes
from msm.builders.pictures.folder import Division, Folder
from msm.builders.raw import hdf5, read_raw
from msm.infra.errors import UserError
from tests.builders.test_raw_readers import header, image_lines, write_ismrmrd
from tests.helpers.checks import message_of
from tests.helpers.mutations import mutations

COUNT = 60  # damaged files of each format and seed


def kspace(slices=1, coils=2, size=16) -> np.ndarray:
    random = np.random.default_rng(0)
    return (random.standard_normal((slices, coils, size, size, 2)) @ [1, 1j]).astype(np.complex64)


def volume() -> np.ndarray:
    return np.tile(np.linspace(-1000, 1000, 16), (4, 16, 1)).astype(np.int16)


def write_nii(path: Path, added: int = 0) -> Path:
    """`added` to every Hounsfield unit: scans that are equal are left out."""
    nibabel.Nifti1Image(volume() + np.int16(added), np.diag([2.0, 2, 5, 1])).to_filename(path)
    return path


def write_nrrd(path: Path) -> Path:
    nrrd.write(str(path), volume(), {"space": "LPS", "space directions": np.eye(3)})
    return path


def write_npz(path: Path) -> Path:
    np.savez_compressed(path, volume())
    return path


def write_dcm(folder: Path, added: int = 0) -> Path:
    folder.mkdir()
    for number, plane in enumerate(volume() + np.int16(added)):
        data = pydicom.Dataset()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"1.2.{number}"
        data.SeriesInstanceUID, data.Modality, data.PatientID = "1.2", "CT", "P"
        data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, 5 * number], [1, 0, 0, 0, 1, 0]
        data.Rows, data.Columns, data.SamplesPerPixel = 16, 16, 1
        data.PhotometricInterpretation, data.PixelRepresentation = "MONOCHROME2", 1
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
        data.RescaleSlope, data.RescaleIntercept = "1", "0"
        data.PixelData = plane.tobytes()
        data.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return folder / "1.dcm"


def write_npy(path: Path) -> Path:
    np.save(path, kspace())
    return path


def write_raw_npz(path: Path) -> Path:
    np.savez(path, kspace=kspace(), mask=np.ones(16, bool))
    return path


def write_h5(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace()
    return path


def write_cfl(path: Path) -> Path:
    path.with_suffix(".hdr").write_text("# Dimensions\n16 16 1 2 1\n")
    kspace()[0].transpose(1, 2, 0).ravel(order="F").tofile(path)
    return path.with_suffix(".hdr")


CT = {".nii": write_nii, ".nrrd": write_nrrd, ".npz": write_npz}
RAW = {".npy": write_npy, ".npz": write_raw_npz, ".h5": write_h5, ".cfl": write_cfl}


@pytest.fixture(autouse=True)
def small_limit():
    """A claim of more than this is refused; what the tests allocate is a few kB."""
    border.set_limit(0.05)
    yield
    border.set_limit(border.DEFAULT_GB)


def only_one_line(call, *args, **kwargs) -> bool:
    """Whether a call ended in a UserError of one line; anything else it raises fails the test."""
    try:
        call(*args, **kwargs)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        return True
    return False


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("suffix", CT)
def test_damaged_volumes(tmp_path, suffix, seed):
    path = CT[suffix](tmp_path / f"a{suffix}")
    whole = path.read_bytes()
    assert volumes.read(path).shape[0] in (4, 16)
    refused = 0
    for data in mutations(whole, seed, COUNT):
        path.write_bytes(data)
        refused += only_one_line(volumes.read, path)
    assert refused > COUNT / 6


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("suffix", RAW)
def test_damaged_scans(tmp_path, suffix, seed):
    path = RAW[suffix](tmp_path / f"a{suffix}")
    whole, array = path.read_bytes(), {} if suffix == ".cfl" else {"axes": "schw"}
    assert read_raw(path, array=array).kspace.shape == (1, 2, 16, 16)
    refused = 0
    for data in mutations(whole, seed, COUNT):
        path.write_bytes(data)
        refused += only_one_line(read_raw, path, array=array)
    assert refused > COUNT / 6


@pytest.mark.parametrize("seed", range(2))
def test_damaged_ismrmrd(tmp_path, seed, monkeypatch):
    path = tmp_path / "a.h5"
    write_ismrmrd(path, image_lines(kspace(), range(16)), header(16, 16))
    whole = path.read_bytes()
    read_raw(path)
    monkeypatch.setattr(hdf5, "_PATIENCE_S", 3)  # of computing: HDF5 follows the heaps of some of these for ever
    refused = 0
    for data in mutations(whole, seed, 15, head=len(whole)):
        path.write_bytes(data)
        refused += only_one_line(read_raw, path)
    assert refused > 3


@pytest.mark.parametrize("seed", range(2))
def test_a_damaged_slice_of_dicom_leaves_out_itself(tmp_path, seed):
    path = write_dcm(tmp_path / "a")
    paths, whole = sorted((tmp_path / "a").iterdir()), path.read_bytes()
    assert len(volumes.read_series(paths)[0]["1.2"]) == 4
    told = 0
    for data in mutations(whole, seed, COUNT, head=len(whole) - 512):
        path.write_bytes(data)
        _, left_out = volumes.read_series(paths)
        assert all("\n" not in why for why in left_out.values())
        told += bool(left_out)
    assert told > COUNT / 6


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_damaged_pictures_are_left_out(tmp_path, suffix):
    """All damaged files lie in one folder with good ones: the run goes on, and each is used or told."""
    random = np.random.default_rng(0)
    for number in range(16):
        Image.fromarray(random.integers(0, 256, (24, 24, 3), np.uint8)).save(tmp_path / f"good{number}{suffix}")
    whole = (tmp_path / f"good0{suffix}").read_bytes()
    for number, data in enumerate(mutations(whole, 0, 150, head=80)):
        (tmp_path / f"odd{number}{suffix}").write_bytes(data)
    (tmp_path / "scratch").mkdir()
    source = Folder(tmp_path, Division(counts={"test": 75, "validation": 5}))
    used = {p.name for pictures in source.read(16, tmp_path / "scratch").values() for p in pictures}
    assert used | set(source.problems) == set(source.names) and not used & set(source.problems)
    assert all("\n" not in problem for problem in source.problems.values()) and len(source.problems) > 25
    assert {f"good{number}{suffix}" for number in range(1, 16)} <= used


def npy(shape: str, descr: str = "'<c8'", values: int = 64) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (63 - (len(header) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(values)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (npy("(1000000, 1000000, 16, 16)"), "its header says complex64 (1000000, 1000000, 16, 16)"),
        (npy("(1, 2, 16, 16"), "its header is damaged (SyntaxError)"),
        (npy("(1, 2, -16, -16)"), "its header is damaged (shape (1, 2, -16, -16))"),
        (npy("(1, 2, 16.0, 16)"), "its header is damaged (shape"),
        (npy("5"), "its header is damaged (shape 5)"),
        (npy("(2,)", "'|O'"), "no numbers: save it without pickled objects"),
        (npy("(2,)", "'<f99'"), "its header is damaged (TypeError)"),
        (npy("(2,)", "('<f4', (1000000,))"), "no numbers: save it"),
        (npy("(2,)", "[" * 4000), "its header is damaged"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", "its header is damaged"),
        (b"\x93NUMPY\x09\x00", "does not begin as a .npy file"),
        (b"", "does not begin as a .npy file"),
    ],
)
def test_headers_of_npy_are_held_against_the_file(tmp_path, data, expected):
    (tmp_path / "a.npy").write_bytes(data)
    assert expected in message_of(lambda: read_raw(tmp_path / "a.npy", array={"axes": "schw"}))


def test_a_packed_archive_is_held_against_max_gb(tmp_path):
    """100 MB of zeros are 100 kB of .npz: --max_gb speaks of what they unfold to."""
    np.savez_compressed(tmp_path / "a.npz", kspace=np.zeros((1, 8, 1250, 1250), np.complex64))
    assert os.path.getsize(tmp_path / "a.npz") < 200_000
    message = message_of(lambda: read_raw(tmp_path / "a.npz", array={"axes": "schw"}))
    assert "would take 0.3 GB of memory, --max_gb is 0.05" in message


@pytest.mark.parametrize(
    "dimensions", ["-16 -16 1 2", "0 16 1 2", "1000000 1000000 1000000 8", "16", "", "1e3 2", "9" * 5000]
)
def test_dimensions_of_bart_are_held_against_the_file(tmp_path, dimensions):
    path = write_cfl(tmp_path / "a.cfl")
    path.write_text(f"# Dimensions\n{dimensions}\n")
    assert str(path.with_suffix("")) in message_of(read_raw, path)


def test_values_in_other_files_are_not_followed(tmp_path):
    """External links, external storage and virtual datasets, whose missing sources HDF5 reads as zeros."""
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["kspace"] = kspace()
    (tmp_path / "secret.raw").write_bytes(kspace().tobytes())
    told = {}
    for name in ("link", "soft", "storage", "virtual", "missing", "never", "circle", "group"):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            told[name] = "not followed"
            if name == "link":
                file["kspace"] = h5py.ExternalLink(str(secret), "/kspace")
            elif name == "soft":
                file["outside"] = h5py.ExternalLink(str(secret), "/")
                file["kspace"] = h5py.SoftLink("/outside/kspace")
            elif name == "storage":
                shape, stored = (1, 2, 16, 16), [(str(tmp_path / "secret.raw"), 0, h5py.h5f.UNLIMITED)]
                file.create_dataset("kspace", shape, np.complex64, external=stored)
            elif name in ("virtual", "missing"):
                layout = h5py.VirtualLayout((1, 2, 16, 16), np.complex64)
                source = str(secret) if name == "virtual" else str(tmp_path / "nowhere.h5")
                layout[:] = h5py.VirtualSource(source, "kspace", shape=(1, 2, 16, 16))
                file.create_virtual_dataset("kspace", layout)
            elif name == "never":
                file.create_dataset("kspace", (1, 2, 16, 16), np.complex64)
                told[name] = "was never written"
            elif name == "circle":
                file["kspace"] = h5py.SoftLink("/kspace")
                told[name] = "leads in a circle"
            else:
                file.create_group("kspace")
                told[name] = "is a group"
    for name, expected in told.items():
        message = message_of(lambda name=name: read_raw(tmp_path / f"{name}.h5", array={"axes": "schw"}))
        assert expected in message, name
    with h5py.File(tmp_path / "inside.h5", "w") as file:
        file["real"] = kspace()
        file["kspace"] = h5py.SoftLink("real")
    np.testing.assert_array_equal(read_raw(tmp_path / "inside.h5", array={"axes": "schw"}).kspace, kspace())


def test_a_huge_dataset_is_refused_before_it_is_read(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset(
            "kspace", (10, 16, 4096, 4096), np.complex64, chunks=(1, 1, 64, 64), compression="gzip"
        )
        data[0, 0, :64, :64] = 1
    message = message_of(lambda: read_raw(tmp_path / "a.h5", array={"axes": "schw"}))
    assert "GB of memory, --max_gb is 0.05" in message


def test_a_detached_nrrd_is_not_followed(tmp_path):
    (tmp_path / "inside").mkdir()
    volume().tofile(tmp_path / "x.raw")
    lines = [
        "NRRD0005",
        "type: int16",
        "dimension: 3",
        "space: LPS",
        "sizes: 16 16 4",
        "encoding: raw",
        "endian: little",
    ]
    lines += ["space directions: (1,0,0) (0,1,0) (0,0,1)"]
    for name in ("data file: ../x.raw", f"datafile: {tmp_path / 'x.raw'}", "data file: x%d.raw 1 4 1"):
        (tmp_path / "inside" / "a.nrrd").write_text("\n".join([*lines, name, ""]))
        assert "detached header" in message_of(volumes.read, tmp_path / "inside" / "a.nrrd")


def test_claims_of_volumes_are_refused(tmp_path):
    header = (
        "NRRD0005\ntype: int16\ndimension: 3\nspace: LPS\nsizes: 100000 100000 100000\nencoding: raw\nendian: little\n"
    )
    (tmp_path / "a.nrrd").write_text(header + "space directions: (1,0,0) (0,1,0) (0,0,1)\n\n")
    assert "--max_gb is 0.05" in message_of(volumes.read, tmp_path / "a.nrrd")
    path = write_nii(tmp_path / "a.nii")
    data = bytearray(path.read_bytes())
    data[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()
    path.write_bytes(data)
    assert "--max_gb is 0.05" in message_of(volumes.read, path)
    data[42:48] = np.array([16, 16, 90], "<i2").tobytes()
    path.write_bytes(data)
    assert "is shorter than its shape (16, 16, 90) says" in message_of(volumes.read, path)


def test_every_file_that_was_seen_is_used_told_or_ignored(tmp_path):
    """Of a folder of volumes with odd files and names, hidden ones and links to folders aside, none is forgotten."""
    for added, name in enumerate(("one", "two")):
        write_dcm(tmp_path / name, added)
    write_nii(tmp_path / "three.nii", 2)
    (tmp_path / "four.nii").write_bytes(b"nothing")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".hidden.nii").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "one")
    write_nii(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.nii")))
    (tmp_path / "new\nline.nii").write_bytes(b"")
    (tmp_path / "scratch").mkdir()
    source = ct.Scans(tmp_path, Division())
    source.read(16, tmp_path / "scratch")
    told = {name for name in source.problems if not name.startswith("three.nii")}  # whose first slice is air
    assert told == {"four.nii", r"caf\xe9.nii", r"new\nline.nii"}
    assert source.problems[r"caf\xe9.nii"] == "its name is not UTF-8; rename it"
    assert {name for name in source.ignored if not name.startswith("scratch")} == {"notes.txt", "link"}
    assert set(source.patients) == {"one", "two", "three.nii", "four.nii", "new\nline.nii"}
