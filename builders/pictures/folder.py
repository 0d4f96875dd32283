"""Pictures of any folder as square 8-bit RGB images, divided into splits by lists, by counts or by a fixed rule.

Steps per file: decode, turn as EXIF says, grey to three equal channels, crop the central square, shrink it with the
antialiased Lanczos filter of Pillow (a = 3, support scaled by the reduction), round to 8 bits. Colour profiles are
ignored.
"""

import dataclasses
import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from msm.builders import border
from msm.builders.pictures.store import COLOURS, SPLITS, Form, Picture
from msm.infra.atomic import safe_join
from msm.infra.errors import UserError
from msm.infra.progress import Progress
from msm.operators.shape import Size, rows_and_columns, told

SUFFIXES = (".png", ".jpg", ".jpeg")
FORMATS = ("PNG", "JPEG")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
_LOWER = "lower --size or leave it out"
FILTER = Image.Resampling.LANCZOS
FFHQ_COUNT = 70_000
FFHQ = {"test": slice(0, 100), "validation": slice(100, 200), "train": slice(1000, None)}  # of the sorted names
FRACTIONS, LARGEST_SPLIT = {"test": 10, "validation": 20}, 1000  # one file in so many, at least 1, at most 1000


@dataclasses.dataclass(frozen=True)
class Division:
    """How files are divided. A split is what its list names, else it takes from the files that no list names.

    Attributes:
      lists: by split, a text file with one path per line, relative to the folder.
      counts: files of validation and test where they have no list. None for both, and no list at all: FFHQ's division
        if there are exactly 70,000 files (by sorted name, test the first 100, validation the next 100, train all from
        number 1000 on). None otherwise: one file in 10 (test) and one in 20 (validation), at most 1000 each.
    """

    lists: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)


def find_pictures(folder: Path) -> list[str]:
    """Returns the paths of all PNG and JPEG files below `folder`, relative to it, sorted; raises UserError if none.

    Hidden files and folders are left out, as are names that are not UTF-8; links to folders are not followed.
    """
    return _look(folder).names


def _look(folder: Path) -> border.Seen:
    seen = border.look(folder, lambda path: path.name.lower().endswith(SUFFIXES))
    if not seen.names and seen.problems:
        name, problem = next(iter(seen.problems.items()))
        raise UserError(f"{folder} has no file that can be used; the first problem, {name}: {problem}")
    if not seen.names:
        raise UserError(f"{folder} has no {', '.join(SUFFIXES)} file in it or below: give another --folder")
    return seen


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "no UTF-8"


def _and_more(names: Sequence[str]) -> str:
    """'', or how many follow the first."""
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _read_list(path: Path, split: str, known: set[str]) -> list[str]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--{split}_list {path} cannot be read ({_reason(error)}): give a text file") from error
    names = [line.strip() for line in lines if line.strip()]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(
            f"--{split}_list {path} names {unknown[0]!r}{_and_more(unknown)}, which the folder lacks: write paths "
            "relative to --folder, one per line"
        )
    return names


