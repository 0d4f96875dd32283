"""features.py and extractor.py: the built-in features are what they say, and a file is data, never code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from msm.evaluation.extractor import get_extractor, load_extractor, load_features
from msm.evaluation.features import small_features
from tests.helpers.checks import message_of
from tests.helpers.toy_data import phantom


def colours(count=3, size=32):
    return np.random.default_rng(0).uniform(-1, 1, (count, size, size, 3)).astype(np.float32)


@pytest.mark.parametrize("images, width", [(phantom(32, 3), 80), (colours(), 89), (phantom(20, 2), 80)])
def test_small_features_have_their_documented_width_and_are_deterministic(images, width):
    found = small_features(images)
    assert found.shape == (len(images), width) and found.dtype == np.float64 and np.isfinite(found).all()
    np.testing.assert_array_equal(found, small_features(images.copy()))
    np.testing.assert_array_equal(found[1], small_features(images[1:2])[0])  # no image depends on another
    assert not np.array_equal(found[0], found[1])


def test_small_features_do_not_see_the_phase():
    images = phantom(32, 2)
    np.testing.assert_allclose(small_features(images * np.exp(0.7j)), small_features(images), atol=2e-6)


def test_parts_of_the_small_features_on_images_with_known_answers():
    constant = small_features(np.full((1, 32, 32), 0.5, np.complex64))[0]
    quantiles, rings, haar, mosaic, gradients = np.split(constant, [16, 24, 48, 64])
    np.testing.assert_allclose(quantiles, 0.5, atol=1e-12)
    np.testing.assert_allclose(rings[0], np.log10(16 / np.sqrt(ring_size(32, 0)) + 1e-3), atol=1e-9)
    np.testing.assert_allclose(rings[1:], -3, atol=1e-9)
    np.testing.assert_allclose(haar, 0, atol=1e-9)
    np.testing.assert_allclose(mosaic, 0.5, atol=1e-12)
    np.testing.assert_allclose(gradients, 0, atol=1e-12)
    stripes = np.zeros((1, 32, 32), np.complex64)
    stripes[:, :, ::2] = 1  # the finest vertical stripes: one orientation at one scale, |coefficient| = 1
    haar = small_features(stripes)[0][24:48]
    np.testing.assert_allclose(haar[:2], 1 / (1 + 1e-3), atol=1e-9)
    np.testing.assert_allclose(haar[2:], 0, atol=1e-9)


def test_sparsity_tells_an_edge_from_noise():
    """Gaussian noise has sqrt(2/pi) and the median 0.6745; one edge leaves nearly all coefficients at 0."""
    noise = np.random.default_rng(0).normal(size=(1, 64, 64, 1)).astype(np.float32)
    finest = small_features(noise)[0][24:30]
    np.testing.assert_allclose(finest, [np.sqrt(2 / np.pi), 0.6745] * 3, atol=0.05)
    edge = np.zeros((1, 64, 64), np.complex64)
    edge[:, 21:40, 31:50] = 1
    finest = small_features(edge)[0][24:28]
    assert finest[0] < 0.2 and finest[2] < 0.2 and finest[1] == finest[3] == 0


def ring_size(size, index):
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    return np.sum((frequency * 16).astype(int) == index)


def test_mosaic_tells_where_an_image_is_bright():
    image = np.zeros((1, 32, 32), np.complex64)
    image[:, 8:16, 24:] = 1  # second row, fourth column of tiles
    mosaic = small_features(image)[0][48:64].reshape(4, 4)
    assert mosaic[1, 3] == 1 and mosaic.sum() == 1


def test_correlated_colours_are_told():
    images = colours()
    images[..., 1] = images[..., 0]
    images[..., 2] = -images[..., 0]
    np.testing.assert_allclose(small_features(images)[:, -3:], [[1, -1, -1]] * 3, atol=1e-6)


def statistics(x):
    return jnp.stack([x.mean((1, 2, 3)), x.max((1, 2, 3))], axis=-1)


def write(path, function, *shape):
    exported = export.export(jax.jit(function))(jax.ShapeDtypeStruct(shape, jnp.float32))
    path.write_bytes(exported.serialize())
    return str(path)


@pytest.fixture(params=["symbolic", "fixed"])
def extractor_file(request, tmp_path):
    batch = export.symbolic_shape("b")[0] if request.param == "symbolic" else 2
    return write(tmp_path / "features.bin", statistics, batch, 32, 32, 1)


def test_a_file_computes_features_of_magnitudes(extractor_file):
    images = phantom(32, 5)  # more than a fixed batch of 2, and not a multiple of it
    found = get_extractor(extractor_file)(images)
    magnitude = np.abs(images)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, np.stack([magnitude.mean((1, 2)), magnitude.max((1, 2))], 1), atol=1e-6)


def test_images_of_another_size_are_refused(extractor_file):
    assert "takes images of (32, 32, 1), these are (16, 16, 1)" in message_of(
        load_extractor(extractor_file), phantom(16, 2)
    )


def test_a_program_that_calls_out_is_refused(tmp_path):
    """A decomposition is a library routine behind a custom call, as would be a Python callback given by address."""
    path = write(tmp_path / "svd.bin", lambda x: jnp.linalg.svd(x[..., 0], compute_uv=False), 2, 8, 8, 1)
    assert "custom_call" in message_of(load_extractor, path)


def test_a_program_of_other_arguments_is_refused(tmp_path):
    path = write(tmp_path / "flat.bin", lambda x: x, 2, 8)
    assert "must take images (B,H,W,C) and return (B,D)" in message_of(load_extractor, path)


def test_a_program_for_other_devices_is_refused(tmp_path):
    exported = export.export(jax.jit(statistics), platforms=("tpu",))(jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32))
    (tmp_path / "tpu.bin").write_bytes(exported.serialize())
    assert "exported for tpu, this is a cpu" in message_of(load_extractor, str(tmp_path / "tpu.bin"))


@pytest.mark.parametrize("content", [b"", b"not a program", bytes(range(256)) * 8, b"\x80\x04cos\nsystem\n."])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    (tmp_path / "other").write_bytes(content)
    assert "is no program of jax.export" in message_of(load_extractor, str(tmp_path / "other"))


def test_a_missing_reader_of_the_format_is_told(tmp_path, monkeypatch):
    path = tmp_path / "features.bin"
    path.write_bytes(b"")

    def deserialize(_):
        raise ImportError("Please install 'flatbuffers'")

    monkeypatch.setattr(export, "deserialize", deserialize)
    assert "needs the package flatbuffers" in message_of(load_extractor, str(path))


def test_missing_files_are_told(tmp_path):
    assert "cannot be read (No such file or directory)" in message_of(load_extractor, str(tmp_path / "none"))
    assert "sampling.features" in message_of(load_features, str(tmp_path / "none.npz"), "sampling.features")


def test_precomputed_features_are_read_without_pickles(tmp_path):
    path = str(tmp_path / "features.npz")
    np.savez(path, features=np.arange(6, dtype=np.float32).reshape(3, 2))
    np.testing.assert_array_equal(load_features(path, "x"), np.arange(6).reshape(3, 2))
    np.savez(path, features=np.array([{}], dtype=object))
    assert "cannot be read" in message_of(load_features, path, "x")
    np.savez(path, other=np.zeros(3))
    assert "array 'features'" in message_of(load_features, path, "x")
