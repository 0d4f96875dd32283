"""The folder of a run: its lock, the settings it was made with (config.json) and what it ran on (manifest.json)."""

import dataclasses
import datetime
import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from msm.infra import links, plain_json
from msm.infra.atomic import atomic_write_json, safe_join
from msm.infra.errors import DISK_ERRORS, IN_THE_WAY, UserError

# Returns the settings in a folder's config.json, flat, None without one; raises UserError where this run's are others.
Agree = Callable[[Path, ConfigDict], dict[str, Any] | None]

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")


@dataclasses.dataclass
class Workdir:
    """A run's folder, locked until `close` (or until the process ends, however it ends).

    As a context manager it raises UserError where the block could not write: a full disk, no permission, a file of the
    user's where the run wants a folder.
    """

    root: Path
    mode: str
    _lock: Any = None

    def path(self, name: str) -> Path:
        """Returns the path of a file of this run. Raises UserError if `name` leads out of the workdir."""
        return safe_join(self.root, name)

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> "Workdir":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close()
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise UserError(
                f"cannot write to the workdir {self.root} ({error.strerror}): make room or mend the permissions, then "
                "start the same command again; it goes on from what is complete"
            ) from error
        place = (error.filename2 or error.filename) if isinstance(error, IN_THE_WAY) else None
        if isinstance(error, OSError) and place and self.root in Path(place).parents:
            raise UserError(
                f"cannot write {place} ({error.strerror}): move away what stands in its place, or choose "
                "another --workdir"
            ) from error

    def __fspath__(self) -> str:
        return str(self.root)


def open_workdir(
    workdir: str | os.PathLike, config: ConfigDict, mode: str, data: dict[str, Any] | None = None, *, agree: Agree
) -> Workdir:
    """Makes or reopens the folder of a run; nothing is written unless every check passes.

    Process 0 locks the folder for this mode and writes config.json and manifest.json; other processes only check. A
    setting that does not change what the checkpoints mean may differ from last time: config.json is updated and the
    change is appended to config_history.jsonl.

    Args:
      workdir: folder on a mounted file system; made if missing.
      config: the resolved settings.
      mode: train | eval | tune | sample. Runs of different modes may share a workdir at the same time.
      data: what decides which examples and random numbers this mode sees at which step, e.g. the seed; JSON values.
        Noted in manifest.json; with other data a run of this mode is refused: it would not go on with what was begun.
      agree: compares the settings with those of the folder.

    Raises:
      UserError: the folder cannot be used, belongs to another config, or a live process runs this mode in it.
    """
    root = check_workdir(workdir, config, mode, agree)
    now, before = flat(config), agree(root, config)
    known, data = recorded_data(root, mode), flat(data or {})
    if known:
        refuse_differences(root, known, data, lambda key: True, "workdir")
    if jax.process_index() != 0:
        return Workdir(root, mode)
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = _take_lock(root / f".lock-{mode}", mode)
    except OSError as error:
        raise UserError(
            f"cannot write to the workdir {root} ({error.strerror}): choose another with --workdir"
        ) from error
    opened = Workdir(root, mode, lock)
    try:
        _record(opened, config, before, now, data)
    except BaseException as error:
        opened.__exit__(type(error), error, error.__traceback__)
        raise
    return opened


def check_workdir(workdir: str | os.PathLike, config: ConfigDict, mode: str, agree: Agree) -> Path:
    """Returns the folder of a run, of which `open_workdir` would not complain; writes nothing. Raises as it does."""
    root = _usable_folder(workdir)
    links.keep_inside(root)
    agree(root, config)
    path = root / f".lock-{mode}"
    if jax.process_index() == 0 and path.is_file() and os.access(path, os.R_OK):
        _lock(path, mode, "r").close()
    return root


def _usable_folder(workdir: str | os.PathLike) -> Path:
    name = os.fspath(workdir)
    if not name:
        raise UserError("no workdir: give the folder of the run with --workdir")
    if "://" in name:
        raise UserError(f"workdir {name!r} is a URL: `infra.at_hand.workdir` gives the folder that stands for it")
    root = Path(name).expanduser().resolve()
    blocked = next((p for p in (root, *root.parents) if p.exists() and not p.is_dir()), None)
    if blocked is not None:
        raise UserError(f"workdir {root}: {blocked} is a file, not a folder; choose another --workdir")
    return root


