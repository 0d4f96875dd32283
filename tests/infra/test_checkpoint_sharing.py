"""infra/checkpoints.py: other device and process counts, and averaged parameters alone."""

import json
import re
import shutil
import socket
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from msm.infra.checkpoints import Checkpoints, export_params, load_ema_params
from msm.infra.errors import UserError
from tests.helpers.checkpoint_runs import (
    assert_same,
    flip_bit,
    largest_file,
    make_data,
    make_params,
    make_state,
    save_steps,
    script,
    steps,
)
from tests.helpers.checks import hashes

pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"  # Orbax drops unfinished reads of a damaged file
)


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
import sys
import jax
from jax.sharding import NamedSharding, PartitionSpec as P
from msm.infra.checkpoints import Checkpoints, load_ema_params
from tests.helpers.checkpoint_runs import assert_same, make_data, make_state

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
import sys
import jax
folder, port, index = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.distributed.initialize(f"127.0.0.1:{port}", 2, index)
from jax.sharding import NamedSharding, PartitionSpec as P
from msm.infra.checkpoints import Checkpoints, load_ema_params
from tests.helpers.checkpoint_runs import assert_same, flip_bit, largest_file, make_data, make_state
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
        (lambda folder: folder.write_text("a file"), "run is a file, no folder; train"),
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
    with pytest.raises(UserError, match=r"no checkpoint of step 5 .*: take one of 1"):
        load_ema_params(tmp_path, make_params(), step=5)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda folder: flip_bit(largest_file(folder / "state")), r"is damaged \(state/.* is missing or changed\)"),
        (lambda folder: shutil.rmtree(folder / "state"), r"is damaged \(state/.* is missing or changed\)"),
        (lambda folder: (shutil.rmtree(folder), folder.mkdir()), r"is damaged \(.*\)"),
        (shutil.rmtree, "is gone"),
    ],
)
def test_parameters_of_the_newest_usable_checkpoint_are_loaded_in_one_warning(tmp_path, harm, told):
    states = save_steps(tmp_path, 1, 2)
    kept = tmp_path / "checkpoints"
    harm(kept / "2")
    before, warnings = hashes(tmp_path), []
    params, step = load_ema_params(tmp_path, make_params(), warn=warnings.append)
    assert step == 1
    assert_same(params, states[1].ema_params)
    assert len(warnings) == 1 and "\n" not in warnings[0]
    assert re.fullmatch(rf"checkpoint {kept}/2 {told}: using {kept}/1 instead", warnings[0])
    assert hashes(tmp_path) == before


def test_the_newest_checkpoint_is_taken_in_silence(tmp_path):
    save_steps(tmp_path, 1, 2)
    assert load_ema_params(tmp_path, make_params(), warn=pytest.fail)[1] == 2
    shutil.rmtree(tmp_path / "checkpoints" / "1")
    assert load_ema_params(tmp_path, make_params(), warn=pytest.fail)[1] == 2


def test_a_step_that_was_asked_for_is_not_replaced(tmp_path):
    save_steps(tmp_path, 1, 2)
    flip_bit(largest_file(tmp_path / "checkpoints" / "2" / "state"))
    with pytest.raises(UserError, match=r"checkpoints/2 is damaged .*: take another step \(there are: 1\)"):
        load_ema_params(tmp_path, make_params(), step=2)
    assert load_ema_params(tmp_path, make_params(), step=1, warn=pytest.fail)[1] == 1


def test_without_a_usable_checkpoint_no_parameters_are_loaded(tmp_path):
    save_steps(tmp_path, 1, 2)
    kept = tmp_path / "checkpoints"
    for step in (1, 2):
        flip_bit(largest_file(kept / str(step) / "state"))
    with pytest.raises(UserError, match=f"none of the 2 checkpoints in {kept} can be read .checkpoint {kept}/1 is"):
        load_ema_params(tmp_path, make_params())
    shutil.rmtree(kept / "2")
    with pytest.raises(UserError, match=r"checkpoints/1 is damaged .*: restore it from a backup"):
        load_ema_params(tmp_path, make_params())
    for folder in (kept / "1", kept):
        shutil.rmtree(folder)
        with pytest.raises(UserError, match=f"no checkpoint: {kept}/2 and all before it are gone"):
            load_ema_params(tmp_path, make_params())


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
