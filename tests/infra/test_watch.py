"""Warnings of a run that waits, and the trace of its steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msm.infra import pace, sharding
from msm.infra.profiling import Profile
from tests.infra.test_goodput import Clock


def judge(monkeypatch, caplog, waits: list[float], step: float = 1.0, windows: int = 2) -> list[str]:
    """Warnings of windows of 5 steps, of processes that wait so long for each batch."""
    clock = Clock()
    seen = pace.Pace(clock)
    others = np.array([[wait, step] for wait in waits[1:]]).reshape(-1, 2)
    monkeypatch.setattr(sharding, "gather_rows", lambda mine: np.concatenate([mine, others]))
    for _ in range(windows):
        for _ in range(5):
            with seen.waiting():
                clock.at += waits[0]
            clock.at += step - waits[0]
        seen.window()
    return [record.getMessage() for record in caplog.records]


def test_a_device_that_waits_for_its_input_is_told_once(monkeypatch, caplog):
    (told,) = judge(monkeypatch, caplog, [0.4], windows=10)
    assert told.startswith("input is slower than the device: 0.4 s of a step's 1 s (40 %) wait for the batch; put the ")


def test_a_slow_host_is_named(monkeypatch, caplog):
    (told,) = judge(monkeypatch, caplog, [0.05, 0.04, 0.6, 0.05])
    assert told.startswith("process 2 of 4 is the straggler: its batch takes 0.6 s of a step's 1 s, the others' 0.05 s")


@pytest.mark.parametrize("waits", [[0.1], [0.1, 0.02, 0.02]])
def test_a_little_waiting_is_nobodys_business(monkeypatch, caplog, waits):
    assert judge(monkeypatch, caplog, waits, windows=5) == []


def test_all_hosts_slow_is_no_straggler(monkeypatch, caplog):
    (told,) = judge(monkeypatch, caplog, [0.5, 0.5, 0.6])
    assert told.startswith("input is slower than the device: 0.6 s")


def test_a_profile_holds_the_steps_that_were_asked_for(tmp_path):
    """Read as xprof reads it."""
    profile, step = Profile(tmp_path, (2, 3)), jax.jit(lambda x: x @ x)
    for number in range(1, 9):
        with profile.step(number):
            result = step(jnp.ones((4, 4)))
        profile.done(number, result)
    profile.close()
    (path,) = (tmp_path / "profile").rglob("*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(path)).planes
    steps = [dict(event.stats) for p in planes for line in p.lines for event in line.events if event.name == "train"]
    assert sorted(int(stats["step_num"]) for stats in steps) == [3, 4, 5]


def test_no_profile_unless_it_is_asked_for(tmp_path):
    profile = Profile(tmp_path, (0, 0))
    for number in range(3):
        with profile.step(number):
            pass
        profile.done(number, None)
    profile.close()
    assert not (tmp_path / "profile").exists()
