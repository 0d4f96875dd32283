"""The optional record by wandb or trackio: one run however often it is resumed, and never the end of a training."""

import logging
import sys
import types

import pytest

from msm.infra import trackers
from msm.infra.errors import UserError
from msm.infra.writers import MetricWriter


def package(name, calls, broken=False):
    """A package of the interface that both have, which notes what is called."""
    made = types.ModuleType(name)

    def log(metrics, step):
        if broken:
            raise ConnectionError("no\nroute")
        calls.append(("log", step, metrics))

    made.init = lambda **options: calls.append(("init", options))
    made.log, made.finish = log, lambda: calls.append(("finish",))
    return made


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_scalars_are_sent_beside_the_record(name, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, name, package(name, calls))
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    for step in (1, 2):  # the second is the run resumed
        tracker = trackers.Tracker(trackers.find(name), tmp_path / "run", {"seed": 0})
        with MetricWriter(tmp_path / "run", tracker) as writer:
            writer.rewind(step - 1)
            writer.write(step, {"loss": 0.5 / step})
    kinds = [call[0] for call in calls]
    assert kinds == ["init", "log", "finish"] * 2
    assert calls[0] == calls[3]  # the same run
    assert calls[0][1]["project"] == "msm" and calls[0][1]["name"] == "run" and calls[0][1]["config"] == {"seed": 0}
    assert calls[4] == ("log", 2, {"loss": 0.25})
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2


def test_what_it_raises_is_told_once_and_the_run_goes_on(tmp_path, monkeypatch, caplog):
    calls = []
    monkeypatch.setitem(sys.modules, "wandb", package("wandb", calls, broken=True))
    with (
        caplog.at_level(logging.WARNING),
        MetricWriter(tmp_path, trackers.Tracker(trackers.find("wandb"), tmp_path, {})) as writer,
    ):
        for step in (1, 2, 3):
            writer.write(step, {"loss": 1.0})
    assert [record.getMessage() for record in caplog.records] == [
        "wandb records no further: no route; metrics.jsonl does"
    ]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_one_that_is_not_installed_is_told_with_the_way_to_have_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        trackers.find("wandb")
    assert trackers.find("none") is None
