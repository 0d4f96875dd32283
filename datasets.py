"""From a data store to batches of `Measurement`: the training stream, whole splits, and evaluation batches.

The training stream reads acquisitions only. References are opened by `open_references` alone, which nothing in training
calls. A store is checked against its manifest and the config before any record is read.
"""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np

from msm.builders.examples import Acquisitions, References
from msm.builders.manifest import find_problem
from msm.builders.order import bucket_batch, buckets_of, epoch_order, spread
from msm.builders.store import config_flags, missing_keys
from msm.infra import plain_json
from msm.infra.errors import UserError
from msm.infra.sharding import local_share
from msm.operators.measurement import PADDING_ID, EvalExample, Measurement
from msm.operators.shape import as_stored, told
from msm.operators.tasks import get_measure_fn
from msm.operators.transform import get_transform

_ENDLESS = 2**40  # batches
_MOST_READERS = 16
_MOST_WAITING = 2 * 2**30  # bytes of batches that wait for the device


def dataset_info(config, acquisition: str = "") -> dict[str, Any]:
    """Returns the manifest of the store at `config.data.dir`, after checking it against the config.

    Keys used by the program: `builders.store.REQUIRED`, and where they are there 'kind', 'acceleration' ('nominal',
    'effective' per split), 'notes', 'command'. Raises UserError for a missing or unreadable manifest or one that lacks
    a required key, missing or truncated acquisition files, or a store of another kind, image size, coil count or mask
    distribution than the config's.
    """
    store = Path(config.data.dir)
    manifest = _read_manifest(config)
    kind, expected = _kind(manifest), _wanted_kind(config)
    if kind != expected:
        raise UserError(
            f"{store} holds {_CONTENTS[kind]}, but transform.name {config.transform.name!r} measures "
            f"{_CONTENTS[expected]}: change data.dir or transform.name"
        )
    wanted = _wanted_settings(config)
    differing = [
        f"{name} {manifest['settings'].get(name)} (config: {value})"
        for name, value in wanted.items()
        if manifest["settings"].get(name) != value
    ]
    if differing:
        mend = f"make another store: {_command(kind, wanted, 0, 'OTHER_FOLDER')} and set data.dir to it"
        if "prepare_mri" in manifest.get("command", ""):  # what was measured is as it is
            mend = f"for this store, {config_flags(manifest['settings'])}"
        raise UserError(f"{store} was made with {', '.join(differing)}; change the config or {mend}")
    name = acquisition or config.data.acquisition
    if name not in manifest["acquisitions"]:
        known = ", ".join(sorted(manifest["acquisitions"]))
        raise UserError(f"acquisition {name!r} is asked for, but {store} holds {known}: change data.acquisition")
    _check_files(store, manifest, manifest["acquisitions"][name])
    return manifest


_CONTENTS = {"multicoil": "multi-coil k-space", "images": "pictures", "ct": "CT slices"}


def _kind(manifest: dict[str, Any]) -> str:
    return manifest.get("kind", "multicoil")


def _wanted_kind(config) -> str:
    return "multicoil" if config.data.num_coils else "ct" if config.transform.name == "grey" else "images"


def _wanted_settings(config) -> dict[str, Any]:
    """The part of a store's settings that the config determines."""
    masks = config.masks
    common = {"image_size": as_stored(config.data.image_size), "mask": masks.name}
    if config.data.num_coils == 0:
        return common | {"grid": masks.grid, "drop": masks.drop}
    return common | {
        "num_coils": config.data.num_coils, "acceleration": masks.acceleration, "acs_lines": masks.acs_lines
    }  # fmt: skip


def _command(kind: str, settings: dict[str, Any], max_slices: int, folder: str | Path) -> str:
    """The command that makes a store of these settings."""
    flags = {"size": told(settings["image_size"])}
    names = ("num_coils", "mask", "acceleration", "acs_lines", "grid", "drop", "noise_std", "seed")
    flags |= {name: settings[name] for name in names if name in settings}
    flags |= {"max_slices": max_slices} if max_slices else {}
    text = " ".join(f"--{name} {f'{value:g}' if isinstance(value, float) else value}" for name, value in flags.items())
    if "num_coils" in settings:
        return f"python tools/prepare_demo.py {text} --out {folder}"
    tool, demo = ("ct", "--lungs") if kind == "ct" else ("images", "--photos")
    own = f"with --folder DIR in place of {demo} for data of your own"
    return f"python tools/prepare_{tool}.py {demo} {text} --out {folder} ({own})"


