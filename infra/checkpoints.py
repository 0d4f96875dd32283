"""Saving and restoring of training state with Orbax: nothing else imports Orbax.

A checkpoint is a folder `<step>` with `state/` (TrainState), `data/` (position in the data) and `meta/` (JSON). It has
its name only once it is complete: a run killed while writing one leaves the previous one as the newest. Once complete
it is sealed with the checksums of its files: Orbax itself restores a flipped bit without a word.
"""

import contextlib
import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from infra.atomic import atomic_write_json
from infra.errors import UserError

KEPT = "checkpoints"
ROLLING = "checkpoints-meta"
ROLLING_COPIES = 2
SEAL = "meta/checksums.json"
_TRAIN = "train first (--mode=train), or name the workdir of a training run"

Shape = tuple[int, ...]


class _Damaged(Exception):
    """Files of a checkpoint are missing or changed."""


class Checkpoints:
    """A run's checkpoints in two tiers: `checkpoints/` keeps what evaluation may want, `checkpoints-meta/` only two.

    Both hold the whole state, the position in the data and meta; a run resumes from the newest of either, bit for bit.

    Args:
      workdir: folder of the run.
      kept_every: `checkpoints/<step>` is written at multiples of this and at the last step.
      resume_every: `checkpoints-meta/<step>` is written at multiples of this; only the newest two are kept.
    """

    def __init__(self, workdir: str | os.PathLike, kept_every: int, resume_every: int):
        self._root = Path(workdir).expanduser().resolve()
        self._every = {KEPT: kept_every, ROLLING: resume_every}
        self._managers = {
            KEPT: _manager(self._root / KEPT, preservation_policy.PreserveAll()),
            ROLLING: _manager(self._root / ROLLING, preservation_policy.LatestN(ROLLING_COPIES)),
        }
        self._unsealed: list[Path] = []

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def due(self, step: int, last: bool = False, now: bool = False) -> str | None:
        """Returns the tier that `save` writes at `step`, or None."""
        if last or step % self._every[KEPT] == 0:
            return KEPT
        return ROLLING if now or step % self._every[ROLLING] == 0 else None

    def save(
        self, step: int, state: Any, data_iterator: Any, meta: Mapping[str, Any], last: bool = False, now: bool = False
    ) -> None:
        """Saves if a checkpoint is due at `step`; returns as soon as the values are copied, the writing goes on behind.

        Where both tiers are due, only the kept one is written, since it holds all the rolling one would.

        Args:
          step: number of steps done.
          state: any pytree of arrays; may be donated to the next step as soon as this returns.
          data_iterator: Grain iterator that has just yielded the batch of `step`. Its state is a place in the stream of
            all processes, equal on each, as that of `datasets.get_train_iterator` is.
          meta: JSON values to store beside the state.
          last: whether training ends here, which makes a kept checkpoint due.
          now: whether the process ends here and the run goes on later, which makes a rolling one due.

        Raises:
          UserError: this checkpoint, or the one before it, could not be written (disk full, no permission).
        """
        tier = self.due(step, last, now)
        if tier is None or step in self._managers[tier].all_steps():
            return
        self.wait()
        with self._disk_errors():
            self._managers[tier].save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state),
                    data=grain.checkpoint.CheckpointSave(data_iterator),
                    meta=ocp.args.JsonSave(dict(meta)),
                ),
                force=True,
            )
        self._unsealed.append(self._root / tier / str(step))

    def restore_latest(self, template_state: Any, data_iterator: Any) -> tuple[Any, dict[str, Any]] | None:
        """Restores the newest checkpoint that can be read; a damaged newer one is set aside with a warning.

        Args:
          template_state: pytree of the state's structure; leaves are arrays or jax.ShapeDtypeStruct, whose shardings
            the restored arrays take (leaves without one come back as numpy arrays).
          data_iterator: Grain iterator, which is moved to where it stood.

        Returns:
          (state, meta), or None if there is no checkpoint yet.

        Raises:
          UserError: the newest does not fit `template_state`, or all are damaged.
        """
        found = sorted(
            ((step, tier == KEPT, tier) for tier, manager in self._managers.items() for step in manager.all_steps()),
            reverse=True,
        )
        damaged: list[Path] = []
        for step, _, tier in found:
            folder = self._root / tier / str(step)
            try:
                restored = self._restore(folder, template_state, data_iterator)
            except _Damaged as damage:
                logging.warning("checkpoint %s is damaged (%s)", folder, damage)
                damaged.append(folder)
                continue
            self._set_aside(damaged)
            if damaged:
                logging.warning("resuming from %s instead", folder)
            return restored
        if damaged:
            raise UserError(
                f"none of the {len(damaged)} checkpoints in {self._root} can be read: restore them from a backup, or "
                "start anew in another --workdir"
            )
        return None

    def wait(self) -> None:
        """Blocks until everything saved so far is on disk. Raises UserError if writing failed."""
        with self._disk_errors():
            for manager in self._managers.values():
                manager.wait_until_finished()
            while self._unsealed:
                _seal(self._unsealed.pop())

    def close(self) -> None:
        """Finishes what is being written, and ends the background threads. Raises UserError if writing failed."""
        with self._disk_errors(), contextlib.ExitStack() as stack:  # closes all even if something fails
            for manager in self._managers.values():
                stack.callback(manager.close)
            self.wait()

    def _restore(self, folder: Path, template: Any, data_iterator: Any) -> tuple[Any, dict[str, Any]]:
        with _reading(folder), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            _check_fit(folder / "state", template)
            restored = checkpointer.restore(
                folder,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeRestore(template, restore_args=_restore_args(template)),
                    meta=ocp.args.JsonRestore(),
                ),
            )
            _restore_position(folder / "data", data_iterator)
        return restored.state, restored.meta

    def _set_aside(self, folders: list[Path]) -> None:
        """Renames damaged checkpoints, so that their steps can be written again and nothing is destroyed."""
        if not folders:
            return
        if jax.process_index() == 0:
            for folder in folders:
                number = len(list(folder.parent.glob(f"damaged-{folder.name}-*")))
                aside = folder.with_name(f"damaged-{folder.name}-{number}")
                folder.rename(aside)
                logging.warning("set aside as %s", aside)
        ocp.multihost.sync_global_processes("checkpoints:set_aside")
        for manager in self._managers.values():
            manager.reload()

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except (OSError, ValueError) as error:
            raise UserError(
                f"could not write a checkpoint under {self._root} ({_one_line(error)}): make room or mend the "
                "permissions, then start the same command again; it resumes from the last complete checkpoint"
            ) from error


