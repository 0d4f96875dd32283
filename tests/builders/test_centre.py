"""Where k-space lies: what is shifted, in the corner or hybrid is refused or mended; entries that are nearly 0."""

import dataclasses

import numpy as np
import pytest

from msm.builders.demo.simulate import ifft2c
from msm.builders.raw import read_raw
from msm.builders.raw.centre import centred, fourier, measure
from msm.builders.raw.selection import without_coils
from msm.builders.raw.volume import RawVolume, raw_volume, rounding_of
from msm.builders.scans.scan import Options, prepare_scan
from tests.helpers.checks import message_of
from tests.helpers.toy_data import fourier as fft2c
from tests.helpers.toy_data import smooth_coils

H, W = 48, 40


def head(noise: float = 0.01, slices: int = 2, height: int = H, width: int = W) -> np.ndarray:
    """(S,C,H,W) k-space of an ellipse with structure off its centre, 3 coils."""
    y, x = np.mgrid[-1 : 1 : 1j * height, -1 : 1 : 1j * width]
    image = 0.5 * ((y / 0.8) ** 2 + (x / 0.6) ** 2 < 1) + 0.4 * (((y + 0.3) / 0.2) ** 2 + ((x - 0.2) / 0.2) ** 2 < 1)
    coils = np.stack([np.exp(-((y - np.sin(t)) ** 2) - (x - np.cos(t)) ** 2 + 1j * (t - 2) * x) for t in (0, 2, 4)])
    rng = np.random.default_rng(0)
    kspace = fft2c(coils * np.stack([image * (1 - 0.1 * s) for s in range(slices)])[:, None])
    kspace += noise * (rng.normal(size=kspace.shape) + 1j * rng.normal(size=kspace.shape))
    return kspace.astype(np.complex64)


def scan(kspace: np.ndarray, mask: np.ndarray | None = None, **more) -> RawVolume:
    mask = np.ones((1, 1, kspace.shape[-1]), bool) if mask is None else mask
    return RawVolume(np.where(mask, kspace, 0), mask, **more)