def _read_manifest(config) -> dict[str, Any]:
    path = Path(config.data.dir) / "manifest.json"
    mend = f"make the store: {_command(_wanted_kind(config), _wanted_settings(config), 0, config.data.dir)}"
    if Path(config.data.dir).parts[:1] != ("store",):  # not where the configs look: the demo does not belong there
        tool = {"images": "images.py --folder", "ct": "ct.py --folder"}.get(_wanted_kind(config), "mri.py --in")
        mend = f"data.dir must name a store: make one by python tools/prepare_{tool} YOURS --out {config.data.dir}"
    try:
        manifest = plain_json.parse(path.read_bytes())
    except OSError as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise UserError(f"{path} {what}; {mend}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged; {mend}") from error
    if not isinstance(manifest, dict) or not {"settings", "acquisitions", "references"} <= set(manifest):
        raise UserError(f"{path} is not the manifest of a data store; {mend}")
    missing = missing_keys(manifest)
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: add what docs/reference/store.md says of them, or {mend}")
    if problem := find_problem(path.parent, manifest):
        raise UserError(f"{path} cannot be used, {problem}; {mend}")
    return manifest


def _check_files(store: Path, manifest: dict[str, Any], part: dict[str, Any]) -> None:
    """Raises UserError unless every file of a dataset is there with the size that the manifest notes."""
    for name, size in part["files"].items():
        path = store / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes instead of {size}"
            made = f"{manifest['command']} --out {store}" if "command" in manifest else None
            mend = made or _command(_kind(manifest), manifest["settings"], manifest.get("max_slices", 0), store)
            raise UserError(f"{path} {state}; make the store again: {mend}")


def open_acquisitions(config, split: str, acquisition: str = "") -> Acquisitions:
    """Opens one split of the acquisitions named `acquisition`, else `config.data.acquisition`.

    Raises UserError: see `dataset_info`.
    """
    manifest = dataset_info(config, acquisition)
    part = manifest["acquisitions"][acquisition or config.data.acquisition]
    return Acquisitions(Path(config.data.dir), part, split, _kind(manifest))


def load_measurements(config, split: str) -> Measurement:
    """Reads a whole split into one numpy Measurement, in the order of ids. Raises UserError: see `dataset_info`."""
    acquisitions = open_acquisitions(config, split)
    return acquisitions.batch(range(len(acquisitions)))


def get_train_iterator(
    config, process_index: int | None = None, process_count: int | None = None
) -> grain.DatasetIterator[Measurement]:
    """Returns the endless training stream of this process: numpy Measurements of batch_size / process_count examples.

    The stream of global batches depends on `config.seed` alone (`epoch_order`, and where scans have several shapes
    `bucket_batch`: a batch holds scans of one); process i of n takes the i-th of n
    equal parts of each, so any number of processes trains on the same batches. The iterator has get_state and
    set_state, and resumes exactly, also within an epoch.

    Args:
      config: uses data, masks, training.batch_size and seed.
      process_index: of this process; None asks JAX.
      process_count: number of processes; None asks JAX.

    Raises:
      UserError: the batch size is not a multiple of the number of processes; or see `dataset_info`.
    """
    index = jax.process_index() if process_index is None else process_index
    count = jax.process_count() if process_count is None else process_count
    batch_size = config.training.batch_size
    if batch_size < 1 or batch_size % count:
        raise UserError(f"training.batch_size is {batch_size}; make it a positive multiple of the {count} processes")
    acquisitions = open_acquisitions(config, "train")
    share = batch_size // count
    buckets = None if acquisitions.shapes is None else buckets_of(acquisitions.shapes)

    def read(step: int) -> Measurement:
        if buckets is not None:
            whole = bucket_batch(config.seed, buckets, step, batch_size)
            return acquisitions.batch(whole[index * share : (index + 1) * share])
        start = step * batch_size + index * share
        return acquisitions.batch(epoch_order(config.seed, len(acquisitions), start, share))

    size = share * acquisitions.bytes_of_an_example()
    return iter(grain.MapDataset.range(_ENDLESS).map(read).to_iter_dataset(_read_options(size)))


