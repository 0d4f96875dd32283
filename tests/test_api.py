"""api.py: arrays in, arrays out, in the units of what was given, and equal to what the tool makes of the same scan."""

import doctest
import functools
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import msm
from msm import api
from msm.builders.raw import RawVolume
from msm.builders.scans.scan import Options
from msm.configs.rules.stored import config_of
from msm.experiment import build
from msm.infra.atomic import atomic_write_json
from msm.infra.checkpoints import export_params
from msm.models.init import init_params
from msm.modes import reconstruct as single_scan
from tests.helpers.checks import message_of
from tests.helpers.paths import ROOT
from tests.helpers.pictures import small_image_config
from tests.helpers.small_runs import small_config
from tests.helpers.toy_data import column_masks, fourier, phantom, smooth_coils

SIZE = 16


def export(folder, config):
    """An untrained network as a folder of pretrained/ is."""
    experiment = build(config)
    export_params(folder, init_params(experiment.model, 0, experiment.image_shape), 7, {})
    atomic_write_json(folder / "config.json", config.to_dict())
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    config = small_config(folder)
    config.data.image_size = SIZE
    return export(folder, config)


@pytest.fixture(scope="module")
def model(checkpoint):
    return msm.load(checkpoint)


@pytest.fixture(scope="module")
def kspace():
    """(2,3,16,16): two slices of three coils, in units of 1000."""
    maps, mask = smooth_coils(SIZE, 3), column_masks(SIZE, 1)[0]
    full = fourier(maps * 1000 * phantom(SIZE, 2)[:, None])
    noise = np.random.default_rng(0).normal(size=(2, *full.shape)).astype(np.float32)
    return np.where(mask, full + 5 * (noise[0] + 1j * noise[1]), 0).astype(np.complex64)


@pytest.fixture(scope="module")
def result(model, kspace):
    return model.reconstruct(kspace, samples=2)


def test_it_is_what_the_tool_reconstructs(checkpoint, kspace, result, tmp_path):
    config = config_of(checkpoint)
    config.eval.update(checkpoint=str(checkpoint), num_samples=2, batch_size=2, solvers=("msm",))
    raw = RawVolume(kspace, np.any(kspace != 0, axis=(0, 1, 2))[None, None])
    options = Options(size=0, acceleration=1, acs_lines=0)
    volume = single_scan.reconstruct(config, raw, options, "head", str(tmp_path), "a command")
    np.testing.assert_allclose(result.mean, volume.image, atol=1e-4 * np.abs(volume.image).max())
    np.testing.assert_allclose(result.std, volume.std, atol=1e-4 * np.abs(volume.image).max())


def test_shapes_and_units_are_those_of_what_was_given(model, kspace, result):
    assert result.mean.shape == result.std.shape == (2, SIZE, SIZE) and result.mean.dtype == np.complex64
    assert result.samples.shape == (2, 2, SIZE, SIZE) and result.maps.shape == kspace.shape
    np.testing.assert_allclose(result.samples.mean(axis=0), result.mean, rtol=1e-5, atol=1e-3)
    again = model.reconstruct(jnp.asarray(kspace) * 8, samples=2, maps=result.maps, noise_std=8 * result.noise_std)
    np.testing.assert_allclose(again.mean, 8 * result.mean, rtol=1e-3, atol=1e-3 * np.abs(again.mean).max())
    assert again.noise_std == pytest.approx(8 * result.noise_std)
    one = model.reconstruct(kspace[0], samples=1)
    assert one.mean.shape == (SIZE, SIZE) and one.maps.shape == kspace.shape[1:] and one.std is None


def test_a_stated_mask_leaves_out_what_it_excludes(model, kspace):
    mask = np.any(kspace != 0, axis=(0, 1, 2)) & (np.arange(SIZE) != 9)
    found = model.reconstruct(kspace, mask=mask, samples=1, solver="zero_filled", noise_std=1.0)
    changed = kspace.copy()
    changed[..., 9] = 1e6
    same = model.reconstruct(changed, mask=mask, samples=1, solver="zero_filled", noise_std=1.0)
    np.testing.assert_array_equal(found.mean, same.mean)


