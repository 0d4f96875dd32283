"""Which entries raw files acquired, where they state no mask or a wrong one; files and shapes that are refused."""

import shutil

import h5py
import numpy as np
import pytest

from msm.builders.raw import read_raw
from msm.builders.raw.volume import raw_volume
from tests.builders.test_raw_readers import (
    header,
    image_lines,
    oversampled,
    random_kspace,
    write_fastmri,
    write_ismrmrd,
)
from tests.conformance.test_bart import write_cfl
from tests.helpers.checks import message_of

H, W = 24, 20


def pattern(kind: str) -> np.ndarray:
    """(H,W) bool: what was acquired."""
    row, column = np.indices((H, W))
    distance = np.hypot((row - H // 2) / H, (column - W // 2) / W)
    return {
        "discs": (np.random.default_rng(0).random((H, W)) < 0.4) | (distance < 0.2),
        "ellipse": distance < 0.5,
        "partial echo": row >= 5,
        "one row": row != H - 1,
        "rows in place of lines": row % 3 != 1,
        "rows and lines": (row >= 5) & (column % 3 != 1),
    }[kind]


def write(folder, form: str, kspace: np.ndarray):
    """A file that states no mask, and the settings that read it."""
    if form == "bart":
        write_cfl(folder / "scan.x", kspace.transpose(2, 3, 1, 0).reshape(H, W, 1, 3, *[1] * 9, len(kspace)))
        return folder / "scan.cfl", {}
    if form == "fastmri":
        return write_fastmri(folder / "scan.h5", kspace), {}
    np.save(folder / "scan.npy", kspace)
    return folder / "scan.npy", {"axes": "schw"}


KINDS = ["discs", "ellipse", "partial echo", "one row", "rows in place of lines", "rows and lines"]


@pytest.mark.parametrize("form", ["bart", "fastmri", "array"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_missing_beside_lines_is_seen_without_a_mask(tmp_path, form, kind):
    """Exactly the entries that were acquired, unchanged: no readout is cropped that has gaps."""
    mask = pattern(kind)
    kspace = np.where(mask, random_kspace(2, 3, H, W), 0)
    kspace[1] *= 0  # an empty slice says nothing
    path, settings = write(tmp_path, form, kspace)
    volume = read_raw(path, **settings)
    np.testing.assert_array_equal(volume.mask, mask[None])
    np.testing.assert_array_equal(volume.kspace, kspace)
    if form == "fastmri":
        assert volume.header["fov_mm"] == (400, 200, 5)  # oversampled as it was


@pytest.mark.parametrize("zeros", [4, 5])
def test_single_zeros_are_values_up_to_one_percent(tmp_path, zeros):
    kspace = random_kspace(2, 3, H, W)
    kspace[..., -1] = 0
    kspace[:, :, range(zeros), range(zeros)] = 0  # of 24 x 19 entries
    path, settings = write(tmp_path, "array", kspace)
    mask = read_raw(path, **settings).mask
    expected = np.ones((H, W), bool)
    expected[:, -1] = False
    if zeros == 4:
        np.testing.assert_array_equal(mask, expected[None, :1])
    else:
        np.testing.assert_array_equal(mask[0], expected & (kspace[0, 0] != 0))


def columns(*missing: int) -> np.ndarray:
    return ~np.isin(np.arange(W), missing)


@pytest.mark.parametrize("form", ["bart", "fastmri", "array"])
@pytest.mark.parametrize("kind", ["lines", "rows", "discs"])
def test_slices_of_different_masks_are_refused(tmp_path, form, kind):
    masks = {
        "lines": [columns(2), columns(3)],
        "rows": [pattern("one row"), pattern("one row")[::-1]],
        "discs": [pattern("discs"), pattern("discs")[::-1]],
    }[kind]
    kspace = random_kspace(3, 3, H, W) * np.stack([np.broadcast_to(m, (H, W)) for m in (np.zeros(W), *masks)])[:, None]
    path, settings = write(tmp_path, form, kspace.astype(np.complex64))
    problem = message_of(lambda: read_raw(path, **settings))
    lacking = (masks[1] & ~masks[0]).sum() * (H if kind == "lines" else 1)
    assert (
        "scan" in problem and f"different masks (slice 1 lacks {lacking} of" in problem and "split the file" in problem
    )


def test_a_stated_mask_is_believed_but_for_whole_lines_and_rows(tmp_path):
    kspace = random_kspace(2, 3, H, W)
    kspace[:, :, :3, :7] = 0  # 21 of 480 entries: measured, says the mask
    kspace[..., 9] = kspace[..., H - 1, :] = 0
    np.savez(tmp_path / "a.npz", kspace=kspace, mask=np.ones(W))
    expected = np.ones((H, W), bool)
    expected[:, 9] = expected[H - 1] = False
    np.testing.assert_array_equal(read_raw(tmp_path / "a.npz", axes="schw").mask[0], expected)
    kspace[1, ..., 4] = 0
    np.savez(tmp_path / "b.npz", kspace=kspace, mask=np.ones(W))
    lacking = "slice 1 lacks 20 of 437 entries"  # three of the line's 23 are 0 in all slices
    assert lacking in message_of(lambda: read_raw(tmp_path / "b.npz", axes="schw"))
    nothing = np.arange(W) == 9
    assert "0 throughout where its mask" in message_of(raw_volume, tmp_path / "a.npz", kspace, nothing)


@pytest.mark.parametrize("shape", [(W,), (1, W), (1, 1, 1, W), (H, W), (1, 1, H, W)])
def test_masks_may_have_axes_of_length_one(tmp_path, shape):
    mask = columns(2, 5) if shape[-2:] != (H, W) else pattern("discs")
    kspace = random_kspace(2, 3, H, W)
    np.savez(tmp_path / "a.npz", kspace=kspace, mask=mask.reshape(shape))
    volume = read_raw(tmp_path / "a.npz", axes="schw")
    np.testing.assert_array_equal(volume.mask[0], np.atleast_2d(mask))
    np.testing.assert_array_equal(volume.kspace, kspace * mask)
    volume = read_raw(write_fastmri(tmp_path / "a.h5", kspace, mask=mask.reshape(shape)))
    np.testing.assert_array_equal(volume.mask[0], np.atleast_2d(mask))
    if mask.ndim == 1:
        volume = read_raw(write_fastmri(tmp_path / "b.h5", kspace, mask=mask.reshape(1, 1, W, 1)))
        np.testing.assert_array_equal(volume.mask[0, 0], mask)
    told = message_of(read_raw, write_fastmri(tmp_path / "c.h5", kspace, mask=np.ones((W, H))))
    assert f"the mask has shape ({W}, {H}), k-space {H} rows and {W} columns" in told


def test_partial_echo_of_zeros_in_ismrmrd_lines(tmp_path):
    """Some converters fill up the lines with zeros: the rows are missing as if they were not in the file."""
    wide, _ = oversampled(rows=12)
    wide[:, :, :5] = 0
    path = write_ismrmrd(tmp_path / "scan.h5", image_lines(wide, range(10)), header(24, 10))
    volume = read_raw(path)
    np.testing.assert_array_equal(volume.mask[0], np.broadcast_to(np.arange(24)[:, None] >= 5, (24, 10)))
    np.testing.assert_array_equal(volume.kspace, wide)


@pytest.mark.parametrize(
    ("shape", "axes", "expected"),
    [
        ((2, 3, 16, 7), "schw", "so 2 slices, 3 coils, 16 rows and 7 columns are no scan"),
        ((2, 16, 16, 3), "schw", "so 2 slices, 16 coils, 16 rows and 3 columns are no scan"),
        ((2, 129, 16, 16), "schw", "so 2 slices, 129 coils, 16 rows"),
        ((16, 16, 0), "hwc", "so 1 slices, 0 coils"),
    ],
)
def test_axes_in_an_order_that_no_scan_has(tmp_path, shape, axes, expected):
    np.save(tmp_path / "a.npy", np.ones(shape, np.complex64))
    problem = message_of(lambda: read_raw(tmp_path / "a.npy", axes=axes))
    assert expected in problem and f"the axes are stated as {axes!r}" in problem and "order of the axes" in problem
    write_cfl(tmp_path / "b.x", np.ones((16, 16, 1, 256)))
    assert "1 slices, 256 coils, 16 rows and 16 columns are no scan" in message_of(read_raw, tmp_path / "b.cfl")


@pytest.mark.parametrize(("counts", "told"), [([2], "2 coils, the image 3"), ([3, 4], "3 and 4 coils, the image 3")])
def test_noise_of_other_coils_than_the_image(tmp_path, counts, told):
    wide, _ = oversampled()
    noise = [(random_kspace(count, 20), {"flags": 1 << 18}, {}) for count in counts]
    path = write_ismrmrd(tmp_path / "scan.h5", [*noise, *image_lines(wide, range(10))], header(24, 10))
    assert f"its noise scan has {told}" in message_of(read_raw, path)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def test_damaged_files_are_told_in_one_line(tmp_path):
    kspace = random_kspace(1, 3, H, W)
    paths = [cut(write_fastmri(tmp_path / "fast.h5", kspace))]
    np.savez(tmp_path / "a.npz", kspace=kspace)
    paths += [cut(tmp_path / "a.npz")]
    with h5py.File(tmp_path / "odd.h5", "w") as file:
        file["kspace"], file["ismrmrd_header"] = kspace, np.array([1, 2, 3])
    for path in (*paths, tmp_path / "odd.h5"):
        assert "cannot be read" in message_of(lambda at=path: read_raw(at, array={"axes": "schw"}))
    with h5py.File(tmp_path / "records.h5", "w") as file:
        file["dataset/xml"], file["dataset/data"] = header(24, 10), np.ones(3)
    assert "in another layout than ISMRMRD's" in message_of(read_raw, tmp_path / "records.h5")
    infinite = write_fastmri(tmp_path / "inf.h5", kspace)
    with h5py.File(infinite, "a") as file:
        text = file["ismrmrd_header"][()].decode().replace("<x>200</x>", "<x>inf</x>")
        del file["ismrmrd_header"]
        file["ismrmrd_header"] = text
    assert "no encoding/reconSpace/fieldOfView_mm of three numbers" in message_of(read_raw, infinite)


def test_suffixes_and_groups_of_other_programs(tmp_path):
    wide, inner = oversampled()
    path = write_ismrmrd(tmp_path / "scan.h5", image_lines(wide, range(10)), header(24, 10))
    shutil.copy(path, tmp_path / "scan.mrd")
    np.testing.assert_allclose(read_raw(tmp_path / "scan.mrd").kspace, inner, atol=1e-6)
    with h5py.File(path, "a") as file:
        file.move("dataset", "scan_2")
    assert "has its scan in scan_2; rename one group to 'dataset'" in message_of(read_raw, path)
    with h5py.File(path, "a") as file:
        file.move("scan_2", "dataset")
        del file["dataset/data"]
    assert "holds a header and no acquisitions (`dataset/data`)" in message_of(read_raw, path)
    kspace = random_kspace(1, 3, H, W)
    for name in ("a.npy", "a.npz"):
        (np.save if name == "a.npy" else np.savez)(tmp_path / name, kspace)
        (tmp_path / name).rename(tmp_path / name.upper())
    np.testing.assert_array_equal(read_raw(tmp_path / "A.NPY", axes="schw").kspace, kspace)
    np.testing.assert_array_equal(read_raw(tmp_path / "A.NPZ", axes="schw", key="arr_0").kspace, kspace)
    write_cfl(tmp_path / "b.x", kspace.transpose(2, 3, 0, 1))
    for suffix in ("cfl", "hdr"):
        (tmp_path / f"b.{suffix}").rename(tmp_path / f"b.{suffix.upper()}")
    np.testing.assert_array_equal(read_raw(tmp_path / "b.CFL").kspace, kspace)


def test_plain_hdf5_files(tmp_path):
    kspace = random_kspace(1, 3, H, W)
    with h5py.File(tmp_path / "matlab.h5", "w") as file:
        file["kspace"] = kspace.view(np.dtype([("real", "<f4"), ("imag", "<f4")]))
        file.create_group("group")
    np.testing.assert_array_equal(read_raw(tmp_path / "matlab.h5", axes="schw").kspace, kspace)
    assert "neither fastMRI's `ismrmrd_header`" in message_of(read_raw, tmp_path / "matlab.h5")
    told = message_of(lambda: read_raw(tmp_path / "matlab.h5", axes="schw", key="group"))
    assert "'group' is a group, not an array" in told
    assert "is a folder: name one file" in message_of(read_raw, tmp_path)
    for name in ("array", "ismrmrd"):
        assert "absent.h5 does not exist" in message_of(read_raw, tmp_path / "absent.h5", name)
