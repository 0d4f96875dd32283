"""TFDS builders and source of stores of raw scans: what a scanner measured, and, apart, images of fully sampled scans.

Records have the fields of the demo's stores (`builders/demo/heads.py`). Acquisitions hold what was acquired and nothing
else. References exist for a split whose scans are all fully sampled; they lie in another folder, and none is of train.
"""

import abc
import dataclasses
import functools
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from msm.builders import border
from msm.builders.pictures.folder import example_ids
from msm.builders.pictures.store import SPLITS
from msm.builders.raw import RawVolume
from msm.builders.records import complex_tensor, scalar
from msm.builders.scans import subjects as scan_files
from msm.builders.scans.scan import Options, Scan, load_scan, pack, prepare_scan, save_scan
from msm.builders.scans.statistics import describe_acquisitions
from msm.builders.store import REFERENCES, Records
from msm.infra import links
from msm.infra.errors import UserError
from msm.infra.progress import Progress
from msm.operators.shape import as_stored

DATA_VERSION = "1.0.3"
ENTRIES = "cartesian_poisson_disc"  # what a store of 2-D masks that were acquired names as its kind of masks
MOST_SLICES = 1024  # ids of a volume: one of 2^21 numbers, from its path, times this, plus the slice


@dataclasses.dataclass(frozen=True)
class Stored:
    """A prepared scan on disk. `facts`: of `builders.scan.Scan`."""

    name: str
    first_id: int
    path: Path
    facts: dict[str, Any]

    def load(self) -> Scan:
        return load_scan(self.path)


@dataclasses.dataclass
class ScanConfig(tfds.core.BuilderConfig):
    """A named variant: the scans by split, the rows, columns and coils that hold each, and whether masks are lines.

    `several`: whether scans differ in rows or columns.
    """

    scans: Mapping[str, Sequence[Stored]] = dataclasses.field(default_factory=dict, repr=False)  # TFDS logs this
    rows: int = 0
    columns: int = 0
    coils: int = 0
    lines: bool = True
    several: bool = False


class _Scans(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version(DATA_VERSION)
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "1.0.0": "First version.",
        "1.0.1": "ESPIRiT of fewer than 11 lines has two kernels.",
        "1.0.2": "2-D masks are detected; noise_std of fully sampled scans from what the drawn mask keeps.",
        DATA_VERSION: "Rows and columns may differ; no axis is filled up.",
    }

    @abc.abstractmethod
    def _features(self) -> dict:
        """The fields of a record."""

    @abc.abstractmethod
    def _record(self, scan: Scan, index: int) -> dict:
        """One record, without the fields that all have."""

    def _info(self) -> tfds.core.DatasetInfo:
        common = {"example_id": scalar(np.int32), "volume": tfds.features.Text(), "slice": scalar(np.int32)}
        if self.builder_config.several:
            common["matrix"] = tfds.features.Tensor(shape=(2,), dtype=np.int32)
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.builder_config.description,
            features=tfds.features.FeaturesDict(common | {"scale": scalar(np.float32)} | self._features()),
            license="That of the raw data.",
        )

    def _split_generators(self, dl_manager) -> dict:
        del dl_manager  # nothing to download
        return {split: self._generate_examples(scans) for split, scans in self.builder_config.scans.items() if scans}

    def _generate_examples(self, scans: Sequence[Stored]) -> Iterator[tuple[int, dict]]:
        for stored in scans:
            scan = stored.load()
            for index, (place, number) in enumerate(zip(scan.facts["places"], scan.facts["slices"], strict=True)):
                common = {"example_id": stored.first_id + place, "volume": stored.name, "slice": number}
                if self.builder_config.several:
                    common["matrix"] = np.array(scan.maps.shape[2:], np.int32)
                yield common["example_id"], common | {"scale": scan.facts["scale"]} | self._record(scan, index)


