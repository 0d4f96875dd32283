"""infra/checkpoints.py: a run that stops, however it stops, goes on as if it had not."""

import json
import logging
import os
import resource
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msm.infra import seals
from msm.infra.checkpoints import Checkpoints
from msm.infra.errors import UserError
from tests.helpers.checkpoint_runs import (
    assert_same,
    flip_bit,
    largest_file,
    make_data,
    make_state,
    run,
    save_steps,
    script,
    steps,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"  # Orbax drops unfinished reads of a damaged file
)


def test_two_tiers(tmp_path):
    run(tmp_path, num_steps=17, kept_every=5, resume_every=2)
    assert steps(tmp_path / "checkpoints") == [5, 10, 15, 17]  # multiples and the last
    assert steps(tmp_path / "checkpoints-meta") == [14, 16]  # the newest two


def test_due_tells_what_save_will_do(tmp_path):
    with Checkpoints(tmp_path, kept_every=4, resume_every=2) as saved:
        told = [saved.due(step, last=step == 5) for step in range(1, 6)]
    assert told == [None, "checkpoints-meta", None, "checkpoints", "checkpoints"]


@pytest.mark.parametrize(
    ("stop_at", "newest"), [(11, "checkpoints-meta/9"), (10, "checkpoints-meta/9"), (8, "checkpoints/8")]
)
def test_a_resumed_run_is_bit_identical(tmp_path, stop_at, newest):
    expected, position = run(tmp_path / "whole", num_steps=14)
    run(tmp_path / "parts", num_steps=14, stop_at=stop_at)
    assert (tmp_path / "parts" / newest).is_dir()
    state, resumed_position = run(tmp_path / "parts", num_steps=14)
    assert_same(state, expected)
    assert resumed_position == position
    assert steps(tmp_path / "parts" / "checkpoints") == steps(tmp_path / "whole" / "checkpoints")


def test_a_finished_run_has_nothing_to_do(tmp_path):
    expected, _ = run(tmp_path, num_steps=4)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    state, _ = run(tmp_path, num_steps=4)
    assert_same(state, expected)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_finished_run_can_be_made_longer(tmp_path):
    run(tmp_path / "a", num_steps=7)
    state, _ = run(tmp_path / "a", num_steps=10)
    expected, _ = run(tmp_path / "b", num_steps=10)
    assert_same(state, expected)


def test_an_empty_workdir_has_nothing_to_restore(tmp_path):
    with Checkpoints(tmp_path, 4, 2) as saved:
        assert saved.restore_latest(make_state(), make_data()) is None


def test_a_save_holds_the_values_of_its_own_step(tmp_path):
    """The state is donated to later steps, and the data move on, while the save is written."""
    add = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    data = make_data()
    state = {"step": jnp.int32(0), "big": [jnp.zeros((500, 500)) for _ in range(8)]}
    template = jax.tree.map(jnp.zeros_like, state)
    with Checkpoints(tmp_path, 1, 1) as saved:
        for step in range(1, 13):
            state = add(state)
            next(data)
            if step % 4 == 0:
                saved.save(step, state, data, {"step": step})
    for step in (12, 8, 4):
        with Checkpoints(tmp_path, 1, 1) as saved:
            restored, meta = saved.restore_latest(template, data)
        assert meta == {"step": step}
        assert data.get_state() == {"next_index": step}
        assert all(np.all(np.asarray(leaf) == step) for leaf in jax.tree.leaves(restored))
        shutil.rmtree(tmp_path / "checkpoints" / str(step))


TRAIN_FOREVER = """
import sys
import jax, jax.numpy as jnp
from msm.infra.checkpoints import Checkpoints
from tests.helpers.checkpoint_runs import make_data

data = make_data()
state = {"step": jnp.int32(0), "big": [jnp.zeros((1000, 500)) for _ in range(12)]}
with Checkpoints(sys.argv[1], 1000, 2) as saved:
    restored = saved.restore_latest(state, data)
    state = state if restored is None else restored[0]
    for step in range(int(state["step"]) + 1, 100_000):
        state = jax.tree.map(lambda x: x + 1, state)
        next(data)
        saved.save(step, state, data, {"step": step})
"""


def kill_while_writing(folder, after_step):
    """Starts a run and ends it by kill -9 the moment it has begun to write a checkpoint later than `after_step`."""
    with script(TRAIN_FOREVER, folder) as process:
        try:
            limit = time.monotonic() + 120
            while time.monotonic() < limit and process.poll() is None:
                written = [p.name for p in folder.glob("checkpoints-meta/*.orbax-checkpoint-tmp*")]
                if any(int(name.split(".")[0]) > after_step for name in written):
                    break
                time.sleep(0.001)
        finally:
            alive = process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert alive, "the run ended by itself"


