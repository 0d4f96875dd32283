"""Data that go bad after they were made: one line that names the file, no checkpoint harmed."""

import json
import os
import shutil
from pathlib import Path

import grain
import numpy as np
import pytest

from msm import datasets, run_lib
from msm.builders.demo.heads import BrainAcquisitions, Brains, default_settings
from msm.builders.store import prepare_store
from msm.infra import sharding
from tests.helpers.checkpoint_runs import steps
from tests.helpers.checks import hashes, message_of
from tests.helpers.small_runs import saved_state, small_config


@pytest.fixture
def store(tiny_store, tmp_path) -> Path:
    shutil.copytree(tiny_store, tmp_path / "store")
    return tmp_path / "store"


def train_file(store: Path) -> Path:
    [path] = (store / "acquisitions").rglob("*undersampled/**/*train.array_record*")
    return path


def change_bytes(path: Path) -> None:
    """Changes bytes in the midst, none at the ends: the size stays."""
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : -len(data) // 3] = bytes(len(data[len(data) // 3 : -len(data) // 3]))
    path.write_bytes(data)


def read_all(config) -> None:
    datasets.load_measurements(config, "train")


def test_changed_bytes_are_told(store):
    change_bytes(train_file(store))
    message = message_of(read_all, small_config(store))
    assert message.startswith(f"{train_file(store)}: example ") and "cannot be read" in message
    assert f"delete {store} and make the store again" in message


def test_a_file_that_disappeared_is_told_before_anything_is_written(store, tmp_path):
    path = train_file(store)
    path.unlink()
    message = message_of(run_lib.train, small_config(store), str(tmp_path / "run"))
    assert message.startswith(f"{path} is missing; make the store again") and not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def nan_store(tiny_store, tmp_path_factory) -> Path:
    """As tiny_store, with one NaN in the measurement of one training scan."""
    store = tmp_path_factory.mktemp("nan") / "store"
    record = BrainAcquisitions._record
    chosen = json.loads((tiny_store / "manifest.json").read_text())["acquisitions"]["undersampled"]["ids"]["train"][0]

    def damaged(self, example):
        found = record(self, example)
        if example.example_id == chosen:
            found["y"] = found["y"].copy()
            found["y"][0, 0, 0] = np.nan
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BrainAcquisitions, "_record", damaged)
        prepare_store(store, Brains(default_settings(32), max_slices=6))
    return store


def test_numbers_that_are_not_finite_are_told(nan_store, tmp_path):
    config = small_config(nan_store)
    path = (
        nan_store / "manifest.json"
    )  # says so of its own statistics; those of a store whose records went bad are sound
    assert "sigma_data is nan" in message_of(read_all, config)
    path.write_text(path.read_text().replace('"sigma_data": NaN', '"sigma_data": 0.3'))
    assert "has numbers that are not finite (y)" in message_of(read_all, config)
    message = message_of(run_lib.train, config, str(tmp_path / "run"))
    assert message.startswith(f"{train_file(nan_store)}: example ") and "not finite (y)" in message


def test_a_file_cut_while_training_leaves_the_checkpoints(store, tmp_path, monkeypatch, tmp_path_factory):
    config, run, path = small_config(store), tmp_path / "run", train_file(store)
    whole, shard_batch, count = path.read_bytes(), sharding.shard_batch, []

    def cut_at_the_second(tree, mesh):
        count.append(1)
        if len(count) == 2:
            os.truncate(path, 0)
        return shard_batch(tree, mesh)

    monkeypatch.setattr(datasets, "_read_options", lambda _: grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    monkeypatch.setattr(sharding, "shard_batch", cut_at_the_second)
    message = message_of(run_lib.train, config, str(run))
    assert message.startswith(f"{path}: example ") and "cannot be read" in message
    assert max(steps(run / "checkpoints") + steps(run / "checkpoints-meta")) == 2
    monkeypatch.undo()
    before = hashes(run / "checkpoints")
    assert "has 0 bytes instead of" in message_of(run_lib.train, config, str(run))
    assert hashes(run / "checkpoints") == before
    path.write_bytes(whole)
    run_lib.train(config, str(run))
    assert saved_state(config, run)[".step"] == 4
