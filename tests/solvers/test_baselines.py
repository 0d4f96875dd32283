"""Classical solvers: correct, independent of batch-mates, better than zero-filled; the wavelet equals PyWavelets'."""

import functools
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import pywt

from msm.configs.default import get_config
from msm.infra.errors import UserError
from msm.operators import wavelet
from msm.operators.acquisition import Acquisition
from msm.operators.measurement import Measurement
from msm.operators.transform import TRANSFORMS, normal
from msm.solvers import (
    l1_wavelet,
    zero_filled,  # noqa: F401  (they register themselves)
)
from msm.solvers.registry import SOLVERS
from tests.helpers.toy_data import acquisition

BASELINES = ("zero_filled", "cg_sense", "l1_wavelet", "tv")
MRI, IDENTITY = TRANSFORMS["multicoil_fourier"](), TRANSFORMS["identity"]()


@functools.cache
def jitted(name, transform):
    """Solver `name`, compiled once per shape for all tests."""
    solver = SOLVERS[name](get_config(), types.SimpleNamespace(operator=Acquisition(transform)))
    return jax.jit(solver.solve), dict(solver.hyper)


def run(name, measurement, transform=MRI, **changes):
    """Runs solver `name`; hyper-parameters are traced."""
    solve, hyper = jitted(name, transform)
    return np.asarray(solve(None, None, measurement, hyper | changes))


def psnr(reference, estimate):
    return -10 * np.log10(np.mean((np.abs(reference) - np.abs(estimate)) ** 2) / np.abs(reference).max() ** 2)


@pytest.mark.parametrize(("shape", "levels"), [((2, 16, 16), 0), ((2, 32, 16), 3), ((1, 24, 16, 3), 2)])
def test_wavelet_equals_pywavelets(shape, levels):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyWavelets advises against coarse bands as small as these
        coefficients = pywt.wavedec2(x, "db2", "periodization", level=levels, axes=(1, 2))
    expected, _ = pywt.coeffs_to_array(coefficients, axes=(1, 2))
    actual = jax.jit(wavelet.dwt2, static_argnums=1)(x, levels)
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    np.testing.assert_allclose(jax.jit(wavelet.idwt2, static_argnums=1)(actual, levels), x, atol=1e-6)


def test_wavelet_is_unitary_for_complex_images():
    rng = np.random.default_rng(1)
    x, c = (rng.normal(size=(2, 32, 16)) + 1j * rng.normal(size=(2, 32, 16)) for _ in range(2))
    x, c = jnp.asarray(x, jnp.complex64), jnp.asarray(c, jnp.complex64)
    analyse, synthesise = (jax.jit(function, static_argnums=1) for function in (wavelet.dwt2, wavelet.idwt2))
    left, right = np.vdot(analyse(x, 2), c), np.vdot(x, synthesise(c, 2))
    assert abs(left - right) < 1e-4 * abs(left)


def test_wavelet_refuses_sizes_that_do_not_halve():
    with pytest.raises(UserError, match="20 x 16"):
        wavelet.dwt2(jnp.zeros((1, 20, 16)), 3)


def test_soft_threshold_shrinks_magnitudes_and_keeps_phase():
    c = jnp.asarray([0, 0.1, -3, 3 + 4j], jnp.complex64)
    np.testing.assert_allclose(l1_wavelet.soft_threshold(c, 1.0), [0, 0, -2, (3 + 4j) * 0.8], atol=1e-6)


@pytest.mark.parametrize("name", BASELINES)
def test_result_does_not_depend_on_batch_mates(name):
    measurement, _ = acquisition(count=3)
    together = run(name, measurement)
    assert together.shape == (1, 3, 32, 32) and together.dtype == np.complex64
    loud = measurement.replace(y=measurement.y * np.array([100, 1, 0])[:, None, None, None].astype(np.float32))
    np.testing.assert_allclose(run(name, loud)[:, 1], together[:, 1], atol=1e-5)
    alone = jax.tree.map(lambda a: a[1:2], measurement)
    np.testing.assert_allclose(run(name, alone)[:, 0], together[:, 1], atol=1e-5)


