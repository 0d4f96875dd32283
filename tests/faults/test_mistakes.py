"""What users get wrong: told before anything is compiled or written. The texts themselves: test_messages.py."""

import shutil
from pathlib import Path

import jax
import pytest

from msm import run_lib
from msm.builders.scans.subjects import read_patterns
from msm.configs.rules import check as config_check
from msm.configs.rules.stored import open_workdir
from msm.evaluation.extractor import load_features
from msm.experiment import build
from msm.infra import command_line
from msm.infra.checkpoints import export_params
from msm.models.init import init_params
from msm.reports.volumes import check_formats
from msm.tools.compare_runs import read_rows
from tests.helpers import tiny_model
from tests.helpers.checks import hashes, message_of
from tests.helpers.processes import Process
from tests.helpers.small_runs import small_config


@pytest.fixture
def config(tiny_store):
    return small_config(tiny_store)


@pytest.fixture
def workdir(tmp_path):
    return tmp_path / "run"


def test_unknown_solver(config):
    config.eval.solvers = ("zero_filled", "l1_wavelets")
    assert "did you mean 'l1_wavelet'?" in message_of(config_check.check, config)


def test_batch_that_the_devices_cannot_share(config, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    config.eval.batch_size = config.sampling.batch_size = config.tune.batch_size = 8
    assert "training.batch_size is 4: it must be a multiple of 8" in message_of(config_check.check, config)


def test_several_mistakes_are_told_at_once(config):
    config.model.patch_size, config.optim.ema_rate = 0, 1.0
    problems = config_check.find_problems(config)
    assert len(problems) == 2 and "model.patch_size" in "".join(problems) and "optim.ema_rate" in "".join(problems)


def test_truncated_data_file(config, tiny_store, tmp_path, workdir):
    store = tmp_path / "store"
    shutil.copytree(tiny_store, store)
    [path] = (store / "acquisitions").rglob("*undersampled/**/*train.array_record*")
    path.write_bytes(path.read_bytes()[:-100])
    config.data.dir = str(store)
    message = message_of(run_lib.train, config, str(workdir))
    assert path.name in message and "bytes instead of" in message and "make the store again" in message
    assert not workdir.exists()


def test_store_of_another_image_size(config, workdir):
    config.data.image_size = 64
    message = message_of(run_lib.train, config, str(workdir))
    assert "was made with image_size 32 (config: 64)" in message
    assert not workdir.exists()


@pytest.mark.parametrize("mode", [run_lib.evaluate, run_lib.sample])
@pytest.mark.parametrize("exists", [True, False])
def test_workdir_without_a_checkpoint(config, workdir, mode, exists):
    if exists:
        workdir.mkdir()
    message = message_of(mode, config, str(workdir))
    assert message.startswith("no checkpoint: ") and str(workdir) in message
    assert workdir.exists() == exists and not list(workdir.glob("*"))


def test_workdir_of_another_config(config, workdir):
    open_workdir(workdir, config, "train").close()
    before = hashes(workdir)
    config.model.num_channels = 16
    for mode in (run_lib.train, run_lib.evaluate, run_lib.sample):
        message = message_of(mode, config, str(workdir))
        assert "model.num_channels: 8 in" in message and "16 now" in message
    assert hashes(workdir) == before


def test_checkpoint_of_another_network(config, tmp_path, workdir):
    """As it comes without its config.json: the shapes tell."""
    experiment = build(config)
    export_params(tmp_path / "other", init_params(experiment.model, 0, experiment.image_shape), 7, {})
    config.model.num_channels = 16
    config.eval.checkpoint = str(tmp_path / "other")
    for mode in (run_lib.evaluate, run_lib.sample):
        message = message_of(mode, config, str(workdir))
        assert "does not fit the config" in message and "set model.* as it was trained" in message
    assert not workdir.exists()


def test_checkpoint_folder_that_does_not_exist(config, tmp_path, workdir):
    config.eval.checkpoint = str(tmp_path / "none")
    assert f"the folder {tmp_path / 'none'} does not exist" in message_of(run_lib.evaluate, config, str(workdir))
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("eval", run_lib.evaluate),
        ("tune", run_lib.tune),
        ("train.log/x", run_lib.train),
        ("metrics.jsonl/x", run_lib.train),
    ],
)
def test_what_stands_in_the_way_of_results(config, workdir, name, mode):
    """A file where the run wants a folder, or a folder where it wants a file."""
    config.eval.solvers, config.tune.solver = ("zero_filled",), "cg_sense"
    (workdir / name).parent.mkdir(parents=True)
    (workdir / name).write_text("the user's")
    message = message_of(mode, config, str(workdir))
    assert message.startswith(f"cannot write {workdir / name.split('/')[0]}")
    assert "move away what stands in its place" in message
    assert (workdir / name).read_text() == "the user's"