LINES = (np.arange(W) % 3 == 0) | (abs(np.arange(W) - W // 2) < 4)


@pytest.mark.parametrize("mask", [None, LINES[None, None], (np.arange(H) > 16)[None, :, None] & LINES])
@pytest.mark.parametrize("noise", [0.0, 0.01, 0.3])
def test_centred_scans_pass_unchanged(mask, noise):
    raw = scan(head(noise), mask)
    for centre in ("", "auto"):
        found, done = centred(raw, centre)
        assert found is raw and not done


@pytest.mark.parametrize(
    ("shift", "told"),
    [
        ((0, 6), "0 rows and 6 columns from its centre"), ((-5, 0), "-5 rows and 0 columns"),
        ((7, -9), "--centre auto or --centre 7,-9"), ((-24, -20), "--centre corner moves it there"),
    ],
)  # fmt: skip
def test_shifted_kspace_is_refused_and_mended(shift, told):
    whole = head()
    raw = scan(np.roll(whole, shift, axis=(-2, -1)))
    assert told in message_of(centred, raw)
    for centre in ("auto", f"{shift[0]},{shift[1]}", *(["corner"] if shift[0] == -24 else [])):
        np.testing.assert_array_equal(centred(raw, centre)[0].kspace, whole)
    assert centred(raw, "0,0")[0].kspace is not None  # believed


def test_a_mask_moves_with_its_kspace():
    """A partial Fourier scan whose header names a wrong centre line."""
    whole, mask = head(), np.arange(W) >= 12
    raw = scan(np.roll(whole, -8, axis=-1), np.roll(mask, -8)[None, None])
    assert "-8 columns" in message_of(centred, raw)
    mended, _ = centred(raw, "auto")
    np.testing.assert_array_equal(mended.mask[0, 0], mask)
    np.testing.assert_array_equal(mended.kspace, np.where(mask, whole, 0))


@pytest.mark.parametrize("letters", ["h", "w", "hw"])
def test_hybrid_arrays_are_refused_and_transformed(letters):
    whole = head()
    kspace = whole
    for letter in letters:
        kspace = fourier(kspace, {"h": -2, "w": -1}[letter], inverse=True)
    message = message_of(centred, scan(kspace))
    assert f"--hybrid {letters} transforms it" in message
    np.testing.assert_allclose(centred(scan(kspace), hybrid=letters)[0].kspace, whole, atol=1e-5)


def test_hybrid_arrays_with_rows_of_air_have_all_entries():
    image = fourier(head(noise=0), -2, inverse=True)
    image[:, :, :4] = 0
    raw = raw_volume("a", image)
    assert raw.mask.shape == (1, H, W)
    assert centred(raw, hybrid="h")[0].mask.shape == (1, 1, W)


def test_transforms_without_shifts_leave_the_image_across_the_edges():
    whole = head()
    images = ifft2c(whole)
    plain = np.fft.fft2(images, norm="ortho").astype(np.complex64)
    half = np.fft.fftshift(plain, axes=(-2, -1))
    assert "across the edges of its rows and columns" in message_of(centred, scan(half))
    assert "--centre corner" in message_of(centred, scan(plain))
    for kspace, centre in ((plain, "auto"), (plain, "corner"), (half, "auto")):
        np.testing.assert_allclose(np.abs(ifft2c(centred(scan(kspace), centre)[0].kspace)), np.abs(images), atol=1e-4)


def test_noise_is_no_kspace():
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(2, 3, H, W)) + 1j * rng.normal(size=(2, 3, H, W))
    assert "does not fall off along its rows and columns" in message_of(centred, scan(noise.astype(np.complex64)))


@pytest.mark.parametrize("shape", [(64, 64), (230, 180), (33, 47), (16, 16)])
def test_every_matrix_is_measured(shape):
    found = measure(head(height=shape[0], width=shape[1]), np.ones((1, 1, shape[1]), bool))
    assert all(f.kind == "k-space" and abs(f.offset) <= f.tolerated and not f.split for f in found.values())


def test_flags_that_say_nothing_are_refused():
    for changes, told in (({"centre": "left"}, "auto, corner, or ROWS,COLUMNS"), ({"hybrid": "x"}, "must be h")):
        assert told in message_of(lambda c=changes: Options(size=32, **c))


def test_preparation_checks_and_mends():
    raw = scan(np.roll(head(height=32, width=32), 8, axis=-1))
    options = Options(size=32, maps="lowres", acceleration=1, acs_lines=0)
    assert "--centre auto or --centre 0,8" in message_of(prepare_scan, raw, options)
    mended = prepare_scan(raw, dataclasses.replace(options, centre="auto"))
    assert "k-space moved by 0 rows and -8 columns" in mended.facts["steps"]
    right = prepare_scan(scan(head(height=32, width=32)), options)
    np.testing.assert_allclose(mended.y, right.y, atol=1e-6)


# --- entries that are nearly 0


def resaved(kspace: np.ndarray) -> np.ndarray:
    """There and back, in single precision."""
    return fourier(fourier(fourier(fourier(kspace, -2, True), -1, True), -1), -2)


@pytest.mark.parametrize("coils", [1, 3])
@pytest.mark.parametrize("kind", ["resaved", "1e-12", "two-dimensional"])
def test_missing_entries_are_known_by_a_threshold(kind, coils):
    mask = LINES if kind != "two-dimensional" else np.random.default_rng(0).random((H, W)) < 0.4
    if mask.ndim == 2:
        mask[H // 2 - 4 : H // 2 + 4, W // 2 - 4 : W // 2 + 4] = True
    kspace = np.where(mask, head()[:, :coils], 0)
    kspace = kspace + np.complex64(1e-12) if kind == "1e-12" else resaved(kspace)
    found = raw_volume("a", kspace.astype(np.complex64))
    np.testing.assert_array_equal(np.broadcast_to(found.mask[0], (H, W)), np.broadcast_to(mask, (H, W)))
    assert not found.kspace[..., ~np.broadcast_to(mask, (H, W))].any()


def test_smooth_simulated_kspace_has_no_gap_and_no_threshold():
    y, x = np.mgrid[-1 : 1 : 1j * H, -1 : 1 : 1j * W]
    smooth = fft2c(np.exp(-8 * (y**2 + x**2))[None, None]).astype(np.complex64)
    assert rounding_of(smooth + 0) == 0 or np.abs(smooth).max() < 1
    assert rounding_of(head(noise=0)) == 0 and rounding_of(head()) == 0


def test_values_beyond_single_precision_are_told():
    for factor in (1e-45, 1e60):
        assert "beyond single precision" in message_of(raw_volume, "a", head().astype(np.complex128) * factor)
    broken = head()
    broken[1, 0, 3, 3] = np.nan
    assert "in 1 of 2 slices, 1 first" in message_of(raw_volume, "a", broken)


# --- slices, maps and coils without content


def prepared(kspace: np.ndarray, **changes):
    return prepare_scan(scan(kspace), Options(**{"size": 32, "maps": "lowres", "acs_lines": 8, **changes}))


def test_slices_without_content_are_left_out_and_named():
    kspace = head(slices=4, height=32, width=32)
    kspace[2] = 0
    found = prepared(kspace)
    assert found.facts["slices"] == [0, 1, 3] and found.facts["empty"] == [2]
    assert len(found.y) == len(found.images) == 3 and np.abs(found.images).max(axis=(1, 2)).min() > 0
    assert "1 slices without content left out: 2" in found.facts["steps"]
    assert "0 throughout" in message_of(lambda: prepared(kspace, slices="2:3"))


def test_noise_that_no_scanner_has_is_told():
    """Simulated without noise, or with zeros that are not known as such."""
    y, x = np.mgrid[-1 : 1 : 1j * 32, -1 : 1 : 1j * 32]
    kspace = fft2c(np.exp(-8 * (y**2 + x**2))[None, None] * smooth_coils(32, 3)).astype(np.complex64)
    quiet = prepared(kspace + np.complex64(1e-20), acceleration=1)
    assert any("less than any scanner's" in step for step in quiet.facts["steps"])
    assert not any("scanner's" in step for step in prepared(head(height=32, width=32)).facts["steps"])


def test_coils_are_left_out_by_number():
    kspace = head()
    noise = np.ones((3, 64), np.complex64)
    raw = scan(kspace, noise=noise, maps=kspace, calibration=kspace)
    found = without_coils(raw, "1")
    np.testing.assert_array_equal(found.kspace, kspace[:, [0, 2]])
    assert found.noise.shape == (2, 64) and found.maps.shape[1] == found.calibration.shape[1] == 2
    for text in ("3", "x", "0,1,2", "-1"):
        assert "--leave_out_coils" in message_of(without_coils, raw, text)


def test_a_silent_coil_is_named_with_the_flag(tmp_path):
    rng = np.random.default_rng(0)
    noise = (rng.normal(size=(3, 64)) + 1j * rng.normal(size=(3, 64))).astype(np.complex64)
    noise[1] = 0
    message = message_of(prepare_scan, scan(head(height=32, width=32), noise=noise), Options(size=32, maps="lowres"))
    assert message.endswith("--leave_out_coils 1")
    np.save(tmp_path / "a.npy", head())
    assert read_raw(tmp_path / "a.npy", array={"axes": "schw"}, leave_out_coils="0").kspace.shape[1] == 2