def test_kill_9_while_writing_loses_only_the_unfinished_checkpoint(tmp_path):
    template = {"step": jnp.int32(0), "big": [jnp.zeros((1000, 500)) for _ in range(12)]}
    step = 0
    for _ in range(2):  # the second run must resume from what the first left, and clean up after it
        kill_while_writing(tmp_path, after_step=step + 4)
        assert list((tmp_path / "checkpoints-meta").glob("*.orbax-checkpoint-tmp*"))  # it was in the midst of it
        data = make_data()
        with Checkpoints(tmp_path, 1000, 2) as saved:
            state, meta = saved.restore_latest(template, data)
        assert meta["step"] >= step + 4
        step = meta["step"]
        assert data.get_state() == {"next_index": step}
        assert all(np.all(np.asarray(leaf) == step) for leaf in jax.tree.leaves(state))
    with Checkpoints(tmp_path, 1000, 2) as saved:
        saved.save(step + 2, state, data, {})
    assert steps(tmp_path / "checkpoints-meta") == [step, step + 2]
    assert not list((tmp_path / "checkpoints-meta").glob("*.orbax-checkpoint-tmp*"))  # what it left is cleared away


DAMAGE = {
    "array file deleted": lambda folder: largest_file(folder / "state").unlink(),
    "array file truncated": lambda folder: os.truncate(largest_file(folder / "state"), 1000),
    "one bit flipped": lambda folder: flip_bit(largest_file(folder / "state")),
    "data position deleted": lambda folder: next((folder / "data").glob("process_*")).unlink(),
    "data position emptied": lambda folder: os.truncate(next((folder / "data").glob("process_*")), 0),
    "meta cut": lambda folder: os.truncate(folder / "meta" / "metadata", 3),
    "tree metadata deleted": lambda folder: (folder / "state" / "_METADATA").unlink(),
    "state deleted": lambda folder: shutil.rmtree(folder / "state"),
    "checksums cut": lambda folder: os.truncate(folder / seals.SEAL, 5),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, caplog, kind):
    states = save_steps(tmp_path, 2, 3)
    DAMAGE[kind](tmp_path / "checkpoints" / "3")
    data = make_data()
    with Checkpoints(tmp_path, 1, 1) as saved, caplog.at_level(logging.WARNING):
        state, meta = saved.restore_latest(make_state(), data)
        assert_same(state, states[2])
        assert (meta, data.get_state()) == ({"step": 2}, {"next_index": 1})
        assert f"checkpoint {tmp_path}/checkpoints/3 is damaged" in caplog.text
        assert f"resuming from {tmp_path}/checkpoints/2 instead" in caplog.text
        assert (tmp_path / "checkpoints" / "damaged-3-0").is_dir()  # set aside, not destroyed
        saved.save(3, states[3], data, {"step": 3})
    with Checkpoints(tmp_path, 1, 1) as saved:
        state, meta = saved.restore_latest(make_state(), data)
    assert_same(state, states[3])


def test_damage_is_found_without_checksums_too(tmp_path, caplog):
    """A run killed between a checkpoint's completion and its sealing leaves one without checksums."""
    states = save_steps(tmp_path, 2, 3)
    for step in (2, 3):
        (tmp_path / "checkpoints" / str(step) / seals.SEAL).unlink()
    os.truncate(largest_file(tmp_path / "checkpoints" / "3" / "state"), 1000)
    with Checkpoints(tmp_path, 1, 1) as saved:
        state, _ = saved.restore_latest(make_state(), make_data())
    assert_same(state, states[2])
    assert "checkpoints/3 is damaged" in caplog.text


def test_a_damaged_checkpoint_falls_back_across_the_tiers(tmp_path):
    states = save_steps(tmp_path, 4, 5, kept_every=4)
    assert steps(tmp_path / "checkpoints-meta") == [5]
    shutil.rmtree(tmp_path / "checkpoints-meta" / "5" / "data")
    with Checkpoints(tmp_path, 4, 1) as saved:
        state, meta = saved.restore_latest(make_state(), make_data())
    assert_same(state, states[4])
    assert meta == {"step": 4}


def test_a_deleted_newest_checkpoint_is_told_once(tmp_path, caplog):
    states = save_steps(tmp_path, 4, 5, 6, kept_every=4)
    kept, rolling = tmp_path / "checkpoints", tmp_path / "checkpoints-meta"
    assert json.loads((tmp_path / seals.RECORD).read_text()) == {kept.name: 4, rolling.name: 6}
    shutil.rmtree(rolling / "6")
    for expected in ([f"checkpoint {rolling}/6 is gone: resuming from {rolling}/5 instead"], []):
        caplog.clear()
        with Checkpoints(tmp_path, 4, 1) as saved, caplog.at_level(logging.WARNING):
            state, meta = saved.restore_latest(make_state(), make_data())
        assert_same(state, states[5])
        assert meta == {"step": 5}
        assert [line for line in caplog.messages if "checkpoint " in line] == expected
    assert json.loads((tmp_path / seals.RECORD).read_text()) == {kept.name: 4, rolling.name: 5}


