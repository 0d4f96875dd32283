"""infra/checkpoints.py: a run that stops, however it stops, goes on as if it had not."""

import json
import logging
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from infra import checkpoints
from infra.checkpoints import Checkpoints, export_params, load_ema_params
from infra.errors import UserError
from losses import TrainState

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"  # Orbax drops unfinished reads of a damaged file
)

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(0.1, 0.01, 20)))


def make_params(width=16):
    rng = np.random.default_rng(0)
    return {
        "conv": {"kernel": jnp.asarray(rng.normal(size=(8, width)), jnp.float32), "bias": jnp.zeros(width)},
        "out": {"kernel": jnp.asarray(rng.normal(size=(width, 300)), jnp.float32)},
    }


def make_state(width=16):
    params = make_params(width)
    return TrainState(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.array, params), OPTIMIZER.init(params))


def make_data(num_shards=1, shard=0):
    """Batches of numbers: shuffled, endless, different in every epoch."""
    dataset = grain.MapDataset.range(40).seed(3).shuffle().repeat()[shard::num_shards].map(np.float32).batch(4)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


def train_step(state, batch):
    grads = jax.grad(lambda p: jnp.sum(jnp.tanh(p["conv"]["kernel"] @ p["out"]["kernel"]) * batch.mean()))(state.params)
    updates, opt_state = OPTIMIZER.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, state.ema_params, params)
    return TrainState(state.step + 1, params, ema, opt_state)


donating_step = jax.jit(train_step, donate_argnums=0)


def run(folder, num_steps, kept_every=4, resume_every=3, stop_at=None):
    """A whole training run: resumes, trains, saves; returns the state and the position in the data."""
    data = make_data()
    with Checkpoints(folder, kept_every, resume_every) as saved:
        restored = saved.restore_latest(make_state(), data)
        state = make_state() if restored is None else restored[0]
        for step in range(int(state.step) + 1, (stop_at or num_steps) + 1):
            state = donating_step(state, next(data))
            saved.save(step, state, data, {"step": step}, last=step == num_steps)
    return state, data.get_state()


def steps(folder):
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal())


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree_util.tree_flatten_with_path(a)[0], jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=jax.tree_util.keystr(path))
        assert x.dtype == y.dtype


def save_steps(folder, *numbers, kept_every=1):
    """Saves states whose every number is shifted by the step; returns them by step."""
    data, states = make_data(), {}
    with Checkpoints(folder, kept_every, 1) as saved:
        for step in numbers:
            next(data)
            states[step] = jax.tree.map(lambda x, n=step: x + jnp.asarray(n, x.dtype), make_state())
            saved.save(step, states[step], data, {"step": step})
    return states


def largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


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
from infra.checkpoints import Checkpoints
from tests_checkpoints import make_data

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


def script(code, *arguments, **popen):
    """Starts Python code that may import this file as tests_checkpoints."""
    load = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("tests_checkpoints", {str(Path(__file__).resolve())!r})
