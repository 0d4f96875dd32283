"""Reads and writes PyTorch's files of named tensors without PyTorch; no file runs code or reads our memory.

A `.pt` file is a zip with a pickle (`data.pkl`: names, shapes, strides) and one raw binary per storage; before PyTorch
1.6 it was a row of pickles and binaries, and many published weights still are. The pickle is read by
`plain_pickle.read_pickle`, which knows four kinds of name here; tensors are cut out of the bytes of their storage.
"""

import contextlib
import dataclasses
import io
import math
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from msm.exchange.plain_pickle import DAMAGE, Bounded, Maker, make_table, read_pickle
from msm.infra.atomic import atomic_file
from msm.infra.errors import UserError

STORAGE_DTYPES = {
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": np.uint16,  # its bits
    "DoubleStorage": np.float64,
    "LongStorage": np.int64,  # this and the next are counters beside the weights
    "BoolStorage": np.uint8,
}

LARGEST_PICKLE = 64 * 2**20  # bytes; that of an ADM U-Net has some 100 kB
MOST_AXES = 16
# Tensors may share a storage (tied weights, parts of a flat one), but all of them together hold at most so many times
# what is stored, or this many bytes: 800 views of 4 MB are no weights.
MOST_SHARED, SMALL = 4, 2**20
OLD_FORMAT = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # opens a file of PyTorch before 1.6: a pickled number


@dataclasses.dataclass(frozen=True)
class _Storage:
    """What a pickle says of a storage: `count` values of a type of `STORAGE_DTYPES`, in either byte order."""

    kind: str
    key: str
    count: int
    order: str = "<"

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(STORAGE_DTYPES[self.kind]).newbyteorder("<" if self.order == "<" else ">")

    @property
    def size(self) -> int:
        return self.count * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """Which values of a storage a tensor has; it lies inside."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def cut(self, raw: bytes) -> np.ndarray:
        """Contiguous float32 copy. numpy holds shape and strides against the bytes again."""
        if 0 in self.shape:
            return np.zeros(self.shape, np.float32)
        dtype = self.storage.dtype
        # The step along an axis of one entry is never taken, whatever the file says.
        steps = [0 if n == 1 else s * dtype.itemsize for n, s in zip(self.shape, self.strides, strict=True)]
        values = np.ndarray(self.shape, dtype, raw, self.offset * dtype.itemsize, steps)
        if self.storage.kind == "BFloat16Storage":
            return np.array((values.astype(np.uint32) << 16).view(np.float32), order="C")  # upper half of a float32
        return np.array(values != 0 if self.storage.kind == "BoolStorage" else values, np.float32, order="C")


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    """What stands for `_rebuild_tensor_v2`. Raises UserError unless the tensor lies inside its storage."""
    if not isinstance(storage, _Storage):
        raise UserError(f"a tensor's storage is a {type(storage).__name__}")
    lists = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= MOST_AXES
    if not lists or not all(_is_count(n) for n in (offset, *shape, *strides)):
        raise UserError(f"a tensor leaves its {storage.count} stored values: its shape, strides or offset are none")
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    inside = (last < storage.count and math.prod(shape) <= storage.count) or 0 in shape
    if not inside:  # a stride of 0 could ask for any amount of memory
        view = f"size {shape}, stride {strides}, offset {offset}"
        raise UserError(f"a tensor ({view}) leaves its {storage.count} stored values")
    return _Tensor(storage, offset, shape, strides)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**48


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _find(module: str, name: str) -> Any:
    """What stands for a name in a file of tensors; all others are refused."""
    if (module, name) == ("collections", "OrderedDict"):
        return Maker(make_table)
    if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
        return Maker(_tensor)
    if (module, name) == ("torch._utils", "_rebuild_parameter"):  # the authors' trainer stores Parameters
        return Maker(_parameter)
    if module == "torch" and name in STORAGE_DTYPES:
        return _Kind(name)
    raise UserError(
        f"it refers to {module}.{name}, which is neither a tensor of {', '.join(STORAGE_DTYPES)} nor a plain "
        "container, and loading it could run code; save the bare state dict (torch.save(model.state_dict(), path))"
    )


@dataclasses.dataclass(frozen=True)
class _Kind:
    """The name of a type of storage."""

    name: str


def _storage(pid: Any, order: str = "<") -> _Storage:
    """The storage of a persistent id ("storage", type, key, device, number of entries[, view])."""
    if isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage" and pid[5:] in ((), (None,)):
        kind, key, count = pid[1], pid[2], pid[4]
        if isinstance(kind, _Kind) and isinstance(key, str) and re.fullmatch(r"\d{1,20}", key) and _is_count(count):
            return _Storage(kind.name, key, count, order)
    raise UserError(f"unknown storage record {str(pid)[:200]}")


class _Zip:
    """A file of PyTorch's zip format. Nothing is read that is more than told, or more than the file has."""

    def __init__(self, archive: zipfile.ZipFile, size: int):
        roots = [n.removesuffix("/data.pkl") for n in archive.namelist() if n.count("/") == 1 and "/data.pkl" in n]
        if len(roots) != 1:
            raise UserError("it is a zip file, but not one that torch.save wrote")
        self._archive, self._root, self._size = archive, roots[0], size
        self._stored: dict[str, int] = {}
        length = archive.getinfo(f"{self._root}/data.pkl").file_size
        if length > LARGEST_PICKLE:
            raise UserError(f"its data.pkl has {length} bytes, more than any state dict's ({LARGEST_PICKLE})")
        order = self._read("byteorder", 10) if f"{self._root}/byteorder" in archive.namelist() else b"little"
        self._order = ">" if order.strip() == b"big" else "<"
        self.tree = read_pickle(io.BytesIO(self._read("data.pkl", length)), _find, self._persistent)

    @property
    def stored(self) -> int:
        """Bytes of all storages."""
        return sum(self._stored.values())

    def _read(self, name: str, size: int) -> bytes:
        """The first `size` bytes of an entry; never more, whatever a packed one unfolds to."""
        with self._archive.open(f"{self._root}/{name}") as file:
            return file.read(size)

    def _persistent(self, pid: Any) -> _Storage:
        storage = _storage(pid, self._order)
        entry = self._archive.getinfo(f"{self._root}/data/{storage.key}")
        if entry.file_size != storage.size:
            raise UserError(f"storage {storage.key} has {entry.file_size} bytes instead of {storage.size}")
        if entry.compress_type != zipfile.ZIP_STORED:  # a small file could ask for any amount of memory
            raise UserError(f"storage {storage.key} is compressed, which torch.save never does: zip it again without")
        self._stored[storage.key] = storage.size
        if self.stored > self._size:  # entries that overlap
            raise UserError(f"its storages have {self.stored} bytes, the file {self._size}")
        return storage

    def values(self, storage: _Storage) -> bytes:
        return self._read(f"data/{storage.key}", storage.size)


