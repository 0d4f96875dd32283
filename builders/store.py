"""Writes a data store: TFDS folders and a manifest that describes and guards them, for any source of examples.

A store appears whole or not at all: it is written beside its place and renamed. Layout:
  acquisitions/...   datasets 'undersampled' and 'full', splits train, validation, test
  references/...     reference images, splits validation, test
  manifest.json      kind, settings, record counts and ids, file sizes, statistics, licences, versions
"""

import contextlib
import fcntl
import importlib.metadata
import io
import json
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from msm.builders.manifest import find_problem, lies_inside
from msm.infra import plain_json
from msm.infra.errors import DISK_ERRORS, UserError

MANIFEST = "manifest.json"
REFERENCES = "references"
_LOCK = "lock"  # in the folder in which a store grows: held as long as the process lives, however it ends
_PACKAGES = ("numpy", "jax", "tensorflow-datasets", "array_record")

# What a manifest must have, beside the settings that the config determines; docs/data.md says what they mean.
REQUIRED = ("settings", "settings.noise_std", "acquisitions", "references", "counts", "sigma_data")
_OF_A_DATASET = ("path", "files", "ids")
Records = Mapping[str, Mapping[str, Sequence]]  # dataset name -> split -> its records


class Source(Protocol):
    """Where examples come from: what each kind of store (`builders/demo/heads.py`, say) provides."""

    def identity(self) -> dict[str, Any]:
        """JSON values that two stores must share to be the same.

        What the config checks is the dict 'settings', here or, where it is known only afterwards, in `describe`.
        """
        ...

    def load(self, scratch: Path) -> None:
        """Reads what the builders need; may be slow and tell so. `scratch` takes temporary files until all is done."""
        ...

    def get_builders(self, folder: Path) -> dict[str, tfds.core.GeneratorBasedBuilder]:
        """TFDS builders that write below `folder`, by dataset: acquisitions by name, 'references' if there are."""
        ...

    def describe(self, records: Records) -> dict[str, Any]:
        """The source's own part of the manifest: 'kind', 'acceleration', 'sigma_data', 'licences', 'notes', ...

        What it computes of images it computes from `records['undersampled']`: statistics need no clean image.
        """
        ...


def refuse(values: Mapping[str, Any], rules: Iterable[tuple[str, bool, str]]) -> None:
    """Raises UserError that tells every broken rule, one line each: (name of a flag, whether it holds, what holds)."""
    broken = [f"--{name} is {values[name]}: it must be {rule}" for name, holds, rule in rules if not holds]
    if broken:
        raise UserError("\n".join(broken))


def missing_files(store: Path, manifest: dict) -> list[str]:
    """Returns the files of a store that are absent or not of the size that the manifest notes (a truncated copy)."""
    parts = [*manifest["acquisitions"].values(), manifest["references"]]
    sizes = {name: size for part in parts for name, size in part["files"].items()}
    return [n for n, size in sizes.items() if not _has_size(store, n, size)]


def _has_size(store: Path, name: str, size: int) -> bool:
    return lies_inside(store, name) and (store / name).is_file() and (store / name).stat().st_size == size


def missing_keys(manifest: dict[str, Any]) -> list[str]:
    """Returns what a manifest lacks of `REQUIRED` and of what every dataset must have, as 'a.b.c'."""
    return [name for name in (*REQUIRED, *_dataset_keys(manifest)) if not _has(manifest, name)]


def _dataset_keys(manifest: dict[str, Any]) -> list[str]:
    """The keys that a manifest must have because of the datasets it names."""
    acquisitions = manifest["acquisitions"]
    parts = [f"acquisitions.{name}" for name in (acquisitions if isinstance(acquisitions, dict) else ())]
    return [f"{part}.{key}" for part in [*parts, "references"] for key in _OF_A_DATASET]


def _has(manifest: Any, name: str) -> bool:
    """Whether a manifest has the key 'a.b.c'."""
    for key in name.split("."):
        if not isinstance(manifest, dict) or key not in manifest:
            return False
        manifest = manifest[key]
    return True


def noise_std(manifest: Mapping[str, Any]) -> float:
    """Noise per real scalar of a store's acquisitions: where its pictures had noise of their own, with that."""
    return float(manifest.get("noise_std", manifest["settings"]["noise_std"]))


def config_flags(settings: dict[str, Any]) -> str:
    """The flags that make a config fit a store of multi-coil scans with these settings."""
    names = {"image_size": "data", "num_coils": "data", "mask": "masks", "acceleration": "masks", "acs_lines": "masks"}
    keys = {"mask": "name"}
    size = settings["image_size"]
    values = settings | {"image_size": size if isinstance(size, int) else ",".join(map(str, size))}
    return " ".join(f"--config.{section}.{keys.get(n, n)}={values[n]}" for n, section in names.items())