def load_ema_params(folder: str | os.PathLike, template_params: Any, step: int | None = None) -> tuple[Any, int]:
    """Restores only the averaged parameters, as evaluation and sampling want them.

    Args:
      folder: workdir of a run, or a folder made by `export_params`; its `checkpoints/` is read and never written.
      template_params: pytree of the parameters' structure; leaves are arrays or jax.ShapeDtypeStruct, whose shardings
        the restored arrays take (leaves without one come back as numpy arrays).
      step: which checkpoint; None: the newest.

    Returns:
      (params, step).

    Raises:
      UserError: there is no such checkpoint, it is damaged, or its parameters have other names or shapes.
    """
    root = Path(folder).expanduser().resolve()
    steps = kept_steps(root)
    if step is None:
        step = steps[-1]
    elif step not in steps:
        raise UserError(f"no checkpoint of step {step} in {root / KEPT}: take one of {', '.join(map(str, steps))}")
    folder = root / KEPT / str(step)
    template = {"ema_params": template_params}
    try:
        with _reading(folder), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            _check_fit(folder / "state", template, partial=True)
            args = ocp.args.PyTreeRestore(template, restore_args=_restore_args(template), partial_restore=True)
            return checkpointer.restore(folder / "state", args=args)["ema_params"], step
    except _Damaged as damage:
        others = [s for s in steps if s != step]
        mend = (
            f"move it away to use another step (there are: {', '.join(map(str, others))})"
            if others
            else "restore it from a backup"
        )
        raise UserError(f"checkpoint {folder} is damaged ({damage}): {mend}") from damage


