"""Completions of all training acquisitions, on disk batch by batch: what a round of `modes/em.py` learns from.

For loss 'fill_in' a share `em.hide` of what was acquired is not shown to the solver, another one in every round, and
the entries that are shown are put back into the completion. What is hidden is judged with all that was acquired.
"""

import dataclasses
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from msm import datasets
from msm.evaluation import held_out
from msm.infra import preemption, rounds, sharding
from msm.infra.errors import UserError
from msm.losses import Completed
from msm.operators.measurement import PADDING_ID, Measurement
from msm.operators.whole_image import support_of
from msm.solvers import get_solver

COMPLETE = 0x3C  # sets the keys of completions apart from those of the other modes


def on_acquisitions(config: ConfigDict) -> ConfigDict:
    """A copy whose measurements are the store's own, those that training names: no reference is opened for them."""
    config = config.copy_and_resolve_references()
    config.task.name, config.eval.acquisition = "acquired", config.data.acquisition
    return config


def check(config: ConfigDict) -> None:
    """Raises UserError where the training scans have several sizes: a pool holds images of one."""
    shapes = datasets.open_acquisitions(config, "train").shapes
    if shapes is not None and len({tuple(shape) for shape in shapes}) > 1:
        raise UserError(
            f"{config.data.dir} has training scans of several sizes: loss.name {config.loss.name!r} needs one; make a "
            "store of one size, or take loss.name 'msm'"
        )


@dataclasses.dataclass(frozen=True)
class Pool:
    """K completions of each of N acquisitions.

    Attributes:
      images: (K,N,...) as solvers return them.
      support: (N,H,W) bool, see `support_of`, or None.
      acquisitions: of which they are, for a loss that looks at them too; else None.
    """

    images: np.ndarray
    support: np.ndarray | None
    acquisitions: datasets.Acquisitions | None = None

    def batch(self, places: np.ndarray) -> Measurement | Completed:
        """Completions as whole measurements, or beside theirs: place j is completion j // N (modulo K) of acquisition
        j % N.

        The id is the place, so that two completions of one acquisition are given different noise.
        """
        copies, total = self.images.shape[:2]
        copy, which = np.divmod(places, total)
        images, ids, count = self.images[copy % copies, which], places.astype(np.int32), len(places)
        if self.acquisitions is not None:
            return Completed(dataclasses.replace(self.acquisitions.batch(which), example_id=ids), images)
        return Measurement(
            y=images,
            mask=np.ones((count, *[1] * (images.ndim - 1)), bool),
            maps=None if self.support is None else self.support[which],
            noise_std=np.zeros(count, np.float32),
            example_id=ids,
        )


