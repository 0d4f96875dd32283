"""The program in processes of its own, as users start it, without the seconds that its imports take.

They are forked from a server that has imported what the program imports, and has not touched a device. Each runs
`main.py` or a tool from its first line, with its own command line; it can be stopped, killed and waited for.
"""

import functools
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from tests.helpers.paths import ROOT

IMPORTED = [
    "msm.run_lib",
    "msm.configs.rules.check",
    "msm.modes.tune",
    "matplotlib.figure",
    "skimage.metrics",
    "tests.helpers.processes",
]
PATIENCE = 600.0  # seconds until a test gives up


@functools.cache
def _server():
    """multiprocessing's fork server, started with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    # What a killed process held is cleaned up by multiprocessing's tracker, which need not complain of it.
    quiet = {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore:resource_tracker"}
    with mock.patch.dict(os.environ, quiet):
        multiprocessing.forkserver.ensure_running()
    return context


def _execute(script: str, arguments: list[str], outputs: tuple[str, str], prepare) -> None:
    if prepare is not None:
        prepare()
    for stream, path in zip((1, 2), outputs, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.chdir(ROOT)
    sys.argv = [script, *arguments]
    runpy.run_path(str(ROOT / script), run_name="__main__")


class Process:
    """A started program. `folder` takes what it prints.

    Args:
      script: path below the root of the repository.
      arguments: of the command line.
      folder: for the files stdout and stderr, made if missing.
      prepare: what the process does first, e.g. registering a network: a function that can be imported.
    """

    def __init__(self, script: str, arguments: list[str], folder: Path, prepare: Callable[[], None] | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        self._outputs = (folder / "stdout", folder / "stderr")
        told = (script, [str(a) for a in arguments], tuple(map(str, self._outputs)), prepare)
        self._process = _server().Process(target=_execute, args=told)
        self._process.start()
        self.pid = self._process.pid

    @property
    def stdout(self) -> str:
        return self._outputs[0].read_text()

    @property
    def stderr(self) -> str:
        return self._outputs[1].read_text()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """The exit status; negative: the signal that ended it."""
        self._process.join(PATIENCE)
        status = self._process.exitcode
        if status is None:
            self._process.kill()
        assert status is not None, self.stderr
        return status

    def kill(self) -> None:
        """Ends it by SIGKILL, which must be what ends it."""
        self.signal(signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL, f"it had ended before: {self.stderr}"

    def finish(self) -> str:
        """Waits for the end, which must be a success; returns what it told."""
        assert self.wait() == 0, self.stderr
        return self.stderr

    def until(self, condition: Callable[[], object]) -> None:
        """Returns as soon as `condition` holds; the process must be alive until then."""
        limit = time.monotonic() + PATIENCE
        while not condition():
            assert self._process.exitcode is None, self.stderr
            assert time.monotonic() < limit, self.stderr
            time.sleep(0.002)
