"""Preparation of raw k-space: every step against an exact answer."""

import numpy as np
import pytest

from msm.builders.raw import RawVolume
from msm.builders.scans import steps
from msm.builders.scans.scan import Options, draw_masks, load_scan, pack, prepare_scan, save_scan, unpack
from tests.builders.test_raw_readers import random_kspace
from tests.helpers.checks import message_of
from tests.helpers.raw_files import raw_head
from tests.helpers.toy_data import column_masks, fourier, phantom, smooth_coils


def inverse(kspace):
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, axes), norm="ortho"), axes)


def test_whitened_noise_scan_is_white_with_variance_one_per_scalar():
    mixing = random_kspace(5, 5) + 3 * np.eye(5)
    noise = mixing @ random_kspace(5, 400)
    white = steps.whitening(noise) @ noise
    np.testing.assert_allclose(white @ white.conj().T / 400, 2 * np.eye(5), atol=1e-10)


def test_whitening_mistakes():
    assert "9 samples for 5 coils; at least 10" in message_of(steps.whitening, random_kspace(5, 9))
    dependent = random_kspace(3, 50)
    dependent[2] = 2 * dependent[0]
    assert "sum of others" in message_of(steps.whitening, dependent)


def test_compression_loses_nothing_of_coils_that_are_sums_of_fewer():
    few, mixing = random_kspace(2, 3, 8, 6), random_kspace(7, 3)
    many = np.einsum("nc,schw->snhw", mixing, few)
    matrix = steps.compression(many, 3)
    np.testing.assert_allclose(matrix @ matrix.conj().T, np.eye(3), atol=1e-12)
    virtual = steps.combine_coils(matrix, many)
    np.testing.assert_allclose(np.einsum("nc,snhw->schw", matrix.conj(), virtual), many, atol=1e-4)
    energy = np.sum(np.abs(virtual) ** 2, axis=(0, 2, 3))
    assert (np.diff(energy) < 0).all()


def test_compression_keeps_the_most_energy_of_any_projection():
    kspace = random_kspace(1, 5, 9, 9) * np.arange(1, 6)[:, None, None]
    singular = np.linalg.svd(kspace[0].reshape(5, -1), compute_uv=False)
    kept = steps.combine_coils(steps.compression(kspace, 2), kspace)
    assert np.sum(np.abs(kept) ** 2) == pytest.approx(np.sum(singular[:2] ** 2), rel=1e-5)