def get_complete_fn(experiment, info: dict[str, Any], run, notice: preemption.Notice) -> Callable[[int, Any], Pool]:
    """Returns complete(round, params) -> Pool of that round.

    Batches that an earlier process of the run finished are read from em/round_<n> of the workdir.
    """
    config, mesh = experiment.config, experiment.mesh
    batches = list(datasets.measurement_batches(config, "train", config.em.batch_size))
    solvers = {name: _get_solver(experiment, name) for name in {config.em.solver, _first(config)}}
    fills = config.loss.name == "fill_in"
    runners = {
        name: sharding.data_parallel_solve(_putting_back(experiment, s.solve) if fills else s.solve, mesh)
        for name, s in solvers.items()
    }
    acquisitions = datasets.open_acquisitions(config, "train") if fills else None
    first = jax.process_index() == 0

    def complete(index: int, params) -> Pool:
        name = config.em.solver if index else _first(config)
        solver, begin = solvers[name], time.monotonic()
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), COMPLETE), index)
        key = sharding.replicate(key, mesh)
        stamp = _stamp(config, index, solver, params if solver.nfe else None, info)
        images, real = [], []
        for number, batch in enumerate(batches):
            path = rounds.path_of(folder_of(run, index), number)
            stored = rounds.read(path, stamp) if first else None
            if sharding.from_first(np.int32(stored is None)):
                shown = sharding.shard_batch(_show(config, index, batch), mesh)
                samples = runners[name](key, params, shown, dict(solver.hyper))
                mine = np.moveaxis(sharding.local_rows(samples, axis=1), 1, 0)
                stored = {"images": sharding.gather_rows(mine)}
                if first:
                    rounds.write(path, stamp, stored)
            elif jax.process_count() > 1:  # the others may not see the folder of process 0
                shape = (config.em.batch_size, solver.num_samples, *_image_shape(experiment, batch))
                stored = sharding.from_first(stored or {"images": np.zeros(shape, experiment.transform.dtype)})
            assert stored is not None  # computed, read, or sent by process 0
            images.append(np.asarray(stored["images"]))
            real.append(sharding.gather_rows(batch.example_id != PADDING_ID))
            if notice.reached(number) and number + 1 < len(batches):
                notice.stop(f"batch {number + 1} of {len(batches)} of the completions of round {index}")
        kept = np.concatenate(real)
        pool = np.moveaxis(np.concatenate(images)[kept], 0, 1)
        logging.info(
            "round %d: %d x %d completions by %s, %.0f s", index, *pool.shape[:2], name, time.monotonic() - begin
        )
        supports = [support_of(batch.maps) for batch in batches]
        if supports[0] is None or fills:
            return Pool(pool, None, acquisitions)
        support = np.concatenate([sharding.gather_rows(s) for s in supports if s is not None])[kept]
        return Pool(pool, None if support.all() else support)

    return complete


def _show(config: ConfigDict, index: int, batch: Measurement) -> Measurement:
    """The batch without the share `em.hide` of its entries, chosen by round and example."""
    share = config.em.hide
    if not share:
        return batch
    seed = int(np.random.SeedSequence((config.seed, COMPLETE, index)).generate_state(1)[0] >> 1)

    def choose(key, mask):
        if config.data.num_coils:
            return held_out.choose_lines(key, mask, share, config.masks.acs_lines)
        return held_out.choose_squares(key, mask, share, config.tune.block)

    return jax.tree.map(np.asarray, held_out.hide(batch, seed, choose)[0])


def _putting_back(experiment, solve: Callable) -> Callable:
    """`solve` whose images are T^H of T x with the entries that the solver was shown in their places."""
    transform = experiment.transform

    def put_back(key, params, measurement, hyper):
        def one(x):
            z = jnp.where(measurement.mask, measurement.y, transform.forward(x, measurement.maps))
            return transform.adjoint(z, measurement.maps)

        return jax.vmap(one)(solve(key, params, measurement, hyper))

    return put_back


def folder_of(run, index: int) -> Path:
    return run.path(f"em/round_{index:02d}")


def drop(run, index: int) -> None:
    """Deletes the completions of a round that is over."""
    if jax.process_index() == 0:
        shutil.rmtree(folder_of(run, index), ignore_errors=True)


def _first(config: ConfigDict) -> str:
    """The solver of the first round."""
    return "l1_wavelet" if config.em.start == "wavelet" else config.em.solver


def _get_solver(experiment, name: str):
    config = experiment.config.copy_and_resolve_references()
    config.eval.num_samples = config.em.num_samples
    for setting in ("num_levels", "start_sigma", "conditional"):
        config.solver[setting] = config.em[setting]
    return get_solver(config, experiment, name)


def _image_shape(experiment, batch: Measurement) -> tuple[int, ...]:
    return tuple(experiment.operator.image_shape(batch.y.shape)[1:])


def _stamp(config: ConfigDict, index: int, solver, params, info) -> str:
    told = (dict(solver.hyper), solver.nfe, solver.num_samples)
    return rounds.stamp(config, params, info, round=index, em=config.em.to_dict(), solver=told)
