"""Archives that people have: a file in the layout of each, written from one head, gives that head's k-space."""

import h5py
import numpy as np
import pytest

from msm.builders.demo.simulate import ifft2c
from msm.builders.raw import read_raw
from msm.builders.raw.centre import fourier
from msm.builders.scans.scan import Options, prepare_scan
from tests.builders.test_centre import H, W, head
from tests.builders.test_raw_readers import header, image_lines, write_ismrmrd
from tests.conformance.test_bart import write_cfl
from tests.helpers.checks import message_of
from tests.helpers.raw_files import oversampled

FRAMES, SLICES = 3, 2
SERIES = np.stack([head(slices=SLICES) * (1 + frame) for frame in range(FRAMES)])  # (T,S,C,H,W)
ORDERED = SERIES.transpose(1, 0, 2, 3, 4).reshape(-1, *SERIES.shape[2:])  # frames of a slice follow each other


def write(path, **datasets):
    with h5py.File(path, "w") as file:
        for name, value in datasets.items():
            file[name] = value
    return path


def matlab(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.complex64).view(np.dtype([("real", "<f4"), ("imag", "<f4")]))


@pytest.mark.parametrize("kind", ["knee", "brain", "m4raw"])
def test_fastmri_and_m4raw(tmp_path, kind):
    """Knees and brains are oversampled along the rows, brains padded with lines of 0; M4Raw is neither."""
    whole = head()
    if kind == "brain":
        whole[..., :2] = whole[..., -2:] = 0
    stored = whole if kind == "m4raw" else oversampled(whole)
    text = header(*stored.shape[-2:])
    if kind == "m4raw":
        text = text.replace(f"<x>{H // 2}</x>", f"<x>{H}</x>").replace("400", "200")
    found = read_raw(write(tmp_path / "scan.h5", kspace=stored, ismrmrd_header=text, reconstruction_rss=np.ones(3)))
    np.testing.assert_allclose(found.kspace, whole, atol=1e-5)
    assert found.mask[0, 0].sum() == (W - 4 if kind == "brain" else W)


@pytest.mark.parametrize("corner", [True, False])
def test_calgary_campinas(tmp_path, corner):
    """(x, ky, kz, 2 C), real and imaginary parts in turn; transforms without shifts, whichever way they were meant."""
    images = ifft2c(head(slices=5))
    kspace = np.fft.fft2(images, norm="ortho")
    kspace = kspace if corner else np.fft.fftshift(kspace, axes=(-2, -1))
    stored = np.stack([kspace.real, kspace.imag], axis=2).reshape(5, -1, H, W).transpose(0, 2, 3, 1)
    path = write(tmp_path / "e1_P01.7.h5", kspace=stored.astype(np.float32))
    found = read_raw(path, "calgary_campinas")
    np.testing.assert_allclose(np.abs(ifft2c(found.kspace)), np.abs(images), atol=1e-4)
    assert "or the archive by --format, e.g. calgary_campinas" in message_of(read_raw, path)
    wrong = write(tmp_path / "b.h5", kspace=stored[..., :5])
    assert "not the archive's real (x, ky, kz, 2 coils)" in message_of(read_raw, wrong, "calgary_campinas")


