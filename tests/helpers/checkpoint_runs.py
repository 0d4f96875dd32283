"""A small training run with checkpoints, and ways to damage them: shared by the checkpoint tests."""

import os
import subprocess
import sys

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

from msm.infra.checkpoints import Checkpoints
from msm.optimizer import TrainState
from tests.helpers.paths import ROOT

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


def script(code, *arguments, **popen):
    """Starts Python code that may import this file as tests.helpers.checkpoint_runs."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, env=env, text=True, **popen)


def flip_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