class ScanAcquisitions(_Scans, skip_registration=True):
    """Acquired k-space `y`, its `mask`, coil `maps` (C,H,W) and `noise_std`. No image.

    Lines: y (C,H,n), mask (W,). Where a scan of the store has another mask: y (C,n), mask (H,W). A scan with fewer
    coils than the store has maps and values of 0 in the others. The variant 'full' has every entry.

    Where scans differ in shape, arrays are filled up at their ends to the largest; `matrix` (2,) tells the rows and
    columns that count.
    """

    name = "scan_acquisitions"

    def _features(self) -> dict:
        config = self.builder_config
        shape = (config.columns,) if config.lines else (config.rows, config.columns)
        return {
            "y": complex_tensor(config.coils, *((config.rows,) if config.lines else ()), None),
            "mask": tfds.features.Tensor(shape=shape, dtype=np.bool_, encoding=tfds.features.Encoding.ZLIB),
            "maps": complex_tensor(config.coils, config.rows, config.columns),
            "noise_std": scalar(np.float32),
        }

    def _record(self, scan: Scan, index: int) -> dict:
        config = self.builder_config
        y, mask = scan.y[index], scan.masks[index]
        if config.name == "full":
            assert scan.full is not None  # of scans that were prepared for it; the archive's padding counts as measured
            y, mask = scan.full[index], np.ones_like(mask)
        if not config.lines:
            mask = np.broadcast_to(mask, (1, *y.shape[1:]))
        coils = config.coils - len(y)
        below, right = config.rows - y.shape[1], config.columns - y.shape[2]
        acquired = pack(y, mask)
        return {
            "y": np.pad(acquired, [(0, coils), *([(0, below)] if config.lines else []), (0, 0)]),
            "mask": np.pad(mask[0, 0], (0, right)) if config.lines else np.pad(mask[0], [(0, below), (0, right)]),
            "maps": np.pad(scan.maps[index], [(0, coils), (0, below), (0, right)]),
            "noise_std": scan.facts["noise_std"],
        }


class ScanReferences(_Scans, skip_registration=True):
    """Coil-combined image `image` (H,W) of each slice of a fully sampled scan, in the acquisition's units."""

    name = "scan_references"

    def _features(self) -> dict:
        return {"image": complex_tensor(self.builder_config.rows, self.builder_config.columns)}

    def _record(self, scan: Scan, index: int) -> dict:
        assert scan.images is not None  # of fully sampled scans outside train
        image, config = scan.images[index], self.builder_config
        return {"image": np.pad(image, [(0, config.rows - image.shape[0]), (0, config.columns - image.shape[1])])}


