"""Reads HDF5 datasets of files from anybody: nothing outside the file is followed, nothing missing is read as zeros.

HDF5 can refer to other files: by external links, by external storage, and by virtual datasets, whose missing parts it
fills with zeros without a word. All three are refused. Shapes are held against --max_gb before anything is allocated.
"""

import math
import os
import subprocess
import sys
from typing import Any

import h5py
import numpy as np

from msm.builders.border import GB, check_size, limit
from msm.infra.errors import UserError

_MOST_LINKS = 16
_COPIES = 2  # of a dataset that a reader holds at a time, about
_PATIENCE_S, _BYTES_PER_S = 10, 10_000_000  # seconds of computing for a file that is no use, whatever the machine does
_OF_PYTHON = 4 * 10**9  # bytes of address space that the libraries take
_PROGRAM = """
import resource, sys
path, name, seconds, memory = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
import h5py
with h5py.File(path, "r") as file:
    file[name][()]
"""
_VLEN_BYTES = 16  # of a reference to values of a length of their own


def find(file: h5py.Group, name: str) -> Any:
    """The object at 'a/b/c' of a file or group; None if there is none. Raises UserError for a link to another file."""
    return _find(file, name.strip("/").split("/"), _MOST_LINKS)


def _find(place: Any, parts: list[str], left: int) -> Any:
    for number, part in enumerate(parts):
        if not isinstance(place, h5py.Group):
            return None
        link = place.get(part, getlink=True) if part else None
        if link is None:
            return None
        if isinstance(link, h5py.ExternalLink):
            raise UserError(
                f"{place.file.filename}: {'/'.join(parts)!r} is a link to another file, {link.filename!r}, which is "
                "not followed: copy the data into one file (h5repack, h5copy)"
            )
        if isinstance(link, h5py.SoftLink):
            if not left:
                raise UserError(f"{place.file.filename}: {'/'.join(parts)!r} is a link that leads in a circle")
            start = place.file["/"] if link.path.startswith("/") else place
            rest = [*link.path.strip("/").split("/"), *parts[number + 1 :]]
            return _find(start, rest, left - 1)
        place = place[part]
    return place


def items(group: h5py.Group) -> list[tuple[str, Any]]:
    """(name, object) of what lies in a group; links to other files are passed over."""
    inside = (str(name) for name in group if not isinstance(group.get(name, getlink=True), h5py.ExternalLink))
    return [(name, find(group, name)) for name in inside]


def read(dataset: Any, what: str) -> np.ndarray:
    """All values of a dataset. Raises UserError for what is none, lies elsewhere, is missing, or too large."""
    if not isinstance(dataset, h5py.Dataset):
        raise UserError(f"{what} is a {type(dataset).__name__.lower()}, not an array of values")
    if dataset.is_virtual or dataset.external:
        raise UserError(f"{what} has its values in other files, which are not followed: copy them into one (h5repack)")
    if dataset.shape is None:
        raise UserError(f"{what} is empty")
    count = math.prod(dataset.shape)
    # What was never written has no storage, and reads as zeros; small datasets lie in the header.
    layout = dataset.id.get_create_plist().get_layout()
    if count and layout != h5py.h5d.COMPACT and not dataset.id.get_storage_size():
        raise UserError(f"{what} was never written: it has a shape, {dataset.shape}, and no values; export it again")
    varied = h5py.check_vlen_dtype(dataset.dtype) is not None or dataset.dtype.hasobject
    check_size(what, _COPIES * count, max(dataset.dtype.itemsize, _VLEN_BYTES if varied else 1))
    if varied or any(h5py.check_vlen_dtype(dataset.dtype[name]) for name in dataset.dtype.names or ()):
        _try(dataset, what)
    return np.asarray(dataset)


def _try(dataset: h5py.Dataset, what: str) -> None:
    """Reads a dataset in a process of its own, whose time and memory are limited.

    Values of a length of their own lie in heaps, and HDF5 follows those of a damaged file for ever, or until it
    crashes: no exception of Python would end that. Raises UserError where that process does not end well.
    """
    seconds = _PATIENCE_S + os.path.getsize(dataset.file.filename) // _BYTES_PER_S
    memory = int(limit() * GB) + _OF_PYTHON
    command = [sys.executable, "-I", "-c", _PROGRAM, dataset.file.filename, dataset.name, str(seconds), str(memory)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        why = lines[-1][:150] if lines and done.returncode > 0 else f"reading it does not end within {seconds} s"
        raise UserError(f"{what} cannot be read, its HDF5 file is damaged ({why}); copy it again")
