"""Counting of the training steps that were skipped, without making any step wait for the host."""

import logging
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from msm.infra.errors import UserError


class Tally:
    """Keeps the results of steps on the device until they are read, two steps being under way at most.

    Without that limit a pre-emption notice would wait for all steps that the host has run ahead, and virtual CPU
    devices deadlock.

    Args:
      limit: so many skipped steps in a row end training.
      meta: what a checkpoint holds of an earlier `meta`; {} counts from 0.
    """

    def __init__(self, limit: int, meta: Mapping[str, Any]):
        self._limit = limit
        self._total, self._in_a_row = meta.get("skipped", 0), meta.get("skipped_in_a_row", 0)
        self._recent: list[tuple[int, dict[str, jax.Array]]] = []

    def add(self, step: int, results: dict[str, jax.Array]) -> None:
        """Takes the results of a step: loss, grad_norm, and skipped (0 or 1)."""
        self._recent.append((step, results))
        if len(self._recent) > 1:
            jax.block_until_ready(self._recent[-2][1])

    def read(self) -> dict[str, float]:
        """Waits for the steps since the last `read`; returns the newest's results, 'skipped' being a run's total.

        Raises UserError where `limit` steps in a row were skipped.
        """
        values: dict[str, float] = {}
        total = self._total
        for step, results in self._recent:
            values = {name: float(np.asarray(value)) for name, value in results.items()}
            skipped = int(values["skipped"])
            self._total, self._in_a_row = self._total + skipped, (self._in_a_row + 1) * skipped
            if self._in_a_row >= self._limit:
                raise UserError(
                    f"{self._in_a_row} steps in a row were skipped, the last at step {step}: loss is {values['loss']}, "
                    f"gradient norm is {values['grad_norm']}, and both and the parameters they lead to must be finite; "
                    "lower optim.learning_rate or set optim.grad_clip, then start again: the last checkpoint is finite "
                    "and kept"
                )
        if self._total > total:
            logging.warning(
                "%d of the steps %d to %d skipped: loss, gradient or parameters would not be finite (%d in a row)",
                self._total - total, self._recent[0][0], self._recent[-1][0], self._in_a_row,
            )  # fmt: skip
        self._recent.clear()
        return {**values, "skipped": self._total}

    def meta(self) -> dict[str, int]:
        """What a checkpoint has to hold so that a resumed run counts on."""
        return {"skipped": self._total, "skipped_in_a_row": self._in_a_row}
