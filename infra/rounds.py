"""Finished rounds of a long run on disk: each knows what it was computed from, so that only equal work is reused."""

import functools
import hashlib
import logging
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from msm.infra import links
from msm.infra.atomic import atomic_file, atomic_write_npz

SCIENCE = (
    *("losses.py", "sampling.py", "predictor_corrector.py", "sde_lib.py", "datasets.py"),
    *("modes/reconstruction.py", "modes/sample.py", "evaluation", "models", "operators", "solvers"),
)
# Sections of the config that decide no result of a given network: how it was trained, what else is drawn from it, and
# what the store's manifest says. Of `eval` and `tune` some settings do: who asks adds them.
_OF_NO_RESULT = ("data", "optim", "training", "sampling", "eval", "tune")


def checksum(params: Any) -> int:
    """CRC-32 over all parameters: equal networks, equal number, whatever folder they came from."""
    total = 0
    for leaf in jax.tree.leaves(params):
        local = leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf  # parameters are replicated
        total = zlib.crc32(np.ascontiguousarray(local).tobytes(), total)
    return total


@functools.cache
def code_checksum() -> int:
    """CRC-32 of every Python file that decides what a round holds: a corrected solver does not keep old results."""
    root, total = Path(__file__).resolve().parent.parent, 0
    for name in SCIENCE:
        for path in [root / name] if name.endswith(".py") else sorted((root / name).glob("*.py")):
            total = zlib.crc32(path.read_bytes(), total)
    return total


def settings_of(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """{section: {setting: value}} of all that a solver's result depends on, whichever solver it is."""
    sections = config.copy_and_resolve_references().items()
    return {
        name: section.to_dict()
        for name, section in sections
        if isinstance(section, ConfigDict) and name not in _OF_NO_RESULT
    }


def path_of(folder: Path, index: int) -> Path:
    return folder / "rounds" / f"round_{index:04d}.npz"


def read(path: Path, stamp: str) -> dict[str, np.ndarray] | None:
    """Returns a finished round, or None if there is none of this stamp; a damaged file counts as none, and is told."""
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if str(stored["stamp"]) != stamp:
                return None
            return {name: stored[name] for name in stored.files if name != "stamp"}
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, zlib.error) as error:
        logging.warning("%s is damaged (%s): this round is computed again", path, error)
        return None


def write(path: Path, stamp: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a round, whole or not at all."""
    atomic_write_npz(path, **arrays, stamp=np.array(stamp))


def drop_beyond(folder: Path, count: int) -> None:
    """Deletes rounds of an earlier evaluation that had more of them: who reads the folder must not meet them."""
    expected = {path_of(folder, index) for index in range(count)}
    links.check(path_of(folder, 0))  # what it deletes must be the run's
    for path in (folder / "rounds").glob("round_*.npz"):
        if path not in expected:
            path.unlink()


def join(path: Path, name: str, parts: Iterable[np.ndarray], shape: tuple[int, ...], dtype, **small: np.ndarray) -> str:
    """Writes an uncompressed .npz whose array `name` is the concatenation of `parts`, held one at a time.

    Args:
      shape, dtype: of the whole array.
      small: further arrays.

    Returns:
      The SHA-256 of the array's bytes in hexadecimal, which the file holds as 'digest'.
    """
    digest = hashlib.sha256()
    with atomic_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        for key, value in small.items():
            with archive.open(f"{key}.npy", "w") as member:
                np.lib.format.write_array(member, np.asarray(value), allow_pickle=False)
        with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
            described = np.lib.format.dtype_to_descr(np.dtype(dtype))
            header = {"descr": described, "fortran_order": False, "shape": tuple(shape)}
            np.lib.format.write_array_header_2_0(member, header)
            for part in parts:
                content = np.ascontiguousarray(part, dtype).tobytes()
                digest.update(content)
                member.write(content)
        with archive.open("digest.npy", "w") as member:
            np.lib.format.write_array(member, np.array(digest.hexdigest()), allow_pickle=False)
    return digest.hexdigest()
