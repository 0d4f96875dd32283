"""The examples of a store by their place: acquisitions as batches of `Measurement`, references as images."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from msm.builders.order import buckets_of
from msm.builders.pictures.store import unit_range
from msm.builders.record_files import DAMAGE, RecordFiles, one_line
from msm.infra.errors import UserError
from msm.operators.measurement import Measurement


class Records(Sequence):
    """The records of one split of one dataset, ordered by example id.

    Attributes:
      ids: (N,) int32, ascending.
      shapes: (N,2) int rows and columns of each, where a store has scans of several; else None.

    Reading raises UserError for a record that cannot be read or has numbers that are not finite.
    """

    def __init__(self, store: Path, part: dict[str, Any], split: str):
        if split not in part["ids"]:
            kept = " or ".join(sorted(part["ids"]))
            named = "eval.split, or tune.split of --mode=tune"
            raise UserError(f"{store / part['path']} has no split {split!r}: take {kept} ({named})")
        self._store = store
        stored = np.asarray(part["ids"][split], np.int32)  # TFDS shuffles records by the hash of their key
        self._order = np.argsort(stored)
        self.ids = stored[self._order]
        told = part.get("matrix", {}).get(split)
        self.shapes = None if told is None else np.asarray(told, int)[self._order]
        self._source = RecordFiles(store, part, split)
        if len(self._source) != len(stored):
            found = f"{len(self._source)} {split} records instead of {len(stored)}"
            raise UserError(f"{store / part['path']} holds {found}; delete {store} and make the store again")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        place = int(self._order[index])
        try:
            record = self._source[place]
        except DAMAGE as error:  # the file was cut or changed
            raise self._damage(index, f"cannot be read ({one_line(error)})") from error
        bad = [name for name, values in record.items() if not _all_finite(values)]
        if bad:
            raise self._damage(index, f"has numbers that are not finite ({', '.join(sorted(bad))})")
        return record

    def places(self, indices: Iterable[int]) -> dict[str, np.ndarray]:
        """Returns {'volume', 'slice'}: the names of the volumes that these belong to, (N,) of text, '' where a record
        names none, and the numbers that these slices have there, (N,) int32, -1 where a record has none."""
        records = [Records.__getitem__(self, int(index)) for index in indices]
        volumes = [record.get("volume", b"").decode(errors="replace") for record in records]
        return {
            "volume": np.array(volumes),
            "slice": np.array([record.get("slice", -1) for record in records], np.int32),
        }

    def most_alike(self) -> np.ndarray:
        """The places of all examples of the most frequent shape, ascending."""
        if self.shapes is None:
            return np.arange(len(self))
        return max(buckets_of(self.shapes), key=len)

    def _damage(self, index: int, what: str) -> UserError:
        path = self._source.path(int(self._order[index]))
        return UserError(f"{path}: example {self.ids[index]} {what}; delete {self._store} and make the store again")


def _all_finite(values: Any) -> bool:
    """Whether an array of a record has neither NaN nor infinity; texts and whole numbers never have."""
    array = np.asarray(values)
    if array.dtype.kind not in "fc":
        return True
    if array.dtype in (np.float32, np.complex64) and array.flags.c_contiguous:
        flat = array.reshape(-1).view(np.float32)
        if np.isfinite(np.dot(flat, flat)):  # a square is at least 0: none can hide another, and one pass is enough
            return True
    return bool(np.isfinite(array).all())


class _Parts(NamedTuple):
    """What a record holds of its example: y where `mask` is true (columns, entries or pixels), and the maps or None."""

    shape: tuple[int, ...]  # of the whole y
    y: np.ndarray
    mask: np.ndarray  # of the example, with axes of length 1
    maps: np.ndarray | None
    place: Any  # whole_y[place] takes `y`


def _scan_parts(record: dict[str, Any]) -> _Parts:
    """Of acquired k-space columns or entries: y (C,H,W), mask (1,1,W) or (1,H,W), maps (C,H,W)."""
    rows, columns = record.get("matrix", record["maps"].shape[1:])  # what is beyond fills up to the largest scan
    maps, mask = record["maps"][:, :rows, :columns], record["mask"][..., :columns]
    if mask.ndim == 1:
        return _Parts(maps.shape, record["y"][:, :rows], mask[None, None], maps, (..., np.flatnonzero(mask)))
    return _Parts(maps.shape, record["y"], mask[None, :rows], maps, (..., *np.nonzero(mask[:rows])))


def _picture_parts(record: dict[str, Any]) -> _Parts:
    """Of acquired pixels: y (H,W,K), mask (H,W,1), no maps."""
    mask, y = record["mask"], unit_range(record["y"])
    return _Parts((*mask.shape, y.shape[1]), y, mask[..., None], None, mask)


_PARTS = {"multicoil": _scan_parts, "images": _picture_parts, "ct": _picture_parts}


class Acquisitions(Records):
    """The acquisitions of one split, in the order of their ids.

    `acquisitions[i]` is one dense example without batch axis, a dict with the fields of `Measurement`: y, zero outside
    the mask; mask bool; maps; noise_std () float32; example_id () int32. Multi-coil k-space: y (C,H,W) complex64, mask
    (1,1,W) of lines or (1,H,W), maps (C,H,W) complex64. Images: y (H,W,K) float32, mask (H,W,1), maps None.
    """

    def __init__(self, store: Path, part: dict[str, Any], split: str, kind: str):
        super().__init__(store, part, split)
        self._parts = _PARTS[kind]

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = super().__getitem__(index)
        parts = self._parts(record)
        arrays = _empty(1, parts)
        _fill(arrays, 0, record, parts)
        return {name: None if array is None else array[0] for name, array in arrays.items()}

    def batch(self, indices: Iterable[int]) -> Measurement:
        """Returns the examples at these positions as one numpy Measurement; each is written into its row at once."""
        chosen = [int(index) for index in indices]
        arrays: dict[str, Any] = {}
        for row, index in enumerate(chosen):
            record = super().__getitem__(index)
            parts = self._parts(record)
            arrays = arrays or _empty(len(chosen), parts)
            _fill(arrays, row, record, parts)
        return Measurement(**arrays)

    def bytes_of_an_example(self) -> int:
        """Memory that the first example takes in a batch; 0 where there is none."""
        if not len(self):
            return 0
        arrays = _empty(1, self._parts(super().__getitem__(0)))
        return sum(array.nbytes for array in arrays.values() if array is not None)


def _empty(count: int, parts: _Parts) -> dict[str, Any]:
    """Arrays for `count` examples of the first one's shapes; y is 0 where nothing was acquired."""
    return {
        "y": np.zeros((count, *parts.shape), parts.y.dtype),
        "mask": np.empty((count, *parts.mask.shape), bool),
        "maps": None if parts.maps is None else np.empty((count, *parts.maps.shape), np.complex64),
        "noise_std": np.empty(count, np.float32),
        "example_id": np.empty(count, np.int32),
    }


def _fill(arrays: dict[str, Any], row: int, record: dict[str, Any], parts: _Parts) -> None:
    if parts.shape != arrays["y"].shape[1:] or parts.mask.shape != arrays["mask"].shape[1:]:
        raise ValueError(f"a batch of examples of shapes {arrays['y'].shape[1:]} and {parts.shape}")
    arrays["y"][row][parts.place] = parts.y
    arrays["mask"][row] = parts.mask
    if parts.maps is not None:
        arrays["maps"][row] = parts.maps
    arrays["noise_std"][row], arrays["example_id"][row] = record["noise_std"], record["example_id"]


class References(Records):
    """The reference images of one split, in the order of their ids: (H,W) complex64, of images (H,W,K) float32."""

    def __getitem__(self, index: int) -> np.ndarray:
        record = super().__getitem__(index)
        rows, columns = record.get("matrix", record["image"].shape[:2])
        return unit_range(record["image"][:rows, :columns])

    def batch(self, indices: Iterable[int]) -> np.ndarray:
        """Returns the images at these positions, (N,H,W) complex64 or (N,H,W,K) float32."""
        return np.stack([self[int(index)] for index in indices])
