"""Reads the records of a store by what is declared here: no file of a store names code that is run.

TFDS writes the stores. Its own reader imports whatever Python class the folder's features.json names, so it is not
used: that file is read as plain data, of which the kind, type and shape of each field count and nothing else. A record
is a `tf.train.Example`; its fields are tensors, as numbers or as their bytes (which may be packed by zlib), and texts.
"""

import dataclasses
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordReader
from tensorflow_datasets.proto.tf_example_generated_pb2 import Example  # pyright: ignore[reportAttributeAccessIssue]

from msm.infra import plain_json
from msm.infra.atomic import safe_join
from msm.infra.errors import UserError

TYPES = ("bool", "uint8", "int16", "int32", "int64", "float32", "float64", "complex64")
ENCODINGS = ("none", "bytes", "zlib")
LARGEST_FEATURES = 2**20  # bytes of a features.json; ours have some 2 kB
# What a damaged or changed record raises while it is read.
DAMAGE = (OSError, RuntimeError, ValueError, TypeError, KeyError, IndexError, OverflowError, zlib.error)


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a record: a tensor, or a text (`dtype` None). Of its `shape` None is a length that differs."""

    shape: tuple[int | None, ...] = ()
    dtype: np.dtype | None = None
    encoding: str = "none"


@dataclasses.dataclass(frozen=True)
class _Shard:
    """One file, all of it, as array_record wants it told."""

    filename: str
    take: int
    skip: int = 0

    @property
    def examples_in_shard(self) -> int:
        return self.take


class RecordFiles(Sequence):
    """The records of one split of one dataset, in the order in which they are stored.

    `records[i]` is {field: array, number or bytes of a text}.

    Args:
      store: folder of the store.
      part: the dataset in the store's manifest: its 'path' and 'files'.
      split: name of the split.

    Raises UserError for files that lie outside the store, are missing, or cannot be read.
    """

    def __init__(self, store: Path, part: Mapping[str, Any], split: str):
        self._fields = read_fields(safe_join(store, Path(part["path"], "features.json")))
        self._paths = shards_of(store, part, split)
        try:
            shards: Any = [_Shard(str(path), _count(path)) for path in self._paths]
            self._source = ArrayRecordDataSource(shards)
        except DAMAGE as error:
            raise UserError(
                f"{store}: the {split} records cannot be opened ({one_line(error)}); copy it again"
            ) from error
        self._ends = np.cumsum([shard.take for shard in shards])

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, place: int) -> dict[str, Any]:
        """Raises one of `DAMAGE` for a record that cannot be read, or a place where there is none."""
        if not 0 <= place < len(self):
            raise IndexError(place)
        raw = self._source[place]
        try:
            stored = Example.FromString(raw).features.feature
        except Exception as error:  # protobuf's own kind, which it shares with no other
            raise ValueError(f"no record of TFDS ({one_line(error)})") from error
        return {name: _decode(name, field, stored) for name, field in self._fields.items()}

    def path(self, place: int) -> Path:
        """The file that holds a record."""
        return self._paths[int(np.searchsorted(self._ends, place, side="right"))]


def _count(path: Path) -> int:
    reader = ArrayRecordReader(str(path))
    try:
        return reader.num_records()
    finally:
        reader.close()


def one_line(error: BaseException) -> str:
    """The beginning of an error's text, in one line."""
    return " ".join(str(error).split())[:100]


def shards_of(store: Path, part: Mapping[str, Any], split: str) -> list[Path]:
    """The array_record files of a split in their order. Raises UserError for names that leave the store, or gaps."""
    pattern = re.compile(rf".*-{re.escape(split)}\.array_record-(\d{{5}})-of-(\d{{5}})")
    found = sorted((name, match) for name in part["files"] if (match := pattern.fullmatch(name)))
    numbers = [int(match[1]) for _, match in found]
    if not found or numbers != list(range(int(found[0][1][2]))):
        raise UserError(f"{store / part['path']} lacks files of its {split} split; delete {store} and make it again")
    return [safe_join(store, name) for name, _ in found]


def read_fields(path: Path) -> dict[str, Field]:
    """Returns the fields that a features.json of TFDS describes, classes that it names unread.

    Fields that are neither tensor nor text are left out. Raises UserError for a file of another form, a type or an
    encoding that is not in `TYPES` and `ENCODINGS`, and for a shape that is none.
    """
    try:
        if path.stat().st_size > LARGEST_FEATURES:
            raise ValueError(f"it has {path.stat().st_size} bytes")
        told = plain_json.parse(path.read_bytes())["featuresDict"]["features"]
        return {
            name: Field() if "text" in told[name] else _tensor(told[name]["tensor"])
            for name in sorted(told)
            if "text" in told[name] or "tensor" in told[name]
        }
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); make the store again") from error
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        mend = "make the store again with this version"
        raise UserError(
            f"{path} does not describe records ({type(error).__name__}: {one_line(error)}); {mend}"
        ) from error


def _tensor(told: Mapping[str, Any]) -> Field:
    dtype, encoding = told["dtype"], told.get("encoding") or "none"
    if dtype not in TYPES or encoding not in ENCODINGS:
        raise ValueError(f"a tensor of type {dtype!r}, encoded as {encoding!r}")
    sizes = [int(size) for size in told.get("shape", {}).get("dimensions", ())]
    if any(not -1 <= size < 2**31 for size in sizes):
        raise ValueError(f"a tensor of shape {sizes}")
    return Field(tuple(None if size == -1 else size for size in sizes), np.dtype(dtype), encoding)


def _decode(name: str, field: Field, stored: Mapping[str, Any]) -> Any:
    """The value of one field of an Example: bytes, a number or an array."""
    several = field.shape.count(None) > 1  # then the shape is stored beside the values
    told = [int(n) for n in stored[f"{name}/shape"].int64_list.value] if several else field.shape
    values = _values(stored[f"{name}/value" if several else name])
    if field.dtype is None:
        return bytes(values[0])
    shape = _merged(told, field.shape)
    if field.encoding != "none":
        return np.frombuffer(_unpacked(values[0], field, shape), field.dtype).reshape(shape)
    array = np.array(values, field.dtype)
    return array.reshape(shape) if shape else field.dtype.type(array.item())


def _values(feature: Any) -> Any:
    kind = feature.WhichOneof("kind")
    if kind is None:
        raise ValueError("a field is empty")
    return getattr(feature, kind).value


def _merged(told: Sequence[int | None], declared: tuple[int | None, ...]) -> tuple[int, ...]:
    """A shape with -1 for at most one unknown length; what is stored with the values must fit what is declared."""
    fits = len(told) == len(declared) and all(d is None or d == t for t, d in zip(told, declared, strict=True))
    if not fits or any(t is not None and t < 0 for t in told):
        raise ValueError(f"an array of shape {tuple(told)} instead of {declared}")
    return tuple(-1 if size is None else size for size in told)


def _unpacked(data: bytes, field: Field, shape: tuple[int, ...]) -> bytes:
    """The bytes of a tensor; of packed ones not more than its shape has, whatever they would unfold to."""
    if field.encoding != "zlib":
        return data
    if -1 in shape:
        return zlib.decompress(data)
    assert field.dtype is not None
    size = math.prod(shape) * field.dtype.itemsize
    unpacked = zlib.decompressobj().decompress(data, size + 1)
    if len(unpacked) != size:
        raise ValueError(f"packed values do not unfold to {size} bytes")
    return unpacked
