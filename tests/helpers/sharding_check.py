"""Run by test_sharding.py in a process with four host devices: prints how far four devices are from one, as JSON."""

import json
import warnings

import jax
import numpy as np
import optax

from msm import losses, optimizer
from msm.evaluation import memorisation
from msm.infra import sharding
from msm.operators.transform import get_transform
from msm.solvers import get_solver
from tests.helpers.toy_data import phantom
from tests.test_losses import PARAMS, SIZE, parts, toy_config, toy_measurement
from tests.test_sampling import experiment, solver_config

RATE = 0.1


def distance(one, other) -> float:
    """Largest absolute difference between two trees of arrays."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(np.max(np.abs(np.asarray(a) - np.asarray(b)))) for a, b in pairs)


def spread(tree) -> float:
    """Largest difference between the devices' copies of replicated arrays."""
    return max(
        distance(shard.data, leaf.addressable_data(0))
        for leaf in jax.tree.leaves(tree)
        for shard in leaf.addressable_shards
    )


def check_step() -> dict:
    """One step of plain gradient descent, whose update is the gradient; Adam would hide an N-fold error."""
    config, batch, key = toy_config(), toy_measurement(8), jax.random.key(0)
    descent, layout = optax.sgd(RATE), optimizer.Layout(PARAMS)
    step = optimizer.get_step_fn(config, losses.get_loss_fn(config, *parts(config)), descent, layout)
    results = {}
    for count in (1, 4):
        mesh = sharding.get_mesh(jax.devices()[:count])
        args = (
            sharding.replicate(optimizer.init_state(PARAMS, descent), mesh),
            sharding.shard_batch(batch, mesh),
            sharding.replicate(key, mesh),
        )
        compiled = sharding.data_parallel_step(step, mesh).lower(*args).compile()
        results[count] = jax.block_until_ready(compiled(*args))
    program = compiled.as_text()
    before = layout.flatten(PARAMS)
    gradients = {n: (before - np.asarray(results[n][0].params)) / RATE for n in results}
    split = jax.tree.map(lambda a: a.reshape(4, 2, *a.shape[1:]), batch)
    mapped = jax.pmap(step, axis_name=sharding.AXIS, in_axes=(None, 0, None), out_axes=None)
    by_pmap = mapped(optimizer.init_state(PARAMS, descent), split, key)
    tree = {n: {"metrics": results[n][1], "ema": results[n][0].ema_params, "step": results[n][0].step} for n in results}
    return {
        "gradient": distance(gradients[4], gradients[1]),
        "gradient_size": distance(gradients[1], np.zeros_like(before)),
        "state_and_metrics": distance(tree[4], tree[1]),
        "pmap": distance(results[4], by_pmap),
        "replicas": spread(results[4]),
        "all_gather": program.count("all-gather"),
        "all_reduce": program.count("all-reduce"),
    }


def check_solve() -> dict:
    config = solver_config(num_levels=3)
    # The less noise the data have, the more does their least-squares step blow up rounding, which depends on the batch
    # size and not on the devices: so plenty of noise.
    batch = toy_measurement(8).replace(noise_std=np.full(8, 0.1, np.float32))
    solver = get_solver(config, experiment(config), "msm")
    results = {}
    for count in (1, 4):
        mesh = sharding.get_mesh(jax.devices()[:count])
        args = (sharding.replicate(jax.random.key(1), mesh), sharding.replicate(PARAMS, mesh))
        args = (*args, sharding.shard_batch(batch, mesh), dict(solver.hyper))
        compiled = sharding.data_parallel_solve(solver.solve, mesh).lower(*args).compile()
        results[count] = np.asarray(jax.block_until_ready(compiled(*args)))
    return {
        "solve": distance(results[4], results[1]),
        "solve_size": float(np.abs(results[1]).max()),
        "solve_shape": results[4].shape,
        "solve_collectives": sum(compiled.as_text().count(name) for name in ("all-gather", "all-reduce", "all-to-all")),
    }


def check_copies() -> dict:
    """Distances of replicated images to training acquisitions that are shared among the devices."""
    distances = memorisation.get_distance_fn(toy_config(), get_transform(toy_config()))
    batch, images, results = toy_measurement(8), phantom(SIZE, 3), {}
    for count in (1, 4):
        mesh = sharding.get_mesh(jax.devices()[:count])
        runner = sharding.data_parallel_solve(
            lambda key, images, measurement, hyper: distances(images, measurement), mesh
        )
        key, placed = sharding.replicate((jax.random.key(0), images), mesh)
        results[count] = np.asarray(runner(key, placed, sharding.shard_batch(batch, mesh), {}))
    return {"copies": distance(results[4], results[1]), "copies_shape": results[4].shape}


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # jax.pmap is only compared with
    assert jax.device_count() == 4, jax.devices()
    print(json.dumps(check_step() | check_solve() | check_copies()))
