"""Devices: the one mesh, placing batches on it, and mapping a per-device function over it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "batch"


def get_mesh(devices=None) -> Mesh:
    """A one-dimensional mesh over all devices of all processes, axis 'batch'.

    The devices of a process lie side by side, which `local_share` relies on; jax.make_mesh may order them otherwise.
    """
    devices = sorted(jax.devices() if devices is None else devices, key=lambda d: (d.process_index, d.id))
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def replicate(tree, mesh: Mesh):
    """Copies host or single-device arrays, the same on every process, to every device of the mesh.

    Several processes do not compare what they have, as jax.device_put would: it sends the arrays of all to each.
    """
    place = replicated(mesh)
    if jax.process_count() == 1:
        return jax.device_put(tree, place)

    def put(a):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            data = jax.make_array_from_process_local_data(place, np.asarray(jax.random.key_data(a)))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(a))
        return jax.make_array_from_process_local_data(place, np.asarray(a))

    return jax.tree.map(put, tree)


def to_host(tree):
    """Copies replicated arrays to the host: numpy arrays of one's own, which no later step changes."""
    return jax.tree.map(lambda a: np.array(a.addressable_data(0)), tree)


def local_share(tree):
    """This process's rows of host arrays that every process holds whole, e.g. of the places of a batch in the data.

    The first axis must divide by the number of processes.
    """

    def rows(a):
        size = len(a) // jax.process_count()
        return a[jax.process_index() * size : (jax.process_index() + 1) * size]

    return jax.tree.map(rows, tree)


def shard_batch(tree, mesh: Mesh):
    """Host arrays holding this process's share of a batch -> global arrays split along their first axis."""
    sharding = NamedSharding(mesh, P(AXIS))
    return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, np.asarray(a)), tree)


def local_rows(array: jax.Array, axis: int = 0) -> np.ndarray:
    """This process's part of a global array that is split along `axis`; with one process all of it."""
    if array.is_fully_addressable:
        return np.asarray(array)
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[axis].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards], axis)


def gather_rows(rows: np.ndarray) -> np.ndarray:
    """Every process's rows, in order, on every process: what `local_share` would take apart again.

    Exact for every dtype (JAX alone would make float64 float32), text included; all processes have equally many rows.
    """
    if jax.process_count() == 1:
        return rows
    if rows.dtype.kind == "U":
        width = np.max(multihost_utils.process_allgather(np.int32(rows.dtype.itemsize // 4)))
        rows = rows.astype(f"U{width}")
    data = np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.uint8)
    whole = np.ascontiguousarray(multihost_utils.process_allgather(data, tiled=True))
    return whole.view(rows.dtype).reshape(-1, *rows.shape[1:])


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
