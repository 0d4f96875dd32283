"""Coil maps: the ACS is read from the mask, maps keep their contract, true maps are recovered, mistakes are named."""

import functools

import jax
import numpy as np
import pytest

from msm.infra.errors import UserError
from msm.operators import coils
from msm.operators.coils import COIL_MAPS, find_acs, get_coil_maps
from tests.helpers.checks import message_of
from tests.helpers.toy_data import fourier, phantom, smooth_coils


def lines(width: int, *acquired: int) -> np.ndarray:
    mask = np.zeros((1, width), bool)
    mask[0, list(acquired)] = True
    return mask


SHAPE = (31, 26)  # odd and even, not square
ACS = np.array([3, 27, 7, 19])  # 24 central rows, 12 lines


def scan(shape=SHAPE, count=2, num_coils=4, acs=12, noise=0.002):
    """y (B,C,H,W), mask (B,1,1,W) with `acs` central lines and some others, true maps (C,H,W), images (B,H,W)."""
    size = max(shape)
    maps = smooth_coils(size, num_coils)[:, : shape[0], : shape[1]]
    images = phantom(size, count)[:, : shape[0], : shape[1]]
    rng = np.random.default_rng(5)
    mask = rng.random((count, 1, 1, shape[1])) < 0.2
    start = shape[1] // 2 - acs // 2
    mask[..., start : start + acs] = True
    mask[..., [start - 1, start + acs]] = False
    full = fourier(maps * images[:, None])
    full = full + noise * (rng.normal(size=full.shape) + 1j * rng.normal(size=full.shape))
    return np.where(mask, full, 0).astype(np.complex64), mask, maps, images


@functools.cache
def estimated(name: str):
    y, mask, maps, images = scan()
    return np.asarray(get_coil_maps(name)(y, mask)), maps, images, y, mask


def correlation(a, b):
    """|<c1,c2>| over coils at every pixel; 0 outside the supports."""
    return np.abs(np.sum(np.conj(a) * b, axis=-3))


def test_acs_is_the_run_of_lines_through_the_centre():
    assert find_acs(lines(16, 0, 5, 7, 8, 9, 10, 13)) == (0, 1, 7, 11)  # not symmetric
    assert find_acs(lines(15, 6, 7, 8)) == (0, 1, 6, 9)
    assert find_acs(np.ones((1, 40), bool), most=24) == (0, 1, 8, 32)
    assert find_acs(np.ones((1, 9), bool), most=24) == (0, 1, 0, 9)
    top, bottom, left, right = find_acs(lines(16, 7, 9))
    assert left == right and top == bottom


def test_acs_of_a_two_dimensional_mask_is_acquired_completely():
    mask = np.random.default_rng(0).random((20, 25)) < 0.4
    mask[6:15, 10:17] = True
    mask[15, 10:17] = [True] * 6 + [False]
    mask[5, 12] = mask[8, 9] = mask[8, 17] = False
    assert find_acs(mask) == (6, 15, 10, 17)


@pytest.mark.parametrize("name", COIL_MAPS.names())
def test_maps_keep_the_contract(name):
    """Unit norm on the support, exactly 0 elsewhere, the virtual coil real and non-negative, close to the true maps."""
    maps, truth, images, y, _ = estimated(name)
    assert maps.shape == y.shape and maps.dtype == np.complex64 and np.isfinite(maps).all()
    energy = np.sum(np.abs(maps) ** 2, axis=1)
    support = energy > 0
    np.testing.assert_allclose(energy[support], 1, atol=1e-5)
    head = np.abs(images) > 0.1
    assert (support & head).sum() > 0.97 * head.sum()
    found = correlation(maps, truth)[support & head]
    assert np.median(found) > (0.999 if name == "espirit" else 0.99)
    if name == "espirit":
        assert np.percentile(found, 1) > 0.98
    for example, scanned in zip(maps, y, strict=True):
        acs = coils._cut(scanned, ACS, ((0, SHAPE[0]), (0, SHAPE[1])))[0]
        flat = np.asarray(acs).reshape(4, -1)
        component = np.linalg.svd(flat, full_matrices=False)[0][:, 0]
        component = component * np.conj(component[np.argmax(np.abs(component))])
        virtual = np.einsum("c,chw->hw", component.conj(), example)
        assert np.abs(virtual.imag).max() < 1e-3 and virtual.real.min() > -1e-3


@pytest.mark.parametrize("name", COIL_MAPS.names())
def test_maps_use_the_acs_alone_and_not_the_batch(name):
    maps, _, _, y, mask = estimated(name)
    changed = y.copy()
    outside = ~np.zeros_like(mask[0, 0, 0])
    outside[ACS[2] : ACS[3]] = False
    changed[..., outside] = 7.0
    np.testing.assert_array_equal(get_coil_maps(name)(changed[1:], mask[1:]), maps[1:])
    np.testing.assert_allclose(get_coil_maps(name)(1e-6 * y[:1], mask[0]), maps[:1], atol=2e-4)  # any unit


@pytest.mark.parametrize("name", COIL_MAPS.names())
def test_an_empty_slice_has_no_maps(name):
    y, mask, *_ = scan(count=1)
    assert not np.asarray(get_coil_maps(name)(0 * y, mask)).any()