@pytest.mark.parametrize("name", BASELINES)
def test_padding_gives_zeros_not_nan(name):
    measurement, _ = acquisition()
    empty = measurement.replace(y=measurement.y * 0, mask=measurement.mask & False, maps=measurement.maps * 0)
    np.testing.assert_array_equal(run(name, empty), 0)


def test_each_baseline_improves_on_zero_filled():
    measurement, images = acquisition()
    scores = {name: psnr(images, run(name, measurement)[0]) for name in BASELINES}
    assert scores["cg_sense"] > scores["zero_filled"] + 1
    assert scores["l1_wavelet"] > scores["cg_sense"] + 1
    assert scores["tv"] > scores["cg_sense"] + 1


def test_zero_filled_reads_the_mask():
    measurement, _ = acquisition()
    dirty = measurement.replace(y=measurement.y + np.where(measurement.mask, 0, 1).astype(np.complex64))
    np.testing.assert_array_equal(run("zero_filled", dirty), run("zero_filled", measurement))


def test_cg_sense_solves_the_ridge_system():
    measurement, _ = acquisition()
    x = run("cg_sense", measurement, lam=0.1)[0]
    left = normal(MRI, x, measurement.mask, measurement.maps) + 0.1 * x
    right = MRI.adjoint(measurement.y, measurement.maps)
    assert np.linalg.norm(left - right) < 1e-4 * np.linalg.norm(right)


def test_full_noiseless_data_give_the_exact_image():
    measurement, images = acquisition(noise_std=0)
    full = measurement.replace(y=np.asarray(MRI.forward(images, measurement.maps)), mask=measurement.mask | True)
    for name in BASELINES:
        changes = {} if name == "zero_filled" else {"lam": 0.0}
        np.testing.assert_allclose(run(name, full, **changes)[0], images, atol=1e-4, err_msg=name)


def inpainting():
    x = np.random.default_rng(3).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    mask = np.random.default_rng(4).random((2, 16, 16, 1)) < 0.6
    y = np.where(mask, x, 0).astype(np.float32)
    return Measurement(y, mask, None, np.zeros(2, np.float32), np.arange(2, dtype=np.int32))


def test_images_zero_filled_and_cg_sense_are_diagonal():
    measurement = inpainting()
    np.testing.assert_array_equal(run("zero_filled", measurement, IDENTITY)[0], measurement.y)
    np.testing.assert_allclose(run("cg_sense", measurement, IDENTITY, lam=0.25)[0], measurement.y / 1.25, atol=1e-6)


@pytest.mark.parametrize("name", ["l1_wavelet", "tv"])
def test_images_sparse_solvers_keep_known_pixels(name):
    measurement = inpainting()
    out = run(name, measurement, IDENTITY, lam=1e-4)[0]
    assert out.shape == measurement.y.shape and out.dtype == np.float32
    np.testing.assert_allclose(np.where(measurement.mask, out, 0), measurement.y, atol=0.01)


def l1_objective(x, measurement, lam):
    """The cost that `l1_wavelet` minimises, without cycle spinning, in float64 sums."""
    acquired = np.where(measurement.mask, MRI.forward(x, measurement.maps), 0)
    detail = np.array(jax.jit(wavelet.dwt2, static_argnums=1)(x, 1))
    detail[:, :16, :16] = 0
    return 0.5 * np.sum(np.abs(acquired - measurement.y) ** 2) + lam * np.abs(detail).sum()


def test_l1_wavelet_lowers_its_cost():
    measurement, _ = acquisition()
    costs = {name: l1_objective(run(name, measurement)[0], measurement, 0.002) for name in ("cg_sense", "l1_wavelet")}
    assert costs["l1_wavelet"] < 0.9 * costs["cg_sense"]


def test_l1_wavelet_takes_odd_sizes():
    measurement, images = acquisition(size=33)
    assert psnr(images, run("l1_wavelet", measurement)[0]) > psnr(images, run("cg_sense", measurement)[0]) + 1
