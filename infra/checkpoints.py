"""Saving and restoring of training state with Orbax: nothing else imports Orbax.

A checkpoint is a folder `<step>` with `state/` (TrainState), `data/` (position in the data) and `meta/` (JSON). It has
its name only once it is complete: a run killed while writing one leaves the previous one as the newest. Once complete
it is sealed with the checksums of its files, since Orbax itself restores a flipped bit without a word, and recorded,
since a deleted folder leaves no trace.
"""

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from msm.infra import at_hand, links, seals
from msm.infra.errors import UserError

KEPT = "checkpoints"
ROLLING = "checkpoints-meta"
ROLLING_COPIES = 2
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
        for tier in (KEPT, ROLLING):
            links.check_last(self._root / tier)
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
        """Restores the newest checkpoint that can be read; a newer one that is damaged or gone is told in a warning.

        What is damaged is set aside under another name.

        Args:
          template_state: pytree of the state's structure; leaves are arrays or jax.ShapeDtypeStruct, whose shardings
            the restored arrays take (leaves without one come back as numpy arrays).
          data_iterator: Grain iterator, which is moved to where it stood.

        Returns:
          (state, meta), or None if there is no checkpoint yet.

        Raises:
          UserError: the newest does not fit `template_state`, or all are damaged or gone.
        """
        present = self._present()
        found = sorted(((step, tier == KEPT, tier) for tier in present for step in present[tier]), reverse=True)
        lost = seals.find_lost(self._root, present)
        if lost and not found:
            raise UserError(
                f"checkpoint {lost} and all before it are gone: restore them from a backup, or start anew in another "
                f"--workdir (here, if you delete {self._root / seals.RECORD})"
            )
        problems, damaged = [f"checkpoint {lost} is gone"] if lost else [], []
        for step, _, tier in found:
            folder = self._root / tier / str(step)
            try:
                restored = self._restore(folder, template_state, data_iterator)
            except _Damaged as damage:
                problems.append(f"checkpoint {folder} is damaged ({damage})")
                damaged.append(folder)
                continue
            if problems:
                logging.warning("%s: resuming from %s instead", "; ".join(problems), folder)
                self._forget(damaged)
            return restored
        if damaged:
            raise UserError(
                f"none of the {len(damaged)} checkpoints in {self._root} can be read ({problems[-1]}): restore them "
                "from a backup, or start anew in another --workdir"
            )
        return None

    def wait(self) -> None:
        """Blocks until everything saved so far is on disk. Raises UserError if writing failed."""
        with self._disk_errors():
            for manager in self._managers.values():
                manager.wait_until_finished()
            while self._unsealed:
                self._seal(self._unsealed.pop())

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

    def _present(self) -> dict[str, list[int]]:
        """Steps of the checkpoints of each tier."""
        return {tier: list(manager.all_steps()) for tier, manager in self._managers.items()}

    def _seal(self, folder: Path) -> None:
        """Seals and records a checkpoint that is complete."""
        seals.seal(folder)
        seals.note_newest(self._root, {**seals.read_newest(self._root), folder.parent.name: int(folder.name)})

    def _forget(self, damaged: list[Path]) -> None:
        """Renames damaged checkpoints, so that their steps can be written again and nothing is destroyed.

        The record then speaks of those that are left.
        """
        if jax.process_index() == 0:
            for folder in damaged:
                number = len(list(folder.parent.glob(f"damaged-{folder.name}-*")))
                aside = folder.with_name(f"damaged-{folder.name}-{number}")
                folder.rename(aside)
                logging.warning("set aside as %s", aside)
        ocp.multihost.sync_global_processes("checkpoints:forget")
        for manager in self._managers.values():
            manager.reload()
        seals.note_newest(self._root, {tier: max(steps) for tier, steps in self._present().items() if steps})

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except (OSError, ValueError) as error:
            raise UserError(
                f"could not write a checkpoint under {self._root} ({seals.one_line(error)}): make room or mend the "
                "permissions, then start the same command again; it resumes from the last complete checkpoint"
            ) from error