@pytest.mark.parametrize("shape", [(12, 10), (13, 9), (11, 12)])
@pytest.mark.parametrize("size", [(8, 8), (9, 9), (8, 9), (9, 8)])
def test_resolution_crop_keeps_the_centre_of_kspace(shape, size):
    kspace, mask = random_kspace(2, 3, *shape), column_masks(shape[1], 1, acs=4)
    cropped, kept = steps.fit(kspace, mask, size, "resolution")
    assert cropped.shape == (2, 3, *size) and kept.shape == (1, 1, 1, size[1])
    centre, new = [n // 2 for n in shape], [n // 2 for n in size]
    for offset in (-2, 0, 2):
        np.testing.assert_array_equal(
            cropped[..., new[0] + offset, new[1] - offset], kspace[..., centre[0] + offset, centre[1] - offset]
        )
        assert kept[0, 0, 0, new[1] + offset] == mask[0, 0, 0, centre[1] + offset]


def test_an_axis_is_cut_and_never_filled_up():
    """So nothing that was no part of the scan counts as missing."""
    options = quick(size=(16, 24), acs_lines=4)
    assert options.shape_of((12, 40)) == (12, 24) and options.shape_of((30, 20)) == (16, 20)
    assert quick(size=0, acs_lines=4).shape_of((13, 9)) == (13, 9) and quick(size=16, acs_lines=4).shape_of(
        (40, 15)
    ) == (16, 15)


@pytest.mark.parametrize("shape", [(12, 10), (13, 11)])
def test_fov_crop_is_the_kspace_of_the_inner_image(shape):
    images = random_kspace(2, 3, *shape)
    cropped, mask = steps.fit(fourier(images), np.ones((1, 1, 1, shape[1]), bool), (8, 8), "fov")
    top, left = (n // 2 - 4 for n in shape)
    np.testing.assert_allclose(cropped, fourier(images[..., top : top + 8, left : left + 8]), atol=1e-5)
    assert mask.all() and mask.shape == (1, 1, 1, 8)


def test_fov_crop_along_the_readout_leaves_lines_alone():
    images, mask = random_kspace(2, 3, 12, 8), column_masks(8, 1, acs=2)
    cropped, kept = steps.fit(np.where(mask, fourier(images), 0), mask, (8, 8), "fov")
    np.testing.assert_array_equal(kept, mask)
    np.testing.assert_allclose(cropped, np.where(mask, fourier(images[..., 2:10, :]), 0), atol=1e-5)


def test_fov_crop_that_would_mix_missing_lines_is_refused():
    kspace, mask = random_kspace(1, 2, 12, 12), column_masks(12, 1, acs=2)
    assert "--crop resolution" in message_of(steps.fit, kspace, mask, (8, 8), "fov")
    assert "--crop resolution" in message_of(steps.fit, kspace, np.broadcast_to(mask, (1, 1, 12, 12)), (12, 12), "fov")


def test_fully_sampled_means_all_lines_but_padding_at_the_ends():
    mask = np.ones((1, 1, 1, 40), bool)
    assert steps.is_full(mask)
    mask[..., :4] = mask[..., 37:] = False
    assert steps.is_full(mask)
    mask[..., 4] = False
    assert not steps.is_full(mask)  # more than a tenth at one end: partial Fourier
    mask[..., :5], mask[..., 9] = True, False
    assert not steps.is_full(mask)
    assert not steps.is_full(np.ones((1, 1, 40, 40), bool))


def test_known_maps_follow_the_image():
    maps = np.broadcast_to(smooth_coils(32, 3), (2, 3, 32, 32))
    np.testing.assert_array_equal(steps.fit_maps(maps, (16, 16), "fov"), maps[..., 8:24, 8:24])
    coarse = steps.fit_maps(maps, (16, 16), "resolution")
    np.testing.assert_allclose(coarse[..., 4:12, 4:12], maps[..., 8:24:2, 8:24:2], atol=0.08)  # same field of view
    holes = np.where(np.hypot(*np.indices((32, 32)) - 16) < 10, 3 * maps, 1e-3)
    unit = steps.unit_maps(holes)
    inside = np.broadcast_to(np.hypot(*np.indices((32, 32)) - 16) < 10, (2, 32, 32))
    np.testing.assert_allclose(np.sum(np.abs(unit) ** 2, axis=1), inside, atol=1e-6)


def quick(**changes) -> Options:
    """Options for scans of 32 pixels, with the coil maps that take least to compile."""
    return Options(**{"size": 32, "maps": "lowres", **changes})


def full_scan(size=32, coils=4, slices=2, **more) -> tuple[RawVolume, np.ndarray, np.ndarray]:
    images, maps = phantom(size, slices), smooth_coils(size, coils)
    kspace = (1e-5 * fourier(maps * images[:, None])).astype(np.complex64)
    maps = np.broadcast_to(maps, kspace.shape)
    return RawVolume(kspace, np.ones((1, 1, size), bool), **more), 1e-5 * images, maps


def test_scan_with_known_maps_is_the_forward_model_of_its_reference():
    raw, images, maps = full_scan(maps=np.array(full_scan()[2]))
    scan = prepare_scan(raw, quick(acs_lines=6), first_id=70)
    scale = scan.facts["scale"]
    np.testing.assert_allclose(scan.images * scale, images, atol=1e-9)
    np.testing.assert_allclose(scan.maps, maps, atol=1e-6)
    np.testing.assert_array_equal(scan.masks, draw_masks(quick(acs_lines=6), (32, 32), np.array([70, 71])))
    np.testing.assert_allclose(scan.y, np.where(scan.masks, fourier(maps * scan.images[:, None]), 0), atol=1e-5)
    zero_filled = np.sum(maps.conj() * inverse(scan.y), axis=1)
    assert np.percentile(np.abs(zero_filled), 99) == pytest.approx(1, abs=1e-5)
    assert scan.facts["full"] and scan.full is None and scan.facts["acs_lines"] == 6


def test_examples_see_only_what_their_mask_acquired():
    """Values outside the masks change nothing but the references."""
    raw, _, _ = full_scan()
    options = quick(coils=3, acs_lines=8)
    scan = prepare_scan(raw, options)
    hidden = ~np.asarray(scan.masks).any(axis=0)[0, 0]
    assert hidden.any()
    changed = prepare_scan(RawVolume(np.where(hidden, 1.3 * raw.kspace, raw.kspace), raw.mask), options)
    for name in ("y", "maps", "masks"):
        np.testing.assert_array_equal(getattr(scan, name), getattr(changed, name))
    assert scan.facts == changed.facts  # the scale and the estimate of the noise among them
    assert np.abs(scan.images - changed.images).max() > 0.01


def test_undersampled_scans_keep_their_mask_and_have_no_reference():
    head = raw_head(32, 2, coils=5, acs=8)
    scan = prepare_scan(RawVolume(head.kspace, head.mask[None, None], head.noise), quick(coils=3))
    np.testing.assert_array_equal(scan.masks, np.broadcast_to(head.mask, (2, 1, 1, 32)))
    assert scan.images is None and scan.y.shape == (2, 3, 32, 32) and not scan.facts["full"]
    assert scan.facts["noise_std"] == pytest.approx(1 / scan.facts["scale"], rel=1e-6)
    assert scan.facts["steps"][1] == "noise whitened" and scan.facts["steps"][3] == "5 to 3 coils"


def test_slices_and_acceleration_one():
    raw, _, _ = full_scan(slices=5)
    scan = prepare_scan(raw, quick(slices="1:-1", acceleration=1), keep_full=True)
    assert scan.facts["slices"] == [1, 2, 3] and scan.masks.all()
    np.testing.assert_array_equal(scan.full, scan.y)
    assert "leave none" in message_of(prepare_scan, raw, quick(slices="9:"))


def test_two_dimensional_masks():
    raw, _, _ = full_scan()
    mask = np.random.default_rng(0).random((1, 32, 32)) < 0.4
    mask[:, 11:21, 11:21] = True
    scan = prepare_scan(RawVolume(np.where(mask, raw.kspace, 0), mask), quick())
    np.testing.assert_array_equal(scan.masks, np.broadcast_to(mask, (2, 1, 32, 32)))
    assert scan.facts["acs_lines"] >= 10 and not scan.facts["lines"] and scan.images is None


def test_fully_sampled_scans_may_get_masks_of_entries():
    raw, _, _ = full_scan()
    options = quick(mask="cartesian_poisson_disc", acs_lines=8)
    scan = prepare_scan(raw, options, first_id=70)
    np.testing.assert_array_equal(scan.masks, draw_masks(options, (32, 32), np.array([70, 71])))
    assert scan.masks.shape == (2, 1, 32, 32) and not scan.facts["lines"] and scan.facts["acs_lines"] == 8
    assert (
        scan.facts["full"] and scan.images is not None and not scan.y[~np.broadcast_to(scan.masks, scan.y.shape)].any()
    )
    assert scan.facts["kept"] == pytest.approx((64 + (1024 - 64) / 4) / 1024, abs=0.01)


def test_saved_scan_comes_back(tmp_path):
    raw, _, _ = full_scan()
    scan = prepare_scan(raw, quick(), keep_full=True)
    save_scan(tmp_path / "a.npz", scan)
    loaded = load_scan(tmp_path / "a.npz")
    for name in ("y", "masks", "maps", "images", "full"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(scan, name))
    assert loaded.facts == scan.facts


@pytest.mark.parametrize("rows", [1, 6])
def test_packed_entries_come_back(rows):
    mask = np.random.default_rng(0).random((1, rows, 5)) < 0.5
    y = np.where(mask, random_kspace(3, 6, 5), 0)
    acquired, back = pack(y, mask), np.zeros_like(y)
    assert acquired.size == 3 * np.broadcast_to(mask, (1, 6, 5)).sum()
    unpack(back, acquired, mask)
    np.testing.assert_array_equal(back, y)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"size": 4}, "size is 4"), ({"crop": "image"}, "one of resolution, fov"), ({"slices": "a"}, "START:STOP"),
        ({"acceleration": 0.5}, "at least 1"), ({"acs_lines": 40}, "from 0 to the 32"), ({"maps": "x"}, "espirit"),
    ],
)  # fmt: skip
def test_impossible_options_are_refused(change, expected):
    assert expected in message_of(lambda: Options(**{"size": 32} | change))
