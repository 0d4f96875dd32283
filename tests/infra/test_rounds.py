"""infra/rounds.py: a finished round is reused only for equal work, and a damaged one is computed again."""

import logging
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from msm.configs.default import get_config
from msm.infra import rounds
from msm.modes import evaluate as evaluation
from tests.helpers.imports import imported_files, program_files, room_of
from tests.helpers.paths import ROOT


def test_a_round_is_read_back_under_its_stamp_alone(tmp_path):
    path = rounds.path_of(tmp_path, 3)
    arrays = {"msm/mean": np.ones((2, 4), np.complex64), "example_id": np.arange(2)}
    rounds.write(path, "a", arrays)
    back = rounds.read(path, "a")
    assert back is not None and back.keys() == arrays.keys()
    for name, value in arrays.items():
        np.testing.assert_array_equal(back[name], value)
    assert rounds.read(path, "b") is None and rounds.read(rounds.path_of(tmp_path, 4), "a") is None


def test_a_damaged_round_is_told_and_computed_again(tmp_path, caplog):
    path = rounds.path_of(tmp_path, 0)
    rounds.write(path, "a", {"x": np.arange(10_000)})
    for content in (path.read_bytes()[:200], b"", b"not a zip"):
        path.write_bytes(content)
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            assert rounds.read(path, "a") is None
        assert str(path) in caplog.text


def test_rounds_of_a_longer_evaluation_are_deleted(tmp_path):
    for index in range(4):
        rounds.write(rounds.path_of(tmp_path, index), "a", {"x": np.zeros(1)})
    rounds.drop_beyond(tmp_path, 2)
    assert sorted(p.name for p in (tmp_path / "rounds").iterdir()) == ["round_0000.npz", "round_0001.npz"]


def test_checksum_tells_networks_apart_and_not_where_they_lie():
    params = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float32)}
    assert rounds.checksum(params) == rounds.checksum({name: jnp.asarray(value) for name, value in params.items()})
    assert rounds.checksum(params) != rounds.checksum({**params, "b": np.array([1, 2], np.float32)})


def test_a_change_of_the_science_makes_rounds_old(monkeypatch, tmp_path):
    """Every file that decides a result counts, and nothing else does."""
    before = rounds.code_checksum()
    assert rounds.code_checksum() == before
    for name in ("solvers/msm.py", "operators/masks.py", "sampling.py"):
        copied = tmp_path / name.replace("/", "_")
        for part in rounds.SCIENCE:
            source = ROOT / part
            target = copied / part
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target) if source.is_file() else shutil.copytree(source, target)
        monkeypatch.setattr(rounds, "__file__", str(copied / "infra" / "rounds.py"))
        rounds.code_checksum.cache_clear()
        assert rounds.code_checksum() == before
        with (copied / name).open("a") as file:
            file.write("# changed")
        rounds.code_checksum.cache_clear()
        assert rounds.code_checksum() != before
    rounds.code_checksum.cache_clear()


def every_setting(config, above=()):
    for name, value in config.items():
        if hasattr(value, "items"):
            yield from every_setting(value, (*above, name))
        else:
            yield (*above, name)


@pytest.mark.parametrize(
    "section",
    ["task", "solver", "msm_fast", "score_sde", "ssdu", "dps", "ddnm", "baselines", "loss", "denoiser", "schedule",
     "transform", "model", "masks"],
)  # fmt: skip
def test_every_setting_of_a_result_is_part_of_its_stamp(section):
    config = get_config()
    before, paths = evaluation.stamp_of(config, {}, None, {}), list(every_setting(config[section]))
    assert paths
    for path in paths:
        config = get_config()
        folder = config[section]
        for name in path[:-1]:
            folder = folder[name]
        with folder.ignore_type():
            folder[path[-1]] = "something else"
        assert evaluation.stamp_of(config, {}, None, {}) != before, f"{section}.{'.'.join(path)}"


def test_what_decides_no_result_is_no_part_of_its_stamp():
    config = get_config()
    before = evaluation.stamp_of(config, {}, None, {})
    config.training.num_steps, config.optim.ema_rate, config.tune.trials, config.sampling.eta = 3, 0.5, 4, 0.2
    config.eval.tuned, config.eval.checkpoint, config.eval.metrics = "a", "b", ("paper",)
    assert evaluation.stamp_of(config, {}, None, {}) == before
    config.seed = 1
    assert evaluation.stamp_of(config, {}, None, {}) != before


def test_all_code_that_results_come_from_is_in_their_checksum():
    """What the files of SCIENCE import is of SCIENCE as well, but for plumbing and what only judges or draws."""
    listed = {ROOT / name for name in rounds.SCIENCE}
    science = {path for path in program_files() if listed & {path, *path.parents}}
    assert len(science) > 50 and all(name.exists() for name in listed)
    beyond = {room_of(target) for path in science for target in imported_files(path) if target not in science}
    assert beyond == {"builders", "configs", "exchange", "infra", "modes", "reports"}  # modes: tuned.py