def test_cmrxrecon(tmp_path):
    """MATLAB's (rows, columns, coils, slices, frames), which HDF5 has in reverse."""
    stored = matlab(SERIES.transpose(0, 1, 2, 4, 3))
    path = write(tmp_path / "cine_sax.mat", kspace_full=stored)
    assert "3 frames: --frames : takes all as slices" in message_of(read_raw, path)
    np.testing.assert_array_equal(read_raw(path, frames=":").kspace, ORDERED)
    np.testing.assert_array_equal(read_raw(path, frames="1").kspace, SERIES[1])
    np.testing.assert_array_equal(read_raw(path, frames="1:").kspace[::2], SERIES[1][[0, 1]])
    assert "takes none of the 3 frames" in message_of(lambda: read_raw(path, frames="5"))
    lines = np.arange(W) % 4 == 0
    lines[W // 2 - 4 : W // 2 + 4] = True
    fewer = write(tmp_path / "sub.mat", kspace_sub04=matlab(np.where(lines, SERIES, 0).transpose(0, 1, 2, 4, 3)))
    np.testing.assert_array_equal(read_raw(fewer, frames="0").mask[0, 0], lines)
    write(tmp_path / "two.mat", kspace=stored, kus=stored, mask=np.ones((W, H)))
    assert "name that of k-space by --key" in message_of(lambda: read_raw(tmp_path / "two.mat", frames="0"))
    assert read_raw(tmp_path / "two.mat", array={"key": "kus"}, frames="0").kspace.shape == SERIES[0].shape
    (tmp_path / "old.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    assert "'-v7.3'" in message_of(read_raw, tmp_path / "old.mat")


def test_skm_tea(tmp_path):
    """(x, ky, kz, echoes, C), with coil maps (x, ky, kz, C, 1)."""
    stored = SERIES[:2].transpose(1, 3, 4, 0, 2)
    maps = ifft2c(head(noise=0)).astype(np.complex64)
    datasets = {"kspace": stored, "maps": maps.transpose(0, 2, 3, 1)[..., None]}
    path = write(tmp_path / "MTR_001.h5", **datasets)
    assert "2 echoes: --frames" in message_of(read_raw, path)
    found = read_raw(path, frames="1")
    np.testing.assert_array_equal(found.kspace, SERIES[1])
    np.testing.assert_array_equal(found.maps, maps)
    both = read_raw(path, frames=":")
    np.testing.assert_array_equal(both.kspace[1::2], SERIES[1])
    np.testing.assert_array_equal(both.maps[1::2], maps)
    scan = prepare_scan(found, Options(size=32, maps="lowres", acceleration=1, acs_lines=0))
    assert scan.facts["steps"][-2] == "maps of the file"
    datasets["maps"] = datasets["maps"][:, :4]
    assert "do not fit k-space" in message_of(lambda: read_raw(write(tmp_path / "b.h5", **datasets), frames="0"))


def test_ocmr_frames_and_asymmetric_echo(tmp_path):
    """ISMRMRD lines of several frames whose echo begins late: rows before it are missing."""
    late = 12
    lines = [
        (SERIES[t, s, :, late:, c], {"center_sample": H // 2 - late},
         {"slice": s, "phase": t, "kspace_encode_step_1": c})
        for t in range(FRAMES) for s in range(SLICES) for c in range(W)
    ]  # fmt: skip
    path = write_ismrmrd(tmp_path / "fs_0001.h5", lines, header(H, W))
    assert "holds 3 frames" in message_of(read_raw, path)
    found = read_raw(path, frames=":")
    np.testing.assert_array_equal(found.mask[0], np.repeat((np.arange(H) >= late)[:, None], W, axis=1))
    np.testing.assert_allclose(found.kspace, np.where(found.mask, ORDERED, 0), atol=1e-6)
    fewer = [line for line in lines if (line[2]["kspace_encode_step_1"] + line[2]["phase"]) % 2]
    path = write_ismrmrd(tmp_path / "us_0001.h5", fewer, header(H, W))
    assert "take one frame by --frames N" in message_of(lambda: read_raw(path, frames=":"))
    np.testing.assert_array_equal(read_raw(path, frames="1").mask[0, -1], np.arange(W) % 2 == 0)


def test_bart_frames_and_slices_of_volumes(tmp_path):
    values = SERIES.transpose(3, 4, 2, 0, 1)  # rows, columns, coils, frames, slices
    write_cfl(tmp_path / "cine", values.reshape(H, W, 1, 3, *[1] * 6, FRAMES, 1, 1, SLICES))
    assert "holds 3 frames" in message_of(read_raw, tmp_path / "cine.cfl")
    np.testing.assert_array_equal(read_raw(tmp_path / "cine.cfl", frames=":").kspace, ORDERED)
    write_cfl(tmp_path / "plane", values[..., 0, :1].reshape(1, H, W, 3))
    np.testing.assert_array_equal(read_raw(tmp_path / "plane.cfl").kspace, SERIES[0, :1])


def test_repetitions_are_chosen(tmp_path):
    wide = oversampled(head())
    lines = [(v * (1 + r), f, {**c, "repetition": r}) for r in (0, 4) for v, f, c in image_lines(wide, range(W))]
    path = write_ismrmrd(tmp_path / "scan.h5", lines, header(2 * H, W))
    assert "2 repetitions, 0 to 4: --repetition takes one" in message_of(read_raw, path)
    assert "only 0, 4" in message_of(lambda: read_raw(path, repetition=1))
    np.testing.assert_allclose(read_raw(path, repetition=4).kspace, 5 * head(), atol=1e-4)
    np.save(tmp_path / "a.npy", head())
    told = message_of(lambda: read_raw(tmp_path / "a.npy", array={"axes": "schw"}, repetition=1))
    assert "read as array, which has no --repetition" in told


@pytest.mark.parametrize("rows", [2 * H, H])
def test_separate_calibration_scans_give_maps(tmp_path, rows):
    """Every second line, no centre of its own; maps as from the whole scan. A shorter calibration readout will do."""
    wide = oversampled(head(noise=0.001))
    start = H - rows // 2
    calibration = [
        (v[:, start : start + rows], {"flags": 1 << 19, "center_sample": rows // 2}, c)
        for v, _, c in image_lines(wide, range(W // 2 - 8, W // 2 + 8))
    ]
    text = header(2 * H, W).replace(
        "<trajectory>", "<parallelImaging><calibrationMode>separate</calibrationMode></parallelImaging><trajectory>"
    )
    path = write_ismrmrd(tmp_path / "scan.h5", image_lines(wide, range(0, W, 2)) + calibration, text)
    raw = read_raw(path)
    assert raw.mask.mean() == 0.5 and raw.calibration.shape == raw.kspace.shape
    for crop, size in (("resolution", 32), ("resolution", 48)):
        scan = prepare_scan(raw, Options(size=size, crop=crop, acs_lines=0))
        assert "maps by espirit of the calibration scan" in scan.facts["steps"] and scan.masks.mean() < 0.6
        whole = prepare_scan(
            read_raw(write_ismrmrd(tmp_path / "whole.h5", image_lines(wide, range(W)), header(2 * H, W))),
            Options(size=size, crop=crop, acceleration=1, acs_lines=0),
        )
        both = np.abs(whole.maps).any(axis=1) & np.abs(scan.maps).any(axis=1)
        agree = np.abs(np.sum(np.conj(whole.maps) * scan.maps, axis=1))[both]
        assert both.mean() > 0.3 and np.quantile(agree, 0.05) > 0.99


def test_lines_without_oversampling_are_told_from_short_ones(tmp_path):
    """A converter that removed it leaves the header of the scanner: the image must not be squeezed."""
    lines = image_lines(head(), range(W))
    found = read_raw(write_ismrmrd(tmp_path / "scan.h5", lines, header(2 * H, W)))
    np.testing.assert_allclose(found.kspace, head(), atol=1e-6)
    assert found.header["fov_mm"][0] == 200


def test_a_whole_line_whose_centre_was_left_0(tmp_path):
    wide = oversampled(head())
    lines = [(v, {**f, "center_sample": 0}, c) for v, f, c in image_lines(wide, range(W))]
    found = read_raw(write_ismrmrd(tmp_path / "scan.h5", lines, header(2 * H, W)))
    np.testing.assert_allclose(found.kspace, head(), atol=1e-5)


def test_scans_that_are_not_cartesian_are_refused(tmp_path):
    lines = [(v, {**f, "trajectory_dimensions": 2}, c) for v, f, c in image_lines(head(), range(W))]
    assert "only Cartesian" in message_of(read_raw, write_ismrmrd(tmp_path / "a.h5", lines, header(H, W)))
    text = header(H, W, trajectory="radial")
    assert "is radial" in message_of(read_raw, write(tmp_path / "b.h5", kspace=head(), ismrmrd_header=text))
    assert "is spiral" in message_of(
        read_raw, write_ismrmrd(tmp_path / "c.h5", lines, header(H, W, trajectory="spiral"))
    )
    # Spokes all pass the centre: along them k-space does not fall off.
    angle = np.pi * np.arange(W) / W
    row = (np.arange(H) - H // 2)[:, None]
    image = ifft2c(head(noise=0, slices=1))[0]
    y, x = np.mgrid[: image.shape[1], : image.shape[2]]
    along = np.exp(-2j * np.pi * ((row * np.sin(angle))[..., None, None] * (y - H // 2) / H
                                  + (row * np.cos(angle))[..., None, None] * (x - W // 2) / W))  # fmt: skip
    spokes = np.einsum("cyx,rsyx->crs", image, along, optimize=True)[None].astype(np.complex64)
    np.savez(tmp_path / "radial.npz", kspace=spokes, traj=np.zeros((2, H, W)))
    assert "trajectory" in message_of(lambda: read_raw(tmp_path / "radial.npz", array={"axes": "schw"}))
    np.save(tmp_path / "radial.npy", spokes)
    raw = read_raw(tmp_path / "radial.npy", array={"axes": "schw"})
    assert "Cartesian" in message_of(prepare_scan, raw, Options(size=32))


@pytest.mark.parametrize(
    ("name", "command"), [("meas.dat", "siemens_to_ismrmrd -f"), ("raw.lab", "philips_to"), ("P1.7", "ge_to_ismrmrd")]
)
def test_scanners_own_formats_name_their_converter(tmp_path, name, command):
    (tmp_path / name).write_bytes(bytes(64))
    message = message_of(read_raw, tmp_path / name)
    assert command in message and "\n" not in message


def test_hybrid_arrays_of_any_archive(tmp_path):
    np.save(tmp_path / "a.npy", fourier(head(), -2, inverse=True))
    raw = read_raw(tmp_path / "a.npy", array={"axes": "schw"})
    options = {"size": 32, "maps": "lowres", "acceleration": 1, "acs_lines": 0}
    assert "--hybrid h" in message_of(prepare_scan, raw, Options(**options))
    mended = prepare_scan(raw, Options(hybrid="h", **options))
    np.save(tmp_path / "b.npy", head())
    right = prepare_scan(read_raw(tmp_path / "b.npy", array={"axes": "schw"}), Options(**options))
    np.testing.assert_allclose(mended.images, right.images, atol=1e-5)
    assert "transformed along its rows" in mended.facts["steps"]
