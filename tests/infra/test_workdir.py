"""infra/workdir.py and infra/atomic.py: one run per folder, one meaning per folder, whole files or none."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from msm.configs.default import get_config
from msm.configs.rules.stored import check_checkpoint_config, open_workdir
from msm.infra import workdir as workdir_module
from msm.infra.atomic import atomic_file, atomic_write_bytes, atomic_write_json, atomic_write_npz, safe_join
from msm.infra.errors import UserError
from tests.helpers.paths import ROOT

HOLDER = """
import sys
from msm.configs.default import get_config
from msm.configs.rules.stored import open_workdir

workdir = open_workdir(sys.argv[1], get_config(), "train")
print("locked", flush=True)
sys.stdin.read()
"""


def contents(folder):
    """{relative path: bytes} of everything in a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_new_workdir_gets_config_and_manifest(tmp_path):
    config = get_config()
    with open_workdir(tmp_path / "a" / "run", config, "train") as run:
        assert run.root == tmp_path / "a" / "run"
        assert json.loads(run.path("config.json").read_text()) == json.loads(config.to_json())
        manifest = json.loads(run.path("manifest.json").read_text())["train"]
        assert os.fspath(run) == str(run.root)
    assert manifest["python"] == sys.version.split()[0]
    assert set(manifest["packages"]) >= {"jax", "flax", "optax", "orbax-checkpoint", "numpy"}
    assert all(manifest["packages"].values())
    assert manifest["packages"]["numpy"] == np.__version__
    assert manifest["device_count"] >= 1
    assert manifest["argv"] == sys.argv
    assert {"git_commit", "git_dirty", "platform", "device_kind", "process_count"} <= set(manifest)
    assert not run.path("config_history.jsonl").exists()


def test_the_manifest_keeps_one_entry_per_mode(tmp_path):
    for mode in ("train", "eval"):
        with open_workdir(tmp_path, get_config(), mode):
            pass
    assert set(json.loads((tmp_path / "manifest.json").read_text())) == {"train", "eval"}


def test_git_commit_and_dirty_flag(tmp_path, monkeypatch):
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # set inside a git hook
        monkeypatch.delenv(name, raising=False)
    assert workdir_module._git(tmp_path) == {"git_commit": None, "git_dirty": None}

    def git(*command):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        answer = subprocess.run(["git", *identity, *command], cwd=tmp_path, check=True, capture_output=True, text=True)
        return answer.stdout.strip()

    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "one")
    commit = git("rev-parse", "HEAD")
    assert workdir_module._git(tmp_path) == {"git_commit": commit, "git_dirty": False}
    (tmp_path / "untracked").write_text("1")
    assert workdir_module._git(tmp_path)["git_dirty"] is False
    (tmp_path / "file").write_text("2")
    assert workdir_module._git(tmp_path) == {"git_commit": commit, "git_dirty": True}


def test_settings_that_may_change_are_recorded(tmp_path):
    config = get_config()
    with open_workdir(tmp_path, config, "train"):
        pass
    config.optim.learning_rate = 5e-4
    config.eval.num_samples = 5
    config.model.remat = True
    with open_workdir(tmp_path, config, "eval"):
        pass
    assert json.loads((tmp_path / "config.json").read_text())["optim"]["learning_rate"] == 5e-4
    (line,) = (tmp_path / "config_history.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert entry["mode"] == "eval"
    assert entry["changes"] == {
        "eval.num_samples": [8, 5],
        "model.remat": [False, True],
        "optim.learning_rate": [1e-3, 5e-4],
    }
    with open_workdir(tmp_path, config, "eval"):  # no change: no entry
        pass
    assert len((tmp_path / "config_history.jsonl").read_text().splitlines()) == 1


def test_another_meaning_is_refused_and_nothing_is_written(tmp_path):
    config = get_config()
    with open_workdir(tmp_path, config, "train"):
        pass
    before = contents(tmp_path)
    other = get_config()
    other.model.num_channels = 32
    other.model.channel_mult = (1, 2)
    other.denoiser.sigma_data = 0.5
    other.schedule.name = "ddpm"
    other.data.image_size = 128
    other.loss.name = "dsm"
    other.optim.learning_rate = 0.1
    with pytest.raises(UserError) as error:
        open_workdir(tmp_path, other, "eval")
    message = str(error.value)
    assert "\n" not in message
    assert str(tmp_path) in message
    assert "--workdir" in message
    for told in (
        "model.num_channels: 64 in workdir, 32 now",
        "model.channel_mult: [1, 2, 2] in workdir, [1, 2] now",
        "denoiser.sigma_data: 0.3 in workdir, 0.5 now",
        "schedule.name: 'edm' in workdir, 'ddpm' now",
        "data.image_size: 64 in workdir, 128 now",
        "loss.name: 'msm' in workdir, 'dsm' now",
    ):
        assert told in message
    assert "learning_rate" not in message
    assert contents(tmp_path) == before


def test_a_workdir_of_an_older_version_counts_missing_settings_as_default(tmp_path):
    config = get_config()
    old = config.to_dict()
    del old["model"]["patch_size"], old["training"]["log_every"]
    atomic_write_json(tmp_path / "config.json", old)
    with open_workdir(tmp_path, config, "train"):
        pass
    config.model.patch_size = 2
    atomic_write_json(tmp_path / "config.json", old)
    with pytest.raises(UserError, match=r"model\.patch_size: 1 in workdir, 2 now"):
        open_workdir(tmp_path, config, "train")


@pytest.mark.parametrize("text", ["{", "[1]", '{"model": 3}'])
def test_a_damaged_config_is_told_and_left_alone(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"config\.json is damaged|belongs to another config"):
        open_workdir(tmp_path, get_config(), "train")
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("", "no workdir"),
        ("gs://bucket/run", "is a URL"),
        ("file", "is a file"),
        ("file/run", "is a file"),
        ("/proc/nothing/here", "cannot write"),
    ],
)
def test_a_folder_that_cannot_be_used_is_told(tmp_path, monkeypatch, name, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=told) as error:
        open_workdir(name, get_config(), "train")
    assert "\n" not in str(error.value)
    assert contents(tmp_path) == {"file": b"mine"}