def test_a_deleted_and_a_damaged_one_are_told_together(tmp_path, caplog):
    save_steps(tmp_path, 1, 2, 3)
    kept = tmp_path / "checkpoints"
    shutil.rmtree(kept / "3")
    flip_bit(largest_file(kept / "2" / "state"))
    with Checkpoints(tmp_path, 1, 1) as saved, caplog.at_level(logging.WARNING):
        assert saved.restore_latest(make_state(), make_data())[1] == {"step": 1}
    told = next(line for line in caplog.messages if "resuming" in line)
    assert told.startswith(f"checkpoint {kept}/3 is gone; checkpoint {kept}/2 is damaged (state/")
    assert told.endswith(f": resuming from {kept}/1 instead")


def test_a_run_whose_older_checkpoints_are_deleted_has_lost_nothing(tmp_path, caplog):
    save_steps(tmp_path, 4, 5, 6, kept_every=4)
    shutil.rmtree(tmp_path / "checkpoints" / "4")
    with Checkpoints(tmp_path, 4, 1) as saved, caplog.at_level(logging.WARNING):
        assert saved.restore_latest(make_state(), make_data())[1] == {"step": 6}
    assert "checkpoint " not in caplog.text


@pytest.mark.parametrize("text", [None, "{", "[]", '{"checkpoints": "many"}'])
def test_a_record_that_nobody_can_read_counts_as_none(tmp_path, caplog, text):
    save_steps(tmp_path, 1, 2)
    shutil.rmtree(tmp_path / "checkpoints" / "2")
    (tmp_path / seals.RECORD).unlink() if text is None else (tmp_path / seals.RECORD).write_text(text)
    with Checkpoints(tmp_path, 1, 1) as saved, caplog.at_level(logging.WARNING):
        assert saved.restore_latest(make_state(), make_data())[1] == {"step": 1}
    assert "checkpoint " not in caplog.text


def test_if_all_are_deleted_the_run_does_not_start_anew_in_silence(tmp_path):
    save_steps(tmp_path, 1, 2)
    shutil.rmtree(tmp_path / "checkpoints")
    with Checkpoints(tmp_path, 1, 1) as saved, pytest.raises(UserError) as error:
        saved.restore_latest(make_state(), make_data())
    assert str(error.value).startswith(f"checkpoint {tmp_path}/checkpoints/2 and all before it are gone: restore them")
    (tmp_path / seals.RECORD).unlink()
    with Checkpoints(tmp_path, 1, 1) as saved:
        assert saved.restore_latest(make_state(), make_data()) is None


def test_if_all_are_damaged_the_run_does_not_start_anew_in_silence(tmp_path):
    save_steps(tmp_path, 1, 2)
    for step in (1, 2):
        os.truncate(largest_file(tmp_path / "checkpoints" / str(step) / "state"), 10)
    with Checkpoints(tmp_path, 1, 1) as saved, pytest.raises(UserError, match="none of the 2 checkpoints") as error:
        saved.restore_latest(make_state(), make_data())
    assert "\n" not in str(error.value)
    assert steps(tmp_path / "checkpoints") == [1, 2]  # nothing is touched


def test_a_state_of_another_shape_is_an_error_and_no_damage(tmp_path):
    save_steps(tmp_path, 1, 2)
    with Checkpoints(tmp_path, 1, 1) as saved, pytest.raises(UserError) as error:
        saved.restore_latest(make_state(width=24), make_data())
    message = str(error.value)
    assert f"{tmp_path}/checkpoints/2 does not fit the config" in message
    assert "params/conv/bias is (16,) in the checkpoint, (24,) in the config (12 of 15 arrays differ)" in message
    assert "\n" not in message
    assert steps(tmp_path / "checkpoints") == [1, 2]


def test_the_position_in_the_data_serves_another_number_of_processes(tmp_path):
    save_steps(tmp_path, 1)
    folder = tmp_path / "checkpoints" / "1"
    (folder / seals.SEAL).unlink()
    (folder / "data" / "process_0-of-1.json").rename(folder / "data" / "process_0-of-2.json")
    data = make_data()
    with Checkpoints(tmp_path, 1, 1) as saved:
        saved.restore_latest(make_state(), data)
    assert data.get_state() == {"next_index": 1}


def test_a_full_disk_is_told_and_leaves_the_last_checkpoint(tmp_path):
    data = make_data()
    rng = np.random.default_rng(0)
    state = {"big": jnp.asarray(rng.normal(size=(400, 400)), jnp.float32)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    saved = Checkpoints(tmp_path, 1, 1)
    saved.save(1, state, data, {"step": 1})
    saved.wait()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # stands for a full disk: writing fails half-way
        with pytest.raises(UserError, match="could not write a checkpoint under") as error:
            saved.save(2, state, data, {"step": 2})
            saved.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        saved.close()
    assert "\n" not in str(error.value)
    with Checkpoints(tmp_path, 1, 1) as saved:
        assert saved.restore_latest(state, data)[1] == {"step": 1}
        assert steps(tmp_path / "checkpoints") == [1]


def test_a_folder_that_vanished_is_told_at_once(tmp_path):
    with Checkpoints(tmp_path, 1, 1) as saved:
        shutil.rmtree(tmp_path / "checkpoints")
        (tmp_path / "checkpoints").write_text("a file")
        with pytest.raises(UserError, match="could not write a checkpoint under"):
            saved.save(1, make_state(), make_data(), {})
