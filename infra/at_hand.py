"""What a command names by URL, brought to this machine: a workdir, while the run works on it, and a store."""

import contextlib
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax

from msm.infra import processes, storage
from msm.infra.mirror import Remote

_PRIVATE: set[Path] = set()  # folders of this machine that no other process of the run sees


def is_private(path: Path) -> bool:
    """Whether a path lies in a folder that this process has for itself: each then writes all of a checkpoint there."""
    return any(folder in path.parents for folder in _PRIVATE)


@contextlib.contextmanager
def workdir(name: str, mode: str) -> Iterator[str]:
    """Yields the folder of this machine that stands for the workdir: the same, unless `name` is a URL.

    That folder lies below TMPDIR; its changes are uploaded while the block runs, and all of it as the block ends,
    however it does. Raises UserError where the store refuses, or a live process works there.
    """
    if not storage.is_url(name):
        yield name
        return
    place = Path(tempfile.gettempdir()).resolve() / f"msm-workdir-{_short(f'{name} {mode}')}-{jax.process_index()}"
    with processes.together():
        remote = Remote(name, mode, place, writes=jax.process_index() == 0)
    logging.info("%s: working in %s", name, place)
    _PRIVATE.add(place)
    try:
        yield str(place)
    finally:
        _PRIVATE.discard(place)
        remote.close()
        logging.info("%s: all is uploaded", name)


def store(name: str, cache: str) -> str:
    """The folder of this machine that holds a store: the same, unless `name` is a URL.

    A store at a URL is copied below `cache` (TMPDIR where that is empty) once; files of the right size are kept. Raises
    UserError where it cannot be read.
    """
    if not storage.is_url(name):
        return name
    base = Path(cache).expanduser() if cache else Path(tempfile.gettempdir())
    folder = base / "stores" / _short(name)
    bucket = storage.Bucket(name)
    for file, size in bucket.names().items():
        path = folder / file
        if not path.is_file() or path.stat().st_size != size:
            half = path.with_name(f".{path.name}.tmp-{os.getpid()}")
            bucket.get(file, half)
            os.replace(half, path)
    return str(folder)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
