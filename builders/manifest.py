"""What the manifest of a store must be before anything in it is used: it came with the store, from anybody."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msm.infra.atomic import safe_join
from msm.infra.errors import UserError
from msm.infra.plain_json import is_finite

_LARGEST_ID = 2**31 - 1


def find_problem(store: Path, manifest: Mapping[str, Any]) -> str:
    """Returns what is wrong with a manifest that has all required keys, or ''.

    Numbers must be numbers, ids must be int32, and no path may lead out of the store, by '..', '/' or a link.
    """
    for name, value in (("sigma_data", manifest["sigma_data"]), ("noise_std", _noise(manifest))):
        if not is_finite(value) or value < 0:
            return f"{name} is {value!r}, not a number of at least 0"
    if not isinstance(manifest["counts"], dict) or not isinstance(manifest["acquisitions"], dict):
        return "counts and acquisitions must be tables"
    parts = {f"acquisitions.{name}": part for name, part in manifest["acquisitions"].items()}
    problems = (
        _of_dataset(store, name, part) for name, part in [*parts.items(), ("references", manifest["references"])]
    )
    return next((problem for problem in problems if problem), "")


def _noise(manifest: Mapping[str, Any]) -> Any:
    return manifest.get("noise_std", manifest["settings"]["noise_std"])


def _of_dataset(store: Path, name: str, part: Any) -> str:
    """What is wrong with the description of one dataset, or ''."""
    path, files, ids = part["path"], part["files"], part["ids"]
    if not isinstance(path, str) or not isinstance(files, dict) or not isinstance(ids, dict):
        return f"{name} must have a path, a table of files and a table of ids"
    sizes = all(isinstance(size, int) and size >= 0 for size in files.values())
    if not sizes:
        return f"{name}.files must be sizes in bytes"
    told = part.get("matrix", {})
    if not isinstance(told, dict):
        return f"{name}.matrix must be a table"
    for split, numbers in ids.items():
        whole = isinstance(numbers, list) and all(type(n) is int and 0 <= n <= _LARGEST_ID for n in numbers)
        if not whole:
            return f"{name}.ids.{split} must be whole numbers from 0 to {_LARGEST_ID}"
        shapes = told.get(split)
        if shapes is not None and not _are_shapes(shapes, len(numbers)):
            return f"{name}.matrix.{split} must be rows and columns of each of the {len(numbers)} examples"
    outside = next((text for text in (path, *files) if not lies_inside(store, text)), None)
    return "" if outside is None else f"{name} names {outside!r}, which lies outside the store"


def _are_shapes(shapes: Any, count: int) -> bool:
    """Whether a manifest tells rows and columns of so many examples."""
    if not isinstance(shapes, list) or len(shapes) != count:
        return False
    return all(isinstance(s, list) and len(s) == 2 and all(type(n) is int and n > 0 for n in s) for s in shapes)


def lies_inside(store: Path, name: str) -> bool:
    """Whether a name of a manifest is one of a file inside the store."""
    try:
        safe_join(store, name)
    except (UserError, ValueError, OSError, RuntimeError):  # a NUL, too long a name, links in a circle
        return False
    return True
