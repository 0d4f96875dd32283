"""Which raw files of a folder belong to a store, in which split, and what identifies their content."""

import csv
import dataclasses
import fnmatch
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from infra.atomic import safe_join
from infra.errors import UserError

SUFFIXES = (".h5", ".hdf5", ".cfl", ".npy", ".npz")
_MAPS_FOLDER = "smps_hat"  # of the published code's layout: coil maps beside images, which name the scans
FRACTIONS = {"test": 10, "validation": 20}  # one subject in so many


@dataclasses.dataclass(frozen=True)
class Row:
    """What a table says of a file: whether to leave it out, and which slices to take (None: not said)."""

    drop: bool
    start: int | None
    stop: int | None


def find_scans(folder: Path) -> list[str]:
    """Returns the paths of all raw files below `folder`, relative to it, sorted; raises UserError if there is none.

    Hidden files and folders are left out, links to folders are not followed.
    """
    if not folder.is_dir():
        raise UserError(f"--in {folder} is not a folder")
    found = []
    for place, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and name != _MAPS_FOLDER]
        chosen = (name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith("."))
        found += [Path(place, name).relative_to(folder).as_posix() for name in chosen]
    if not found:
        raise UserError(f"{folder} has no {', '.join(SUFFIXES)} file in it or below: give another --in")
    return sorted(found)


def parts_of(folder: Path, name: str) -> list[Path]:
    """The files that a scan consists of: BART's header and values, the published layout's images and maps, else one.

    Raises UserError for a link that leads out of the folder.
    """
    path = safe_join(folder, name)
    if path.suffix == ".cfl":
        return [path, path.with_suffix(".hdr")]
    maps = path.parent.parent / _MAPS_FOLDER / path.name
    return [path, maps] if path.parent.name == "x_hat" else [path]


def digest(paths: Sequence[Path]) -> str:
    """SHA-256 in hexadecimal of the files' contents, one after the other; '' if one cannot be read."""
    found = hashlib.sha256()
    try:
        for path in paths:
            with path.open("rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
    except OSError:  # told when the scan is read
        return ""
    return found.hexdigest()


def read_table(path: Path) -> dict[str, Row]:
    """Reads the published code's table: FILE (name without suffix), DROP, SLICE_START, SLICE_END, by name.

    Raises UserError for a missing column, a FILE that stands twice, and for a DROP or a slice that is no such value.
    """
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            missing = {"FILE", "DROP", "SLICE_START", "SLICE_END"} - set(reader.fieldnames or ())
            if missing:
                raise UserError(f"--table {path} has no column {', '.join(sorted(missing))}")
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--table {path} cannot be read: {error}") from error
    table: dict[str, Row] = {}
    for number, row in enumerate(rows, start=2):
        name, drop = row["FILE"], (row["DROP"] or "").lower()
        if drop not in ("0", "0.0", "false", "1", "1.0", "true") or not name or name in table:
            raise UserError(f"--table {path}, line {number}: FILE {name!r} must be new and DROP {drop!r} 0 or 1")
        try:
            start, stop = (int(float(row[key])) if row[key] else None for key in ("SLICE_START", "SLICE_END"))
        except ValueError as error:
            raise UserError(f"--table {path}, line {number}: a slice is no number") from error
        table[name] = Row(drop not in ("0", "0.0", "false"), start, stop)
    return table


def divide(subjects: Mapping[str, str], patterns: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Returns the split of each path: no subject in two of them.

    Args:
      subjects: the subject of each path.
      patterns: by split, path patterns as a shell has them ('*' matches '/' too). What matches none is train; without
        any pattern, subjects are taken in the order of the SHA-256 of their names: one in 10 for test (at least one),
        one in 20 for validation (at least one of three or more), the rest is train.

    Raises UserError for a pattern that matches nothing, and for a path or a subject in two splits.
    """
    if not patterns:
        ordered = sorted(set(subjects.values()), key=lambda s: hashlib.sha256(s.encode()).digest())
        tests = max(1, len(ordered) // FRACTIONS["test"])
        validations = max(len(ordered) // FRACTIONS["validation"], int(len(ordered) > 2))
        named = {s: "test" if i < tests else "validation" if i < tests + validations else "train"
                 for i, s in enumerate(ordered)}  # fmt: skip
        return {path: named[subject] for path, subject in subjects.items()}
    splits: dict[str, str] = {}
    for split, wanted in patterns.items():
        for pattern in wanted:
            matched = [path for path in subjects if fnmatch.fnmatchcase(path, pattern)]
            if not matched:
                raise UserError(f"--{split} {pattern!r} matches no file; one of them is {next(iter(subjects))!r}")
            for path in matched:
                if splits.setdefault(path, split) != split:
                    raise UserError(f"{path!r} is matched by --{splits[path]} and by --{split}: change the patterns")
    splits |= {path: "train" for path in subjects if path not in splits}
    seen: dict[str, str] = {}
    for path in sorted(splits):
        other = seen.setdefault(subjects[path], path)
        if splits[other] != splits[path]:
            raise UserError(
                f"subject {subjects[path]!r} is in two splits, {other!r} in {splits[other]} and {path!r} in "
                f"{splits[path]}: change the patterns"
            )
    return {path: splits[path] for path in subjects}


def read_patterns(text: str) -> list[str]:
    """Patterns from a flag: comma-separated, or one a line in the file that it names."""
    path = Path(text)
    try:
        lines = path.read_text().splitlines() if path.is_file() else text.split(",")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): give a text file of patterns, one a line") from error
    return [line.strip() for line in lines if line.strip()]
