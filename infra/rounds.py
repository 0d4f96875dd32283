"""The rounds of a long run, on disk: each knows what it was computed from, so that only equal work is reused."""

import functools
import hashlib
import logging
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from msm.infra import links, preemption, sharding
from msm.infra.atomic import atomic_file, atomic_write_npz, drop_unfinished
from msm.infra.errors import UserError
from msm.infra.progress import Progress

SCIENCE = (
    *("losses.py", "sampling.py", "predictor_corrector.py", "sde_lib.py", "datasets.py", "experiment.py"),
    *("modes/evaluate.py", "modes/sample.py", "evaluation", "models", "operators", "solvers"),
)
# Sections of the config that decide no result of a given network: how it was trained, what else is drawn from it, and
# what the store's manifest says. Of `eval` and `tune` some settings do: who asks adds them.
_OF_NO_RESULT = ("data", "optim", "training", "em", "sampling", "eval", "tune")
_OF_NO_DATA = ("notes", "licences", "versions")  # in a store's manifest

Arrays = Mapping[str, np.ndarray]


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
    settings = {
        name: section.to_dict()
        for name, section in sections
        if isinstance(section, ConfigDict) and name not in _OF_NO_RESULT
    }
    return settings | {"data": {"augment": tuple(config.data.augment)}}  # the symmetries that solvers draw from


def stamp(
    config: ConfigDict, params: Any, info: Mapping[str, Any], sections: Iterable[str] | None = None, **own: Any
) -> str:
    """What a result depends on: two of equal stamps are the same.

    Args:
      config: of the experiment.
      params: of the network, or None.
      info: the manifest of the data.
      sections: of the config that the result depends on; None for all of `settings_of`.
      own: what else it depends on.
    """
    settings = settings_of(config)
    told = {name: settings[name] for name in (settings if sections is None else sections)}
    data = {name: value for name, value in info.items() if name not in _OF_NO_DATA}
    return repr((config.seed, told, own, checksum(params), code_checksum(), data))


@dataclass(frozen=True)
class Round:
    """One file of finished work: `number` of the run, computed from what `stamp` says."""

    number: int
    path: Path
    stamp: str

    def arrays(self) -> dict[str, np.ndarray]:
        """What the file holds. Raises UserError where it is not what was written."""
        found = read(self.path, self.stamp)
        if found is None:
            raise UserError(f"{self.path} was changed while the run went on: start the same command again")
        return found


def run_rounds(folder: Path, stamps: Sequence[str], compute: Callable[[int], Arrays], name: str) -> list[Round]:
    """Computes the rounds that `folder` does not have yet and deletes those beyond; all processes call it together.

    Args:
      folder: of the results; process 0 alone reads and writes it.
      stamps: of the rounds 0, 1, ...
      compute: computes the arrays of a round, on all processes.
      name: of the work, for the progress line.

    Returns:
      All rounds. Raises Stopped after SIGTERM or SIGINT, with the round finished.
    """
    first = jax.process_index() == 0
    if first:
        drop_unfinished(folder)
    planned = [Round(number, path_of(folder, number), stamp) for number, stamp in enumerate(stamps)]
    missing = np.array([first and read(this.path, this.stamp) is None for this in planned], np.int32)
    missing = np.flatnonzero(sharding.from_first(missing))  # the others may not see the folder of process 0
    done = len(planned) - len(missing)
    if done:
        logging.info("%d of %d rounds are there already", done, len(planned))
    with preemption.watch() as notice, Progress(len(planned), done, name, unit="round") as progress:
        for count, number in enumerate(missing, start=1):
            arrays = compute(int(number))
            if first:
                write(planned[number].path, planned[number].stamp, arrays)
            progress.update(done + count)
            if notice.reached(count) and count < len(missing):
                notice.stop(f"{done + count} of {len(planned)} rounds")
    if first:
        drop_beyond(folder, len(planned))
    return planned


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
