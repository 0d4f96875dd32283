"""Warnings about a slow run: a device that waits for its input, and one process for which all others wait."""

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from msm.infra import sharding

STARVED = 0.2  # share of a step's time spent waiting for its batch
STRAGGLING = 2.0  # times the median of the processes
AGAIN = 20  # windows between two warnings of a kind


class Pace:
    """Compares, from one log step to the next, the time that batches were waited for with the time of the steps.

    A process whose host is slow delays the sum of gradients, which all wait for: steps take equally long everywhere,
    what differs is what each host itself needs for its batches. Every process calls `window` at the same steps.

    Args:
      clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._waited, self._begun, self._steps = 0.0, None, 0
        self._quiet = {"starved": 0, "straggling": 0}

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """The block reads a batch."""
        begun = self._clock()
        yield
        self._waited += self._clock() - begun
        self._steps += 1

    def window(self) -> None:
        """Judges the steps since the last call; the first window, with compilation in it, is not judged."""
        now = self._clock()
        begun, waited, steps = self._begun, self._waited, self._steps
        self._begun, self._waited, self._steps = now, 0.0, 0
        if begun is None or not steps:
            return
        mine = np.array([[waited / steps, (now - begun) / steps]])
        told = sharding.gather_rows(mine)
        if jax.process_index() == 0:
            self._judge(told[:, 0], float(told[:, 1].max()), _names(len(told)))

    def _judge(self, waits: np.ndarray, step: float, names: list[str]) -> None:
        self._quiet = {kind: count - 1 for kind, count in self._quiet.items()}
        slowest = int(waits.argmax())
        if waits[slowest] < STARVED * step:
            return
        if len(waits) > 1 and waits[slowest] > STRAGGLING * np.median(waits):
            self._warn(
                "straggling", "%s is the straggler: its batch takes %.3g s of a step's %.3g s, the others' %.3g s; see "
                "what its disk and cores do, or leave that host out",
                names[slowest], waits[slowest], step, float(np.median(waits)),
            )  # fmt: skip
        else:
            self._warn(
                "starved", "input is slower than the device: %.3g s of a step's %.3g s (%.0f %%) wait for the batch; "
                "put the store on a faster disk, free the host's cores, or take a larger share of work per slice",
                waits[slowest], step, 100 * waits[slowest] / step,
            )  # fmt: skip

    def _warn(self, kind: str, *message) -> None:
        if self._quiet[kind] <= 0:
            logging.warning(*message)
            self._quiet[kind] = AGAIN


def _names(count: int) -> list[str]:
    """What processes are called in a warning; of this one also its host's name."""
    here = jax.process_index()
    return [f"process {i} of {count}" + (f" ({socket.gethostname()})" if i == here else "") for i in range(count)]
