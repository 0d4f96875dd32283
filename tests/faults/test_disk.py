"""Disks that are full or read-only: one line that names the folder, the last checkpoint as good as before."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from msm import run_lib
from msm.configs.rules.stored import open_workdir
from msm.experiment import build
from msm.infra import rounds, sharding
from msm.infra.checkpoints import export_params
from msm.infra.errors import DISK_ERRORS, UserError
from msm.infra.writers import MetricWriter
from msm.models.init import init_params
from msm.modes import study
from tests.helpers import tiny_model
from tests.helpers.checks import hashes, message_of
from tests.helpers.small_runs import saved_state, small_config

MEGABYTE = 2**20


@contextlib.contextmanager
def mounted(folder: Path, size: int) -> Iterator[None]:
    """A file system of its own in memory; skips the test where this user may not mount one."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"cannot mount a small disk: {done.stderr.strip() or 'mount failed'}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """An empty disk of 16 MB."""
    with mounted(tmp_path / "disk", 16 * MEGABYTE):
        yield tmp_path / "disk"


def fill(disk: Path) -> Path:
    """Writes a file that leaves no free byte on the disk."""
    ballast = disk / "ballast"
    with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(65536)):
            pass
    return ballast


def test_training_on_a_full_disk_stops_and_goes_on_when_there_is_room(tiny_store, disk, monkeypatch, tmp_path_factory):
    config, run = tiny_config(tiny_store), disk / "run"
    shard_batch, count = sharding.shard_batch, []

    def fill_at_the_third(tree, mesh):
        count.append(1)
        if len(count) == 3:
            fill(disk)
        return shard_batch(tree, mesh)

    monkeypatch.setattr(sharding, "shard_batch", fill_at_the_third)
    message = message_of(run_lib.train, config, str(run))
    assert "could not write a checkpoint under" in message or "cannot write to the workdir" in message
    assert str(run) in message and "make room" in message
    monkeypatch.undo()
    (disk / "ballast").unlink()
    assert saved_state(config, run)[".step"] >= 1
    run_lib.train(config, str(run))
    assert saved_state(config, run)[".step"] == 4
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_record_that_cannot_be_written_is_told_by_the_workdir(tiny_store, disk):
    def write():
        with open_workdir(disk / "run", small_config(tiny_store), "train") as run, MetricWriter(run.root) as metrics:
            metrics.write(1, {"loss": 1.0})
            fill(disk)
            for step in range(2, 2000):  # until what is left of the last page is used up
                metrics.write(step, {"loss": 1.0, "grad_norm": 2.0})

    message = message_of(write)
    assert message.startswith(f"cannot write to the workdir {disk / 'run'} (No space left on device): make room")
    (disk / "ballast").unlink()
    with MetricWriter(disk / "run") as metrics:
        metrics.rewind(1)
    assert (disk / "run" / "metrics.jsonl").read_text() == '{"step": 1, "loss": 1.0}\n'


MODES = {
    "eval": (run_lib.evaluate, rounds, "write", "eval/metrics.csv"),
    "sample": (run_lib.sample, rounds, "write", "samples/generated/images.npz"),
    "tune": (run_lib.tune, study.Study, "record", "tune/best.json"),
}


def tiny_config(store: Path):
    """A run of the tiny network: two rounds or three trials of all modes but training, which has four steps."""
    changes = {
        **{"eval.solvers": ("zero_filled",), "eval.batch_size": 3},
        **{"sampling.num_images": 4, "sampling.batch_size": 2, "sampling.check_images": 0},
        **{"tune.solver": "cg_sense", "tune.trials": 3, "sampling.reference_split": "none"},
    }
    return tiny_model.get_config(store, changes)


@pytest.mark.parametrize("mode", MODES)
def test_a_disk_that_fills_between_rounds_is_told_and_no_round_lost(tiny_store, disk, tmp_path, monkeypatch, mode):
    """It is full when the second round or trial is to be written; with room again the run goes on after the first."""
    call, place, name, result = MODES[mode]
    config, run = tiny_config(tiny_store), disk / "run"
    config.eval.checkpoint = str(tmp_path / "network")
    experiment = build(config)
    export_params(tmp_path / "network", init_params(experiment.model, 0, experiment.image_shape), 7, {})
    write, count = getattr(place, name), []

    def fill_before_the_second(*args):
        count.append(1)
        if len(count) == 2:
            fill(disk)
        return write(*args)

    monkeypatch.setattr(place, name, fill_before_the_second)
    message = message_of(call, config, str(run))
    assert message.startswith("cannot write ") and str(run) in message and "make room" in message, message
    assert len(count) == 2 and not (run / result).exists()
    (disk / "ballast").unlink()
    call(config, str(run))
    assert (run / result).exists() and len(count) == {"eval": 3, "sample": 3, "tune": 4}[mode]


@pytest.mark.parametrize("mode", ["train", "eval", "sample", "tune"])
def test_a_read_only_workdir_is_told_before_anything_is_compiled(tiny_store, disk, mode):
    config = small_config(tiny_store)
    open_workdir(disk / "run", config, mode).close()
    before = hashes(disk)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for name in ("run", "another"):
        with pytest.raises(UserError) as caught:
            open_workdir(disk / name, config, mode)
        assert f"{disk / name} (Read-only file system)" in str(caught.value)
    assert hashes(disk) == before


def test_errors_of_other_kinds_are_not_taken_for_the_disk(tiny_store, tmp_path):
    with (
        pytest.raises(FileNotFoundError, match="something"),
        open_workdir(tmp_path, small_config(tiny_store), "train"),
    ):
        raise FileNotFoundError(2, "something")
    with pytest.raises(ValueError, match="a bug"), open_workdir(tmp_path, small_config(tiny_store), "train"):
        raise ValueError("a bug")
    assert 2 not in DISK_ERRORS