class RawScans:
    """The source of a store of raw scans (see `builders.store.Source`).

    `problems`, after `load`: what is wrong with the files that were left out, by path.

    Args:
      folder: where the raw files are.
      options: what is done with each.
      read: reads one file; raises UserError for what cannot be used.
      partial: folder for prepared scans, from which a later start goes on; `finish` deletes it.
      patterns: see `scan_files.divide`.
      table: of `scan_files.read_table`; files that it lacks or drops are not used.
      keep_full: whether to store the variant 'full' too, if all scans are fully sampled.
      workers: files at a time.
      command: the command line, for the manifest, without --out.
      subject: rule of `scan_files.get_subjects`.

    Raises UserError, before any k-space is read, as `scan_files.choose` and `divide` do.
    """

    def __init__(
        self, folder: Path, options: Options, read: Callable[[Path], RawVolume], partial: Path,
        patterns: Mapping[str, Sequence[str]], table: Mapping[str, scan_files.Row] | None = None,
        keep_full: bool = False, workers: int = 0, command: str = "", reader: str = "",
        subject: str = "id",
    ):  # fmt: skip
        self.folder, self.options, self.partial, self.patterns = folder, options, partial, patterns
        self.keep_full, self.workers, self.command = keep_full, workers or min(4, os.cpu_count() or 1), command
        self._read, self._reader, self._table = read, reader, table
        links.check_last(partial)  # scans wait there, and it is deleted in the end
        names, self._misnamed = scan_files.choose(folder, table)
        used = scan_files.divide({name: name for name in names}, patterns)  # mistakes in them are told at once
        self.names, self.unused = list(used), [name for name in names if name not in used]
        with ThreadPoolExecutor(self.workers) as pool:
            ids = pool.map(functools.partial(scan_files.patient_of, folder), self.names)
            patients = dict(zip(self.names, ids, strict=True))
        self._subjects, unknown = scan_files.get_subjects(patients, subject)
        self._splits = scan_files.divide(self._subjects, patterns)
        self._doubts = []
        if unknown and len(set(self._splits.values())) > 1:
            told = f"{len(unknown)} files, {unknown[0]!r} first, have no patient id that tells subjects apart"
            self._doubts = [f"{told}: each counts as one, so two scans of one person may be in two splits"]
            advice = "state subjects by --subject, or divide them by --train, --validation and --test"
            logging.warning("%s; %s", self._doubts[0], advice)
        # Without patterns the splits are known only when every usable scan is: any may need references then.
        self._referenced = {name for name in self.names if not patterns or self._splits[name] != "train"}
        self._ids = example_ids(self.names, bits=21)
        self.problems: dict[str, str] = {}
        self._scans: dict[str, list[Stored]] = {}

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of every file by path; reads them all, several at a time."""

        def content(name: str) -> str:
            try:
                return scan_files.digest(scan_files.parts_of(self.folder, name))
            except UserError:  # told by `load`
                return ""

        with ThreadPoolExecutor(self.workers) as pool:
            return dict(zip(self.names, self._follow(pool.map(content, self.names), "hashing"), strict=True))

    def identity(self) -> dict[str, Any]:
        patterns = {split: list(wanted) for split, wanted in self.patterns.items()}
        told = "\n".join(f"{name}\t{found}\t{self._subjects[name]}" for name, found in self.digests.items())
        table = "" if self._table is None else repr(sorted(self._table.items()))
        given = told, patterns, table, self._reader, [*self._misnamed]
        chosen = hashlib.sha256(repr(given).encode()).hexdigest()[:16]
        size = as_stored(self.options.size)
        return {
            "data_version": DATA_VERSION,
            "options": _told(self.options) | {"size": size, "keep_full": self.keep_full},
            "source": f"{len(self.names)} files; paths, contents, splits and reading {chosen}",
        }

    def _follow(self, results: Iterator, label: str) -> Iterator:
        with Progress(len(self.names), 0, label, unit="file") as progress:
            for place, result in enumerate(results, start=1):
                yield result
                progress.update(place)

    def load(self, scratch: Path) -> None:
        del scratch  # prepared scans outlive a start that was killed: they lie in `partial`
        with ThreadPoolExecutor(self.workers) as pool:
            found = dict(zip(self.names, self._follow(pool.map(self._prepare, self.names), "scans"), strict=True))
        self.problems = self._misnamed | {name: result for name, result in found.items() if isinstance(result, str)}
        stored = {name: result for name, result in found.items() if isinstance(result, Stored)}
        contents = {name: scan.facts["kspace"] for name, scan in stored.items()}
        twins = scan_files.twins(contents, self._splits if self.patterns else None)
        self.problems |= {name: f"has the same k-space as {first}" for name, first in twins.items()}
        stored = {name: scan for name, scan in stored.items() if name not in twins}
        if not stored:
            raise UserError(f"none of the {len(self.names)} files can be used; {self._first_problem(self.names)}")
        splits = self._splits
        if not self.patterns:
            try:
                splits = scan_files.divide({name: self._subjects[name] for name in stored}, {})
            except UserError as error:  # all files together were more than one subject
                raise UserError(f"{error}; of those left out {self._first_problem(self.names)}") from error
        self._scans = {split: [stored[name] for name in stored if splits[name] == split] for split in SPLITS}
        for split in SPLITS:
            named = [name for name in splits if splits[name] == split]
            if named and not self._scans[split]:
                raise UserError(f"no file of the {split} split can be used; {self._first_problem(named)}")

    def _first_problem(self, names: Sequence[str]) -> str:
        name = next(name for name in names if name in self.problems)
        return f"the first, {name}: {self.problems[name]}"

    def _prepare(self, name: str) -> Stored | str:
        """A scan that is prepared, now or by an earlier start; or what is wrong with it."""
        first_id = self._ids[name] * MOST_SLICES
        options, content = self._options_of(name), self.digests[name]
        keep = self.keep_full, name in self._referenced
        made_of = (DATA_VERSION, name, first_id, content, _told(options), keep, self._reader)
        path = self.partial / f"{hashlib.sha256(repr(made_of).encode()).hexdigest()[:32]}.npz"
        if path.exists():
            try:
                return Stored(name, first_id, path, load_scan(path).facts | {"subject": self._subjects[name]})
            except Exception as error:  # of whatever a damaged file makes numpy raise
                logging.warning("%s is damaged (%s): the scan is prepared again", path, error)
        found = border.Border()
        with found.around(name):
            return self._prepared(name, path, first_id, options, keep)
        return found.problems[border.printable(name)].replace(f"{self.folder}{os.sep}", "")

    def _prepared(self, name: str, path: Path, first_id: int, options: Options, keep: tuple[bool, bool]) -> Stored:
        raw = self._read(scan_files.parts_of(self.folder, name)[0])
        if len(raw.kspace) > MOST_SLICES:
            raise UserError(f"{len(raw.kspace)} slices are more than {MOST_SLICES}; split the file")
        scan = prepare_scan(raw, options, first_id, *keep)
        scan = dataclasses.replace(scan, facts=scan.facts | {"kspace": scan_files.digest_of(raw.kspace)})
        save_scan(path, scan)
        return Stored(name, first_id, path, scan.facts | {"subject": self._subjects[name]})

    def _options_of(self, name: str) -> Options:
        row = None if self._table is None else self._table[Path(name).stem]
        if row is None or (row.start is None and row.stop is None):
            return self.options
        default = self.options.slices.split(":")
        ends = (text if end is None else str(end) for text, end in zip(default, (row.start, row.stop), strict=True))
        return dataclasses.replace(self.options, slices=":".join(ends))

    def get_builders(self, folder: Path) -> dict[str, tfds.core.GeneratorBasedBuilder]:
        every = [scan for scans in self._scans.values() for scan in scans]
        coils = max(scan.facts["coils"] for scan in every)
        lines = all(scan.facts["lines"] for scan in every)
        shapes = {tuple(scan.facts["shape"]) for scan in every}
        rows, columns = (max(sizes) for sizes in zip(*shapes, strict=True))

        def build(
            cls: type[_Scans], place: str, name: str, text: str, scans: Mapping
        ) -> tfds.core.GeneratorBasedBuilder:
            config = ScanConfig(
                name=name, description=text, scans=scans, rows=rows, columns=columns, coils=coils, lines=lines,
                several=len(shapes) > 1,
            )  # fmt: skip
            return cls(data_dir=str(folder / place), config=config, file_format="array_record")

        builders = {"undersampled": build(ScanAcquisitions, "acquisitions", "undersampled", "Raw scans.", self._scans)}
        if self.keep_full:
            if not all(scan.facts["full"] for scan in every):
                name = next(scan.name for scan in every if not scan.facts["full"])
                raise UserError(f"--keep_full: {name} is not fully sampled; leave the flag or the file out")
            builders["full"] = build(ScanAcquisitions, "acquisitions", "full", "Raw scans, all lines.", self._scans)
        whole = {s: scans for s, scans in self._scans.items() if s != "train" and all(x.facts["full"] for x in scans)}
        if any(whole.values()):
            builders[REFERENCES] = build(ScanReferences, "references", "images", "Images of raw scans.", whole)
        return builders

    def describe(self, records: Records) -> dict[str, Any]:
        every = {split: scans for split, scans in self._scans.items() if scans}
        facts = [scan.facts for scans in every.values() for scan in scans]
        statistics = describe_acquisitions(records["undersampled"])
        retrospective = all(f["full"] for f in facts) and self.options.acceleration > 1
        largest = [max(sizes) for sizes in zip(*(f["shape"] for f in facts), strict=True)]
        settings = {
            "image_size": as_stored(largest),
            "num_coils": max(f["coils"] for f in facts),
            "mask": self.options.mask if all(f["lines"] for f in facts) or retrospective else ENTRIES,
            "acceleration": self.options.acceleration if retrospective else statistics["acceleration"]["nominal"],
            "acs_lines": self.options.acs_lines if retrospective else min(f["acs_lines"] for f in facts),
            "noise_std": round(float(np.median([f["noise_std"] for f in facts])), 6),
        }
        statistics["acceleration"]["nominal"] = settings["acceleration"]
        return {
            "kind": "multicoil",
            "settings": settings,
            "command": self.command,
            "volumes": {
                x.name: {"split": s, "sha256": self.digests[x.name], **x.facts} for s in every for x in every[s]
            },
            "left_out": border.in_order(self.problems),
            "unused": self.unused,
            "ignored": scan_files.ignored(self.folder, [*self.names, *self.unused]),
            "licences": ["those of the raw data: ask whoever gave them to you"],
            "notes": [*_notes(facts, retrospective), *self._doubts],
            **statistics,
        }

    def finish(self) -> None:
        """Deletes the prepared scans: the store holds them."""
        shutil.rmtree(self.partial, ignore_errors=True)


def _told(options: Options) -> dict[str, Any]:
    """The options by name, without those that stores made before did not have, where they change nothing."""
    return {k: v for k, v in dataclasses.asdict(options).items() if v or k not in ("centre", "hybrid")}


def _notes(facts: Sequence[Mapping[str, Any]], retrospective: bool) -> list[str]:
    notes = ["Lines of fully sampled scans were left out afterwards."] if retrospective else []
    if any(f["noise_from"] != "noise scan" for f in facts):
        notes.append("Without a noise scan, noise_std is an upper bound from the edges of k-space and of the image.")
    if empty := sum(len(f["empty"]) for f in facts):
        notes.append(f"{empty} slices without content are left out; `volumes` names them under 'empty'.")
    return notes
