"""Tells how far a loop is, how fast it goes and when it will end."""

import logging
import sys
import time
from collections.abc import Callable

import jax
from tqdm import tqdm

PLAIN_INTERVAL_S = 30.0


def _duration(seconds: float) -> str:
    return tqdm.format_interval(max(0, round(seconds)))


class Progress:
    """Progress of a loop over steps: a bar on a terminal, elsewhere a log line at most every 30 s and at the end.

    The rate counts from the first `update` on, so that compilation does not spoil the estimate.

    Args:
      total: number of the last step.
      start: number of steps done before (after a resume), so that the first step of this run is start + 1.
      label: what the loop does, e.g. "train".
      unit: what is counted.
      bar: whether to draw a bar; None: only if standard error is a terminal, and on process 0.
      clock: seconds, monotonic.
    """

    def __init__(
        self,
        total: int,
        start: int = 0,
        label: str = "",
        unit: str = "step",
        bar: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total, self._label, self._unit, self._clock = total, label, unit, clock
        self._first: tuple[int, float] | None = None
        self._last_line = clock()
        draw = sys.stderr.isatty() and jax.process_index() == 0 if bar is None else bar
        self._bar = tqdm(total=total, initial=start, desc=label, unit=unit, dynamic_ncols=True) if draw else None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, step: int, **metrics: float) -> None:
        """Reports that `step` steps are done, with numbers to show beside them."""
        now = self._clock()
        if self._first is None:
            self._first = (step, now)
        if self._bar is not None:
            self._bar.set_postfix({k: f"{v:.4g}" for k, v in metrics.items()}, refresh=False)
            self._bar.update(step - self._bar.n)
        elif now - self._last_line >= PLAIN_INTERVAL_S or step >= self._total:
            self._last_line = now
            logging.info("%s", self._line(step, now, metrics))

    def _line(self, step: int, now: float, metrics: dict[str, float]) -> str:
        parts = [f"{self._label} {step}/{self._total}".strip()]
        first_step, first_time = self._first or (step, now)
        if step > first_step and now > first_time:
            rate = (step - first_step) / (now - first_time)
            speed = f"{rate:.3g} {self._unit}/s" if rate >= 1 else f"{1 / rate:.3g} s/{self._unit}"
            parts += [speed, f"ETA {_duration((self._total - step) / rate)}"]
        parts += [f"{name} {value:.4g}" for name, value in metrics.items()]
        return "  ".join(parts)

    def close(self) -> None:
        """Ends the bar; later log lines start below it."""
        if self._bar is not None:
            self._bar.close()
