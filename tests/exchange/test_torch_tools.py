"""Published checkpoints become workdirs that eval and sample use, and ours become files for the authors' code."""

import json
import os
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest

from msm import run_lib
from msm.configs.rules import stored
from msm.exchange.torch_files import read_state_dict, write_state_dict
from msm.exchange.torch_import import params_to_state_dict
from msm.experiment import build
from msm.infra import checkpoints
from msm.models.init import init_params
from msm.tools.export_torch_checkpoint import export_checkpoint
from msm.tools.import_torch_checkpoint import import_checkpoint
from tests.conformance.golden import golden_files, load_network, reference_config
from tests.helpers.checks import hashes, message_of
from tests.helpers.paths import ROOT
from tests.helpers.small_runs import small_config


def published(config):
    """The authors' denoiser and schedule around the config's network, which is given their one-pixel patches."""
    config.model.patch_size = 1
    config.denoiser.update(parametrization="eps", sandwich="adjoint")
    config.schedule.name = "ddpm"
    return config


@pytest.fixture
def config(tiny_store):
    return published(small_config(tiny_store))


@pytest.fixture
def params(config):
    """Parameters of no network that training would start from: also its zero layers hold numbers."""
    experiment = build(config)
    rng = np.random.default_rng(0)
    drawn = init_params(experiment.model, 3, experiment.image_shape)
    return jax.tree.map(lambda a: a + 0.01 * rng.normal(size=a.shape).astype(np.float32), drawn)


@pytest.mark.parametrize("path", golden_files("adm_*.pt"), ids=lambda p: getattr(p, "stem", p))
def test_an_imported_checkpoint_is_the_published_network(path, tmp_path):
    """Eval's parameters are those that conformance/test_golden_adm.py holds to the published outputs, bit for bit."""
    golden, _, network = load_network(path.with_suffix(".npz"))
    config = reference_config(network, "identity" if network["in_channels"] == 3 else "multicoil_fourier")
    import_checkpoint(config, path, tmp_path / "run")
    stored.check_checkpoint_config(tmp_path / "run", config)
    params, step = checkpoints.load_ema_params(tmp_path / "run", build(config).template_params())
    assert step == 0
    jax.tree.map(np.testing.assert_array_equal, params, golden)

    assert export_checkpoint(config, tmp_path / "run", tmp_path / "back.pt") == []
    theirs, ours = read_state_dict(path), read_state_dict(tmp_path / "back.pt")
    assert theirs.keys() == ours.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name, strict=True)


def test_an_imported_checkpoint_is_used_and_says_where_it_is_from(config, params, tmp_path, tmp_path_factory):
    source = tmp_path / "ema_0.9999_050000.pt"
    write_state_dict(source, params_to_state_dict(params))
    folder = import_checkpoint(config, source, tmp_path / "published")
    assert folder == tmp_path / "published" / "checkpoints" / "50000"
    meta = json.loads((folder / "meta" / "metadata").read_text())
    assert meta["step"] == 50_000
    assert meta["imported_from"]["file"] == source.name
    assert meta["imported_from"]["sha256"] == hashes(tmp_path)[source.name]
    assert "import" in json.loads((tmp_path / "published" / "manifest.json").read_text())

    config.sampling.update(num_levels=1, num_images=2, batch_size=2, check_images=0, reference_split="none")
    config.eval.checkpoint = str(tmp_path / "published")
    summary = run_lib.sample(config, str(tmp_path / "elsewhere"))
    assert summary["run"]["training step"] == 50_000
    drawn = np.load(tmp_path / "elsewhere" / "samples" / "generated" / "images.npz")["images"]
    assert drawn.shape == (2, 32, 32) and np.isfinite(drawn).all()