def prepare_store(out: Path, source: Source) -> tuple[dict, bool]:
    """Makes the store unless it is there.

    Args:
      out: folder of the store.
      source: what it is made of.

    Returns:
      (manifest, whether anything was written). A complete store of the same identity is left alone; a damaged one of
      the same identity is made again. What preparations killed on this machine left beside it is deleted.

    Raises:
      UserError: `out` holds another store, or something else; or what the source raises.
    """
    wanted = source.identity()
    found = _existing(out)
    _drop_leftovers(out)
    if found:
        grouped = [name for name, value in wanted.items() if isinstance(value, dict)]
        old, new = ({**i, **{k: v for name in grouped for k, v in _table(i, name).items()}} for i in (found, wanted))
        differing = [f"{k} {old.get(k)} instead of {v}" for k, v in new.items() if k not in grouped and old.get(k) != v]
        if differing:
            raise UserError(f"{out} is a store with {', '.join(differing)}: choose another --out or delete that folder")
        if _is_whole(out, found):
            return found, False
    temporary = out.parent / (_temporary_prefix(out) + secrets.token_hex(4))
    made, scratch = temporary / "store", temporary / "scratch"
    try:
        temporary.mkdir(parents=True)
        with (temporary / "unlocked").open("w") as lock:
            with contextlib.suppress(OSError):  # a file system without locks: nobody else can take it either
                fcntl.flock(lock, fcntl.LOCK_EX)
            os.rename(lock.name, temporary / _LOCK)  # so that it is never there without being held
            for folder in (made, scratch):
                folder.mkdir()
            manifest = _write(made, scratch, source) | wanted
            (made / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
            if out.exists():
                os.rename(out, temporary / "damaged")
            os.rename(made, out)
    except OSError as error:
        if not made.exists() or error.errno in DISK_ERRORS:
            mend = "make room, mend the permissions or choose another --out"
            raise UserError(f"cannot write the store {out} ({error.strerror}): {mend}") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest, True


def _temporary_prefix(out: Path) -> str:
    """How the names of temporary folders of this store begin on this machine: locks may not reach others."""
    return f".{out.name}.tmp-{re.sub('[^A-Za-z0-9]', '_', platform.node())}-"


def _drop_leftovers(out: Path) -> None:
    """Deletes the folders in which processes that were killed were making this store: nobody holds their locks.

    Those of other machines stay, and one whose process was killed before it had its lock, which is empty.
    """
    for folder in out.parent.glob(".*.tmp-*"):
        if re.fullmatch(re.escape(_temporary_prefix(out)) + "[0-9a-f]{8}", folder.name):
            with contextlib.suppress(OSError), (folder / _LOCK).open("r+") as lock:  # none: just begun, or not ours
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


def _existing(out: Path) -> dict | None:
    """Returns the manifest of the store at `out`, {} for a store without a readable one, None if nothing is there."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    known = {MANIFEST, "acquisitions", "references"}
    if not out.is_dir() or {entry.name for entry in out.iterdir()} - known:
        raise UserError(f"{out} exists and is not a data store: choose another --out")
    try:
        found = plain_json.parse((out / MANIFEST).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}  # the damaged store is made again
    return found if isinstance(found, dict) else {}


def _table(manifest: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = manifest.get(name)
    return value if isinstance(value, dict) else {}


def _is_whole(out: Path, manifest: dict) -> bool:
    """Whether a store is there with all that its manifest names."""
    named = isinstance(manifest.get("acquisitions"), dict) and not missing_keys(manifest)
    return named and not find_problem(out, manifest) and not missing_files(out, manifest)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences what TFDS prints and logs: downloads that do not happen, temporary paths, one bar per split."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


@contextlib.contextmanager
def _same_bytes() -> Iterator[None]:
    """Makes TFDS write the features of a record in one order; protobuf's own order changes from process to process."""

    def serialize(self: ExampleSerializer, example: Any) -> bytes:
        return self.get_tf_example(example).SerializeToString(deterministic=True)

    original = ExampleSerializer.serialize_example
    ExampleSerializer.serialize_example = serialize
    try:
        yield
    finally:
        ExampleSerializer.serialize_example = original


def _write(folder: Path, scratch: Path, source: Source) -> dict:
    """Writes all datasets below `folder` and returns their part of the manifest."""
    download = tfds.download.DownloadConfig(try_download_gcs=False)
    datasets: dict[str, dict] = {}
    records: dict[str, dict[str, Sequence]] = {}
    source.load(scratch)
    with _quiet(), _same_bytes():
        for name, builder in source.get_builders(folder).items():
            builder.download_and_prepare(file_format="array_record", download_config=download)
            path = Path(builder.data_dir)
            read: Any = builder.as_data_source  # its decorator hides the parameters from type checkers
            records[name] = {split: read(split=split) for split in builder.info.splits}
            datasets[name] = {
                "path": str(path.relative_to(folder)),
                "files": {str(f.relative_to(folder)): f.stat().st_size for f in sorted(path.iterdir())},
                # ids in the order of the records, which TFDS shuffles
                "ids": {split: [int(r["example_id"]) for r in stored] for split, stored in records[name].items()},
                **_matrices(records[name]),
            }
        described = source.describe(records)
    references = datasets.pop(REFERENCES, {"path": REFERENCES, "files": {}, "ids": {}})
    return {
        "acquisitions": datasets,
        "references": references,
        "counts": {split: len(ids) for split, ids in datasets["undersampled"]["ids"].items()},
        "versions": {package: importlib.metadata.version(package) for package in _PACKAGES},
        **described,
    }


def _matrices(records: dict[str, Sequence]) -> dict[str, dict]:
    """{'matrix': ...}, by split the rows and columns of every record in their order; {} where all are alike."""
    first = next(iter(records.values()))
    if "matrix" not in (first[0] if len(first) else {}):
        return {}
    return {"matrix": {split: [[int(n) for n in r["matrix"]] for r in stored] for split, stored in records.items()}}
