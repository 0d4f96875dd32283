"""What watches a training run from the side: where its seconds go, whether something makes it wait, a profile."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

from msm.infra.goodput import Goodput
from msm.infra.pace import Pace
from msm.infra.profiling import Profile


class Watch:
    """Told by the training loop what it is doing; made by `watching`."""

    def __init__(self, workdir: str | os.PathLike, start: int, profile: Sequence[int]):
        self._goodput, self._pace, self._profile = Goodput(workdir, start), Pace(), Profile(workdir, profile)

    @contextlib.contextmanager
    def input(self) -> Iterator[None]:
        """The block reads a batch."""
        with self._goodput.spent("input"), self._pace.waiting():
            yield

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """The block calls the compiled step, the first time to compile it."""
        with self._profile.step(number), self._goodput.stepping(number):
            yield

    def stepped(self, number: int, results: Any) -> None:
        """Step `number` was called; `results` are on the device, perhaps not there yet."""
        self._profile.done(number, results)

    def logged(self, number: int) -> None:
        """The results of step `number` were logged; all processes come here at the same steps."""
        self._pace.window()
        self._goodput.log(number)

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[None]:
        """The block draws pictures."""
        with self._goodput.spent("evaluation"):
            yield

    @contextlib.contextmanager
    def checkpoint(self, number: int) -> Iterator[None]:
        """The block saves step `number`."""
        with self._goodput.spent("checkpoint"):
            yield
        self._goodput.mark(number)

    def close(self) -> None:
        """The run ends or stops: the last words of all."""
        self._profile.close()
        self._goodput.tell()


@contextlib.contextmanager
def watching(workdir: str | os.PathLike, start: int, profile: Sequence[int]) -> Iterator[Watch]:
    """Yields the Watch of a run that goes on after step `start`; `profile` is training.profile."""
    watch = Watch(workdir, start, profile)
    try:
        yield watch
    finally:
        watch.close()
