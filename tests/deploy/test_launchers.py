"""Launchers as shell runs them: what is started again, what is not, and that --coordinator=auto joins under Slurm."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.scale.runs import environment

SINGLE = ROOT / "deploy" / "single_node.sh"
SBATCH = ROOT / "deploy" / "slurm" / "train.sbatch"


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return path


def restarts(tmp_path: Path, *statuses: int) -> tuple[int, int]:
    """(exit status, starts) of the single node's launcher whose program ends with these statuses."""
    starts = tmp_path / "starts"
    fake = program(tmp_path / "python", f'echo "$@" >> {starts}; set -- {" ".join(map(str, statuses))}\n'
                   f'shift $(($(wc -l < {starts}) - 1)); exit $1')  # fmt: skip
    done = subprocess.run(["bash", SINGLE], env={**os.environ, "PYTHON": str(fake), "WAIT": "0"}, timeout=60)
    return done.returncode, len(starts.read_text().splitlines())


@pytest.mark.parametrize(
    "statuses, expected", [((0,), (0, 1)), ((1, 137, 143, 0), (0, 4)), ((2,), (2, 1)), ((1, 2), (2, 2))]
)
def test_one_node_starts_again_after_all_but_success_and_mistakes(tmp_path, statuses, expected):
    assert restarts(tmp_path, *statuses) == expected


def test_one_node_passes_a_notice_on_and_stops(tmp_path):
    fake = program(tmp_path / "python", f"trap 'echo saved > {tmp_path}/saved; exit 143' TERM; touch {tmp_path}/up\n"
                   "while true; do sleep 0.05; done")  # fmt: skip
    started = subprocess.Popen(["bash", SINGLE], env={**os.environ, "PYTHON": str(fake), "WAIT": "0"})
    limit = time.monotonic() + 30
    while not (tmp_path / "up").exists():
        assert time.monotonic() < limit
        time.sleep(0.02)
    started.send_signal(signal.SIGTERM)
    assert started.wait(30) == 143 and (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    "status, count, requeued", [(0, 0, False), (2, 0, False), (143, 0, True), (1, 5, True), (1, 1000, False)]
)
def test_slurm_queues_again_what_can_go_on(tmp_path, status, count, requeued):
    program(tmp_path / "srun", f"exit {status}")
    program(tmp_path / "scontrol", f'echo "$@" > {tmp_path}/requeued')
    told = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(count)}
    done = subprocess.run(["bash", SBATCH], env={**os.environ, **told}, cwd=ROOT, timeout=60)
    assert done.returncode == status
    found = tmp_path / "requeued"
    assert (found.read_text() == "requeue 7\n") if requeued else not found.exists()


JOINING = """
import sys
from msm.infra import processes
processes.join("auto", None, None, 60)
import jax
print("of", jax.process_count(), "peers", sorted(processes._peers._links))
processes.wait_for_all()
"""


def test_auto_joins_the_tasks_of_a_slurm_step(tmp_path):
    """The variables are those that srun sets; JAX takes the port from the job's number."""
    step = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2",
    }
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", JOINING],
            cwd=ROOT,
            env=environment(1, tmp_path) | step | {"SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        told = [process.communicate(timeout=120) for process in pair]
    finally:
        for process in pair:
            process.kill()
    assert [process.returncode for process in pair] == [0, 0], told
    assert [out.splitlines()[-1] for out, _ in told] == ["of 2 peers [1]", "of 2 peers [0]"]
