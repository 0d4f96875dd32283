"""Reads and writes PyTorch checkpoints of the ADM U-Net without PyTorch, and maps their names to ours and back.

A `.pt` file is a zip with a pickle (`data.pkl`: names, shapes, strides) and one raw binary per storage; before PyTorch
1.6 it was a row of pickles and binaries, and many published weights still are. A pickle can run any code, so this one
is read by an unpickler that knows four kinds of name and refuses all others.
"""

import contextlib
import io
import math
import os
import pickle
import re
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from msm.infra.atomic import atomic_file
from msm.infra.errors import UserError

STORAGE_DTYPES = {
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": np.uint16,  # its bits
    "DoubleStorage": np.float64,
    "LongStorage": np.int64,  # this and the next are counters beside the weights
    "BoolStorage": np.bool_,
}

# Our layer name inside a block -> the reference's.
LAYER_NAMES = {
    "in_norm": "in_layers.0",
    "in_conv": "in_layers.2",
    "time": "emb_layers.1",
    "out_norm": "out_layers.0",
    "out_conv": "out_layers.3",
    "skip": "skip_connection",
    "norm": "norm",
    "qkv": "qkv",
    "proj_out": "proj_out",
}
OUTPUT_NAMES = {"out_norm": "out.0", "out_conv": "out.2"}
KERNEL_DIMS = {"skip": 2, "qkv": 1, "proj_out": 1}  # 1x1 convolutions there (2-D or 1-D) that are linear maps here

LARGEST_PICKLE = 64 * 2**20  # bytes; that of an ADM U-Net has some 100 kB
MOST_TOLD = 20  # differences that an error lists; a wrong network has hundreds

