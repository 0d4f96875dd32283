"""A workdir at gs://... or s3://...: the run works in a folder of this machine, and its files are copied to the store.

All modes keep to local files, as fast as ever. Behind them a thread uploads what has changed every PERIOD_S seconds,
and the end of the run uploads the rest. An object is whole or not there, and a checkpoint counts once its seal is
there, which goes up last: who is killed anywhere leaves a run that the same command resumes.
"""

import json
import logging
import os
import re
import shutil
import socket
import sqlite3
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from msm.infra.errors import UserError
from msm.infra.storage import Bucket

PERIOD_S = 15.0
LEASE_S = 60.0  # a lock that nobody has renewed for so long is of a process that is gone
FETCHED = 2  # newest checkpoints of each tier that a start downloads; the others stay where they are
_CHECKPOINT = re.compile(r"(checkpoints(?:-meta)?)/(\d+)/(.*)")
_SEAL = "meta/checksums.json"
_RECORD = "checkpoints.json"
_NOT_OURS = re.compile(r"(^|/)(\.[^/]*\.tmp-|\.lock-)|orbax-checkpoint-tmp|\.db-(journal|wal|shm)$")


class Mirror:
    """Copies between a folder and the objects below a URL, in an order that no kill can break.

    Args:
      bucket: the objects.
      folder: on this machine.
      may_write: asked before every upload; raises UserError where the run is no longer this process's.
    """

    def __init__(self, bucket: Bucket, folder: Path, may_write: Callable[[], None] = lambda: None):
        self._bucket, self._folder, self._may_write = bucket, folder, may_write
        self._sent: dict[str, tuple | None] = {}  # name: what the file was when it was last uploaded
        self._busy = threading.Lock()

    def fetch(self) -> None:
        """Downloads what a start needs: all but older checkpoints and those whose upload was cut."""
        there = self._bucket.names()
        for name in _wanted(there):
            self._bucket.get(name, self._folder / name)
            self._sent[name] = _state(self._folder / name)

    def push(self) -> None:
        """Uploads what has changed since it was fetched or uploaded last, then deletes what is gone here.

        Raises UserError where the store refuses; a later call goes on.
        """
        with self._busy:
            self._may_write()
            here = self._files()
            for name in sorted(here, key=_turn):
                state = _state(self._folder / name)
                if state is not None and self._sent.get(name) != state:
                    self._upload(name)
                    self._sent[name] = state
            for name in [name for name in self._sent if name not in here]:
                self._bucket.delete(name)
                del self._sent[name]

    def _files(self) -> set[str]:
        """Names of the files that belong in the store; of checkpoints, those that are sealed."""
        names = {p.relative_to(self._folder).as_posix() for p in self._folder.rglob("*") if p.is_file()}
        names = {name for name in names if not _NOT_OURS.search(name)}
        sealed = {name.removesuffix(_SEAL) for name in names if name.endswith(_SEAL)}
        found = {name: _CHECKPOINT.fullmatch(name) for name in names}
        return {n for n, match in found.items() if match is None or f"{match[1]}/{match[2]}/" in sealed}

    def _upload(self, name: str) -> None:
        path = self._folder / name
        if path.suffix == ".db":  # SQLite may be in the middle of a page
            with tempfile.TemporaryDirectory() as place:
                copy = Path(place) / path.name
                source, target = sqlite3.connect(path), sqlite3.connect(copy)
                try:
                    source.backup(target)
                finally:
                    source.close()
                    target.close()
                self._bucket.put(copy, name)
            return
        try:
            self._bucket.put(path, name)
        except UserError:
            if path.exists():
                raise  # else an old checkpoint was deleted meanwhile


def _wanted(there: dict[str, int]) -> list[str]:
    found = {name: _CHECKPOINT.fullmatch(name) for name in there}
    sealed: dict[str, list[int]] = {}
    for match in found.values():
        if match is not None and match[3] == _SEAL:
            sealed.setdefault(match[1], []).append(int(match[2]))
    newest = {tier: sorted(steps)[-FETCHED:] for tier, steps in sealed.items()}
    return [
        name
        for name, match in found.items()
        if (match is None and not _NOT_OURS.search(name)) or (match and int(match[2]) in newest.get(match[1], []))
    ]