def _read_options(batch_bytes: int) -> grain.ReadOptions:
    """Threads that read batches, one per core of this process, and how many batches may wait for the device."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    waiting = max(2, min(2 * cores, _MOST_WAITING // max(1, batch_bytes)))
    return grain.ReadOptions(num_threads=max(2, min(cores, waiting, _MOST_READERS)), prefetch_buffer_size=waiting)


def open_references(config, split: str) -> References:
    """Opens the references of a split, for evaluation and reports only; the train split has none.

    Raises UserError as `dataset_info` does, for a split without references, and for missing or truncated files of them.
    """
    store, manifest = Path(config.data.dir), dataset_info(config)
    if split not in manifest["references"]["ids"]:
        raise UserError(
            f"{store} has no references of split {split!r}: only task.name 'acquired' and sampling.reference_split "
            "'none' do without"
        )
    _check_files(store, manifest, manifest["references"])
    return References(store, manifest["references"], split)


def has_references(config, split: str) -> bool:
    """Whether the store's manifest lists references of a split; raises UserError as `dataset_info` does."""
    return split in dataset_info(config, config.eval.acquisition)["references"]["ids"]


def eval_batches(config, split: str, batch_size: int, max_examples: int = 0) -> Iterator[EvalExample]:
    """Yields the examples of a split with their references, in the order of ids, in batches of one size.

    Where the store has no references of the split, there are none in the examples, and only 'acquired' can be the task.
    Measurements are the store's where `config.task.name` is 'acquired'; else they are simulated from the references,
    with masks and noise that depend on the task's seed and the example's id alone, and the store's coil maps.

    Args:
      config: uses data, masks and task.
      split: 'validation' or 'test'; 'train' too where there are no references.
      batch_size: examples per batch, of which each process reads its share; the last batch is filled up with copies of
        its first example whose id is -1.
      max_examples: 0, or how many examples, evenly spread over the split.

    Raises:
      UserError: see `dataset_info` and `open_references`; raised by the call, before the first batch is asked for.
    """
    acquisitions = open_acquisitions(config, split, config.eval.acquisition)
    if config.task.name == "acquired" and not has_references(config, split):
        chosen = _shares(acquisitions, batch_size, max_examples)
        return (
            EvalExample(_mark_padding(acquisitions.batch(padded), real), None, **acquisitions.places(padded))
            for padded, real in chosen
        )
    references = open_references(config, split)
    if not np.array_equal(acquisitions.ids, references.ids):
        raise UserError(
            f"{config.data.dir}: ids of acquisitions and references of split {split!r} differ; make it again"
        )
    simulated = get_measure_fn(config, get_transform(config))

    def batches() -> Iterator[EvalExample]:
        for padded, real in _shares(acquisitions, batch_size, max_examples):
            measurement = acquisitions.batch(padded)
            images = references.batch(padded)
            measurement, unknown = (measurement, None) if simulated is None else simulated(images, measurement)
            yield EvalExample(_mark_padding(measurement, real), images, **references.places(padded), unknown=unknown)

    return batches()


def measurement_batches(config, split: str, batch_size: int, max_examples: int = 0) -> Iterator[Measurement]:
    """Yields the measurements of `eval_batches`; where the store's acquisitions are the task it opens no reference.

    References need not exist then. A task that is simulated from them reads them, and hands none of them on.

    Args, Raises: as `eval_batches`; `split` may be 'train' too where `config.task.name` is 'acquired'.
    """
    if config.task.name != "acquired":
        return (example.measurement for example in eval_batches(config, split, batch_size, max_examples))
    acquisitions = open_acquisitions(config, split, config.eval.acquisition)
    chosen = _shares(acquisitions, batch_size, max_examples)
    return (_mark_padding(acquisitions.batch(padded), real) for padded, real in chosen)


def _shares(records: Acquisitions, batch_size: int, max_examples: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """This process's share of the batches of `spread`."""
    return map(local_share, spread(len(records), records.shapes, batch_size, max_examples))


def _mark_padding(measurement: Measurement, real: np.ndarray) -> Measurement:
    """The batch with PADDING_ID as id of all examples that are not `real`."""
    ids = np.where(real, measurement.example_id, PADDING_ID).astype(np.int32)
    return dataclasses.replace(measurement, example_id=ids)
