"""Training that is really killed, again and again: it ends with what an uninterrupted run ends with, bit for bit.

Every process runs main.py from its first line; what is imported they share, see tests/helpers/processes.py.
"""

import json
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import tiny_model
from tests.helpers.checkpoint_runs import steps
from tests.helpers.checks import hashes
from tests.helpers.processes import Process
from tests.helpers.small_runs import assert_same_run, small_config

pytestmark = pytest.mark.slow

# When SIGKILL comes: soon after a step is recorded, while a checkpoint is written, or at any moment of the start.
MOMENTS = ("step", "checkpoint", "step", "checkpoint", "start", "checkpoint", "step", "start", "checkpoint", "step")
NUM_STEPS = 100  # a busy machine may take many between two looks at what was recorded


class Run:
    """One training command and its workdir."""

    def __init__(self, folder: Path, store: Path, cache: Path):
        self.folder, self.workdir = folder, folder / "run"
        self.arguments = tiny_model.command_line(
            *(self.workdir, store, cache),
            training__num_steps=NUM_STEPS,
            training__resume_every=2,
            training__checkpoint_every=10,
            training__sample_every=NUM_STEPS,
            training__picture_solver="zero_filled",
        )

    def start(self, name: str = "printed") -> Process:
        return Process("main.py", self.arguments, self.folder / name, tiny_model.register)

    def recorded(self) -> int:
        """The last step that metrics.jsonl tells of, 0 if none."""
        path = self.workdir / "metrics.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return json.loads(lines[-1])["step"] if lines else 0

    def unfinished(self) -> list[Path]:
        """Checkpoints that are being written."""
        return list(self.workdir.glob("checkpoints*/*.orbax-checkpoint-tmp*"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("kill_cache")


@pytest.fixture(scope="module")
def straight(tiny_store, tmp_path_factory, cache) -> Run:
    run = Run(tmp_path_factory.mktemp("straight"), tiny_store, cache)
    run.start().finish()
    return run


def test_a_run_that_is_killed_again_and_again_loses_nothing(straight, tiny_store, cache, tmp_path):
    run = Run(tmp_path, tiny_store, cache)
    rng, writing, started = np.random.default_rng(0), 0, 1.0
    for moment in MOMENTS:
        before, begin = run.recorded(), time.monotonic()
        process = run.start()
        if moment == "start":
            time.sleep(rng.uniform(0, started))
        else:
            process.until(lambda before=before: run.recorded() > before)
            started = time.monotonic() - begin
            far = before + int(rng.integers(1, 6))
            process.until(lambda far=far: run.recorded() >= far)
            if moment == "checkpoint":
                process.until(run.unfinished)
            else:
                time.sleep(rng.uniform(0, 0.1))
        process.kill()
        writing += bool(run.unfinished())
    assert writing >= 3, "too few were killed while a checkpoint was written"
    told = stop_by_notice(run)
    output = run.start().finish()
    assert f"resuming: {NUM_STEPS} steps from step {told}" in output
    compare(straight, run, tiny_store, cache)


def stop_by_notice(run: Run) -> int:
    """Starts the run, shows that a second one is refused meanwhile, ends it by SIGTERM; returns the step it saved."""
    begin = run.recorded()
    process = run.start()
    process.until(lambda: run.recorded() > begin)
    process.signal(signal.SIGSTOP)  # so that it makes no step while we look
    second = run.start("second")
    assert second.wait() == 2, second.stderr
    assert f"another process (pid {process.pid}) runs --mode train in this workdir" in second.stderr
    recorded = run.recorded()
    process.signal(signal.SIGTERM)
    process.signal(signal.SIGCONT)
    assert process.wait() == 143, process.stderr
    told = re.search(rf"SIGTERM: stopped after step (\d+) of {NUM_STEPS}, which is saved", process.stderr)
    assert told, process.stderr
    step = int(told[1])
    assert recorded <= step <= recorded + 2  # the step it was in, and one that may have been recorded meanwhile
    assert max(steps(run.workdir / "checkpoints-meta") + steps(run.workdir / "checkpoints")) == step
    return step


def compare(straight: Run, run: Run, store: Path, cache: Path) -> None:
    """Same record, same final parameters, average, optimiser state and place in the data, same files."""
    tiny_model.register()
    config = small_config(store)
    config.update_from_flattened_dict({**tiny_model.SETTINGS, "training.num_steps": NUM_STEPS})
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