def test_manifest_whose_place_is_taken(config, workdir):
    (workdir / "manifest.json").mkdir(parents=True)
    message = message_of(open_workdir, workdir, config, "train")
    assert message.startswith(f"cannot write {workdir}/manifest.json (Is a directory): move away")
    (workdir / "manifest.json").rmdir()
    open_workdir(workdir, config, "train").close()  # the lock was given back


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"example_id,solver,psnr\n1,msm,x\n", b"example_id,solver,psnr\n1,msm,1,2\n"]
)
def test_metrics_csv_that_is_damaged(tmp_path, content):
    (tmp_path / "metrics.csv").write_bytes(content)
    assert str(tmp_path / "metrics.csv") in message_of(read_rows, tmp_path, "msm")


def test_patterns_that_are_no_text(tmp_path):
    (tmp_path / "list").write_bytes(b"\xff\xfe")
    assert f"{tmp_path / 'list'} cannot be read (" in message_of(read_patterns, str(tmp_path / "list"))


def test_no_format_for_images():
    assert "nothing would be written (known: npz, png, nifti, dicom)" in message_of(check_formats, [])


def test_config_json_that_cannot_be_opened(config, workdir):
    (workdir / "config.json").mkdir(parents=True)
    message = message_of(run_lib.train, config, str(workdir))
    assert message.startswith(f"{workdir}/config.json cannot be read (Is a directory)")


def test_features_of_another_kind_of_file(tmp_path):
    (tmp_path / "features.txt").write_text("1 2 3")
    message = message_of(load_features, str(tmp_path / "features.txt"), "sampling.reference_features")
    assert "it must be an .npz" in message and "unsafe" not in message and "pickle" not in message


def test_a_cache_that_cannot_be_written_is_told_and_left_out(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("x")
    changes = []
    monkeypatch.setattr("jax.config.update", lambda *change: changes.append(change))
    for folder, why in (("/proc/none/cache", "No such file or directory"), (str(tmp_path / "file"), "File exists")):
        command_line.use_cache(folder)
        [line] = capsys.readouterr().err.splitlines()
        assert line == (
            f"warning: --cache {folder} cannot be written ({why}): going on without, every start compiles anew; name "
            "another folder, or none with --cache="
        )
    command_line.use_cache("")
    assert not changes
    monkeypatch.setenv("HOME", str(tmp_path))
    command_line.use_cache("~/made/here")
    assert changes == [("jax_compilation_cache_dir", str(tmp_path / "made" / "here"))]
    assert capsys.readouterr().err == "" and list((tmp_path / "made").iterdir()) == [tmp_path / "made" / "here"]


def test_a_run_with_such_a_cache_ends_well(tiny_store, tmp_path):
    """Its only warning is the first line."""
    settings = {"eval__solvers": "('zero_filled',)", "eval__max_examples": 1, "eval__batch_size": 1}
    arguments = tiny_model.command_line(tmp_path / "run", tiny_store, Path("/proc/none"), "eval", **settings)
    told = Process("main.py", arguments, tmp_path, tiny_model.register).finish()
    assert told.startswith("warning: --cache /proc/none cannot be written (") and told.count("arning") == 1
    assert (tmp_path / "run" / "eval" / "report.html").exists()
