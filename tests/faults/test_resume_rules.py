"""What may change when a run goes on: settings that steer it; those that give it its meaning are refused."""

import json

import numpy as np
import pytest

from msm import run_lib
from msm.configs.rules.stored import open_workdir
from msm.infra import sharding
from tests.helpers.checks import hashes, message_of
from tests.helpers.small_runs import saved_state, small_config


class Ended(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def config(tiny_store):
    return small_config(tiny_store)


def test_settings_that_steer_a_run_take_effect_and_are_recorded(config, tmp_path, monkeypatch, tmp_path_factory):
    """From step 2 on: a rate too small to move a parameter, no average, batches of 6, every second step logged."""
    folder, change = tmp_path / "run", {
        "optim.learning_rate": 1e-60, "optim.ema_rate": 0.0, "training.batch_size": 6, "training.log_every": 2,
    }  # fmt: skip
    stop_after(monkeypatch, 2)
    with pytest.raises(Ended):
        run_lib.train(config, str(folder))
    monkeypatch.undo()
    begun = saved_state(config, folder)
    before = {name: config[name.split(".")[0]][name.split(".")[1]] for name in change}
    config.update_from_flattened_dict(change)
    sizes = stop_after(monkeypatch, 100)
    run_lib.train(config, str(folder))
    ended = saved_state(config, folder)
    assert begun[".step"] == 2 and ended[".step"] == 4 and sizes == [6, 6]
    moved = False
    for name in (n for n in begun if n.startswith(".params")):
        np.testing.assert_array_equal(ended[name], begun[name])
        np.testing.assert_array_equal(ended[name.replace(".params", ".ema_params")], ended[name])
        moved |= bool(np.any(begun[name.replace(".params", ".ema_params")] != begun[name]))
    assert moved  # the average differed before
    lines = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 4]
    [entry] = [json.loads(line) for line in (folder / "config_history.jsonl").read_text().splitlines()]
    assert entry["mode"] == "train" and entry["changes"] == {n: [before[n], v] for n, v in change.items()}
    assert json.loads((folder / "config.json").read_text())["optim"]["learning_rate"] == 1e-60


def stop_after(monkeypatch, number) -> list[int]:
    """Ends training when it asks for one more batch than `number`; returns the list of the sizes of the batches."""
    shard_batch, sizes = sharding.shard_batch, []

    def shard(tree, mesh):
        if len(sizes) == number:
            raise Ended
        sizes.append(len(tree.example_id))
        return shard_batch(tree, mesh)

    monkeypatch.setattr(sharding, "shard_batch", shard)
    return sizes


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("model.num_channels", 16, "model.num_channels: 8 in workdir, 16 now"),
        ("schedule.sigma_max", 30.0, "schedule.sigma_max: 20.0 in workdir, 30.0 now"),
        ("loss.name", "msm_sure", "loss.name: 'msm' in workdir, 'msm_sure' now"),
    ],
)
def test_settings_that_give_a_checkpoint_its_meaning_are_refused(config, tmp_path, setting, value, told):
    open_workdir(tmp_path, config, "train").close()
    before = hashes(tmp_path)
    config.update_from_flattened_dict({setting: value})
    assert told in message_of(run_lib.train, config, str(tmp_path))
    assert hashes(tmp_path) == before


def test_another_order_of_the_data_is_refused_in_training_alone(config, tmp_path, tiny_store):
    """The seed of the run or of the store: the steps left would not be those of the run that was begun."""

    def data(seed, store_seed):
        return {"seed": seed, "store": {"seed": store_seed, "examples": 6}}

    open_workdir(tmp_path, config, "train", data(0, 0)).close()
    before = hashes(tmp_path)
    for seeds, told in (((1, 0), "seed: 0 in workdir, 1 now"), ((0, 5), "(store.seed: 0 in workdir, 5 now)")):
        assert told in message_of(open_workdir, tmp_path, config, "train", data(*seeds))
    assert hashes(tmp_path) == before
    config.seed = 7
    open_workdir(tmp_path, config, "eval").close()
    assert "train" in json.loads((tmp_path / "manifest.json").read_text())
    open_workdir(tmp_path, config, "train", data(0, 0)).close()


def test_training_notes_its_seed_and_store(config, tmp_path, monkeypatch):
    monkeypatch.setattr(run_lib.training, "loop", lambda *_: None)
    run_lib.train(config, str(tmp_path))
    noted = json.loads((tmp_path / "manifest.json").read_text())["train"]["data"]
    assert noted["seed"] == 0 and noted["store.seed"] == 0 and noted["store.examples"] == 6
    config.seed = 3
    assert "seed: 0 in workdir, 3 now" in message_of(run_lib.train, config, str(tmp_path))
