"""A trace of some steps for xprof: `training.profile=(start, steps)` writes it into `<workdir>/profile`."""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence

import jax

from msm.infra.atomic import safe_join


class Profile:
    """Traces `steps` steps after step `start`, once; (0, 0) traces nothing.

    Args:
      workdir: folder of the run.
      span: (start, steps). A start that begins after `start` traces nothing any more.
    """

    def __init__(self, workdir: str | os.PathLike, span: Sequence[int]):
        self._folder = safe_join(workdir, "profile")
        start, steps = span
        self._first, self._last = (start + 1, start + steps) if steps else (None, 0)
        self._on = False

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """The block does step `number`: begins the trace before it, if it is the first of the span."""
        if number == self._first:
            jax.profiler.start_trace(str(self._folder))
            self._on = True
        if not self._on:
            yield
            return
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def done(self, number: int, results) -> None:
        """Step `number` was dispatched; ends the trace after the last of the span, once `results` are there."""
        if self._on and number >= self._last:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Writes the trace, if one has begun; what a run that ends early did until then."""
        if self._on:
            self._on = False
            jax.profiler.stop_trace()
            logging.info("profile of steps %d to %d: xprof --logdir=%s", self._first, self._last, self._folder)