def divide(names: Sequence[str], division: Division) -> dict[str, list[str]]:
    """Returns the files of each split, each in the order of `names`.

    Files that no list names are taken in the order of the SHA-256 of their path, first for test, then for validation;
    the rest is train, unless train has a list. A new file thus moves few others. Raises UserError for lists that
    overlap or name files that are not there, and if train or test would be empty.
    """
    listed = {split: _read_list(path, split, set(names)) for split, path in division.lists.items()}
    every = [name for chosen in listed.values() for name in chosen]
    if len(set(every)) < len(every):
        twice = sorted(name for name in set(every) if every.count(name) > 1)
        raise UserError(f"the lists name {twice[0]!r}{_and_more(twice)} more than once: splits must not overlap")
    if len(names) == FFHQ_COUNT and not listed and not division.counts:
        return {split: list(names[FFHQ[split]]) for split in SPLITS}
    pool = sorted(set(names) - set(every), key=lambda name: hashlib.sha256(name.encode()).digest())
    splits, start = dict(listed), 0
    for split in ("test", "validation"):
        if split in listed:
            continue
        left = len(pool) - start
        count = division.counts.get(split, min(left, LARGEST_SPLIT, max(1, len(pool) // FRACTIONS[split])))
        if count > left:
            raise UserError(f"--{split}_count is {count}, but only {left} files are left for it: lower it")
        splits[split], start = pool[start : start + count], start + count
    splits.setdefault("train", pool[start:])
    for split in ("train", "test"):
        if not splits[split]:
            raise UserError(f"no file is left for the {split} split: {len(names)} files are there; change the counts")
    order = {name: place for place, name in enumerate(names)}
    return {split: sorted(splits[split], key=order.__getitem__) for split in SPLITS}


def not_divided(names: Sequence[str], splits: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Why names are in no split, by name."""
    used = {name for chosen in splits.values() for name in chosen}
    return {
        border.printable(name): "is in no split: lists or FFHQ's division leave it out"
        for name in names
        if name not in used
    }


def _inside(folder: Path, name: str) -> Path:
    try:
        return safe_join(folder, name)
    except UserError as error:  # whose own message has a path of this machine
        raise UserError("is a link that leads out of the folder") from error


def read_picture(data: bytes, size: Size) -> np.ndarray:
    """Returns a picture as (rows,columns,3) uint8, see the top of this file: the central part of the aspect of `size`.

    Raises UserError for what would have to be invented (pixels behind transparent ones, detail of a picture smaller
    than `size`) and for other modes than 8-bit grey, palette and RGB; else Pillow's errors for broken files.
    """
    rows, columns = rows_and_columns(size)
    try:
        opened = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:  # whose own message is the address of `data`
        raise UserError("is neither PNG nor JPEG, whatever its name") from error
    with opened as image:
        if image.mode not in MODES:
            raise UserError(f"has mode {image.mode}: convert it to 8-bit grey or RGB")
        border.check_size(f"the picture of {image.width} x {image.height}", 3.0 * image.width * image.height, 4)
        if min(image.size) < min(rows, columns):
            raise UserError(f"is {image.width} x {image.height} pixels, less than {told(size)}: {_LOWER}")
        if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
            raise UserError("has transparent pixels: lay it on a background first")
        turned = ImageOps.exif_transpose(image).convert("RGB")
    scale = min(turned.width / columns, turned.height / rows)
    if scale < 1:
        raise UserError(f"is {turned.width} x {turned.height} pixels, less than {told(size)}: {_LOWER}")
    width, height = round(columns * scale), round(rows * scale)
    left, top = (turned.width - width) // 2, (turned.height - height) // 2
    return np.asarray(turned.crop((left, top, left + width, top + height)).resize((columns, rows), FILTER))


class _Stored(Sequence):
    """The pictures of one split, which lie in a file."""

    def __init__(self, array: np.ndarray, rows: Sequence[int], names: Sequence[str], ids: Sequence[int]):
        self._array, self._rows, self._names, self._ids = array, rows, names, ids

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Picture:
        row = self._rows[index]
        return Picture(self._ids[row], self._names[row], self._array[row])


def example_ids(names: Sequence[str], bits: int = 31) -> dict[str, int]:
    """Returns the id of each path: the first `bits` bits of the SHA-256 of the path.

    It is a number of the path alone, so that mask and noise of a picture stay when other files come and go. Where two
    paths of a folder share it, the one of the larger hash takes as many of the next 32 bits, and so on (of 70,000 paths
    with 31 bits, about one does; a file that comes later moves another with a probability of 3 in 100,000).
    """
    digests = sorted((hashlib.sha256(name.encode()).digest(), name) for name in names)
    ids: dict[int, str] = {}
    for digest, name in digests:
        candidates = (int.from_bytes(digest[i : i + 4], "big") >> (32 - bits) for i in range(0, len(digest), 4))
        free = next((number for number in candidates if number not in ids), None)
        if free is None:
            raise UserError(f"{name!r} finds no free id among those of the other paths: rename the file")
        ids[free] = name
    return {name: number for number, name in ids.items()}


class Folder:
    """The `builders.images.PictureSet` of a folder. The id of a picture follows from its path: `example_ids`.

    `problems`, after `read`: what is wrong with the files that were left out, by path. Raises UserError as
    `find_pictures`, `divide` and `example_ids` do.
    """

    form: ClassVar[Form] = COLOURS

    def __init__(self, folder: Path, division: Division):
        if not folder.is_dir():
            raise UserError(f"--folder {folder} is not a folder: give the one that holds the pictures")
        self.folder, self.division = folder, division
        seen = _look(folder)
        self.names = seen.names
        self.splits = divide(self.names, division)
        self._ids = example_ids(self.names)
        self._border = border.Border(seen.problems)
        self.ignored = seen.ignored | not_divided(self.names, self.splits)
        self._digest = hashlib.sha256()

    @property
    def problems(self) -> dict[str, str]:
        """What is wrong with the files that were left out, by path."""
        return self._border.problems

    def identity(self) -> dict[str, Any]:
        """Reads every file, on all cores: sizes and times tell neither a changed picture nor an equal copy."""

        def content(name: str) -> bytes:
            try:
                with _inside(self.folder, name).open("rb") as file:
                    return hashlib.file_digest(file, "sha256").digest()
            except (OSError, UserError):  # told by `read`
                return b""

        chosen, digest = list(self._chosen()), hashlib.sha256()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for (split, name), found in zip(chosen, pool.map(content, [name for _, name in chosen]), strict=True):
                digest.update(f"{split}\t{name}\t{found.hex()}\n".encode())
        return {"pictures": f"{len(self.names)} files; names, contents and splits {digest.hexdigest()[:16]}"}

    def _chosen(self) -> Iterator[tuple[str, str]]:
        return ((split, name) for split in SPLITS for name in self.splits[split])

    def read(self, size: Size, scratch: Path) -> Mapping[str, Sequence[Picture]]:
        """Decodes every file once, on all cores. Files that cannot be used are left out and told in `problems`.

        So are pictures of one colour, and those that equal one of an earlier path, pixel by pixel: they would be a
        second acquisition of it, and might stand in another split.
        """
        chosen = [str(name) for _, name in self._chosen()]
        shape = (len(chosen), *rows_and_columns(size), 3)
        array = np.lib.format.open_memmap(scratch / "pictures.npy", mode="w+", dtype=np.uint8, shape=shape)

        def load(row: int) -> tuple[bytes, bytes]:
            """SHA-256 of the file and of its pixels; both b'' if something is wrong with it."""
            data = b""
            with self._border.around(chosen[row]):
                data = _inside(self.folder, chosen[row]).read_bytes()
                pixels = read_picture(data, size)
                if (pixels == pixels[:1, :1]).all():
                    raise UserError("has one colour throughout: no content")
                array[row] = pixels
                return hashlib.sha256(data).digest(), hashlib.sha256(pixels.tobytes()).digest()
            return b"", b""

        pixels: dict[int, bytes] = {}
        with ThreadPoolExecutor(os.cpu_count()) as pool, Progress(len(chosen), 0, "pictures", unit="file") as progress:
            for row, (digest, seen) in enumerate(pool.map(load, range(len(chosen)))):
                self._digest.update(digest)
                if seen:
                    pixels[row] = seen
                progress.update(row + 1)
        first: dict[bytes, int] = {}
        for row in sorted(pixels, key=chosen.__getitem__):
            if first.setdefault(pixels[row], row) != row:
                self._border.note(chosen[row], f"same picture as {chosen[first[pixels[row]]]}")
        kept = sorted(first.values())
        ids = [self._ids[name] for name in chosen]
        split_of = [split for split, _ in self._chosen()]
        found = {s: _Stored(array, [row for row in kept if split_of[row] == s], chosen, ids) for s in SPLITS}
        for split in ("train", "test"):
            if not found[split]:
                name = self.splits[split][0]
                problem = self.problems[border.printable(name)]
                raise UserError(f"no file of the {split} split can be used; the first, {name}: {problem}")
        return found

    def describe(self) -> dict[str, Any]:
        flags = [f"--{split}_list {split.upper()}_LIST" for split in SPLITS if split in self.division.lists]
        flags += [f"--{split}_count {count}" for split, count in sorted(self.division.counts.items())]
        return {
            "command": " ".join(["python tools/prepare_images.py --folder FOLDER", *flags]),
            "licences": ["those of the pictures: ask whoever gave them to you"],
            "source_sha256": self._digest.hexdigest(),
            "resize": "central part, Pillow Lanczos filter with antialiasing, 8 bits",
            "left_out": border.in_order(self.problems),
            "ignored": border.in_order(self.ignored),
        }
