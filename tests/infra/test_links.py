"""No output leaves the workdir: links that lead out of it are told and what they point to stays as it was."""

import os

import pytest

from msm.configs.rules.stored import check_workdir, open_workdir
from msm.infra import links, rounds
from msm.infra.atomic import atomic_write_text
from msm.infra.checkpoints import Checkpoints
from msm.infra.writers import MetricWriter, setup_logging
from tests.helpers.checks import message_of


@pytest.fixture
def outside(tmp_path):
    """A file that nobody may touch, in a folder beside the workdir."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "precious").write_text("precious")
    yield folder / "precious"
    assert (folder / "precious").read_text() == "precious" and list(folder.iterdir()) == [folder / "precious"]


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_lock_that_is_a_link_is_not_followed(tmp_path, outside, tiny_config, mode):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / f".lock-{mode}").symlink_to(outside)
    for call in (open_workdir, check_workdir):
        message = message_of(call, tmp_path / "run", tiny_config, mode)
        assert f".lock-{mode} is a link, and a run writes through none" in message
    (tmp_path / "run" / f".lock-{mode}").unlink()
    (tmp_path / "run" / f".lock-{mode}").symlink_to(tmp_path / "nowhere")
    assert "is a link" in message_of(open_workdir, tmp_path / "run", tiny_config, mode)


def test_a_file_that_is_a_link_is_replaced(tmp_path, outside, tiny_config):
    with open_workdir(tmp_path / "run", tiny_config, "eval") as run:
        path = run.root / "metrics.csv"
        path.symlink_to(outside)
        atomic_write_text(path, "numbers")
        assert path.read_text() == "numbers" and not path.is_symlink()


@pytest.mark.parametrize("way", ["absolute", "relative", "through a link to the workdir"])
def test_a_folder_that_is_a_link_is_refused(tmp_path, outside, tiny_config, monkeypatch, way):
    monkeypatch.chdir(tmp_path)
    with open_workdir(tmp_path / "run", tiny_config, "eval") as run:
        (run.root / "eval").symlink_to(outside.parent)
        (tmp_path / "other name").symlink_to(run.root)
        start = {"absolute": str(run.root), "relative": "run"}.get(way, "other name")
        for name in ("metrics.csv", "rounds/round_0000.npz"):
            message = message_of(atomic_write_text, os.path.join(start, "eval", name), "x")
            assert "would be written outside the folder" in message
        atomic_write_text(os.path.join(start, "samples", "deep", "a.txt"), "x")
        assert (run.root / "samples/deep/a.txt").read_text() == "x"


def test_links_that_stay_inside_are_followed(tmp_path, tiny_config):
    with open_workdir(tmp_path / "run", tiny_config, "eval") as run:
        (run.root / "real").mkdir()
        (run.root / "eval").symlink_to(run.root / "real")
        atomic_write_text(run.root / "eval" / "metrics.csv", "x")
        assert (run.root / "real" / "metrics.csv").read_text() == "x"


def test_a_temporary_name_that_is_a_link_is_not_followed(tmp_path, outside):
    (tmp_path / f".a.txt.tmp-{os.getpid()}").symlink_to(outside)
    atomic_write_text(tmp_path / "a.txt", "mine")
    assert (tmp_path / "a.txt").read_text() == "mine"


def test_logs_checkpoints_and_rounds_behind_links_are_refused(tmp_path, outside, tiny_config):
    with open_workdir(tmp_path / "run", tiny_config, "train") as run:
        for name in ("train.log", "metrics.jsonl", "checkpoints", "checkpoints-meta", "rounds"):
            (run.root / name).symlink_to(outside if "." in name else outside.parent)
        assert "outside the folder" in message_of(setup_logging, run.root, "train")
        assert "outside the folder" in message_of(MetricWriter, run.root)
        assert "checkpoints is a link" in message_of(Checkpoints, run.root, 2, 1)
        (outside.parent / "round_0009.npz").write_text("of somebody else")
        assert "outside the folder" in message_of(rounds.drop_beyond, run.root, 1)
        (outside.parent / "round_0009.npz").unlink()


def test_what_lies_in_no_workdir_is_nobodys_business(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    links.check(tmp_path / "link" / "a")
    atomic_write_text(tmp_path / "link" / "a", "x")
    assert (tmp_path / "real" / "a").read_text() == "x"