def load_ema_params(
    folder: str | os.PathLike,
    template_params: Any,
    step: int | None = None,
    warn: Callable[[str], None] = logging.warning,
) -> tuple[Any, int]:
    """Restores only the averaged parameters, as evaluation and sampling want them.

    Args:
      folder: workdir of a run, or a folder made by `export_params`; its `checkpoints/` is read and never written.
      template_params: pytree of the parameters' structure; leaves are arrays or jax.ShapeDtypeStruct, whose shardings
        the restored arrays take (leaves without one come back as numpy arrays).
      step: which checkpoint; None: the newest that can be read.
      warn: is told in one line where that is not the newest that there was.

    Returns:
      (params, step).

    Raises:
      UserError: there is no such checkpoint, it or all are damaged, or its parameters have other names or shapes.
    """
    root = Path(folder).expanduser().resolve()
    steps = kept_steps(root)
    if step is not None and step not in steps:
        raise UserError(f"no checkpoint of step {step} in {root / KEPT}: take one of {', '.join(map(str, steps))}")
    lost = seals.find_lost(root, {KEPT: steps}) if step is None else None
    problems = [f"checkpoint {lost} is gone"] if lost else []
    for tried in reversed(steps) if step is None else [step]:
        path = root / KEPT / str(tried)
        try:
            params = _restore_ema(path, template_params)
        except _Damaged as damage:
            problems.append(f"checkpoint {path} is damaged ({damage})")
            continue
        if problems:
            warn(f"{'; '.join(problems)}: using {path} instead")
        return params, tried
    others = [s for s in steps if s != step] if step is not None else []
    if others:
        raise UserError(f"{problems[-1]}: take another step (there are: {', '.join(map(str, others))})")
    if len(steps) == 1:
        raise UserError(f"{problems[-1]}: restore it from a backup")
    raise UserError(
        f"none of the {len(steps)} checkpoints in {root / KEPT} can be read ({problems[-1]}): restore them from a "
        "backup"
    )


def _restore_ema(folder: Path, template_params: Any) -> Any:
    """The averaged parameters of one checkpoint. Raises _Damaged, or UserError where they do not fit."""
    template = {"ema_params": template_params}
    with _reading(folder), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        _check_fit(folder / "state", template, partial=True)
        args = ocp.args.PyTreeRestore(template, restore_args=_restore_args(template), partial_restore=True)
        return checkpointer.restore(folder / "state", args=args)["ema_params"]


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
    seals.seal(target)
    return target


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Looks for damage before the block reads `folder`; turns whatever its files make Orbax raise into _Damaged."""
    if damage := seals.find_damage(folder):
        raise _Damaged(damage)
    try:
        yield
    except (UserError, _Damaged):
        raise
    except Exception as error:
        raise _Damaged(seals.one_line(error)) from error


def _manager(folder: Path, policy: Any) -> ocp.CheckpointManager:
    me = jax.process_index()
    alone = {"primary_host": me, "active_processes": {me}} if at_hand.is_private(folder) else {}
    if alone:
        folder.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        create=not alone,
        cleanup_tmp_directories=True,  # of an earlier run that was killed while writing
        # Made in the background, a folder that cannot be made would block training for the time-out of ten minutes.
        async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            barrier_sync_key_prefix=f"{folder.name}{me if alone else ''}", **alone
        ),
    )
    return ocp.CheckpointManager(folder, options=options)


def kept_steps(workdir: str | os.PathLike) -> list[int]:
    """Returns the steps of the checkpoints in `<workdir>/checkpoints`, ascending; never an empty list.

    Raises UserError if there is none.
    """
    root = Path(workdir).expanduser().resolve()
    folder = root / KEPT
    if not root.is_dir():
        what = f"{root} is a file, no folder" if root.exists() else f"the folder {root} does not exist"
        raise UserError(f"no checkpoint: {what}; {_TRAIN}")
    inside = next((path for path in (root, root.parent) if path.name == KEPT and any(path.glob("[0-9]*"))), None)
    if inside and not folder.exists():
        raise UserError(f"no checkpoint: {root} is a part of the workdir {inside.parent}; name that")
    steps = sorted(int(p.name) for p in folder.glob("*") if p.name.isdecimal() and p.is_dir())
    if not steps and (lost := seals.find_lost(root, {KEPT: ()})):
        raise UserError(f"no checkpoint: {lost} and all before it are gone; restore them from a backup, or train on")
    if not folder.is_dir():
        raise UserError(f"no checkpoint: {root} has no folder {KEPT}/; {_TRAIN}")
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
