"""Raw-data readers on files made here in the real formats: values, masks, noise scans, and mistakes that are named."""

import shutil

import h5py
import numpy as np
import pytest

from msm.builders.raw import RAW_READERS, detect_format, read_raw
from msm.builders.raw.volume import crop_readout
from tests.conformance.test_bart import bart, write_cfl
from tests.helpers.checks import message_of
from tests.helpers.toy_data import fourier

HEADER = """<?xml version="1.0" encoding="utf-8"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
  <acquisitionSystemInformation><systemVendor>ACME</systemVendor></acquisitionSystemInformation>
  <encoding>
    <encodedSpace><matrixSize><x>{x}</x><y>{y}</y><z>{z}</z></matrixSize>
      <fieldOfView_mm><x>400</x><y>200</y><z>5</z></fieldOfView_mm></encodedSpace>
    <reconSpace><matrixSize><x>{half}</x><y>{y}</y><z>1</z></matrixSize>
      <fieldOfView_mm><x>200</x><y>200</y><z>5</z></fieldOfView_mm></reconSpace>
    <encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>{last}</maximum><center>{centre}</center>
      </kspace_encoding_step_1></encodingLimits>
    <trajectory>{trajectory}</trajectory>
  </encoding>
</ismrmrdHeader>"""


def header(x: int, y: int, z: int = 1, centre: int = -1, trajectory: str = "cartesian") -> str:
    centre = y // 2 if centre < 0 else centre
    return HEADER.format(x=x, y=y, z=z, half=x // 2, last=y - 1, centre=centre, trajectory=trajectory)


def random_kspace(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(sum(shape))
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)


def oversampled(slices=2, coils=3, rows=12, columns=10) -> tuple[np.ndarray, np.ndarray]:
    """k-space (slices,C,2 rows,columns) of images that are empty in the outer rows, and that of the inner ones."""
    images = random_kspace(slices, coils, rows, columns)
    outer = ((0, 0), (0, 0), (rows - rows // 2, rows // 2), (0, 0))
    return fourier(np.pad(images, outer)), fourier(images)


@pytest.mark.parametrize("rows", [12, 11])
def test_cropped_readout_is_the_kspace_of_the_inner_image(rows):
    images = random_kspace(1, 2, rows, 5)
    left = (2 * rows) // 2 - rows // 2
    padded = np.pad(images, ((0, 0), (0, 0), (left, rows - left), (0, 0)))
    np.testing.assert_allclose(crop_readout(fourier(padded), rows), fourier(images), atol=1e-6)


def write_fastmri(path, kspace, **datasets):
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace
        file["ismrmrd_header"] = header(*kspace.shape[-2:])
        file.attrs["acquisition"] = "AXT2"
        for name, value in datasets.items():
            file[name] = value
    return path


def test_fastmri_fully_sampled_file(tmp_path):
    wide, inner = oversampled()
    wide[..., [0, 9]] = inner[..., [0, 9]] = 0  # the archive pads with zeros
    volume = read_raw(write_fastmri(tmp_path / "file.h5", wide))
    np.testing.assert_allclose(volume.kspace, inner, atol=1e-6)
    assert volume.kspace.dtype == np.complex64 and volume.kspace.shape == (2, 3, 12, 10)
    np.testing.assert_array_equal(volume.mask, np.array([[[0] + [1] * 8 + [0]]], bool))
    assert volume.header == {"vendor": "ACME", "acquisition": "AXT2", "fov_mm": (200, 200, 5)} and volume.noise is None


def test_fastmri_mask_is_read_and_not_guessed(tmp_path):
    wide, _ = oversampled()
    mask = np.array([0, 1, 0, 1, 1, 1, 0, 0, 1, 1], np.uint8)
    wide[..., 9] = 0  # padding that the archive's mask calls acquired
    volume = read_raw(write_fastmri(tmp_path / "file.h5", wide, mask=mask))
    np.testing.assert_array_equal(volume.mask[0, 0], [0, 1, 0, 1, 1, 1, 0, 0, 1, 0])
    assert not volume.kspace[..., ~volume.mask[0, 0]].any()
    single = read_raw(write_fastmri(tmp_path / "single.h5", wide[:, 0]))
    assert single.kspace.shape == (2, 1, 12, 10)


def test_fastmri_mistakes(tmp_path):
    wide, _ = oversampled()
    path = write_fastmri(tmp_path / "file.h5", wide, mask=np.ones(7))
    assert "the mask has shape (7,)" in message_of(read_raw, path)
    assert "0 throughout" in message_of(read_raw, write_fastmri(tmp_path / "zero.h5", 0 * wide))
    assert "not finite" in message_of(read_raw, write_fastmri(tmp_path / "nan.h5", wide * np.nan))
    with h5py.File(path, "a") as file:
        del file["ismrmrd_header"]
        file["ismrmrd_header"] = "<xml>"
    assert "not well-formed" in message_of(read_raw, path)


def test_bart_files(tmp_path):
    kspace = random_kspace(2, 3, 9, 8)
    kspace[..., 1] = 0
    write_cfl(tmp_path / "scan.x", kspace.transpose(2, 3, 1, 0).reshape(9, 8, 1, 3, *[1] * 9, 2))
    for name in ("scan.hdr", "scan.cfl"):
        volume = read_raw(tmp_path / name)
        np.testing.assert_array_equal(volume.kspace, kspace)
        np.testing.assert_array_equal(volume.mask, [[[1, 0, 1, 1, 1, 1, 1, 1]]])
    (tmp_path / "scan.cfl").write_bytes((tmp_path / "scan.cfl").read_bytes()[:-8])
    assert "has 3448 bytes, scan.hdr says 3456" in message_of(read_raw, tmp_path / "scan.cfl")
    (tmp_path / "scan.cfl").unlink()
    assert "scan.cfl is missing" in message_of(read_raw, tmp_path / "scan.hdr")
    write_cfl(tmp_path / "cube.x", np.ones((4, 4, 4, 2)))
    assert "dimension 2 of 4" in message_of(read_raw, tmp_path / "cube.cfl")


@pytest.mark.skipif(shutil.which("bart") is None, reason="the program `bart` is not installed")
def test_bart_phantom_is_centred(tmp_path):
    bart(tmp_path, "phantom", "-k", "-x32", "-s2")
    volume = read_raw(tmp_path / "out.cfl")
    assert volume.kspace.shape == (1, 2, 32, 32) and volume.mask.all()
    strongest = np.argmax(np.abs(volume.kspace[0]).sum(0))
    assert np.unravel_index(strongest, (32, 32)) == (16, 16)


def test_arrays_with_stated_axes(tmp_path):
    kspace = random_kspace(2, 3, 9, 8)
    mask = np.array([1, 1, 0, 1, 1, 0, 1, 1], bool)
    np.save(tmp_path / "a.npy", kspace.transpose(2, 3, 0, 1))
    np.testing.assert_array_equal(read_raw(tmp_path / "a.npy", axes="hwsc").kspace, kspace)
    np.savez(tmp_path / "a.npz", data=np.stack([kspace[0].real, kspace[0].imag], -1), sampling=mask)
    volume = read_raw(tmp_path / "a.npz", axes="chwp", key="data", mask_key="sampling")
    np.testing.assert_array_equal(volume.kspace, np.where(mask, kspace[:1], 0))
    np.testing.assert_array_equal(volume.mask[0, 0], mask)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["kspace"] = kspace
        file["mask"] = np.indices((9, 8)).sum(0) % 2
    volume = read_raw(tmp_path / "a.h5", axes="schw")
    np.testing.assert_array_equal(volume.mask[0], np.indices((9, 8)).sum(0) % 2)
    np.testing.assert_array_equal(volume.kspace, kspace * volume.mask)


def test_array_mistakes(tmp_path):
    np.save(tmp_path / "a.npy", random_kspace(3, 6, 5))
    assert "state their axes" in message_of(read_raw, tmp_path / "a.npy")
    reading = RAW_READERS["array"]
    assert "one letter per axis" in message_of(reading, tmp_path / "a.npy", "schw")
    assert "must name c, h, w" in message_of(reading, tmp_path / "a.npy", "cxy")
    np.savez(tmp_path / "a.npz", other=np.ones(3))
    assert "no array 'kspace', only other" in message_of(reading, tmp_path / "a.npz", "chw")
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    assert "without pickled objects" in message_of(reading, tmp_path / "objects.npy", "chw")
    (tmp_path / "text.dat").write_text("no k-space")
    assert "convert it" in message_of(read_raw, tmp_path / "text.dat")
    assert "does not exist" in message_of(read_raw, tmp_path / "absent.h5")


COUNTERS = [(name, "<u2") for name in ("kspace_encode_step_1", "kspace_encode_step_2", "average", "slice", "contrast")]
COUNTERS += [(name, "<u2") for name in ("phase", "repetition", "set", "segment")] + [("user", "<u2", (8,))]
HEAD = [("version", "<u2"), ("flags", "<u8"), ("measurement_uid", "<u4"), ("scan_counter", "<u4")]
HEAD += [("acquisition_time_stamp", "<u4"), ("physiology_time_stamp", "<u4", (3,)), ("number_of_samples", "<u2")]
HEAD += [("available_channels", "<u2"), ("active_channels", "<u2"), ("channel_mask", "<u8", (16,))]
HEAD += [(name, "<u2") for name in ("discard_pre", "discard_post", "center_sample", "encoding_space_ref")]
HEAD += [("trajectory_dimensions", "<u2"), ("sample_time_us", "<f4")]
HEAD += [(name, "<f4", (3,)) for name in ("position", "read_dir", "phase_dir", "slice_dir", "patient_table_position")]
HEAD += [("idx", COUNTERS), ("user_int", "<i4", (8,)), ("user_float", "<f4", (8,))]
FLOATS = h5py.vlen_dtype(np.float32)


def write_ismrmrd(path, lines, xml):
    """`lines`: (values (C,N), {field: value}, {counter: value}) each; the format's own record layout."""
    records = np.zeros(len(lines), [("head", HEAD), ("traj", FLOATS), ("data", FLOATS)])
    for record, (values, fields, counters) in zip(records, lines, strict=True):
        record["head"]["active_channels"], record["head"]["number_of_samples"] = values.shape
        record["head"]["center_sample"] = values.shape[1] // 2
        for name, value in fields.items():
            record["head"][name] = value
        for name, value in counters.items():
            record["head"]["idx"][name] = value
        record["data"] = np.ascontiguousarray(values, np.complex64).ravel().view(np.float32)
        record["traj"] = np.zeros(0, np.float32)
    with h5py.File(path, "w") as file:
        file.create_dataset("dataset/xml", data=[xml.encode()], dtype=h5py.special_dtype(vlen=bytes))
        file["dataset/data"] = records
    return path


def image_lines(kspace, columns, **fields):
    return [
        (kspace[s, :, :, c], fields, {"slice": s, "kspace_encode_step_1": c})
        for s in range(len(kspace))
        for c in columns
    ]


def test_ismrmrd_lines_noise_and_averages(tmp_path):
    wide, inner = oversampled()
    columns = [0, 4, 5, 6, 9]
    noise = random_kspace(3, 20)
    lines = [(noise, {"flags": 1 << 18}, {})]
    lines += [(1e6 * wide[0, :, :, 5], {"flags": 1 << 22}, {})]  # a navigator
    lines += image_lines(0.5 * wide, columns, flags=1) + image_lines(1.5 * wide, columns)
    volume = read_raw(write_ismrmrd(tmp_path / "scan.h5", lines, header(24, 10)))
    mask = np.isin(np.arange(10), columns)
    np.testing.assert_array_equal(volume.mask[0, 0], mask)
    np.testing.assert_allclose(volume.kspace, np.where(mask, inner, 0), atol=1e-6)
    np.testing.assert_allclose(volume.noise, noise / np.sqrt(2), rtol=1e-6)  # as in the mean of two
    assert volume.header == {"vendor": "ACME", "fov_mm": (200, 200, 5)}


def test_ismrmrd_noise_has_the_bandwidth_of_the_image(tmp_path):
    wide, _ = oversampled()
    noise = random_kspace(3, 20)
    lines = [(noise, {"flags": 1 << 18, "sample_time_us": 8.0}, {}), *image_lines(wide, range(10), sample_time_us=2.0)]
    xml = header(24, 10).replace(
        "<encoding>", "<subjectInformation><patientID>p7</patientID></subjectInformation><encoding>"
    )
    volume = read_raw(write_ismrmrd(tmp_path / "scan.h5", lines, xml))
    np.testing.assert_allclose(volume.noise, 2 * noise, rtol=1e-6)  # the image has four times the bandwidth
    assert volume.header["patient_id"] == "p7"


def test_ismrmrd_centre_of_kspace_comes_from_the_file(tmp_path):
    """Lines are counted from another centre, the echo is partial, and samples at the ends are to be thrown away."""
    wide, _ = oversampled(slices=1)
    values = wide[0, :, 6:, 5]  # 18 of 24 samples, the centre at 6
    fields = {"discard_pre": 2, "discard_post": 1, "center_sample": 6}
    lines = [(values, fields, {"kspace_encode_step_1": 3})]
    volume = read_raw(write_ismrmrd(tmp_path / "scan.h5", lines, header(24, 10, centre=3)))
    assert volume.kspace.shape == (1, 3, 24, 10)
    np.testing.assert_array_equal(volume.kspace[0, :, 8:23, 5], values[:, 2:-1])
    expected = np.zeros((24, 10), bool)
    expected[8:23, 5] = True
    np.testing.assert_array_equal(volume.mask[0], expected)


@pytest.mark.parametrize("mode", ["embedded", "separate"])
def test_ismrmrd_calibration_lines_are_of_the_image_or_not(tmp_path, mode):
    wide, _ = oversampled()
    lines = image_lines(wide, [0, 5, 9]) + image_lines(wide, [4, 6], flags=1 << 19)
    lines += image_lines(wide, [2], encoding_space_ref=1)
    parallel = f"<parallelImaging><calibrationMode>{mode}</calibrationMode></parallelImaging></encoding>"
    xml = header(24, 10).replace("</encoding>", parallel)
    volume = read_raw(write_ismrmrd(tmp_path / "scan.h5", lines, xml))
    assert list(np.flatnonzero(volume.mask)) == ([0, 4, 5, 6, 9] if mode == "embedded" else [0, 5, 9])


def test_ismrmrd_mistakes(tmp_path):
    wide, _ = oversampled()

    def message(lines, **settings):
        return message_of(read_raw, write_ismrmrd(tmp_path / "scan.h5", lines, header(24, 10, **settings)))

    good = image_lines(wide, range(10))
    assert "3 partitions" in message(good, z=3)
    assert "spiral" in message(good, trajectory="spiral")
    assert "backwards (EPI)" in message(image_lines(wide, range(10), flags=1 << 21))
    assert "2 values of 'contrast'" in message([*good, (wide[0, :, :, 0], {}, {"contrast": 1})])
    assert "different lines" in message(good[:-1])
    assert "does not fit" in message([(wide[0, :, :, 0], {}, {"kspace_encode_step_1": 10})])
    assert "has 144 numbers" in message([(wide[0, :, :, 0], {"number_of_samples": 20}, {})])
    assert "no image lines" in message([(wide[0, :, :, 0], {"flags": 1 << 18}, {})])
    assert "is no HDF5 file" in message_of(read_text_as_ismrmrd, tmp_path)


def read_text_as_ismrmrd(folder):
    (folder / "scan.dat").write_text("text")
    return read_raw(folder / "scan.dat", "ismrmrd")


def test_file_written_by_the_ismrmrd_package(tmp_path):
    package = pytest.importorskip("ismrmrd", reason="the package `ismrmrd` is not installed")
    wide, inner = oversampled()
    with package.Dataset(str(tmp_path / "scan.h5")) as dataset:
        dataset.write_xml_header(header(24, 10).encode())
        for values, _, counters in image_lines(wide, range(10)):
            acquisition = package.Acquisition.from_array(np.ascontiguousarray(values))
            acquisition.center_sample = 12
            for name, value in counters.items():
                setattr(acquisition.idx, name, value)
            dataset.append_acquisition(acquisition)
    assert detect_format(tmp_path / "scan.h5") == "ismrmrd"
    np.testing.assert_allclose(read_raw(tmp_path / "scan.h5").kspace, inner, atol=1e-6)