def test_a_program_is_compiled_once_per_shape(model, kspace, monkeypatch):
    traced, get_solver = [], api.get_solver
    monkeypatch.setattr(api, "get_solver", lambda *a: traced.append(a[2]) or get_solver(*a))
    for _ in range(2):
        model.reconstruct(kspace, samples=1, solver="cg_sense")
    (program,) = (p[1] for place, p in model._programs.items() if place[0] == "cg_sense")
    assert traced == ["cg_sense"] and program._cache_size() == 1


def test_images_of_the_prior_depend_on_seed_and_number_alone(model):
    three = model.sample(3)
    assert three.shape == (3, SIZE, SIZE) and three.dtype == np.complex64 and np.isfinite(three).all()
    np.testing.assert_allclose(model.sample(2), three[:2], atol=1e-5)
    assert np.abs(model.sample(3, seed=1) - three).max() > 1e-3
    assert model.sample(1, maps=smooth_coils(SIZE, 3)).shape == (1, SIZE, SIZE)


def test_one_call_denoises(model):
    """Of little noise in a whole measurement little is taken away."""
    image = phantom(SIZE, 1)
    out = model.denoise(fourier(image[:, None]), 0.01)
    assert out.shape == image.shape and np.abs(out - image).max() < 0.1


def test_pictures(image_store, tmp_path):
    model = msm.load(export(tmp_path, small_image_config(image_store)))
    size = model.config.data.image_size
    picture = np.random.default_rng(0).uniform(-1, 1, (size, size, 3)).astype(np.float32)
    mask = np.arange(size)[None] % 4 < np.full((size, 1), 3)
    found = model.reconstruct(np.where(mask[..., None], picture, 7), mask=mask, samples=2)
    assert found.mean.shape == picture.shape and found.mean.dtype == np.float32 and found.maps is None
    assert model.sample(2).shape == (2, size, size, 3)
    assert model.denoise(picture[None], 0.1).shape == (1, size, size, 3)
    assert "give (H,W,3)" in message_of(model.reconstruct, picture[..., :2])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kspace": np.zeros((2, SIZE))}, "give complex (C,H,W) or (S,C,H,W)"),
        ({"kspace": np.full((3, SIZE, SIZE), np.nan + 0j)}, "not finite"),
        ({"kspace": np.zeros((3, SIZE, SIZE), np.complex64)}, "0 throughout"),
        ({"mask": np.ones(5, bool)}, "the mask has shape (5,)"),
        ({"maps": np.ones((3, 4, 4), np.complex64)}, "coil maps"),
        ({"solver": "mms"}, "did you mean 'msm'?"),
        ({"samples": 0}, "at least 1"),
    ],
)
def test_a_mistake_is_one_line(model, kspace, change, told):
    message = message_of(functools.partial(model.reconstruct, **{"kspace": kspace[0], **change}))
    assert told in message and "\n" not in message


def test_a_folder_without_a_network_is_told(tmp_path):
    assert "config.json is missing" in message_of(msm.load, tmp_path)


def test_solvers_are_listed_whatever_was_imported():
    assert {"msm", "cg_sense", "zero_filled"} <= set(msm.solvers()) == set(api.solvers())


def test_importing_the_package_is_light():
    code = "import sys, msm; print('jax' in sys.modules, 'numpy' in sys.modules); msm.load; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.stdout.split() == ["False", "False", "True"], done.stderr


def test_examples_in_docstrings_hold(monkeypatch):
    monkeypatch.chdir(ROOT)
    before = sorted(os.listdir(ROOT))
    failed, tried = doctest.testmod(api)
    assert tried >= 3 and failed == 0 and sorted(os.listdir(ROOT)) == before
