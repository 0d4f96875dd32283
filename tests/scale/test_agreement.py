"""Two real processes that differ do not start; one that dies ends the other, with its reason in one line."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.scale.runs import SETTINGS, environment, free_port, start

pytestmark = pytest.mark.slow

CONFIG = "--config=configs/brain64_msm.py:smoke"


def command(store: Path, workdir: Path, *more: str) -> list[str]:
    flags = [f"--config.{name}={value}" for name, value in {"data.dir": store, **SETTINGS}.items()]
    return ["main.py", CONFIG, f"--workdir={workdir}", "--mode=train", *flags, *more]


def refusals(tmp_path: Path, *pair: list[str]) -> list[str]:
    """The last line of two processes of main.py with these commands, which must both end with status 2."""
    meet = [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2", "--join_timeout=120"]
    started = [
        subprocess.Popen(
            [sys.executable, *words, *meet, f"--process_id={index}"],
            cwd=ROOT,
            env=environment(1, tmp_path / "cache"),
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, words in enumerate(pair)
    ]
    try:
        told = [process.communicate(timeout=300)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [2, 2], told
    return [text.splitlines()[-1] for text in told]


def test_another_learning_rate_is_refused_with_the_difference(tiny_store, tmp_path):
    workdir = tmp_path / "run"
    network = [f"--config.model.{name}={value}" for name, value in {"name": "adm"}.items()]
    one = [*command(tiny_store, workdir, *network), "--config.optim.learning_rate=0.001"]
    two = [*command(tiny_store, workdir, *network), "--config.optim.learning_rate=0.5"]
    for line in refusals(tmp_path, one, two):
        assert line == (
            "error: processes of this run differ in settings (optim.learning_rate: 0.001 in process 0, 0.5 in "
            "process 1): give every process the same command, but for --process_id"
        )
    assert not workdir.exists()


def test_a_store_of_other_examples_is_refused_with_the_difference(tiny_store, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_store, other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["settings"]["seed"] = 99
    (other / "manifest.json").write_text(json.dumps(manifest))
    network = ["--config.model.name=adm"]
    pair = [command(store, tmp_path / "run", *network) for store in (tiny_store, other)]
    for line in refusals(tmp_path, *pair):
        assert line.startswith("error: processes of this run differ in store (settings.seed: 0 in process 0, 99 in ")
        assert line.endswith("give every host the same data.dir, or copies of one store")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_killed_in_training_ends_the_other(tiny_store, tmp_path, victim):
    workdir = tmp_path / "runs" / "killed"
    words = command(
        tiny_store, workdir, "--config.training.num_steps=1000000", "--config.training.log_every=5",
        f"--cache={tmp_path / 'cache'}", f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2",
    )  # fmt: skip
    pair = start(tmp_path, "killed", 1, 2, command=words, stop_after=-1)
    record = workdir / "metrics.jsonl"
    try:
        limit = time.monotonic() + 300
        while not record.exists() or not record.read_text():
            assert time.monotonic() < limit and all(process.poll() is None for process in pair)
            time.sleep(0.05)
        os.kill(pair[victim].pid, signal.SIGKILL)
        began = time.monotonic()
        told = pair[1 - victim].communicate(timeout=120)[0]
        assert time.monotonic() - began < 60
    finally:
        for process in pair:
            process.kill()
            process.communicate()
    assert pair[1 - victim].returncode == 1, told
    assert re.findall("^error: .*", told, re.MULTILINE) == [
        f"error: process {victim} of 2 has ended: it was killed without a word (out of memory, pre-empted, or its host "
        "is gone); see its own output"
    ]
    assert "Traceback" not in told and "Check failure stack trace" not in told