def flat(config: ConfigDict | dict, prefix: str = "") -> dict[str, Any]:
    """Returns {"model.num_channels": 64, ...} with values as they look after a round trip through JSON."""
    values = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | dict):
            values.update(flat(value, f"{prefix}{key}."))
        else:
            values[prefix + key] = json.loads(json.dumps(value))
    return values


def read_config(path: Path) -> dict[str, Any] | None:
    """Returns the flat settings in a config.json, None if there is no such file. Raises UserError if it is damaged."""
    if not path.exists():
        return None
    try:
        return flat(plain_json.parse(path.read_bytes()))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): mend it, or choose another --workdir") from error
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}): mend it, or choose another --workdir") from error


def refuse_differences(folder: Path, before: dict, now: dict, matters: Callable[[str], bool], what: str) -> None:
    """Raises UserError if two flat configs differ in a setting that matters; `what` is 'workdir' or 'checkpoint'."""
    missing = object()
    wrong = []
    for key in sorted({*before, *now}):
        old, new = before.get(key, missing), now.get(key, missing)
        if old != new and matters(key):
            told = [repr(v) if v is not missing else "absent" for v in (old, new)]
            wrong.append(f"{key}: {told[0]} in {what}, {told[1]} now")
    if wrong:
        mend = "choose another --workdir" if what == "workdir" else "choose another checkpoint"
        raise UserError(f"{folder} belongs to another config ({'; '.join(wrong)}): {mend}, or set the same values")


def _lock(path: Path, mode: str, access: str) -> Any:
    """Returns an open file whose lock the operating system frees when this process ends, even by kill -9."""
    links.check_last(path)
    file = open(path, access)  # noqa: SIM115 (held open as long as the lock)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        file.close()
        raise UserError(
            f"{path.parent}: another process (pid {owner}) runs --mode {mode} in this workdir; wait for it, end it, or "
            "choose another --workdir"
        ) from None
    return file


def _take_lock(path: Path, mode: str) -> Any:
    """The lock of `_lock`, whose file then tells who has it."""
    file = _lock(path, mode, "a+")
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def recorded_data(folder: str | os.PathLike, mode: str) -> dict[str, Any]:
    """What `open_workdir` was last told as `data` in this folder, flat; {} if nothing."""
    return _read_manifest(Path(folder).expanduser() / "manifest.json").get(mode, {}).get("data", {})


def _read_manifest(path: Path) -> dict[str, Any]:
    """Returns what manifest.json says of each mode; {} if there is none yet, or one that nobody can read any more."""
    try:
        manifest = plain_json.parse(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _record(workdir: Workdir, config: ConfigDict, before: dict[str, Any] | None, now: dict[str, Any], data) -> None:
    """Writes config.json, config_history.jsonl and manifest.json."""
    changes = (
        {}
        if before is None
        else {
            key: [before.get(key), now.get(key)] for key in sorted({*before, *now}) if before.get(key) != now.get(key)
        }
    )
    if changes:
        time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with open(workdir.path("config_history.jsonl"), "a") as file:
            file.write(json.dumps({"time": time, "mode": workdir.mode, "changes": changes}) + "\n")
    if changes or before is None:
        atomic_write_json(workdir.path("config.json"), config.to_dict())
    path = workdir.path("manifest.json")
    atomic_write_json(
        path, {**_read_manifest(path), workdir.mode: {**describe_run(), **({"data": data} if data else {})}}
    )


def describe_run() -> dict[str, Any]:
    """Returns what a result depends on besides its settings: versions, commit, devices and the command line."""
    device = jax.devices()[0]
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        **_git(Path(__file__).resolve().parent.parent),
        "platform": device.platform,
        "device_kind": device.device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "argv": sys.argv,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(folder: Path) -> dict[str, Any]:
    """Returns the commit of the checkout that the code runs from and whether tracked files differ, or None twice."""

    def ask(*command: str) -> str | None:
        try:
            answer = subprocess.run(["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    status = ask("status", "--porcelain", "--untracked-files=no")
    return {"git_commit": ask("rev-parse", "HEAD"), "git_dirty": None if status is None else bool(status)}