class _Old:
    """A file of the format before PyTorch 1.6: numbers, a description of the machine, the pickle, keys, storages."""

    def __init__(self, file: BinaryIO, size: int):
        self._file, self._limit = file, min(size, LARGEST_PICKLE)
        self._wanted: dict[str, _Storage] = {}
        self._places: dict[str, int] = {}
        if [self._pickle() for _ in range(2)][1] != 1001:
            raise UserError("it is of an unknown version of PyTorch's old format")
        if not self._pickle()["little_endian"]:
            raise UserError("a big-endian machine wrote it")
        self.tree = self._pickle(lambda pid: self._persistent(pid, size))
        for key in self._pickle():
            storage = self._wanted[key]
            told, place = int.from_bytes(file.read(8), "little"), file.tell()
            there = max(0, min(size - place, storage.size))
            if told != storage.count or there != storage.size:
                raise UserError(
                    f"storage {key} holds {told} entries in {there} bytes instead of {storage.count}: truncated?"
                )
            self._places[key] = place
            file.seek(place + storage.size)

    @property
    def stored(self) -> int:
        return sum(self._wanted[key].size for key in self._places)

    def _pickle(self, persistent: Callable[[Any], Any] | None = None) -> Any:
        return read_pickle(Bounded(self._file, self._limit), _find, persistent)

    def _persistent(self, pid: Any, size: int) -> _Storage:
        storage = _storage(pid)
        known = self._wanted.setdefault(storage.key, storage)
        if known != storage or storage.size > size:
            raise UserError(f"unknown storage record {str(pid)[:200]}")
        return storage

    def values(self, storage: _Storage) -> bytes:
        self._file.seek(self._places[storage.key])
        return self._file.read(storage.size)


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[_Zip | _Old]:
    with open(path, "rb") as file:
        old = file.read(len(OLD_FORMAT)) == OLD_FORMAT
        file.seek(0)
        size = os.fstat(file.fileno()).st_size
        if old:
            yield _Old(file, size)
            return
        with zipfile.ZipFile(file) as archive:
            yield _Zip(archive, size)


