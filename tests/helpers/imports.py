"""Which files of the project import which, and the arrows that this draws between its rooms."""

import ast
from collections import defaultdict
from pathlib import Path

from tests.helpers.paths import ROOT

PROGRAMS = ("tools", "benchmarks", "examples")  # nobody imports them


def program_files() -> list[Path]:
    """The files of the package, without tests; programs of tools/ and benchmarks/ are among them."""
    rooms = [path.parent for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests"]
    folders = [*rooms, *(ROOT / name for name in PROGRAMS)]
    return sorted([*ROOT.glob("*.py"), *(path for folder in set(folders) for path in folder.rglob("*.py"))])


def imported_files(path: Path) -> set[Path]:
    """The files of this project that `path` imports, wherever in the file it does so, by name or by `registered`."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "registered":
            names = [f"msm.{node.args[0].value}"]  # of infra/values.py, which imports it when it is asked
        for name in names:
            package, *parts = name.split(".")
            if package == "msm":
                found |= _file_of(parts)
    return found - {path}


def _file_of(parts: list[str]) -> set[Path]:
    """The file of the longest part of a dotted name that is a module, or the package; what follows is a thing in it."""
    for length in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:length])
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path.exists():
                return {path}
    return {ROOT / "__init__.py"}


def room_of(path: Path) -> str:
    """The first folder of a file below the root, or the file's own name."""
    first, *rest = path.relative_to(ROOT).parts
    return first if rest else path.stem


def arrows() -> dict[tuple[str, str], int]:
    """{(from room, to room): number of imports}, without those that stay in a room."""
    counted: dict[tuple[str, str], int] = defaultdict(int)
    for path in program_files():
        for target in imported_files(path):
            if room_of(path) != room_of(target):
                counted[room_of(path), room_of(target)] += 1
    return dict(counted)