def test_espirit_equals_its_definition():
    """Against the SVD of the patches and the eigh of the zero-padded kernels' covariance, in double precision."""
    y, mask, *_ = scan((18, 15), count=1, num_coils=3, acs=7)
    kernel, threshold = (5, 3), 0.003
    ours = np.asarray(get_coil_maps("espirit", kernel=kernel, threshold=threshold, crop=0.7)(y, mask))[0]
    acs = y[0, :, :, 4:11].astype(np.complex128)
    windows = np.lib.stride_tricks.sliding_window_view(acs, kernel, axis=(1, 2))
    patches = windows.transpose(1, 2, 0, 3, 4).reshape(-1, 3 * 15)
    _, singular, rows = np.linalg.svd(patches, full_matrices=False)
    kernels = rows[singular**2 > threshold * singular[0] ** 2].reshape(-1, 3, *kernel)
    padded = np.zeros((len(kernels), 3, 18, 15), complex)
    padded[:, :, 9 - 2 : 9 + 3, 7 - 1 : 7 + 2] = kernels
    images = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(padded, (2, 3))), (2, 3)) * 18 * 15
    covariance = np.einsum("kchw,kdhw->hwcd", images, images.conj()) / 15
    values, vectors = np.linalg.eigh(covariance)
    expected = np.where(values[..., -1:] > 0.7, vectors[..., -1], 0)
    decided = np.abs(values[..., -1] - 0.7) > 1e-3
    np.testing.assert_array_equal(np.abs(ours).sum(0)[decided] > 0, np.abs(expected).sum(-1)[decided] > 0)
    both = decided & (values[..., -1] > 0.7) & (values[..., -2] < 0.9 * values[..., -1])
    assert both.sum() > 100
    np.testing.assert_allclose(correlation(ours, np.moveaxis(expected, -1, 0))[both], 1, atol=1e-4)


def test_leading_vectors_are_those_of_eigh():
    rng = np.random.default_rng(3)
    a = rng.normal(size=(6, 7, 5, 5)) + 1j * rng.normal(size=(6, 7, 5, 5))
    matrices = (a @ a.conj().swapaxes(-1, -2)).astype(np.complex64)
    # Leading vector (1,-1,0,0,0): orthogonal to a vector of ones, and to the column of the largest diagonal entry.
    matrices[0, 0] = np.diag([1, 1, 1.9, 1, 1])
    matrices[0, 0, 0, 1] = matrices[0, 0, 1, 0] = -1
    matrices[0, 1] = 0
    by_row = jax.numpy.asarray(matrices.transpose(0, 2, 3, 1))
    vectors, values = jax.jit(lambda m: coils._leading_vectors(lambda row: m[row], 6, 7, 5))(by_row)
    expected_values, expected = np.linalg.eigh(matrices)
    clear = expected_values[..., -2] < 0.94 * expected_values[..., -1]
    np.testing.assert_allclose(values, expected_values[..., -1], rtol=1e-2, atol=1e-6)
    np.testing.assert_allclose(np.asarray(values)[clear], expected_values[..., -1][clear], rtol=1e-4)
    aligned = np.abs(np.sum(np.asarray(vectors).transpose(1, 2, 0).conj() * expected[..., -1], -1))
    np.testing.assert_allclose(aligned[clear], 1, atol=1e-3)
    assert not np.asarray(vectors)[:, 0, 1].any()


def test_kernels_follow_the_acs():
    """One that fits is chosen, of few lines two; one that is asked for is refused instead of shrunk."""
    found = {n: tuple(size for (size,) in coils.kernels_of(n)) for n in (3, 4, 6, 7, 8, 10, 11, 24)}
    assert found == {3: (2, 2), 4: (2, 2), 6: (2, 3), 7: (2, 4), 8: (3, 4), 10: (3, 5), 11: (6, 6), 24: (6, 6)}
    y, mask, truth, images = scan(acs=6)
    maps = np.asarray(get_coil_maps("espirit")(y, mask))
    vectors, support = (np.asarray(get_coil_maps("espirit", kernel=k)(y, mask)) for k in ((6, 2), (6, 3)))
    inside = np.abs(support).sum(1, keepdims=True) > 0
    both = inside & (np.abs(vectors).sum(1, keepdims=True) > 0)
    np.testing.assert_array_equal(np.abs(maps).sum(1, keepdims=True) > 0, inside)
    np.testing.assert_allclose(np.where(both, maps, 0), np.where(both, vectors, 0), atol=1e-5)
    head = np.abs(images) > 0.1
    missed, missed_before = (1 - np.mean(correlation(m, truth)[head]) for m in (maps, support))
    assert missed < 0.7 * missed_before and np.median(correlation(maps, truth)[head]) > 0.998
    message = message_of(get_coil_maps("espirit", kernel=(6, 6)), y, mask)
    assert "11 fully sampled central lines" in message and "has 6 of 24" in message and "smaller kernel" in message


@pytest.mark.parametrize("name", COIL_MAPS.names())
def test_too_small_an_acs_is_an_error_that_says_what_is_needed(name):
    y, mask, *_ = scan(acs=2)
    message = message_of(get_coil_maps(name), y, mask)
    assert "3 fully sampled central lines" in message and "has 2 of 24" in message


def test_arrays_that_do_not_fit_are_named():
    y, mask, *_ = scan(count=1)
    estimate = get_coil_maps("lowres")
    assert "(B,C,H,W)" in message_of(estimate, y[0], mask)
    assert "boolean mask" in message_of(estimate, y, mask.astype(np.float32))
    assert "boolean mask" in message_of(estimate, y, mask[..., :-1])
    assert "not odd" in message_of(lambda: get_coil_maps("walsh", block=4))
    with pytest.raises(UserError, match="did you mean 'espirit'"):
        get_coil_maps("esprit")
