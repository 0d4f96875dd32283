"""Reads .npy and .npz files whose headers are held against the file before anything is allocated."""

import ast
import math
import os
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

from msm.builders.border import check_size
from msm.infra.errors import UserError

_LONGEST_HEADER = 10_000  # numpy's own default: beyond it, parsing may take for ever
_COPIES = 3  # of an array that a reader holds at a time, about


def load_array(path: Path) -> np.ndarray:
    """The array of a .npy file. Raises UserError for a damaged file, pickled objects and what --max_gb forbids."""
    with path.open("rb") as file:
        return _load(file, os.fstat(file.fileno()).st_size, "the file")


class Archive:
    """The arrays of a .npz file by name, each read when it is asked for; a context manager."""

    def __init__(self, path: Path):
        try:
            self._zip = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise UserError(
                f"the file cannot be read, it is no .npz file or damaged ({error}); copy it again"
            ) from error
        names = [name for name in self._zip.namelist() if name.endswith(".npy")]
        self.names = [name.removesuffix(".npy") for name in names]

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self):
        return iter(self.names)

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self._zip.getinfo(f"{name}.npy")
        with self._zip.open(entry) as file:
            return _load(file, entry.file_size, f"array {name!r}")

    def find(self, name: str) -> np.ndarray | None:
        """The array of a name, None if there is none."""
        if name not in self:
            return None
        return self[name]


def _load(file, size: int, what: str) -> np.ndarray:
    """An array of a stream of `size` bytes, which is not taken at its header's word."""
    shape, fortran, dtype, start = read_header(file, what)
    count = math.prod(shape)
    if start + count * dtype.itemsize > size:
        raise UserError(
            f"{what} cannot be read, it has {size} bytes and its header says {dtype} {shape}; copy it again"
        )
    check_size(what, _COPIES * count, dtype.itemsize)
    values = np.empty(count, dtype)
    view, place = memoryview(values.view(np.uint8).data) if count else memoryview(b""), 0
    while place < len(view):
        chunk = file.read(min(len(view) - place, 2**24))
        if not chunk:
            raise UserError(f"{what} cannot be read, it ends before its {dtype} {shape} values; copy it again")
        view[place : place + len(chunk)] = chunk
        place += len(chunk)
    return values.reshape(shape, order="F" if fortran else "C")


def read_header(file: BinaryIO, what: str) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """(shape, whether in Fortran's order, type, bytes until the values) of a .npy stream.

    Raises UserError for a header of another form, and for types of other than numbers.
    """
    magic = file.read(8)
    if magic[:6] != b"\x93NUMPY" or magic[6] not in (1, 2, 3):
        raise UserError(
            f"{what} cannot be read, it does not begin as a .npy file; copy it again, or save it by numpy.save"
        )
    form = "<H" if magic[6] == 1 else "<I"
    told = file.read(struct.calcsize(form))
    length = struct.unpack(form, told)[0] if len(told) == struct.calcsize(form) else _LONGEST_HEADER + 1
    if length > _LONGEST_HEADER:
        raise UserError(f"{what} cannot be read, its header is damaged; copy it again")
    try:
        header = ast.literal_eval(file.read(length).decode("latin1").strip())
        shape, descr, fortran = header["shape"], header["descr"], header["fortran_order"]
        dtype = np.lib.format.descr_to_dtype(descr)
    except Exception as error:  # of a parser that is given anything: a dozen kinds
        raise UserError(
            f"{what} cannot be read, its header is damaged ({type(error).__name__}); copy it again"
        ) from error
    sizes = isinstance(shape, tuple) and len(shape) <= 32 and all(type(n) is int and 0 <= n < 2**48 for n in shape)
    if not sizes or not isinstance(fortran, bool):
        raise UserError(f"{what} cannot be read, its header is damaged (shape {str(shape)[:80]}); copy it again")
    if dtype.hasobject or not dtype.itemsize or dtype.subdtype is not None:
        raise UserError(f"{what} holds {dtype}, no numbers: save it without pickled objects")
    return shape, fortran, dtype, 8 + len(told) + length