# What a damaged or hostile file can make zipfile, pickle and numpy raise.
DAMAGE = (
    pickle.UnpicklingError,
    zlib.error,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


OLD_FORMAT = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # opens a file of PyTorch before 1.6: a pickled number


class _Names(pickle.Unpickler):
    """Unpickler that rebuilds tensors as numpy arrays and refuses every name but the few listed."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *args: _strided(*args[:4])  # a fresh object, so that no pickle can leave anything on ours
        if (module, name) == ("torch._utils", "_rebuild_parameter"):  # the authors' trainer stores Parameters
            return lambda data, *_: data
        if module == "torch" and name in STORAGE_DTYPES:
            return name
        raise UserError(
            f"it refers to {module}.{name}, which is neither a tensor of {', '.join(STORAGE_DTYPES)} nor a plain "
            "container, and loading it could run code; save the bare state dict (torch.save(model.state_dict(), path))"
        )


class _Reader(_Names):
    """Unpickler of one checkpoint in PyTorch's zip format. Nothing is read that is more than told."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        self._archive, self._root = archive, root
        size = archive.getinfo(f"{root}/data.pkl").file_size
        if size > LARGEST_PICKLE:
            raise UserError(f"its data.pkl has {size} bytes, more than any state dict's ({LARGEST_PICKLE})")
        super().__init__(io.BytesIO(self._read("data.pkl", size)))
        order = self._read("byteorder", 10) if f"{root}/byteorder" in archive.namelist() else b"little"
        self._byte_order: Literal[">", "<"] = ">" if order.strip() == b"big" else "<"
        self._storages: dict[tuple[str, str], np.ndarray] = {}

    def _read(self, name: str, size: int) -> bytes:
        """The first `size` bytes of an entry; never more, whatever a packed one unfolds to."""
        with self._archive.open(f"{self._root}/{name}") as file:
            return file.read(size)

    def persistent_load(self, pid: Any) -> np.ndarray:
        """Returns the storage ("storage", type, key, device, number of entries) as a flat array."""
        kind, storage_type, key, _, count = pid
        if kind != "storage" or not re.fullmatch(r"\d+", key):
            raise UserError(f"unknown storage record {pid!r}")
        dtype = np.dtype(STORAGE_DTYPES[storage_type]).newbyteorder(self._byte_order)
        entry, size = self._archive.getinfo(f"{self._root}/data/{key}"), count * dtype.itemsize
        if entry.file_size != size:
            raise UserError(f"storage {key} has {entry.file_size} bytes instead of {size}")
        if entry.compress_type != zipfile.ZIP_STORED:  # a small file could ask for any amount of memory
            raise UserError(f"storage {key} is compressed, which torch.save never does: zip it again without")
        if (storage_type, key) not in self._storages:
            self._storages[storage_type, key] = _storage(self._read(f"data/{key}", size), dtype, storage_type)
        return self._storages[storage_type, key]


def _storage(raw: bytes, dtype: np.dtype, storage_type: str) -> np.ndarray:
    values = np.frombuffer(raw, dtype)
    if storage_type == "BFloat16Storage":
        return (values.astype(np.uint32) << 16).view(np.float32)  # bfloat16 is the upper half of a float32
    return values


class _OldReader(_Names):
    """Unpickler of the format before PyTorch 1.6, whose storages follow the pickle that refers to them.

    Attributes:
      wanted: key -> (storage type, number of entries) of every storage referred to.
      storages: key -> values; a storage that is not there yet is all zeros.
    """

    def __init__(self, file: BinaryIO, storages: Mapping[str, np.ndarray], limit: int):
        super().__init__(file)
        self.wanted: dict[str, tuple[str, int]] = {}
        self._storages, self._limit = storages, limit

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, storage_type, key, _, count, view = pid
        known = kind == "storage" and storage_type in STORAGE_DTYPES and view is None
        if not known or not 0 <= count * np.dtype(STORAGE_DTYPES[storage_type]).itemsize <= self._limit:
            raise UserError(f"unknown storage record {pid!r}")
        self.wanted[key] = (storage_type, count)
        return self._storages[key] if key in self._storages else np.zeros(count, np.float32)


def _read_zip(path: str | Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        roots = [n.removesuffix("/data.pkl") for n in archive.namelist() if n.count("/") == 1 and "/data.pkl" in n]
        if len(roots) != 1:
            raise UserError("it is a zip file, but not one that torch.save wrote")
        return _Reader(archive, roots[0]).load()


def _is_old(path: str | Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(OLD_FORMAT)) == OLD_FORMAT


def _read_old(path: str | Path) -> Any:
    """Reads the format before PyTorch 1.6: numbers, a description of the machine, the pickle, keys, storages."""
    with open(path, "rb") as file:
        if [_Names(file).load() for _ in range(2)][1] != 1001:
            raise UserError("it is of an unknown version of PyTorch's old format")
        if not _Names(file).load()["little_endian"]:
            raise UserError("a big-endian machine wrote it")
        start, size = file.tell(), os.fstat(file.fileno()).st_size
        first = _OldReader(file, {}, size)
        first.load()
        storages = {}
        for key in _Names(file).load():
            storage_type, count = first.wanted[key]
            dtype = np.dtype(STORAGE_DTYPES[storage_type]).newbyteorder("<")
            told, raw = int.from_bytes(file.read(8), "little"), file.read(count * dtype.itemsize)
            if told != count or len(raw) != count * dtype.itemsize:
                raise UserError(
                    f"storage {key} holds {told} entries in {len(raw)} bytes instead of {count}: truncated?"
                )
            storages[key] = _storage(raw, dtype, storage_type)
        file.seek(start)
        return _OldReader(file, storages, size).load()


def _strided(storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> np.ndarray:
    """Copies a tensor out of its storage as contiguous float32; checks that it lies inside."""
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    inside = min((offset, *size, *stride)) >= 0 and (last < storage.size or 0 in size)
    if not inside or math.prod(size) > storage.size:  # the latter: a stride of 0 could ask for any amount of memory
        view = f"size {size}, stride {stride}, offset {offset}"
        raise UserError(f"a tensor ({view}) leaves its {storage.size} stored values")
    strides = [s * storage.itemsize for s in stride]
    return np.array(np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False), np.float32)


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
        state = _read_old(path) if _is_old(path) else _read_zip(path)
    except FileNotFoundError:
        raise UserError(f"checkpoint {path} does not exist: give the .pt file") from None
    except zipfile.BadZipFile as error:
        raise UserError(
            f"checkpoint {path} is truncated, damaged, or no file that torch.save wrote ({error}): copy it again"
        ) from error
    except UserError as error:
        raise UserError(f"checkpoint {path} cannot be read: {error}") from error
    except DAMAGE as error:
        raise UserError(
            f"checkpoint {path} is no readable PyTorch file ({type(error).__name__}: {error}): copy it again"
        ) from error
    if key:
        if not isinstance(state, dict) or key not in state:
            raise UserError(f"checkpoint {path} has no entry {key!r} (found: {_told(state)})")
        state = state[key]
    if not _is_state_dict(state):
        inside = [name for name, value in state.items() if _is_state_dict(value)] if isinstance(state, dict) else []
        mend = f"choose one of its entries: {', '.join(map(str, inside))}" if inside else "save only the weights"
        raise UserError(f"checkpoint {path} is no plain state dict of tensors (found: {_told(state)}); {mend}")
    return {name.removeprefix("module."): value for name, value in state.items()}


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(tensor, np.ndarray) for name, tensor in value.items()
    )


def _told(value: Any) -> str:
    """The first names in a dict, or what else a value is."""
    return ", ".join(map(str, list(value)[:5])) if isinstance(value, dict) else type(value).__name__


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


def _reference_name(path: tuple[str, ...]) -> str:
    """Our path -> the reference's name: (input_blocks_1_0, in_conv, bias) -> input_blocks.1.0.in_layers.2.bias."""
    *blocks, layer, leaf = path
    if blocks:
        layers = [re.sub(r"_(\d+)", r".\1", blocks[0]), LAYER_NAMES[layer]]
    else:
        layers = [OUTPUT_NAMES.get(layer) or re.sub(r"_(\d+)", r".\1", layer)]
    return ".".join([*layers, "bias" if leaf == "bias" else "weight"])


def _to_torch(path: tuple[str, ...], value: np.ndarray) -> np.ndarray:
    """Our array layout -> PyTorch's: (kh,kw,in,out) -> (out,in,kh,kw); (in,out) -> (out,in[,1[,1]])."""
    if path[-1] != "kernel":
        return value
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1)
    return value.T.reshape(value.shape[::-1] + (1,) * KERNEL_DIMS.get(path[-2], 0))


