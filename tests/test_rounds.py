"""infra/rounds.py: a finished round is reused only for equal work, and a damaged one is computed again."""

import logging
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from infra import rounds

ROOT = Path(__file__).resolve().parent.parent


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
