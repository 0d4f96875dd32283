"""Which raw files of a folder belong to a store, in which split, and what identifies their content."""

import csv
import dataclasses
import fnmatch
import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

from msm.builders import border
from msm.builders.raw import CONVERTERS, hdf5
from msm.builders.raw.ismrmrd_header import parse_header
from msm.infra.atomic import safe_join
from msm.infra.errors import UserError

SUFFIXES = (".h5", ".hdf5", ".mrd", ".mat", ".cfl", ".npy", ".npz", *CONVERTERS)
SUBJECT_RULES = ("id", "folder", "path")
_MAPS_FOLDER = "smps_hat"  # of the published code's layout: coil maps beside images, which name the scans
FRACTIONS = {"test": 10, "validation": 20}  # one subject in so many
# What stands for a patient id and tells none, without blanks and signs; so do zeros or crosses alone.
_NOBODY = frozenset((
    "anonymous", "anonymized", "anonymised", "anonym", "anon", "deidentified", "unknown", "undefined", "unnamed",
    "noname", "none", "null", "na", "nan", "removed", "redacted"
))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Row:
    """What a table says of a file: whether to leave it out, and which slices to take (None: not said)."""

    drop: bool
    start: int | None
    stop: int | None


def look(folder: Path) -> border.Seen:
    """What lies in a folder of raw files and below it. Raises UserError if it is none, or has none.

    Hidden files and folders are left out, links to folders are not followed. A header of BART is part of its values.
    """
    if not folder.is_dir():
        raise UserError(f"--in {folder} is not a folder")
    seen = border.look(folder, lambda path: path.name.lower().endswith(SUFFIXES), skip=_MAPS_FOLDER)
    if not seen.names and not seen.problems:
        raise UserError(f"{folder} has no {', '.join(SUFFIXES)} file in it or below: give another --in")
    values = {name[:-4] for name in (*seen.names, *seen.problems) if name.lower().endswith(".cfl")}
    others = {
        name: why for name, why in seen.ignored.items() if not name.lower().endswith(".hdr") or name[:-4] not in values
    }
    return dataclasses.replace(seen, ignored=others)


def find_scans(folder: Path) -> list[str]:
    """Returns the paths of all raw files below `folder`, relative to it, sorted. Raises UserError as `look` does."""
    return look(folder).names


def ignored(folder: Path, used: Sequence[str]) -> dict[str, str]:
    """Why files of a folder are neither used nor wrong, by name: of no raw format, or left out by the table."""
    seen = look(folder)
    dropped = {name: "the table leaves it out" for name in seen.names if name not in set(used)}
    return border.in_order(seen.ignored | dropped)


def choose(folder: Path, table: Mapping[str, Row] | None) -> tuple[list[str], dict[str, str]]:
    """Returns the paths of the files to use, and what is wrong with others, by path.

    Those are files whose names are not UTF-8, which a manifest cannot hold: the bytes that are none are written \\xff.
    Warns of rows that name no file. Raises UserError as `look` does, and if no file is left.
    """
    seen = look(folder)
    names, problems = seen.names, seen.problems
    if not names:
        raise UserError(f"{folder} has no file whose name is UTF-8: rename them; the first is {next(iter(problems))}")
    if table is None:
        return names, problems
    kept = [name for name in names if Path(name).stem in table and not table[Path(name).stem].drop]
    if not kept:
        raise UserError(f"the table keeps no file of {folder}; its FILE column has names without suffix")
    stems = {Path(name).stem for name in names}
    absent = [name for name in table if name not in stems]
    if absent:
        said = "%d of the table's %d rows name no file, the first is %r: FILE has names without folder and suffix"
        logging.warning(said, len(absent), len(table), absent[0])
    return kept, problems


def parts_of(folder: Path, name: str) -> list[Path]:
    """The files that a scan consists of: BART's header and values, the published layout's images and maps, else one.

    Raises UserError for a link that leads out of the folder.
    """
    path = safe_join(folder, name)
    if path.suffix.lower() == ".cfl":
        headers = [path.with_suffix(suffix) for suffix in (".hdr", ".HDR")]
        return [path, next((header for header in headers if header.exists()), headers[0])]
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


def digest_of(kspace: np.ndarray) -> str:
    """SHA-256 of k-space: files of other names, formats or headers may hold the same scan."""
    return hashlib.sha256(np.ascontiguousarray(kspace).view(np.uint8).reshape(-1).data).hexdigest()


