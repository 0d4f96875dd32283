"""Joining the processes of a run: not at all for one, and one clear line for every mistake."""

import os
import socket
import subprocess
import sys

import jax
import pytest

from msm.infra import processes
from tests.helpers.checks import message_of
from tests.scale.runs import ROOT, free_port

ADDRESS = "10.0.0.1:8476"


def test_a_run_of_one_process_initialises_nothing(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: calls.append(1))
    processes.join("", None, None, 300)
    assert calls == []


@pytest.mark.parametrize(
    "arguments, expected",
    {
        ("", 2, None): "--num_processes and --process_id are of no use where there is no --coordinator",
        ("", None, 0): "set it to HOST:PORT, or leave them out",
        ("auto", 2, 0): "of no use where --coordinator is 'auto'",
        ("10.0.0.1", 2, 0): "--coordinator is '10.0.0.1': it must be HOST:PORT, e.g. 10.0.0.1:8476, or auto",
        (":8476", 2, 0): "it must be HOST:PORT",
        ("10.0.0.1:99999", 2, 0): "it must be HOST:PORT",
        (ADDRESS, None, 0): "needs both --num_processes and --process_id",
        (ADDRESS, 2, None): "needs both --num_processes and --process_id",
        (ADDRESS, 0, 0): "--num_processes is 0: it must be at least 1",
        (ADDRESS, 2, 2): "--process_id is 2: it must be from 0 to 1, as --num_processes is 2",
        (ADDRESS, 2, -1): "--process_id is -1: it must be from 0 to 1",
    }.items(),
)
def test_flags_that_do_not_fit(arguments, expected):
    assert expected in message_of(processes.join, *arguments, 300)


def test_a_time_out_must_be_positive():
    assert "--join_timeout is 0: it must be more than 0 seconds" in message_of(processes.join, ADDRESS, 2, 0, 0)


def refusal(*flags: str) -> str:
    """The last line of main.py with these flags, which must end with status 2; JAX may chatter before."""
    command = [sys.executable, "main.py", "--config=configs/brain64_msm.py:smoke", "--workdir=none", *flags]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "OMPI_"))}
    environment["JAX_PLATFORMS"] = "cpu"
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr, done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("index", [0, 1])
def test_others_that_do_not_come(index):
    """Process 1 finds nobody, process 0 waits in vain."""
    address = f"127.0.0.1:{free_port()}"
    line = refusal(f"--coordinator={address}", "--num_processes=2", f"--process_id={index}", "--join_timeout=2")
    assert line.startswith(f"error: process {index} of 2: not all processes met at {address} within 2 s: start every ")


def test_a_port_in_use():
    with socket.socket(socket.AF_INET6) as used:
        used.bind(("::", 0))
        used.listen()
        address = f"127.0.0.1:{used.getsockname()[1]}"
        line = refusal(f"--coordinator={address}", "--num_processes=2", "--process_id=0")
    assert line.startswith(f"error: --coordinator={address}: cannot listen at this port (") and "take another" in line


def test_auto_without_a_cluster():
    line = refusal("--coordinator=auto")
    assert line.startswith("error: --coordinator=auto: JAX finds no cluster that it knows") and "give --coord" in line
