"""best.json, what tuning found: written by --mode tune, read by evaluation where `eval.tuned` names it.

The file maps solvers to what was found for each: {'msm': {'hyper': {'eta': 0.8, ...}, 'objective': ..., ...}, ...}.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from msm.infra import plain_json
from msm.infra.atomic import atomic_write_json
from msm.infra.errors import UserError
from msm.infra.plain_json import is_finite
from msm.infra.registry import nearest
from msm.solvers.registry import SOLVERS, Solver


def add(path: Path, solver: str, found: Mapping[str, Any]) -> None:
    """Files what was found for one solver, beside what was found for others; `found` holds finite numbers."""
    entries = _read(path) if path.exists() else {}
    atomic_write_json(path, {**entries, solver: dict(found)})


def has(path: str, solver: str) -> bool:
    """Whether the file says anything of this solver. Raises UserError as `apply` does where it cannot be read."""
    return solver in _read(Path(path).expanduser())


def apply(path: str, solvers: Mapping[str, Solver]) -> dict[str, Solver]:
    """Returns `solvers` with the tuned hyper-parameters of those that the file has; the others keep theirs.

    Raises UserError where there is no such file, it is of another kind, has none of these solvers, or names a solver or
    a hyper-parameter that does not exist.
    """
    entries = _read(Path(path).expanduser())
    for name, entry in entries.items():
        if name not in SOLVERS:
            raise UserError(f"{path} is of an unknown solver {name!r}{nearest(name, SOLVERS.names())}")
        if not all(_is_usable(value) for value in entry["hyper"].values()):
            raise UserError(f"{path}: hyper-parameters of {name!r} must be finite numbers; tune again")
    if not entries.keys() & solvers.keys():
        raise UserError(
            f"{path} is of {', '.join(entries) or 'no solver'}, eval.solvers are {', '.join(solvers)}: tune one of "
            "these, or evaluate one of those"
        )
    return {name: _changed(path, name, solver, entries.get(name)) for name, solver in solvers.items()}


def _changed(path: str, name: str, solver: Solver, entry: Mapping[str, Any] | None) -> Solver:
    if entry is None:
        return solver
    unknown = [key for key in entry["hyper"] if key not in solver.hyper]
    if unknown:
        hint = nearest(unknown[0], solver.hyper)
        known = ", ".join(solver.hyper) or "none"
        raise UserError(f"{path}: {name!r} has no hyper-parameter {unknown[0]!r}{hint} (known: {known})")
    return dataclasses.replace(solver, hyper={**solver.hyper, **entry["hyper"]})


def _is_usable(value: Any) -> bool:
    """Whether a value is a number that stays finite as the float32 that solvers are given."""
    return is_finite(value) and abs(float(value)) <= float(np.finfo(np.float32).max)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        entries = plain_json.parse(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): make it with --mode=tune") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): delete it and tune again") from error
    sound = isinstance(entries, dict) and all(
        isinstance(entry, dict) and isinstance(entry.get("hyper"), dict) for entry in entries.values()
    )
    if not sound:
        raise UserError(f"{path} is no best.json of --mode=tune: give the file that tuning wrote")
    return entries
