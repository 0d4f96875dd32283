"""No output leaves the folder of its run: a link in it that leads elsewhere is refused, not followed."""

import os
from pathlib import Path

from msm.infra.errors import UserError

_ROOTS: set[Path] = set()  # folders of runs that this process has opened, resolved


def keep_inside(root: Path) -> None:
    """From now on `check` refuses what lies below this folder by name and elsewhere by a link."""
    _ROOTS.add(root.resolve())


def check(path: str | os.PathLike) -> None:
    """Raises UserError if a file to be written has the name of one of a run, and lies outside by a link on the way.

    The last part of the name may be a link: who renames a file onto it replaces it. See `check_last` for others.
    """
    absolute = Path(os.path.abspath(path))
    for parent in absolute.parents:
        root = parent.resolve()
        if root in _ROOTS and not absolute.parent.resolve().is_relative_to(root):
            raise UserError(
                f"{absolute} would be written outside the folder {root}, through a link in it: remove the link"
            )


def check_last(path: str | os.PathLike) -> None:
    """As `check`, for a file that is opened and not replaced: it must be no link itself.

    Raises UserError.
    """
    check(path)
    if os.path.islink(path):
        raise UserError(f"{path} is a link, and a run writes through none: remove it")
