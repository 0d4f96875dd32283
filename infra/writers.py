"""What a run tells while it works: metrics.jsonl, TensorBoard, and a log on the console and in <mode>.log."""

import contextlib
import json
import logging
import os
import socket
import sys
import time
from pathlib import Path

import absl.logging
import jax
import numpy as np
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.record_writer import RecordWriter
from tqdm import tqdm

from msm.infra import plain_json
from msm.infra.atomic import atomic_write_text, safe_join
from msm.infra.trackers import Tracker

CHATTY_LOGGERS = ("absl", "jax", "orbax", "grain", "tensorboardX", "matplotlib", "PIL", "alembic", "optuna")


class MetricWriter:
    """Writes scalars to `metrics.jsonl` and `tensorboard/`, pictures to `tensorboard/`; only process 0 does anything.

    metrics.jsonl holds one JSON object a line, {"step": 50, "loss": 0.61, ...}; floats are exact (repr); numbers that
    are not finite are written NaN and Infinity, as Python's json reads them. Every line is with the operating system
    when `write` returns, so a killed process loses none.

    Args:
      workdir: folder of the run.
      tracker: gets the scalars too, if there is one.
    """

    def __init__(self, workdir: str | os.PathLike, tracker: Tracker | None = None):
        self._tracker = tracker
        self._path = safe_join(workdir, "metrics.jsonl")
        self._folder = safe_join(workdir, "tensorboard")
        self._writes = jax.process_index() == 0
        self._purge_step: int | None = None
        self._lines = None
        self._board: RecordWriter | None = None

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        if self._tracker is not None and self._writes:
            self._tracker.finish()

    def rewind(self, step: int) -> None:
        """Forgets everything after `step`; call it once at the start of training with the step resumed from (or 0).

        Lines of later steps are cut from metrics.jsonl, as is a last line that a crash left incomplete. TensorBoard is
        told to hide its later events. So the record has neither gap nor duplicate after a resume.
        """
        if not self._writes:
            return
        self.close()
        self._purge_step = step + 1
        if self._path.exists():
            lines = self._path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if _step_of(line, self._path) <= step]
            if kept != lines:
                atomic_write_text(self._path, "".join(kept))

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Records the scalars of one step."""
        if not self._writes:
            return
        values = {name: float(value) for name, value in metrics.items()}
        if self._lines is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._lines = open(self._path, "a")  # noqa: SIM115 (held open for the run, closed by close)
        self._lines.write(json.dumps({"step": int(step), **values}) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._show(step, summary.scalar(name, value))
        self._tensorboard().flush()
        if self._tracker is not None:
            self._tracker.log(int(step), values)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Shows a picture in TensorBoard. picture: (H,W,3) uint8."""
        if not self._writes:
            return
        picture = np.asarray(picture)
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
            raise ValueError(f"picture {name!r} must be (H,W,3) uint8, not {picture.shape} {picture.dtype}")
        self._show(step, summary.image(name, picture, dataformats="HWC"))
        self._tensorboard().flush()

    def close(self) -> None:
        """Closes both files; the next `write` opens them again."""
        with contextlib.ExitStack() as stack:  # closes both even if the disk is full
            for file in (self._lines, self._board):
                if file is not None:
                    stack.callback(file.close)
            self._lines = self._board = None

    def _show(self, step: int, values) -> None:
        self._tensorboard().write(Event(wall_time=time.time(), step=step, summary=values).SerializeToString())

    def _tensorboard(self) -> RecordWriter:
        """The open file, written from this thread: SummaryWriter's own one dies of a full disk and blocks the run."""
        if self._board is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            now = time.time_ns()  # in full: a second writer within a second would overwrite the first's file
            name = f"events.out.tfevents.{now // 10**9}.{socket.gethostname()}.{now}"
            self._board = RecordWriter(str(self._folder / name))
            events = [Event(wall_time=now / 1e9, file_version="brain.Event:2")]
            if self._purge_step is not None:
                start = SessionLog(status=SessionLog.START)
                events.append(Event(wall_time=now / 1e9, step=self._purge_step, session_log=start))
            for event in events:
                self._board.write(event.SerializeToString())
            self._purge_step = None
        return self._board


def _step_of(line: str, path: Path) -> float:
    """Returns the step of a line of metrics.jsonl, or infinity for the incomplete line that a crash leaves."""
    try:
        return int(plain_json.parse(line)["step"])
    except (ValueError, KeyError, TypeError):
        logging.warning("%s: dropped an incomplete line: %.60r", path, line)
        return float("inf")


class _Console(logging.Handler):
    """Prints log lines to standard error above a progress bar, if there is one, instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


class _File(logging.FileHandler):
    """The log file of this run. Where it cannot be written, the run hears of it instead of the console."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            raise error
        super().handleError(record)


def setup_logging(workdir: str | os.PathLike, mode: str) -> None:
    """Sends Python's logging (INFO and above) to standard error and to `<workdir>/<mode>.log`, which is appended to.

    Processes other than the first print warnings only and write no file. Libraries that chatter are held to warnings,
    and the tracebacks that Orbax logs (as 'absl') go to the file alone: what they mean to the user is raised instead.
    A second call replaces what the first set up.
    """
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, _Console | _File)]:
        root.removeHandler(handler)
        handler.close()
    root.removeHandler(absl.logging.get_absl_handler())  # absl.app installs it; it would print every line twice
    first = jax.process_index() == 0
    console = _Console(logging.INFO if first else logging.WARNING)
    console.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    console.addFilter(lambda record: record.name != "absl")
    root.addHandler(console)
    if first:
        path = safe_join(workdir, f"{mode}.log")
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _File(path)
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        root.addHandler(file)
    root.setLevel(logging.INFO)
    for name in CHATTY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
