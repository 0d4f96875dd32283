"""Writes whole files or nothing: every result goes to a temporary name beside its target and is then renamed."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from msm.infra import links
from msm.infra.errors import UserError


def safe_join(root: str | os.PathLike, name: str | os.PathLike) -> Path:
    """Returns `root`/`name` as an absolute path. Raises UserError if it leaves `root` (by `..`, '/' or a link)."""
    base = Path(root).resolve()
    path = (base / name).resolve()
    if not path.is_relative_to(base):
        raise UserError(f"{str(name)!r} lies outside the folder {base}: give a name inside it")
    return path


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Opens a temporary file for writing that becomes `path` if the block succeeds and vanishes if it raises.

    Folders that are missing are made. After a crash at any instant `path` holds either the old or the new content.
    Nothing is written through a link: one named `path` is replaced. Raises UserError as `links.check` does.
    """
    path = Path(path)
    links.check(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    temporary.unlink(missing_ok=True)  # of a killed process with this number, or a link that waits for us
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)  # the rename itself is on disk only after its folder is
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def drop_unfinished(folder: str | os.PathLike) -> None:
    """Deletes what killed processes left half-written below `folder`, in which no other process may be writing."""
    for path in Path(folder).rglob(".*.tmp-*"):
        path.unlink(missing_ok=True)


def atomic_write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Replaces the content of `path` by `data`, wholly or not at all."""
    with atomic_file(path) as file:
        file.write(data)


def atomic_write_text(path: str | os.PathLike, text: str) -> None:
    """Replaces the content of `path` by `text` (UTF-8), wholly or not at all."""
    atomic_write_bytes(path, text.encode())


def atomic_write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` as indented JSON; numbers that are not finite become NaN and Infinity."""
    atomic_write_text(path, json.dumps(value, indent=2) + "\n")


def atomic_write_npz(path: str | os.PathLike, **arrays: Any) -> None:
    """Writes named arrays as a compressed .npz, wholly or not at all."""
    with atomic_file(path) as file:
        np.savez_compressed(file, **arrays)