def export_params(folder: str | os.PathLike, params: Any, step: int, meta: Mapping[str, Any]) -> Path:
    """Writes `<folder>/checkpoints/<step>` with nothing but parameters, for `load_ema_params`; returns that path.

    The size is that of the float32 arrays; no path or name of this machine gets into it. An export of the same step is
    replaced.

    Args:
      params: pytree of arrays, stored as the averaged parameters.
      step: number of training steps behind them.
      meta: JSON values stored beside them.
    """
    target = Path(folder).expanduser().resolve() / KEPT / str(step)
    params = jax.tree.map(np.asarray, params)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        args = ocp.args.Composite(state=ocp.args.PyTreeSave({"ema_params": params}), meta=ocp.args.JsonSave(dict(meta)))
        try:
            checkpointer.save(target, args=args, force=True)
        except OSError as error:
            raise UserError(f"cannot write the checkpoint {target} ({error.strerror}): choose another place") from error
    if jax.process_index() == 0:
        for marker in target.rglob("commit_success.txt"):  # Orbax writes the absolute path into it
            marker.write_text("complete\n")
    _seal(target)
    return target


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Looks for damage before the block reads `folder`; turns whatever its files make Orbax raise into _Damaged."""
    if damage := _find_damage(folder):
        raise _Damaged(damage)
    try:
        yield
    except (UserError, _Damaged):
        raise
    except Exception as error:
        raise _Damaged(_one_line(error)) from error


def _manager(folder: Path, policy: Any) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        cleanup_tmp_directories=True,  # of an earlier run that was killed while writing
        # Made in the background, a folder that cannot be made would block training for the time-out of ten minutes.
        async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        multiprocessing_options=ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=folder.name),
    )
    return ocp.CheckpointManager(folder, options=options)


def _checksums(folder: Path) -> dict[str, int]:
    """Returns {"state/_METADATA": crc32, ...} of every file in a checkpoint."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SEAL)
    return {path.relative_to(folder).as_posix(): zlib.crc32(path.read_bytes()) for path in files}


def _seal(folder: Path) -> None:
    """Stores the checksums of a complete checkpoint beside its files."""
    if jax.process_index() == 0 and folder.is_dir():  # a rolling one may have been deleted meanwhile
        atomic_write_json(folder / SEAL, _checksums(folder))


def _find_damage(folder: Path) -> str:
    """Returns which file of a sealed checkpoint is missing or changed, or ''; process 0 decides for all."""
    damage = ""
    if jax.process_index() == 0 and (folder / SEAL).exists():  # none: killed between completion and sealing
        try:
            sealed, now = json.loads((folder / SEAL).read_text()), _checksums(folder)
            damage = next((f"{name} is missing or changed" for name in sealed if sealed[name] != now.get(name)), "")
        except (OSError, ValueError, AttributeError) as error:
            damage = f"{SEAL}: {_one_line(error)}"
    if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(np.int32(bool(damage))):
        damage = damage or "process 0 found it so"
    return damage


def kept_steps(workdir: str | os.PathLike) -> list[int]:
    """Returns the steps of the complete checkpoints in `<workdir>/checkpoints`, ascending; never an empty list.

    Raises UserError if there is none.
    """
    root = Path(workdir).expanduser().resolve()
    folder = root / KEPT
    if not root.is_dir():
        raise UserError(f"no checkpoint: the folder {root} does not exist; {_TRAIN}")
    if not folder.is_dir():
        raise UserError(f"no checkpoint: {root} has no folder {KEPT}/; {_TRAIN}")
    steps = sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal() and (p / "state").is_dir())
    if not steps:
        raise UserError(
            f"no checkpoint: {folder} is empty; train on (one is due every training.checkpoint_every steps)"
        )
    return steps


def _shapes(tree: Any) -> dict[str, Shape]:
    """Returns {"params/conv/kernel": (3, 3, 2, 64), ...} for a pytree of anything that has a shape."""
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(np.shape(leaf)) for path, leaf in leaves}


def _check_fit(state: Path, template: Any, partial: bool = False) -> None:
    """Raises UserError if names or shapes in `state` differ from the template's; `partial` allows more to be stored."""
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        stored = _shapes(handler.metadata(epath.Path(state)).tree)
    wanted = _shapes(template)
    names = wanted if partial else {**wanted, **stored}
    wrong = [name for name in names if stored.get(name) != wanted.get(name)]
    if wrong:
        first = wrong[0]
        told = [str(shapes[first]) if first in shapes else "absent" for shapes in (stored, wanted)]
        raise UserError(
            f"checkpoint {state.parent} does not fit the config: {first} is {told[0]} in the checkpoint, {told[1]} in "
            f"the config ({len(wrong)} of {len(names)} arrays differ); set model.* as it was trained, or use another "
            "checkpoint"
        )


def _restore_position(folder: Path, data_iterator: Any) -> None:
    """Moves the iterator to where it stood: Grain wrote a file for each process, and that of process 0 serves all."""
    path = next(folder.glob("process_0-of-*.json"), None)
    if path is None:
        raise _Damaged(f"{folder.name}/process_0-of-*.json is missing")
    data_iterator.set_state(json.loads(path.read_text()))
    data_iterator.start_prefetch()


def _restore_args(template: Any) -> Any:
    """Says how each leaf is restored: onto the template's sharding, or as a numpy array if it has none."""

    def one(leaf: Any) -> ocp.RestoreArgs:
        sharding = getattr(leaf, "sharding", None)
        if sharding is None:
            return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
        return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype)

    return jax.tree.map(one, template)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}{'...' if len(text) > 200 else ''}"
