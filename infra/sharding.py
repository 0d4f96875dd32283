"""Devices: the one mesh, placing batches on it, and mapping a per-device function over it."""

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "batch"


def get_mesh(devices=None) -> Mesh:
    """A one-dimensional mesh over all devices of all processes, axis 'batch'."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def replicate(tree, mesh: Mesh):
    """Copies host or single-device arrays to every device of the mesh."""
    return jax.device_put(tree, replicated(mesh))


def local_share(tree):
    """This process's rows of host arrays that every process holds whole; the first axis divides by the processes."""

    def rows(a):
        size = len(a) // jax.process_count()
        return a[jax.process_index() * size : (jax.process_index() + 1) * size]

    return jax.tree.map(rows, tree)


def shard_batch(tree, mesh: Mesh):
    """Host arrays holding this process's share of a batch -> global arrays split along their first axis."""
    sharding = NamedSharding(mesh, P(AXIS))
    return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, np.asarray(a)), tree)


def gather(array: jax.Array) -> np.ndarray:
    """A global array on every host."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


def from_first(tree):
    """The host arrays of process 0, on every process; all must call it with arrays of the same shapes and types."""
    return multihost_utils.broadcast_one_to_all(tree)


def data_parallel_step(step: Callable, mesh: Mesh) -> Callable:
    """jit(shard_map(step)) for step(state, batch, key): state and key replicated, batch split, state donated.

    The whole step runs per device on its share: under plain jit an FFT would gather the batch. `step` averages over
    AXIS itself; check_vma is off since with it the transpose of a replicated argument already sums over devices and the
    averaged gradient would be too large by their number.
    """
    mapped = jax.shard_map(step, mesh=mesh, in_specs=(P(), P(AXIS), P()), out_specs=(P(), P()), check_vma=False)
    return jax.jit(mapped, donate_argnums=0)


def data_parallel_solve(solve: Callable, mesh: Mesh) -> Callable:
    """jit(shard_map(solve)) for solve(key, params, measurement, hyper) -> (K, B, ...): each device solves its share."""
    mapped = jax.shard_map(
        solve, mesh=mesh, in_specs=(P(), P(), P(AXIS), P()), out_specs=P(None, AXIS), check_vma=False
    )
    return jax.jit(mapped)
