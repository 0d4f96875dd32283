"""Notices to stop: SIGTERM (pre-emption) and SIGINT become a request that loops answer between two steps."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from typing import NoReturn

import jax
from jax.experimental import multihost_utils

from msm.infra.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Notice:
    """Whether the run was asked to stop; made by `watch`."""

    def __init__(self):
        self._number: int | None = None

    def reached(self, step: int) -> bool:
        """Returns whether to save and stop after `step`: the same answer on every process, to be asked at every step.

        Of several processes one notice is enough. JAX's coordination service then agrees on a step that none has
        passed.
        """
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._number is not None

    def stop(self, done: str) -> NoReturn:
        """Ends the run, after all is saved: tells what is done and that the same command goes on. Raises Stopped."""
        number = self._number or signal.SIGTERM
        logging.warning("%s: stopped after %s; the same command goes on from there", signal.Signals(number).name, done)
        raise Stopped(number)


@contextlib.contextmanager
def watch() -> Iterator[Notice]:
    """Yields a Notice that a SIGTERM or SIGINT sets while the block runs; a second signal acts as before the block.

    With several processes, SIGTERM is JAX's own and SIGINT ends the process at once. Outside the main thread Python
    takes no signals, and the notice never comes.
    """
    notice = Notice()
    before = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def receive(number: int, frame: object) -> None:
        del frame
        notice._number = number
        restore()
        os.write(2, b"stopping as soon as all is saved; a second signal stops at once\n")  # logging may be in use here

    if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            before[number] = signal.signal(number, receive) or signal.SIG_DFL
    try:
        yield notice
    finally:
        restore()