sys.modules["tests_checkpoints"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
"""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", load + code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=env, text=True, **popen)


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


def flip_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


DAMAGE = {
    "array file deleted": lambda folder: largest_file(folder / "state").unlink(),
    "array file truncated": lambda folder: os.truncate(largest_file(folder / "state"), 1000),
    "one bit flipped": lambda folder: flip_bit(largest_file(folder / "state")),
    "data position deleted": lambda folder: next((folder / "data").glob("process_*")).unlink(),
    "data position emptied": lambda folder: os.truncate(next((folder / "data").glob("process_*")), 0),
    "meta cut": lambda folder: os.truncate(folder / "meta" / "metadata", 3),
    "tree metadata deleted": lambda folder: (folder / "state" / "_METADATA").unlink(),
    "state deleted": lambda folder: shutil.rmtree(folder / "state"),
    "checksums cut": lambda folder: os.truncate(folder / checkpoints.SEAL, 5),
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
        (tmp_path / "checkpoints" / str(step) / checkpoints.SEAL).unlink()
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


def test_another_number_of_processes_is_an_error_and_no_damage(tmp_path):
    save_steps(tmp_path, 1)
    folder = tmp_path / "checkpoints" / "1"
    (folder / checkpoints.SEAL).unlink()
    (folder / "data" / "process_0-of-1.json").rename(folder / "data" / "process_0-of-2.json")
    with Checkpoints(tmp_path, 1, 1) as saved, pytest.raises(UserError, match=r"by 2 process\(es\), this run has 1"):
        saved.restore_latest(make_state(), make_data())


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


def test_restoring_takes_the_shardings_of_the_template(tmp_path):
    states = save_steps(tmp_path, 1)
    mesh = jax.make_mesh((jax.device_count(),), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    place = NamedSharding(mesh, P())
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), make_state())
    with Checkpoints(tmp_path, 1, 1) as saved:
        state, _ = saved.restore_latest(shapes, make_data())
    assert all(leaf.sharding == place for leaf in jax.tree.leaves(state))
    assert_same(state, states[1])
    params, _ = load_ema_params(tmp_path, shapes.ema_params)
    assert all(leaf.sharding == place for leaf in jax.tree.leaves(params))
    params, _ = load_ema_params(tmp_path, jax.eval_shape(make_params))
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(params))


DEVICES = """
import jax
from jax.sharding import NamedSharding, PartitionSpec as P
from infra.checkpoints import Checkpoints, load_ema_params
from tests_checkpoints import assert_same, make_data, make_state

def place(count):
    mesh = jax.make_mesh((count,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:count])
    return NamedSharding(mesh, P())

state = jax.device_put(make_state(), place(4))
with Checkpoints(sys.argv[1], 1, 1) as saved:
    saved.save(1, state, make_data(), {})
for count in (4, 2, 1):
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(count)), state)
    with Checkpoints(sys.argv[1], 1, 1) as saved:
        restored, _ = saved.restore_latest(shapes, make_data())
    assert all(leaf.sharding == place(count) for leaf in jax.tree.leaves(restored))
    assert_same(restored, state)
    assert_same(load_ema_params(sys.argv[1], shapes.ema_params)[0], state.ema_params)
print("same on", jax.device_count())
"""


def test_a_run_on_four_devices_is_restored_on_fewer(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
    with script(DEVICES, tmp_path, stdout=subprocess.PIPE) as process:
        told = process.communicate(timeout=300)[0]
    assert told.splitlines() == ["same on 4"]


POD = """
import jax
folder, port, index = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.distributed.initialize(f"127.0.0.1:{port}", 2, index)
from jax.sharding import NamedSharding, PartitionSpec as P
from infra.checkpoints import Checkpoints, load_ema_params
from tests_checkpoints import assert_same, flip_bit, largest_file, make_data, make_state
from jax.experimental.multihost_utils import sync_global_devices
from pathlib import Path

mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
place = NamedSharding(mesh, P())
state = jax.tree.map(lambda x: jax.make_array_from_process_local_data(place, x), jax.device_get(make_state()))
add = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
data = make_data(2, index)
batches = {}
with Checkpoints(folder, 4, 2) as saved:
    assert saved.restore_latest(state, data) is None
    for step in range(1, 8):
        state = add(state)
        batches[step] = next(data)
        saved.save(step, state, data, {"step": step}, last=step == 7)
for newest in (7, 6):
    data = make_data(2, index)
    with Checkpoints(folder, 4, 2) as saved:
        restored, meta = saved.restore_latest(state, data)
    assert meta["step"] == newest, meta
    assert int(restored.step.addressable_data(0)) == newest
    assert data.get_state() == {"next_index": newest}, data.get_state()
    if newest == 6:
        assert (next(data) == batches[7]).all()
    sync_global_devices("checked")
    if newest == 7 and index == 0:
        flip_bit(largest_file(Path(folder) / "checkpoints/7/state"))
    sync_global_devices("damaged")