def twins(contents: Mapping[str, str], splits: Mapping[str, str] | None) -> dict[str, str]:
    """Which paths to leave out because their scan came twice, and the path that stays.

    Args:
      contents: what tells the k-space of each path.
      splits: of each path: only what another split holds too is left out, of train rather than of validation, of both
        rather than of test. None where splits are not yet known: all but the first path of a scan.
    """
    order = {"test": 0, "validation": 1, "train": 2}
    ranked = sorted(contents, key=lambda name: (order[splits[name]] if splits else 0, name))
    first: dict[str, str] = {}
    found = {name: first.setdefault(contents[name], name) for name in ranked}
    apart = ((name, other) for name, other in found.items() if other != name)
    return {name: other for name, other in apart if not splits or splits[name] != splits[other]}


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


def patient_of(folder: Path, name: str) -> str:
    """The patient id in the header of a raw file, of which no more is read; '' if there is none that can be read."""
    try:
        path = parts_of(folder, name)[0]
        if not h5py.is_hdf5(path):
            return ""
        with h5py.File(path) as file:
            told = file.attrs.get("patient_id", "")
            if told := told.decode(errors="replace") if isinstance(told, bytes) else str(told):
                return told
            for key in ("ismrmrd_header", "dataset/xml"):
                if (text := hdf5.find(file, key)) is not None:
                    return parse_header(hdf5.read(text, key).ravel()[0], path).facts.get("patient_id", "")
    except Exception as error:
        logging.debug("%s: no patient id (%s)", name, error)  # what is wrong with it is told when the scan is read
    return ""


def get_subjects(patients: Mapping[str, str], rule: str) -> tuple[dict[str, str], list[str]]:
    """Returns the subject of each path, and the paths whose subject is not known: each of them is one of its own.

    Args:
      patients: the patient id of each path, '' if it has none.
      rule: 'id': a hash of the patient id, which stays in the raw file. A placeholder ('ANONYMOUS', '0000') tells no
        subject, nor does an id that all of two or more files share. 'folder': what lies in one entry of the folder is
        one subject's. 'path': each file is a subject, known as such.
    """
    if rule != "id":
        return {name: name.split("/")[0] if rule == "folder" else name for name in patients}, []
    shared = len(patients) > 1 and len(set(patients.values())) == 1
    unknown = [name for name, patient in patients.items() if shared or _is_placeholder(patient)]
    hashed = {name: hashlib.sha256(os.fsencode(patient)).hexdigest()[:16] for name, patient in patients.items()}
    return hashed | {name: name for name in unknown}, unknown


def _is_placeholder(patient: str) -> bool:
    letters = "".join(letter for letter in patient.casefold() if letter.isalnum())
    return letters in _NOBODY or set(letters) <= {"0"} or set(letters) <= {"x"}


def divide(subjects: Mapping[str, str], patterns: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Returns the split of each path that is used: no subject in two of them.

    Args:
      subjects: the subject of each path.
      patterns: by split, path patterns as a shell has them ('*' matches '/' too). What matches none is train, or unused
        if train has patterns. Without any pattern, subjects are taken in the order of the SHA-256 of their names: one
        in 10 for test (at least one), one in 20 for validation (at least one of three or more), the rest is train.

    Raises UserError for a pattern that matches nothing, for a path or a subject in two splits, and without patterns for
    a single subject.
    """
    if not patterns:
        if len(set(subjects.values())) < 2:
            raise UserError(
                f"{next(iter(subjects))!r} is of the only subject there is, so train would be empty: say by --train, "
                "--validation and --test what goes where (--test '*': all of it), or by --subject what a subject is"
            )
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
    if "train" not in patterns:
        splits |= {path: "train" for path in subjects if path not in splits}
    seen: dict[str, str] = {}
    for path in sorted(splits):
        other = seen.setdefault(subjects[path], path)
        if splits[other] != splits[path]:
            raise UserError(
                f"{other!r} in {splits[other]} and {path!r} in {splits[path]} are of one subject: change the patterns, "
                "or say with --subject what a subject is"
            )
    return {path: splits[path] for path in subjects if path in splits}


def read_patterns(text: str) -> list[str]:
    """Patterns from a flag: comma-separated, or one a line in the file that it names."""
    path = Path(text)
    try:
        lines = path.read_text().splitlines() if path.is_file() else text.split(",")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): give a text file of patterns, one a line") from error
    patterns = [line.strip() for line in lines if line.strip()]
    if not patterns:
        raise UserError(f"{text!r} holds no pattern: give some such as 'multicoil_val/*', or a file of them")
    return patterns
