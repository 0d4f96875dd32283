"""Training that is really killed, again and again: it ends with what an uninterrupted run ends with, bit for bit.

MSM_KILLS says how often (4; the promise is kept for any number, `MSM_KILLS=10` takes a minute more).
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoint_runs import steps
from tests.checks import hashes
from tests.small_runs import assert_same_run, quick_compilation, small_config

ROOT = Path(__file__).resolve().parent.parent.parent
KILLS = int(os.environ.get("MSM_KILLS", "4"))
NUM_STEPS = 8 * (KILLS + 2)
ENVIRONMENT = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}


class Run:
    """Processes of one training command, started again and again in one workdir."""

    def __init__(self, workdir: Path, store: Path, cache: Path):
        settings = {
            **{"data.dir": store, "data.image_size": 32, "masks.acs_lines": 4, "model.channel_mult": "(1,)"},
            **{"training.num_steps": NUM_STEPS, "training.resume_every": 2, "training.checkpoint_every": 10},
            **{"training.sample_every": NUM_STEPS, "training.picture_solver": "zero_filled"},
        }
        self.workdir = workdir
        self.command = [
            *(sys.executable, "main.py", "--config=configs/brain64_msm.py:smoke", f"--workdir={workdir}"),
            *(f"--config.{name}={value}" for name, value in settings.items()),
            f"--cache={cache}",
        ]

    def start(self) -> subprocess.Popen:
        options = {"cwd": ROOT, "env": ENVIRONMENT, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(self.command, text=True, **options)

    def recorded(self) -> int:
        """The last step that metrics.jsonl tells of, 0 if none."""
        path = self.workdir / "metrics.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return json.loads(lines[-1])["step"] if lines else 0

    def unfinished(self) -> list[Path]:
        """Checkpoints that are being written."""
        return list(self.workdir.glob("checkpoints*/*.orbax-checkpoint-tmp*"))


def wait_until(condition: Callable[[], object], process: subprocess.Popen) -> None:
    limit = time.monotonic() + 600
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < limit
        time.sleep(0.001)


def finish(process: subprocess.Popen) -> str:
    output = process.communicate(timeout=900)[0]
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def straight(tiny_store, tmp_path_factory) -> Run:
    run = Run(tmp_path_factory.mktemp("kill") / "straight", tiny_store, tmp_path_factory.mktemp("kill_cache"))
    finish(run.start())
    return run


def test_a_run_that_is_killed_again_and_again_loses_nothing(straight, tiny_store, tmp_path, tmp_path_factory):
    run = Run(tmp_path / "run", tiny_store, straight.command[-1].partition("=")[2])
    rng, writing = np.random.default_rng(0), 0
    for number in range(KILLS):
        moment = max(run.recorded(), 8 * number) + int(rng.integers(1, 8))
        process = run.start()
        try:
            wait_until(lambda moment=moment: run.recorded() >= moment, process)
            if number % 2:  # in the midst of a checkpoint
                wait_until(run.unfinished, process)
            else:
                time.sleep(rng.uniform(0, 0.05))
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
        writing += bool(run.unfinished())
    assert writing > 0
    told = stop_by_notice(run)
    output = finish(run.start())
    assert f"resuming: {NUM_STEPS} steps from step {told}" in output
    compare(straight, run, tiny_store, tmp_path_factory)


def stop_by_notice(run: Run) -> int:
    """Starts the run, shows that a second one is refused meanwhile, ends it by SIGTERM; returns the step it saved."""
    process = run.start()
    begin = run.recorded()
    wait_until(lambda: run.recorded() > begin, process)
    process.send_signal(signal.SIGSTOP)  # so that it makes no step while we look
    try:
        second = run.start()
        refusal = second.communicate(timeout=600)[0]
        assert second.returncode == 2, refusal
        assert f"another process (pid {process.pid}) runs --mode train in this workdir" in refusal
        recorded = run.recorded()
        process.send_signal(signal.SIGTERM)
    finally:
        process.send_signal(signal.SIGCONT)
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 143, output
    told = re.search(rf"SIGTERM: stopped after step (\d+) of {NUM_STEPS}, which is saved", output)
    assert told, output
    step = int(told[1])
    assert recorded <= step <= recorded + 2  # the step it was in, and one that may have been recorded meanwhile
    assert max(steps(run.workdir / "checkpoints-meta") + steps(run.workdir / "checkpoints")) == step
    return step


def compare(straight: Run, run: Run, store: Path, tmp_path_factory) -> None:
    """Same record, same final parameters, average, optimiser state and place in the data, same files."""
    config = small_config(store)
    config.training.num_steps = NUM_STEPS
    with quick_compilation(tmp_path_factory.getbasetemp() / "compiled"):
        assert_same_run(config, straight.workdir, run.workdir)
    recorded = [json.loads(line)["step"] for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]
    assert recorded == list(range(1, NUM_STEPS + 1))
    final = f"checkpoints/{NUM_STEPS}"
    for name in (f"{final}/data", f"{final}/meta/metadata", "samples"):
        one, other = straight.workdir / name, run.workdir / name
        if one.is_file():
            assert one.read_bytes() == other.read_bytes()
        else:
            contents = [hashes(folder) for folder in (one, other)]
            for found in contents:
                found.pop("commit_success.txt", None)  # Orbax notes the time in it
            assert contents[0] == contents[1] != {}
    assert steps(run.workdir / "checkpoints") == steps(straight.workdir / "checkpoints")
    assert not run.unfinished() and not list(run.workdir.glob("checkpoints*/damaged-*"))
