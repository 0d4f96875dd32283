"""Processes that watch each other: who says goodbye is let go, whoever else ends is told of to all."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from msm.infra import peers
from tests.helpers.paths import ROOT


@pytest.fixture
def trio():
    """Three Peers of one run and what each was told of a loss."""
    told = [[], [], []]
    made = [peers.Peers(i, 3, lambda status, line, i=i: told[i].append((status, line))) for i in range(3)]
    port, token = made[0].listen()
    for other in made[1:]:
        other.connect("127.0.0.1", port, token)
    assert made[0].met(10)
    yield made, told, (port, token)
    for one in made:
        one.leave()
        for link in one._links.values():
            link.close()


def wait_until(condition, seconds: float = 10) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_a_reason_reaches_all_others_through_process_0(trio):
    made, told, _ = trio
    made[2].fail(2, "the disk is full: make room")
    wait_until(lambda: told[0] and told[1])
    assert told[0] == told[1] == [(2, "process 2 of 3 has ended: the disk is full: make room")] and told[2] == []


def test_who_leaves_in_order_is_not_missed(trio):
    made, told, _ = trio
    for one in (made[1], made[0], made[2]):
        one.leave()
    for one in made:
        for link in one._links.values():
            link.close()
    time.sleep(0.2)
    assert told == [[], [], []]


def test_a_connection_that_ends_without_a_word_is_a_death(trio):
    made, told, _ = trio
    made[1]._links[0].shutdown(socket.SHUT_RDWR)
    wait_until(lambda: told[0] and told[2])
    assert told[0] == told[2] == [(1, f"process 1 of 3 has ended: {peers.UNEXPLAINED}")]


def test_strangers_are_not_let_in():
    told: list = []
    first = peers.Peers(0, 2, lambda *news: told.append(news))
    port, token = first.listen()
    for greeting in (b"GET / HTTP/1.1\r\n\r\n", json.dumps({"token": "guess", "index": 1}).encode() + b"\n"):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(greeting)
            assert stranger.recv(1) == b""  # closed
    assert not first.met(0.05)
    second = peers.Peers(1, 2)
    second.connect("127.0.0.1", port, token)
    assert first.met(10) and told == []
    first.leave()
    second.leave()


def test_a_silent_host_is_asked_for_within_a_minute(trio):
    made, _, _ = trio
    link = made[1]._links[0]
    assert link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    waits = peers.KEEPALIVE_S
    assert waits["TCP_KEEPIDLE"] + waits["TCP_KEEPINTVL"] * waits["TCP_KEEPCNT"] < 60
    if hasattr(socket, "TCP_KEEPIDLE"):
        assert link.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == waits["TCP_KEEPIDLE"]


def test_without_a_connection_the_run_goes_on_and_says_so(caplog):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    peers.open_peers(1, 2, "127.0.0.1", lambda text: f"{port} token")
    assert "will be noticed by JAX alone" in caplog.text


WAITING = """
import sys, time
from msm.infra.peers import Peers
one = Peers(int(sys.argv[1]), 2)
if one.index == 0:
    print(*one.listen(), flush=True)
    assert one.met()
    print("met", flush=True)
else:
    one.connect("127.0.0.1", int(sys.argv[2]), sys.argv[3])
time.sleep(600)
"""


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_at_once(victim):
    def start(*arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-c", WAITING, *arguments]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    first = start("0")
    second = start("1", *first.stdout.readline().split())
    pair = [first, second]
    try:
        assert first.stdout.readline() == "met\n"
        os.kill(pair[victim].pid, signal.SIGKILL)
        began = time.monotonic()
        _, told = pair[1 - victim].communicate(timeout=60)
        assert time.monotonic() - began < 10
    finally:
        for process in pair:
            process.kill()
            process.communicate()
    assert pair[1 - victim].returncode == 1
    assert told == f"error: process {victim} of 2 has ended: {peers.UNEXPLAINED}\n"
