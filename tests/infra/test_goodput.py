"""Where a run's seconds go: the kinds add up to the time that passed, over restarts too; what a kill undoes is lost."""

import json

import pytest

from msm.infra.goodput import KINDS, Goodput, process_start


class Clock:
    """A clock that stands still until it is told; `offset` apart from the time since the epoch."""

    def __init__(self, at: float = 0.0):
        self.at = at

    def __call__(self) -> float:
        return self.at


def start(folder, clock: Clock, step: int = 0, up: float = 0.0) -> Goodput:
    return Goodput(folder, step, started=clock() - up, clock=clock, now=clock)


def do_steps(goodput: Goodput, clock: Clock, first: int, last: int, compiles: float = 5.0) -> None:
    for step in range(first, last + 1):
        with goodput.spent("input"):
            clock.at += 0.1
        with goodput.stepping(step):
            clock.at += 1 + (compiles if step == first else 0)


def test_kinds_are_told_apart_and_add_up(tmp_path):
    clock = Clock(100)
    goodput = start(tmp_path, clock, up=7)
    do_steps(goodput, clock, 1, 3)
    with goodput.spent("checkpoint"):
        clock.at += 2
    with goodput.spent("evaluation"):
        clock.at += 4
    clock.at += 0.5
    assert goodput.share() == pytest.approx(2.5 / (clock() - 93))
    wanted = {"start-up": 7, "compile": 6, "productive": 2.5, "input": 0.3, "checkpoint": 2, "evaluation": 4}
    assert goodput.seconds == pytest.approx(dict.fromkeys(KINDS, 0.0) | wanted)
    assert sum(goodput.seconds.values()) == pytest.approx(clock() - 93)


def test_what_a_kill_undoes_is_lost_and_the_pause_is_told(tmp_path):
    clock = Clock()
    killed = start(tmp_path, clock)
    do_steps(killed, clock, 1, 4)
    killed.mark(4)
    do_steps(killed, clock, 5, 9, compiles=0)
    killed.log(9)
    spent = clock()
    clock.at += 60  # and nobody ran
    again = start(tmp_path, clock, step=4, up=3)
    undone = 5 * 1.1
    assert again.seconds["lost"] == pytest.approx(undone)
    assert again.seconds["between starts"] == pytest.approx(57)
    do_steps(again, clock, 5, 9)
    again.log(9)
    assert sum(again.seconds.values()) == pytest.approx(clock())
    assert again.seconds["productive"] == pytest.approx(3 + 4)  # steps 2 to 4, then 6 to 9: first steps compile
    lines = [json.loads(line) for line in (tmp_path / "goodput.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [9]  # that of the killed start is undone too
    assert spent < clock()


def test_a_record_that_nobody_can_read_begins_anew(tmp_path):
    (tmp_path / "goodput.json").write_text("{")
    (tmp_path / "goodput.jsonl").write_text('{"step": 1}\n{"ste')
    clock = Clock()
    goodput = start(tmp_path, clock, step=5)
    goodput.log(6)
    assert goodput.seconds == dict.fromkeys(KINDS, 0.0)
    assert [json.loads(line)["step"] for line in (tmp_path / "goodput.jsonl").read_text().splitlines()] == [1, 6]


def test_the_last_line_says_it_all(tmp_path, caplog):
    caplog.set_level("INFO")
    clock = Clock()
    goodput = start(tmp_path, clock)
    do_steps(goodput, clock, 1, 10)
    goodput.tell()
    assert "goodput 56.3 % of 16 s: productive 9, compile 6, input 1" in caplog.text


def test_a_process_knows_when_it_began():
    import time

    assert 0 <= time.monotonic() - process_start() < 7 * 24 * 3600