def test_one_process_per_workdir_and_mode_even_after_kill_9(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        try:
            assert holder.stdout.readline() == "locked\n"
            before = contents(tmp_path)
            with pytest.raises(UserError, match=rf"pid {holder.pid}\) runs --mode train in this workdir"):
                open_workdir(tmp_path, get_config(), "train")
            assert contents(tmp_path) == before
            with open_workdir(tmp_path, get_config(), "eval"):  # another mode may run beside it
                pass
        finally:
            holder.send_signal(signal.SIGKILL)
            holder.wait()
    assert (tmp_path / ".lock-train").read_text() == str(holder.pid)  # its file is still there, and no obstacle
    with open_workdir(tmp_path, get_config(), "train"):
        assert (tmp_path / ".lock-train").read_text() == str(os.getpid())


def test_the_lock_is_freed_on_close_and_when_opening_fails(tmp_path, monkeypatch):
    open_workdir(tmp_path, get_config(), "train").close()

    def fail(*_):
        raise RuntimeError("disk on fire")

    with monkeypatch.context() as patch:
        patch.setattr(workdir_module, "describe_run", fail)
        with pytest.raises(RuntimeError, match="disk on fire"):
            open_workdir(tmp_path, get_config(), "train")
    with open_workdir(tmp_path, get_config(), "train") as run:
        with pytest.raises(UserError, match="another process"):
            open_workdir(tmp_path, get_config(), "train")
        assert run.path("config.json").exists()


def test_only_process_0_locks_and_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir_module.jax, "process_index", lambda: 1)
    with open_workdir(tmp_path / "run", get_config(), "train") as run:
        assert run.root == tmp_path / "run"
    assert contents(tmp_path) == {}
    monkeypatch.undo()
    with open_workdir(tmp_path / "run", get_config(), "train"):
        monkeypatch.setattr(workdir_module.jax, "process_index", lambda: 1)
        with open_workdir(tmp_path / "run", get_config(), "train"):  # shares the folder with process 0
            pass
        other = get_config()
        other.model.num_channels = 32
        with pytest.raises(UserError, match=r"model\.num_channels"):
            open_workdir(tmp_path / "run", other, "train")


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    config = get_config()
    check_checkpoint_config(tmp_path, config)  # nothing known about it: shapes are checked on loading
    atomic_write_json(tmp_path / "config.json", config.to_dict())
    config.data.acquisition = "full"
    config.loss.name = "dsm"
    config.schedule.rho = 5.0
    check_checkpoint_config(tmp_path, config)
    config.denoiser.sigma_data = 0.5
    with pytest.raises(UserError, match=r"denoiser.sigma_data: 0.3 in checkpoint, 0.5 now\): choose another check"):
        check_checkpoint_config(tmp_path, config)


def test_at_another_image_size_the_trained_levels_have_attention(tmp_path):
    """The default: feature maps of 64, 32 and 16 pixels, attention at the last, which has 24 of 96."""
    config = get_config()
    atomic_write_json(tmp_path / "config.json", config.to_dict())
    config.data.image_size = 96
    with pytest.raises(UserError, match=r"model.attention_resolutions: \[24\] in checkpoint, \[\] now"):
        check_checkpoint_config(tmp_path, config)
    config.model.attention_resolutions = (24, 16)  # one list for both sizes
    check_checkpoint_config(tmp_path, config)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "link/x"])
def test_paths_outside_the_workdir_are_refused(tmp_path, name):
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="outside the folder"):
        safe_join(root, name)


def test_paths_inside_the_workdir_are_joined(tmp_path):
    assert safe_join(tmp_path, "eval/rounds/r_0.npz") == tmp_path / "eval/rounds/r_0.npz"
    assert safe_join(tmp_path, "a/../b") == tmp_path / "b"


def test_atomic_files_are_whole_or_not_there(tmp_path):
    path = tmp_path / "deep" / "er" / "file"
    atomic_write_bytes(path, b"old")

    def write_half():
        with atomic_file(path) as file:
            file.write(b"half of the n")
            assert path.read_bytes() == b"old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert contents(tmp_path) == {"deep/er/file": b"old"}
    atomic_write_bytes(path, b"new")
    assert contents(tmp_path) == {"deep/er/file": b"new"}


def test_atomic_npz_and_json_come_back(tmp_path):
    array = np.arange(6, dtype=np.complex64).reshape(2, 3)
    atomic_write_npz(tmp_path / "a.npz", x=array, n=np.array(3))
    with np.load(tmp_path / "a.npz") as stored:
        np.testing.assert_array_equal(stored["x"], array)
        assert stored["x"].dtype == np.complex64
        assert stored["n"] == 3
    value = {"psnr": 0.1 + 0.2, "bad": float("inf"), "names": ["a"]}
    atomic_write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text()) == value
