"""Slices of CT volumes as images: x = HU / 1000, clipped to [-1, 1]: air -1, water 0, dense bone 1.

The attenuation relative to water is 1 + x. Song et al. (arXiv 2111.08005) scale to [0, 1] instead, as (HU + 1024) /
4224; LIDC volumes, in their code, by the extremes of each volume. A slice is padded to a square with air and its size
reduced by exact means over the area of each new pixel, as a coarser detector would do.

  Lungs     the demo: two patients of data/lungs_128.npz
  Scans     a folder of volumes, divided by patient
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from msm.builders import border
from msm.builders.ct import dicom, volumes
from msm.builders.ct.hounsfield import AIR, empty_slices
from msm.builders.pictures.folder import Division, divide, example_ids, not_divided
from msm.builders.pictures.store import HOUNSFIELD, SPLITS, Form, Picture
from msm.infra.errors import UserError
from msm.infra.progress import Progress
from msm.operators.shape import Size, as_setting, told

SOURCE = Path(__file__).resolve().parents[2] / "data" / "lungs_128.npz"
SLICES = {"lung1": 48, "lung2": 61}
VALIDATION, MARGIN = slice(28, 37), 2  # slices of lung2; as many of 5 mm on either side are not used at all
LIMIT = 1000  # HU
LICENCES = ("lung1, lung2: pyradiomics 3.0.1, BSD-3-Clause, Copyright 2017 Harvard Medical School",)
NOTES = ["CT: images are real, projections of them are simulated."]


def to_images(volume: np.ndarray, size: Size) -> np.ndarray:
    """(N,size,size,1) int16 in [AIR, LIMIT] of a volume (N,H,W) in Hounsfield units.

    Raises UserError for slices that are smaller than `size` on both axes, and for a size that is no square: the field
    of view of a scanner is round.
    """
    size = as_setting(size)
    if not isinstance(size, int):
        raise UserError(f"has a round field of view: --size {told(size)} must be one number")
    _, height, width = volume.shape
    side = max(height, width)
    if side < size:
        raise UserError(f"has slices of {height} x {width} pixels, less than {size}: lower --size or leave it out")
    top, left = (side - height) // 2, (side - width) // 2
    padding = ((0, 0), (top, side - height - top), (left, side - width - left))
    squares = np.pad(np.maximum(volume, AIR), padding, constant_values=AIR).astype(np.float32)
    smaller = [np.asarray(Image.fromarray(s).resize((size, size), Image.Resampling.BOX)) for s in squares]
    return np.clip(np.rint(np.stack(smaller)), AIR, LIMIT).astype(np.int16)[..., None]


def _pictures(images: np.ndarray, volume: str, numbers: Sequence[int], ids: Sequence[int]) -> list[Picture]:
    return [Picture(ids[k], f"{volume} {k}", images[k], volume) for k in numbers]


class Lungs:
    """The `builders.images.PictureSet` of the demo: train and validation of one patient, test of another."""

    form: ClassVar[Form] = HOUNSFIELD

    def __init__(self, max_slices: int = 0):
        self.max_slices = max_slices

    def identity(self) -> dict[str, Any]:
        return {"source_sha256": hashlib.sha256(SOURCE.read_bytes()).hexdigest(), "max_slices": self.max_slices}

    def read(self, size: Size, scratch: Path) -> Mapping[str, Sequence[Picture]]:
        del scratch
        with np.load(SOURCE, allow_pickle=False) as arrays:
            one, other = (to_images(arrays[name], size) for name in SLICES)
        apart = range(len(other))[VALIDATION]
        train = [*range(apart[0] - MARGIN), *range(apart[-1] + MARGIN + 1, len(other))]
        first, second = range(len(one)), range(len(one), len(one) + len(other))
        found = {
            "train": _pictures(other, "lung2", train, second),
            "validation": _pictures(other, "lung2", apart, second),
            "test": _pictures(one, "lung1", range(len(one)), first),
        }
        return {s: [pictures[i] for i in spread(len(pictures), self.max_slices)] for s, pictures in found.items()}

    def describe(self) -> dict[str, Any]:
        few = f" --max_slices {self.max_slices}" if self.max_slices else ""
        command = f"python tools/prepare_ct.py --lungs{few}"
        return {"command": command, "licences": list(LICENCES), "notes": NOTES}


def spread(count: int, most: int) -> list[int]:
    """Places of at most `most` evenly spread items of `count`; all for 0."""
    if not most or count <= most:
        return list(range(count))
    return [int(place) for place in np.unique(np.rint(np.linspace(0, count - 1, most)))]


def find_patients(folder: Path) -> dict[str, list[Path]]:
    """Returns the files of each patient, sorted: what lies in one entry of `folder` is one patient's.

    So LIDC-IDRI's LIDC-IDRI-0001/STUDY/SERIES/*.dcm and LDCT's L067/SERIES/*.IMA are read as they come; a file that
    lies in `folder` itself is a patient of its own. Raises UserError where there is no file of a known kind.
    """
    return _by_patient(folder, _look(folder))


def _look(folder: Path) -> border.Seen:
    seen = border.look(folder, lambda path: path.name.lower().endswith(volumes.SUFFIXES) or dicom.is_dicom(path))
    pairs = {f"{name[:-4]}.hdr" for name in seen.names if name.lower().endswith(".img")}  # Analyze's two files are one
    return dataclasses.replace(seen, ignored={n: why for n, why in seen.ignored.items() if n not in pairs})


def _by_patient(folder: Path, seen: border.Seen) -> dict[str, list[Path]]:
    patients: dict[str, list[Path]] = {}
    for name in seen.names:
        patients.setdefault(name.split("/")[0], []).append(folder / name)
    if not patients and seen.problems:
        name, problem = next(iter(seen.problems.items()))
        raise UserError(f"{folder} has no file that can be used; the first problem, {name}: {problem}")
    if not patients:
        raise UserError(f"{folder} has no {', '.join(volumes.SUFFIXES)} file in it or below: give another --folder")
    return patients


class Scans:
    """The `builders.images.PictureSet` of a folder of CT volumes, divided by patient as `builders.folder.divide` says.

    The id of a slice follows from its volume's path (or DICOM series) and its number. `problems`, after `read`: what is
    wrong with what was left out, by patient or file. Raises UserError as `find_patients` and `divide` do.
    """

    form: ClassVar[Form] = HOUNSFIELD

    def __init__(self, folder: Path, division: Division, max_slices: int = 0):
        if not folder.is_dir():
            raise UserError(f"--folder {folder} is not a folder")
        self.folder, self.division, self.max_slices = folder, division, max_slices
        seen = _look(folder)
        self.patients = _by_patient(folder, seen)
        self.splits = divide(sorted(self.patients), division)
        self._border = border.Border(seen.problems)
        self.ignored = seen.ignored | not_divided(sorted(self.patients), self.splits)

    @property
    def problems(self) -> dict[str, str]:
        """What is wrong with what was left out, by patient or file."""
        return self._border.problems

    def identity(self) -> dict[str, Any]:
        """Reads every file: sizes and times tell neither a changed volume nor an equal copy."""
        digest = hashlib.sha256()
        for split in SPLITS:
            for patient in self.splits[split]:
                for path in self.patients[patient]:
                    content = border.digest(path)
                    digest.update(f"{split}\t{path.relative_to(self.folder).as_posix()}\t{content}\n".encode())
        contents = f"{len(self.patients)} patients; names, contents and splits {digest.hexdigest()[:16]}"
        return {"volumes": contents, "max_slices": self.max_slices}

    def read(self, size: Size, scratch: Path) -> Mapping[str, Sequence[Picture]]:
        every: dict[str, list] = {split: [] for split in SPLITS}
        seen: dict[bytes, tuple[str, str]] = {}
        with Progress(sum(map(len, self.splits.values())), 0, "volumes", unit="patient") as progress:
            order = ("test", "validation", "train")  # a volume that two of them hold stays in the first
            patients = [(split, name) for split in order for name in self.splits[split]]
            for done, (split, name) in enumerate(patients, start=1):
                every[split] += self._slices(name, split, size, scratch, seen)
                progress.update(done)
        ids = example_ids([name for found in every.values() for _, name, _ in found])
        found = {split: [Picture(ids[n], n, pixels, volume) for volume, n, pixels in every[split]] for split in SPLITS}
        for split in ("train", "test"):
            if not found[split]:
                name, problem = next(iter(self.problems.items()))
                raise UserError(f"no volume of the {split} split can be used; the first problem, {name}: {problem}")
        return found

    def _slices(
        self, patient: str, split: str, size: Size, scratch: Path, seen: dict[bytes, tuple[str, str]]
    ) -> Iterator[tuple[str, str, np.ndarray]]:
        """Yields (volume, name of the slice, pixels in a file of `scratch`) of all volumes of a patient.

        `seen`: split and name of every volume by its content, to which it adds; one of another split is left out.
        """
        for number, (name, volume) in enumerate(self._volumes(patient)):
            twin = seen.setdefault(hashlib.sha256(volume.tobytes()).digest(), (split, name))
            if twin[0] != split:
                self._border.note(name, f"is the same volume as {twin[1]}")
                continue
            images = None
            with self._border.around(name):
                images = to_images(volume, size)
            if images is None:
                continue
            path = scratch / f"{hashlib.sha256(patient.encode()).hexdigest()}-{number}.npy"
            np.save(path, images)
            stored = np.load(path, mmap_mode="r")
            empty = empty_slices(images)
            if empty:
                numbers = ", ".join(map(str, empty[:8])) + (" ..." if len(empty) > 8 else "")
                told = f"{len(empty)} of {len(images)} slices hold nothing but air: {numbers}"
                self._border.note(f"{name}, slices without content", told)
            full = [place for place in range(len(images)) if place not in set(empty)]
            for place in (full[i] for i in spread(len(full), self.max_slices)):
                yield name, f"{name} {place}", stored[place]

    def _volumes(self, patient: str) -> Iterator[tuple[str, np.ndarray]]:
        """Yields (name, volume) of a patient; notes in `problems` what cannot be used."""
        files = [path for path in self.patients[patient] if dicom.is_dicom(path)]
        for path in self.patients[patient]:
            if path in files:
                continue
            name = path.relative_to(self.folder).as_posix()
            volume = None
            with self._border.around(name):
                volume = volumes.read(path)
            if volume is not None:
                yield name, volume
        if not files:
            return
        series: dict[str, np.ndarray] = {}
        with self._border.around(patient):
            series, left_out = volumes.read_series(files)
            for name, why in left_out.items():
                self._border.note(f"{patient}/{name}", why)
            if not series:
                raise UserError("no CT series of axial slices")
        yield from ((f"{patient}/{uid}", volume) for uid, volume in series.items())

    def describe(self) -> dict[str, Any]:
        flags = [f"--{split}_list {split.upper()}_LIST" for split in SPLITS if split in self.division.lists]
        flags += [f"--{split}_count {count}" for split, count in sorted(self.division.counts.items())]
        flags += [f"--max_slices {self.max_slices}"] if self.max_slices else []
        return {
            "command": " ".join(["python tools/prepare_ct.py --folder FOLDER", *flags]),
            "licences": ["those of the volumes: ask whoever gave them to you"],
            "notes": NOTES,
            "left_out": border.in_order(self.problems),
            "ignored": border.in_order(self.ignored),
        }