def _turn(name: str) -> tuple:
    """Order of uploads: a checkpoint's seal after its files, the record of checkpoints after all seals."""
    return (name == _RECORD, name.endswith(_SEAL), bool(_CHECKPOINT.fullmatch(name)), name)


def _state(path: Path) -> tuple | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino)


class Lease:
    """The lock of a run's mode in an object store: an object that its owner renews while it lives."""

    def __init__(self, bucket: Bucket, mode: str, clock: Callable[[], float] = time.time, sleep=time.sleep):
        self._bucket, self._name, self._mode, self._clock, self._sleep = bucket, f".lock-{mode}", mode, clock, sleep
        self._token = uuid.uuid4().hex
        self._renewed = 0.0

    def take(self) -> None:
        """Raises UserError where a live process has it; one that has died is waited for, LEASE_S at most."""
        if self._bucket.create(self._name, self._content()):
            return
        seen, limit = self._bucket.read(self._name), self._clock() + LEASE_S
        while seen is not None and not _is_dead(seen) and self._clock() < limit:
            self._sleep(PERIOD_S / 5)
            if (now := self._bucket.read(self._name)) != seen and now is not None:
                raise UserError(
                    f"{self._bucket.url}: another process ({_owner(now)}) runs --mode {self._mode} in this workdir; "
                    "wait for it, end it, or choose another --workdir"
                )
            seen = now
        self._bucket.write(self._name, self._content())
        self._sleep(1.0)  # of two that take over at once, the later write counts
        self.check()

    def check(self) -> None:
        """Raises UserError unless the lock is still this process's; renews it."""
        content = self._bucket.read(self._name)
        if content is None or json.loads(content).get("token") != self._token:
            raise UserError(
                f"{self._bucket.url}: another process ({_owner(content)}) has taken this workdir over; this one ends"
            )
        if self._clock() - self._renewed >= PERIOD_S / 2:
            self._bucket.write(self._name, self._content())

    def free(self) -> None:
        self._bucket.delete(self._name)

    def _content(self) -> bytes:
        self._renewed = self._clock()
        told = {"token": self._token, "host": socket.gethostname(), "pid": os.getpid(), "time": self._renewed}
        return json.dumps(told).encode()


def _owner(content: bytes | None) -> str:
    told = json.loads(content) if content else {}
    return f"pid {told.get('pid', '?')} on {told.get('host', '?')}"


def _is_dead(content: bytes) -> bool:
    """Whether the owner was a process of this machine that is no more."""
    told = json.loads(content)
    if told["host"] != socket.gethostname():
        return False
    try:
        os.kill(told["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return told["pid"] == os.getpid()  # of a container before this one: in each, numbers begin anew


class Remote:
    """A run's workdir at a URL while this process works on it, in `folder`; see the module. Closed by `close`.

    Args:
      folder: on this machine; what is in it is deleted.
      writes: whether this process uploads; others of the run only fetch.
    """

    def __init__(self, url: str, mode: str, folder: Path, writes: bool = True):
        self.folder = folder
        bucket = Bucket(url)
        self._lease = Lease(bucket, mode) if writes else None
        if self._lease is not None:
            self._lease.take()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._mirror = Mirror(bucket, folder, self._lease.check if self._lease else lambda: None)
        self._mirror.fetch()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True, name="mirror")
        if writes:
            self._thread.start()

    def _follow(self) -> None:
        while not self._end.wait(PERIOD_S):
            try:
                self._mirror.push()
            except UserError as error:
                logging.warning("%s", error)

    def close(self) -> None:
        """Uploads the rest and frees the lock. Raises UserError where that fails: the files stay in `folder` then."""
        self._end.set()
        if self._lease is not None:
            self._thread.join()
            self._mirror.push()
            self._lease.free()
        shutil.rmtree(self.folder, ignore_errors=True)