def read_state_dict(path: str | Path, key: str = "") -> dict[str, np.ndarray]:
    """Reads a PyTorch state dict, of the zip format or the one before it, as float32 arrays; runs no code of the file.

    A leading "module." of the names (DataParallel) is dropped.

    Args:
      path: the `.pt` file.
      key: which entry of the file is the state dict, e.g. "ema"; empty: the file is one itself.

    Raises:
      UserError: the file is missing, truncated, of another format, or holds anything but named tensors there.
    """
    try:
        with _opened(path) as file:
            return _arrays(_chosen(file.tree, path, key), file)
    except FileNotFoundError:
        raise UserError(f"checkpoint {path} does not exist: give the .pt file") from None
    except zipfile.BadZipFile as error:
        raise UserError(
            f"checkpoint {path} is truncated, damaged, or no file that torch.save wrote ({error}): copy it again"
        ) from error
    except UserError as error:
        told = str(error) if str(error).startswith("checkpoint ") else f"checkpoint {path} cannot be read: {error}"
        raise UserError(told) from error
    except DAMAGE as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"checkpoint {path} is no readable PyTorch file ({what}): copy it again") from error


def _chosen(state: Any, path: str | Path, key: str) -> dict[str, _Tensor]:
    """The state dict that a file is, or has by the name `key`."""
    if key:
        if not isinstance(state, dict) or key not in state:
            raise UserError(f"checkpoint {path} has no entry {key!r} (found: {_told(state)})")
        state = state[key]
    if not _is_state_dict(state):
        inside = [name for name, value in state.items() if _is_state_dict(value)] if isinstance(state, dict) else []
        mend = f"choose one of its entries: {', '.join(map(str, inside))}" if inside else "save only the weights"
        raise UserError(f"checkpoint {path} is no plain state dict of tensors (found: {_told(state)}); {mend}")
    return state


def _arrays(state: Mapping[str, _Tensor], file: _Zip | _Old) -> dict[str, np.ndarray]:
    """The tensors of a state dict, read storage by storage."""
    total = sum(math.prod(tensor.shape) * tensor.storage.dtype.itemsize for tensor in state.values())
    if total > max(MOST_SHARED * file.stored, SMALL):
        raise UserError(f"its tensors have {total} bytes, its storages {file.stored}: they are views of few values")
    arrays: dict[str, np.ndarray] = {}
    by_storage: dict[_Storage, list[str]] = {}
    for name, tensor in state.items():
        by_storage.setdefault(tensor.storage, []).append(name)
    for storage, names in by_storage.items():
        raw = file.values(storage)
        arrays |= {name: state[name].cut(raw) for name in names}
    return {name.removeprefix("module."): arrays[name] for name in state}


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(tensor, _Tensor) for name, tensor in value.items()
    )


def _told(value: Any) -> str:
    """The first names in a dict, or what else a value is."""
    return ", ".join(map(str, list(value)[:5]))[:200] if isinstance(value, dict) else type(value).__name__


def write_state_dict(path: str | Path, state_dict: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays as a float32 state dict for `torch.load(path, weights_only=True)`; equal arrays, equal bytes.

    The pickle is put together from opcodes, so that no module called torch is needed; see `read_state_dict`.
    """
    parts = [b"\x80\x02", _EMPTY_DICT, b"("]
    storages = []
    for name, value in state_dict.items():
        array = np.asarray(value, "<f4", order="C")
        strides = tuple(step // array.itemsize for step in array.strides)
        storage = b"(" + _plain("storage") + b"ctorch\nFloatStorage\n"
        storage += _plain(str(len(storages))) + _plain("cpu") + _plain(array.size) + b"tQ"  # a tuple by persistent id
        arguments = b"(" + storage + _plain(0) + _plain(array.shape) + _plain(strides) + b"\x89" + _EMPTY_DICT + b"t"
        parts += [_plain(name), b"ctorch._utils\n_rebuild_tensor_v2\n", arguments, b"R"]
        storages.append(array)
    with _writing(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, content in (("data.pkl", b"".join([*parts, b"u."])), ("byteorder", b"little"), ("version", b"3\n")):
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content)
        for index, array in enumerate(storages):
            archive.writestr(zipfile.ZipInfo(f"archive/data/{index}"), array.tobytes())


@contextlib.contextmanager
def _writing(path: str | Path) -> Iterator[BinaryIO]:
    try:
        with atomic_file(path) as file:
            yield file
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}): make room or choose another file") from error


_EMPTY_DICT = b"ccollections\nOrderedDict\n)R"


def _plain(value: str | int | tuple[int, ...]) -> bytes:
    """Pickle opcodes that push a plain value."""
    return pickle.dumps(value, 2)[2:-1]  # without the protocol before and the stop after it
