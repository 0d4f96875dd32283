"""The border of one file of many: whatever a reader raises becomes one line, and the run goes on with the others.

Readers of other programs raise what they like for a damaged file (tokenize.TokenError, MemoryError, OverflowError and
a score of others), so the border catches every Exception. What it caught is told by type and noted in the manifest.
"""

import contextlib
import dataclasses
import errno
import hashlib
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from msm.infra.errors import UserError

SOME_LEFT_OUT = 3  # exit status: the store is complete but for files that could not be used
GB = 1e9
DEFAULT_GB = 16.0
_MOST_TOLD = 300  # characters of one problem
_OF_THE_DISK = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS")}  # that one writes to
_LIMIT = DEFAULT_GB


def set_limit(gigabytes: float) -> None:
    """How much memory the arrays of one file may take, for this process: --max_gb of the tools."""
    global _LIMIT
    if not gigabytes > 0:
        raise UserError(f"--max_gb is {gigabytes:g}: it must be more than 0")
    _LIMIT = gigabytes


def limit() -> float:
    """GB that the arrays of one file may take."""
    return _LIMIT


def check_size(what: str, count: float, itemsize: int) -> None:
    """Raises UserError if an array would take more memory than --max_gb allows; called before it is allocated.

    Args:
      what: the array, for the message.
      count: of its entries, as the file states it.
      itemsize: bytes of an entry in memory.
    """
    needed = count * itemsize / GB
    if needed > _LIMIT:
        raise UserError(
            f"{what} would take {needed:.3g} GB of memory, --max_gb is {_LIMIT:g}: raise that, or split the file"
        )


def printable(name: str) -> str:
    """A file's name as UTF-8 without control characters: bytes that are none are written \\xff, a new line \\n."""
    text = os.fsencode(name).decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def is_utf8(name: str) -> bool:
    """Whether a name can stand in a manifest."""
    return os.fsencode(name).decode(errors="replace") == name


NOT_UTF8 = "its name is not UTF-8; rename it"


def reason(error: BaseException) -> str:
    """What is wrong with a file, in one line: the message of a UserError, else the type of the error and its text."""
    text = " ".join(str(error).split())
    if not isinstance(error, UserError):
        text = f"cannot be read ({type(error).__name__}{': ' if text else ''}{text})"
    return text if len(text) <= _MOST_TOLD else f"{text[:_MOST_TOLD]}..."


class Border:
    """Collects what is wrong with files, by name; safe to use from several threads.

    Attributes:
      problems: name -> one line, in the order in which they were met.
    """

    def __init__(self, problems: Mapping[str, str] | None = None) -> None:
        self.problems = dict(problems or {})
        self._lock = threading.Lock()

    def note(self, name: str, problem: str) -> None:
        """Notes a problem; a second one of the same name is added to the first."""
        with self._lock:
            name = printable(name)
            known = self.problems.get(name)
            self.problems[name] = problem if known in (None, problem) else f"{known}; {problem}"

    @contextlib.contextmanager
    def around(self, name: str) -> Iterator[None]:
        """What the block raises is noted as a problem of the file `name`, and ends there.

        A full or broken disk is no problem of one file, and ends the run, as do the user's own signals.
        """
        try:
            yield
        except UserError as error:
            self.note(name, reason(error))
        except Exception as error:  # the border of one file of many
            if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
                raise
            logging.debug("%s\n%s", printable(name), traceback.format_exc())
            self.note(name, reason(error))


def digest(path: Path) -> str:
    """SHA-256 of a file in hexadecimal; '' if it cannot be read, which is told when it is used."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


@dataclasses.dataclass(frozen=True)
class Seen:
    """What lies in a folder and those below it, hidden files and folders aside.

    Attributes:
      names: files of a wanted kind, relative to the folder, sorted.
      problems: of others that would be wanted, why they cannot be, by printable name.
      ignored: of all others, why they are not looked at.
    """

    names: list[str]
    problems: dict[str, str]
    ignored: dict[str, str]


def look(folder: Path, wanted: Callable[[Path], bool], skip: str = "") -> Seen:
    """Lists a folder; links to folders are not followed.

    Args:
      folder: the folder.
      wanted: whether a file is of a kind that is read, by its path.
      skip: name of folders that are part of something else, and are not looked at.
    """
    found = Seen([], {}, {})

    def closed(error: OSError) -> None:
        if error.filename == os.fspath(folder):
            return  # that there is nothing is told by who asked
        found.problems[printable(os.path.relpath(error.filename, folder))] = f"cannot be entered ({error.strerror})"

    for place, folders, names in os.walk(folder, onerror=closed):
        folders[:] = [name for name in folders if not name.startswith(".") and name != skip]
        where = os.path.relpath(place, folder)
        for name in (n for n in [*folders, *names] if not n.startswith(".")):
            relative = name if where == "." else f"{where}/{name}"
            if name in folders:
                if os.path.islink(os.path.join(place, name)):
                    found.ignored[printable(relative)] = "is a link to a folder, which is not followed"
            elif not wanted(Path(place, name)):
                found.ignored[printable(relative)] = "is of no kind that is read"
            elif is_utf8(relative):
                found.names.append(relative)
            else:
                found.problems[printable(relative)] = NOT_UTF8
    found.names.sort()
    return found


def tell(manifest: Mapping[str, Any]) -> None:
    """Prints what a preparation left out, and ends the program with status 3 if it was anything.

    Files of kinds that are not read, or that no split asks for, are counted and are no reason to.
    """
    if ignored := manifest.get("ignored"):
        name, why = next(iter(ignored.items()))
        print(f"not looked at: {len(ignored)} files (`ignored` in the manifest), the first, {name}, {why}")
    problems = manifest.get("left_out")
    if problems:
        print("files left out:", *(f"  {name}: {problem}" for name, problem in problems.items()), sep="\n")
        sys.exit(SOME_LEFT_OUT)


def in_order(problems: Mapping[str, str]) -> dict[str, str]:
    """Problems by name, sorted, for a manifest."""
    return dict(sorted(problems.items()))