def _from_torch(path: tuple[str, ...], value: np.ndarray) -> np.ndarray:
    """Inverse of `_to_torch`."""
    if path[-1] != "kernel":
        return value
    if value.ndim == 4 and path[-2] not in KERNEL_DIMS:
        return value.transpose(2, 3, 1, 0)
    return value.reshape(value.shape[:2]).T


def drop_variances(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Keeps the first half of the output channels: a network saved with `learn_sigma` predicts (noise, variance).

    Raises UserError if there is no output layer, or not an even number of channels.
    """
    out = {name: np.asarray(state_dict[name]) for name in ("out.2.weight", "out.2.bias") if name in state_dict}
    if len(out) < 2 or any(value.ndim < 1 or value.shape[0] % 2 for value in out.values()):
        found = ", ".join(f"{name} {value.shape}" for name, value in out.items()) or "no out.2.weight"
        raise UserError(f"the state dict has no output of noise and variance, which halves into two ({found})")
    return {**state_dict, **{name: value[: value.shape[0] // 2] for name, value in out.items()}}


def state_dict_to_params(
    state_dict: Mapping[str, np.ndarray], model_config: ConfigDict, params_template: Mapping[str, Any]
) -> dict[str, Any]:
    """Maps a reference state dict to our parameters.

    Args:
      state_dict: name -> array, as `read_state_dict` returns it.
      model_config: `config.model` of the template; only named in errors, beside what the state dict tells of its own.
      params_template: our parameter tree of the same network; leaves need only `.shape` (see `init.param_shapes`).

    Returns:
      The tree of `params_template` with float32 numpy leaves.

    Raises:
      UserError: names or shapes that do not fit, in one message with their number and the first of them.
    """
    template: dict[tuple[str, ...], Any] = dict(flatten_dict(params_template))
    names = {path: _reference_name(path) for path in template}
    problems = [f"missing {name}" for name in names.values() if name not in state_dict]
    problems += [f"unexpected {name}" for name in state_dict if name not in set(names.values())]
    params = {}
    for path, name in names.items():
        if name not in state_dict:
            continue
        expected = _to_torch(path, np.empty(template[path].shape, np.bool_)).shape
        value = np.asarray(state_dict[name])
        if value.shape != expected:
            problems.append(f"{name} has shape {value.shape}, the network's is {expected}")
        else:
            params[path] = np.ascontiguousarray(_from_torch(path, value), np.float32)
    if problems:
        keys = ("num_channels", "channel_mult", "num_res_blocks", "attention_resolutions", "patch_size")
        ours = ", ".join(f"model.{key}={model_config[key]}" for key in keys)
        told = problems[:MOST_TOLD] + [f"and {len(problems) - MOST_TOLD} more"] * (len(problems) > MOST_TOLD)
        raise UserError(
            f"the state dict does not fit the network of {ours}{_saved_with(state_dict)}; "
            f"{len(problems)} differences: {'; '.join(told)}"
        )
    return unflatten_dict(params)


def _saved_with(state_dict: Mapping[str, np.ndarray]) -> str:
    """What a state dict tells of its own network, for an error message."""
    names = ("time_embed.0.weight", "input_blocks.0.0.weight", "out.2.bias")
    embedding, first, last = (np.shape(state_dict.get(name, ())) for name in names)
    if (len(embedding), len(first), len(last)) != (2, 4, 1):
        return "; the file holds no ADM U-Net"
    width, channels, outputs = embedding[1], first[1], last[0]
    text = f"; the file was saved with num_channels={width}, {channels} channels in and {outputs} out"
    return text + (" (learn_sigma: it predicts variances too, which can be dropped)" if outputs == 2 * channels else "")


def params_to_state_dict(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Maps our parameters to the reference's names and layouts: the exact inverse of `state_dict_to_params`."""
    flat: dict[tuple[str, ...], Any] = dict(flatten_dict(jax.tree.map(np.asarray, params)))
    return {_reference_name(path): np.ascontiguousarray(_to_torch(path, v)) for path, v in flat.items()}
