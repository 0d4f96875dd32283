"""Where the seconds of a run go: productive steps, start-up, compilation, checkpoints, pictures, input, restarts.

`<workdir>/goodput.json` holds the totals over all starts of the run, in seconds, and those at its newest checkpoints:
what was spent after the checkpoint that a start resumes from is lost. `goodput.jsonl` has a line for every log step.
"""

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax

from msm.infra.atomic import atomic_write_json, safe_join

KINDS = ("productive", "start-up", "compile", "checkpoint", "evaluation", "input", "lost", "between starts")
RECORD, LINES = "goodput.json", "goodput.jsonl"
MARKS = 4  # checkpoints whose totals are kept: a start resumes from one of the newest


class Goodput:
    """Adds up a training run's seconds by kind; the kinds' sum is the time since the process started, and before.

    Only process 0 writes. What no block claims is start-up until the first step is done, and productive from then on.

    Args:
      workdir: folder of the run.
      step: of the checkpoint that this start resumes from; 0 if none.
      started: seconds of `clock` at which the process started.
      clock: seconds, monotonic.
      now: seconds since the epoch, which go on between two starts.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        step: int,
        started: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ):
        self._path, self._lines = safe_join(workdir, RECORD), safe_join(workdir, LINES)
        self._clock, self._now = clock, now
        self._writes = jax.process_index() == 0
        self._since = process_start(clock) if started is None else started
        self._first: int | None = None
        self._rest = "start-up"
        begun = self._now() - (self._clock() - self._since)
        self.seconds, self._marks = _resume(self._path, step, begun)
        if self._writes:
            _cut(self._lines, step)

    @contextlib.contextmanager
    def spent(self, kind: str) -> Iterator[None]:
        """Counts the seconds of the block as of this kind."""
        self._claim(self._rest)
        try:
            yield
        finally:
            self._claim(kind)

    @contextlib.contextmanager
    def stepping(self, step: int) -> Iterator[None]:
        """The call of the step; that of the first compiles."""
        if self._first is None:
            self._first = step
            with self.spent("compile"):
                yield
            self._rest = "productive"
        else:
            yield

    def share(self) -> float:
        """Productive seconds over all."""
        self._claim(self._rest)
        return self.seconds["productive"] / max(sum(self.seconds.values()), 1e-9)

    def mark(self, step: int) -> None:
        """Notes that the checkpoint of `step` is being written: a start that resumes from it loses what comes later."""
        self._claim(self._rest)
        self._marks = dict(
            sorted({**self._marks, str(step): dict(self.seconds)}.items(), key=lambda m: int(m[0]))[-MARKS:]
        )
        self._write()

    def log(self, step: int) -> None:
        """Writes the totals so far."""
        share = self.share()
        if self._writes:
            line = {"step": step, "goodput": round(share, 4), **_rounded(self.seconds)}
            with open(self._lines, "a") as file:
                file.write(json.dumps(line) + "\n")
        self._write()

    def tell(self) -> None:
        """Logs one line of what the whole run came to, as the run ends or stops."""
        share = self.share()
        parts = ", ".join(f"{kind} {value:.4g}" for kind, value in self.seconds.items() if value >= 0.05)
        logging.info("goodput %.1f %% of %.4g s: %s", 100 * share, sum(self.seconds.values()), parts)
        self._write()

    def _claim(self, kind: str) -> None:
        now = self._clock()
        self.seconds[kind] += now - self._since
        self._since = now

    def _write(self) -> None:
        if self._writes:
            atomic_write_json(self._path, {"seconds": self.seconds, "time": self._now(), "marks": self._marks})


def process_start(clock: Callable[[], float] = time.monotonic) -> float:
    """Seconds of `clock` when this process began, as the system knows; now, where it does not."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return clock()
    return clock() - max(age, 0.0)


def _resume(path: Path, step: int, begun: float) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """(seconds, marks) with which a start at `step` begins: what came after that checkpoint is lost."""
    record = _read(path)
    marks = {name: seconds for name, seconds in record.get("marks", {}).items() if int(name) <= step}
    at = _whole(marks.get(str(step), {}))
    if not record:
        return at, marks
    spent = _whole(record.get("seconds", {}))
    at["lost"] += max(sum(spent.values()) - sum(at.values()), 0.0)
    at["between starts"] += max(begun - record.get("time", begun), 0.0)
    return at, marks


def _read(path: Path) -> dict:
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _whole(seconds: Mapping[str, float]) -> dict[str, float]:
    return {kind: float(seconds.get(kind, 0.0)) for kind in KINDS}


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {kind: round(value, 3) for kind, value in seconds.items()}


def _cut(path: Path, step: int) -> None:
    """Drops lines of later steps, and one that a crash left incomplete."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
    path.write_text("".join(kept))