params, step = load_ema_params(folder, jax.tree.map(lambda x: x, state.ema_params))
assert step == 4, step
print("ok")
"""


def test_two_processes_save_and_resume_each_its_own_data(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pod = [script(POD, tmp_path, port, i, stdout=subprocess.PIPE) for i in range(2)]
    try:
        told = [process.communicate(timeout=300)[0].strip() for process in pod]
    finally:
        for process in pod:
            process.kill()
    assert [lines.splitlines()[-1] for lines in told] == ["ok", "ok"]
    assert steps(tmp_path / "checkpoints-meta") == [2, 6]


def test_averaged_parameters_alone_are_loaded(tmp_path):
    states = save_steps(tmp_path, 1, 2)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    params, step = load_ema_params(tmp_path, make_params())
    assert step == 2
    assert_same(params, states[2].ema_params)
    params, step = load_ema_params(str(tmp_path), make_params(), step=1)
    assert step == 1
    assert_same(params, states[1].ema_params)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before  # reading writes nothing


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda folder: None, "does not exist"),
        (lambda folder: folder.mkdir(), "has no folder checkpoints/"),
        (lambda folder: (folder / "checkpoints").mkdir(parents=True), "checkpoints is empty"),
        (lambda folder: (folder / "checkpoints" / "8.orbax-checkpoint-tmp" / "state").mkdir(parents=True), "is empty"),
        (lambda folder: folder.write_text("a file"), "does not exist"),
    ],
)
def test_a_folder_without_checkpoints_is_told(tmp_path, make, told):
    make(tmp_path / "run")
    with pytest.raises(UserError, match=told) as error:
        load_ema_params(tmp_path / "run", make_params())
    assert str(tmp_path / "run") in str(error.value)
    assert "\n" not in str(error.value)


def test_parameters_that_do_not_fit_are_told_in_one_line(tmp_path):
    save_steps(tmp_path, 1)
    with pytest.raises(UserError) as error:
        load_ema_params(tmp_path, make_params(width=24))
    assert "ema_params/conv/bias is (16,) in the checkpoint, (24,) in the config (3 of 3 arrays differ)" in str(
        error.value
    )
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"ema_params/more is absent in the checkpoint, \(2,\) in the config \(1 of 4"):
        load_ema_params(tmp_path, {**make_params(), "more": jnp.zeros(2)})
    with pytest.raises(UserError, match=r"no checkpoint of step 5 .*\(there are: 1\)"):
        load_ema_params(tmp_path, make_params(), step=5)


def test_damaged_parameters_are_told_and_not_replaced_by_older_ones(tmp_path):
    save_steps(tmp_path, 1, 2)
    flip_bit(largest_file(tmp_path / "checkpoints" / "2" / "state"))
    with pytest.raises(UserError, match=r"checkpoints/2 is damaged .*use another step \(there are: 1\)"):
        load_ema_params(tmp_path, make_params())
    assert load_ema_params(tmp_path, make_params(), step=1)[1] == 1


def test_an_export_is_small_and_portable(tmp_path):
    rng = np.random.default_rng(0)
    shapes = [(3, 3, 64, 64), (64,), (256, 64), (1, 1, 7, 5)] * 6
    params = {f"layer_{i}": {"w": rng.normal(size=s).astype(np.float32)} for i, s in enumerate(shapes)}
    folder = export_params(tmp_path / "made" / "here", jax.tree.map(jnp.asarray, params), 1234, {"config": {"a": 1}})
    assert folder == tmp_path / "made" / "here" / "checkpoints" / "1234"
    files = [p for p in folder.rglob("*") if p.is_file()]
    payload = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert sum(p.stat().st_size for p in files) < 1.02 * payload + 20_000
    assert len(files) <= 20
    assert all(b"made/here" not in p.read_bytes() for p in files)  # no path of the machine it was made on
    (tmp_path / "made" / "here").rename(tmp_path / "moved")
    loaded, step = load_ema_params(tmp_path / "moved", params)
    assert step == 1234
    assert_same(loaded, params)
    changed = jax.tree.map(lambda x: x + 1, params)
    export_params(tmp_path / "moved", changed, 1234, {})
    assert_same(load_ema_params(tmp_path / "moved", params)[0], changed)
    assert json.loads((tmp_path / "moved/checkpoints/1234/meta/metadata").read_text()) == {}


def test_a_mangled_export_is_told(tmp_path):
    folder = export_params(tmp_path, make_params(), 1, {})
    largest_file(folder / "state").write_text("version https://git-lfs.github.com/spec/v1\n")  # cloned without LFS
    with pytest.raises(UserError, match=r"checkpoints/1 is damaged .*restore it from a backup"):
        load_ema_params(tmp_path, make_params())


def test_training_does_not_resume_from_an_export(tmp_path):
    export_params(tmp_path, make_params(), 1, {})
    with Checkpoints(tmp_path, 1, 1) as saved, pytest.raises(UserError, match="step is absent in the checkpoint"):
        saved.restore_latest(make_state(), make_data())
