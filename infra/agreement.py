"""Whether the processes of a run are of the same settings, code, versions and store: asked before anything is written.

One process with another learning rate would train on without a word, to parameters that nobody asked for.
"""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from msm.infra import processes
from msm.infra.errors import UserError

PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
OF_NO_DATA = ("notes", "licences", "versions", "command")  # in a store's manifest
TOLD = 5  # differences that the message names
_ABSENT = "absent"


def require_equal(what: str, mine: Mapping[str, Any], mend: str) -> None:
    """Raises UserError on every process, with the differences, unless all processes have the same.

    Args:
      what: of which the values are, for the message, e.g. 'settings'.
      mine: this process's values by name: JSON or what has a repr.
      mend: what the user is to do.
    """
    text = json.dumps({name: _text(value) for name, value in mine.items()}, sort_keys=True)
    digests = processes.gather_texts(hashlib.sha256(text.encode()).hexdigest())
    if len(set(digests)) == 1:
        return
    told = [json.loads(other) for other in processes.gather_texts(text)]
    lines = []
    for index, theirs in enumerate(told):
        names = sorted(name for name in {*told[0], *theirs} if told[0].get(name, _ABSENT) != theirs.get(name, _ABSENT))
        lines += [
            f"{name}: {told[0].get(name, _ABSENT)} in process 0, {theirs.get(name, _ABSENT)} in process {index}"
            for name in names
        ]
    more = f" and {len(lines) - TOLD} more" if len(lines) > TOLD else ""
    error = UserError(f"processes of this run differ in {what} ({'; '.join(lines[:TOLD])}{more}): {mend}")
    error.everywhere = True
    raise error


def require_same_program(flags: Mapping[str, Any], config: ConfigDict) -> None:
    """Compares flags, settings, versions and code of all processes. Raises UserError as `require_equal` does.

    Args:
      flags: of the command line that must be equal, by name.
      config: where the store lies may differ, as each host may have its copy: `require_same_store` is for that.
    """
    same = "give every process the same command, but for --process_id"
    settings = flat(config.copy_and_resolve_references().to_dict())
    settings.pop("data.dir", None)
    require_equal("settings", {**{f"--{name}": value for name, value in flags.items()}, **settings}, same)
    require_equal("versions", versions(), "install the same packages on every host (constraints.txt)")
    require_equal("code", code(), "put the same commit, without changes of its own, on every host")


def require_same_store(manifest: Mapping[str, Any]) -> None:
    """Compares what the processes' stores say of themselves: settings, examples, files and their sizes."""
    told = {name: value for name, value in manifest.items() if name not in OF_NO_DATA}
    require_equal("store", flat(told), "give every host the same data.dir, or copies of one store")


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns {"model.num_channels": 64, ...}."""
    found = {}
    for name, value in nested.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def versions() -> dict[str, str]:
    """{package: version} of what decides numbers, and Python's; packages that are not installed are left out."""
    found = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def code() -> dict[str, str]:
    """{file: beginning of its SHA-256} of every Python file of the package that runs, below its rooms."""
    root = Path(__file__).resolve().parent.parent
    rooms = [path.parent for path in root.glob("*/__init__.py") if path.parent.name != "tests"]
    files = [*root.glob("*.py"), *(path for room in rooms for path in room.rglob("*.py"))]
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:8] for path in files}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)
