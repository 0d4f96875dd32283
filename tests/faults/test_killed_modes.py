"""eval, sample and tune killed by SIGKILL: nothing finished is done again, the results are those of one go."""

import csv
import json
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msm.experiment import build
from msm.infra.checkpoints import export_params
from msm.models.init import init_params
from tests.helpers import tiny_model
from tests.helpers.checks import hashes
from tests.helpers.processes import Process
from tests.helpers.small_runs import small_config

pytestmark = pytest.mark.slow

UNITS = 6  # rounds, or trials
SETTINGS = {
    "eval": {"eval__batch_size": 1, "eval__max_examples": UNITS, "eval__solvers": "('zero_filled','msm')"},
    "sample": {"sampling__num_images": UNITS, "sampling__batch_size": 1, "sampling__check_images": 2},
    "tune": {"tune__solver": "cg_sense", "tune__trials": UNITS, "tune__max_examples": 2, "tune__batch_size": 2},
}
FOLDERS = {"eval": "eval", "sample": "samples/generated", "tune": "tune"}


class Run:
    """One command of a mode, and its workdir."""

    def __init__(self, mode: str, folder: Path, **given: Path):
        self.mode, self.folder, self.workdir = mode, folder, folder / "run"
        self.results = self.workdir / FOLDERS[mode]
        checkpoint = {"eval__checkpoint": given.pop("checkpoint")}
        self.arguments = tiny_model.command_line(self.workdir, mode=mode, **given, **checkpoint, **SETTINGS[mode])

    def start(self, name: str = "printed") -> Process:
        return Process("main.py", self.arguments, self.folder / name, tiny_model.register)

    def finished(self) -> dict[str, Any]:
        """What tells each finished round or trial from one that was done again."""
        if self.mode != "tune":
            paths = sorted((self.results / "rounds").glob("round_*.npz"))
            return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}
        if not (self.results / "study.db").exists():
            return {}
        connection = sqlite3.connect(f"file:{self.results / 'study.db'}?mode=ro", uri=True)
        try:
            return dict(connection.execute("SELECT number, datetime_complete FROM trials"))
        except sqlite3.OperationalError:  # its tables are being made
            return {}
        finally:
            connection.close()

    def outcome(self) -> dict[str, Any]:
        """Every file of results by its name, without times, clock and the name of this workdir."""
        digests = hashes(self.results)
        found: dict[str, Any] = {name: digest for name, digest in digests.items() if name.endswith((".npz", ".png"))}
        for path in self.results.glob("*.csv"):
            rows = csv.DictReader(path.read_text().splitlines())
            found[path.name] = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
        for path in self.results.glob("*.json"):
            found[path.name] = json.loads(path.read_text().replace(str(self.workdir), "WORKDIR"), object_hook=timeless)
        if self.mode == "eval":  # rounds hold how long they took
            for name in (n for n in digests if n.startswith("rounds/")):
                with np.load(self.results / name) as arrays:
                    found[name] = {k: arrays[k].tobytes() for k in arrays.files if not k.endswith("/seconds")}
        return found


def timeless(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in ("seconds", "time")}


@pytest.fixture(scope="module")
def given(tiny_store, tmp_path_factory) -> dict[str, Path]:
    """Store, folder of compiled programs and an untrained network."""
    folder = tmp_path_factory.mktemp("killed")
    tiny_model.register()
    config = small_config(tiny_store)
    config.update_from_flattened_dict(tiny_model.SETTINGS)
    experiment = build(config)
    export_params(folder / "network", init_params(experiment.model, 0, experiment.image_shape), 7, {})
    return {"store": tiny_store, "cache": folder / "cache", "checkpoint": folder / "network"}


@pytest.mark.parametrize("mode", SETTINGS)
def test_a_run_that_is_killed_repeats_nothing_and_ends_the_same(mode, given, tmp_path):
    """Killed in the midst of its rounds, with a second process refused just before, and while it writes its report."""
    straight, run = Run(mode, tmp_path / "straight", **given), Run(mode, tmp_path / "killed", **given)
    straight.start().finish()
    process = run.start()
    process.until(run.finished)
    process.signal(signal.SIGSTOP)
    refused(run, process.pid)
    process.signal(signal.SIGCONT)
    time.sleep(np.random.default_rng(0).uniform(0, 0.05))
    process.kill()
    first = run.finished()
    assert 1 <= len(first) < UNITS
    process = run.start()
    process.until(lambda: len(run.finished()) == UNITS)
    process.kill()
    second = run.finished()
    assert first.items() <= second.items()
    (run.results / ".half.npz.tmp-1").write_text("what a process leaves that is killed while it writes")
    run.start().finish()
    assert run.finished() == second
    outcome, expected = run.outcome(), straight.outcome()
    assert outcome.keys() == expected.keys()
    for name, value in expected.items():
        assert outcome[name] == value, name
    assert {path.suffix for path in map(Path, outcome)} >= {".csv", ".json", ".png"}
    assert not [path for path in run.workdir.rglob("*") if ".tmp-" in path.name]


def refused(run: Run, owner: int) -> None:
    """A second process in the same workdir ends at once, in one line."""
    second = run.start("second")
    assert second.wait() == 2 and second.stdout == ""
    assert second.stderr == (
        f"error: {run.workdir}: another process (pid {owner}) runs --mode {run.mode} in this workdir; wait for it, end "
        "it, or choose another --workdir\n"
    )