def test_export_and_import_return_the_same_bits(config, params, tmp_path):
    checkpoints.export_params(tmp_path / "run", params, 7, {})
    assert export_checkpoint(config, tmp_path / "run", tmp_path / "model.pt") == []
    import_checkpoint(config, tmp_path / "model.pt", tmp_path / "again", step=7)
    back, step = checkpoints.load_ema_params(tmp_path / "again", params)
    assert step == 7
    jax.tree.map(np.testing.assert_array_equal, back, params)
    assert export_checkpoint(config, tmp_path / "again", tmp_path / "model2.pt") == []
    assert (tmp_path / "model.pt").read_bytes() == (tmp_path / "model2.pt").read_bytes()


def test_what_the_authors_code_would_misread_is_told(config, params, tmp_path):
    checkpoints.export_params(tmp_path / "run", params, 7, {})
    config.denoiser.sandwich = "wiener"
    assert export_checkpoint(config, tmp_path / "run", tmp_path / "model.pt") == ["denoiser.sandwich wiener"]
    config.model.patch_size = 2
    assert "model.patch_size 2 has no equal" in message_of(export_checkpoint, config, tmp_path / "run", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_file_that_does_not_fit_leaves_nothing_behind(config, params, tmp_path):
    write_state_dict(tmp_path / "model.pt", params_to_state_dict(params))
    run = tmp_path / "run"
    config.model.num_channels = 16
    told = message_of(import_checkpoint, config, tmp_path / "model.pt", run)
    assert "model.num_channels=16" in told and "saved with num_channels=8" in told
    assert "input_blocks.0.0.weight has shape (8, 2, 3, 3), the network's is (16, 2, 3, 3)" in told
    config.model.num_channels = 8
    params["out_conv"]["bias"][0] = np.nan
    write_state_dict(tmp_path / "nan.pt", params_to_state_dict(params))
    assert "out.2.bias not finite (1 arrays)" in message_of(import_checkpoint, config, tmp_path / "nan.pt", run)
    assert not run.exists()


def test_checkpoints_of_a_run_are_never_replaced(config, params, tmp_path):
    write_state_dict(tmp_path / "model.pt", params_to_state_dict(params))
    checkpoints.export_params(tmp_path / "run", params, 7, {})
    before = hashes(tmp_path / "run")
    assert "has checkpoints already" in message_of(import_checkpoint, config, tmp_path / "model.pt", tmp_path / "run")
    assert hashes(tmp_path / "run") == before


def test_command_line(config, params, tmp_path):
    """A hostile file ends in one line and runs nothing; a file of several state dicts is imported by --key."""
    trace = tmp_path / "ran"
    with zipfile.ZipFile(tmp_path / "bad.pt", "w") as archive:
        archive.writestr("bad/data.pkl", f"cos\nsystem\n(S'touch {trace}'\ntR.".encode())
    write_state_dict(tmp_path / "model.pt", params_to_state_dict(params))
    settings = {
        "data.image_size": 32,
        "model.channel_mult": (1,),
        "model.attention_resolutions": (),
        "model.patch_size": 1,
    }
    overrides = [f"--config.{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "tools/import_torch_checkpoint.py", "--config=configs/brain64_msm.py:smoke", *overrides]
    runs = [
        subprocess.Popen(
            [*command, f"--checkpoint={tmp_path / name}", f"--workdir={tmp_path / 'run'}{name}"],
            cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for name in ("bad.pt", "model.pt")
    ]  # fmt: skip
    bad, good = [(*run.communicate(timeout=120), run.returncode) for run in runs]
    assert bad[2] == 2
    assert bad[1].count("\n") == 1 and "os.system" in bad[1]
    assert not trace.exists() and not (tmp_path / "runbad.pt").exists()
    assert good[2] == 0, good[1]
    assert good[0].strip() == str(tmp_path / "runmodel.pt" / "checkpoints" / "0")
    back, _ = checkpoints.load_ema_params(tmp_path / "runmodel.pt", params)
    jax.tree.map(np.testing.assert_array_equal, back, params)
