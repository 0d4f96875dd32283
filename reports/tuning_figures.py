"""Pictures of a search for hyper-parameters as PNG bytes: its history, and one panel per hyper-parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from msm.reports.figures import COLORS, DPI, new_figure, png_of, ticks

if TYPE_CHECKING:  # see reports/figures.py
    from matplotlib.axes import Axes

TUNING_LABELS = {"held_out": "held-out error", "crps": "CRPS of hidden entries", "psnr": "PSNR (dB)", "ssim": "SSIM"}


def _tuning_axes(axes: Axes, objective: str, across: str) -> None:
    axes.set(xlabel=across, ylabel=TUNING_LABELS.get(objective, objective))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def tuning_history(trials: Sequence[Any], best: Any, objective: str, floor: float | None = None) -> bytes:
    """Returns a PNG of a search: the value of every trial, the best up to each, and those that failed.

    Args:
      trials: with number, hyper and value, None where a trial failed; at least one is finite.
      best: one of them.
      floor: the value that noise alone gives, where there is one.
    """
    figure = new_figure((8, 3.4), DPI, layout="constrained")
    axes = figure.add_subplot()
    numbers, values = np.array([(t.number, t.value) for t in trials if t.value is not None]).T
    sign = 1 if best.value == values.min() else -1
    axes.plot(numbers, values, "o", color=COLORS[5], markersize=4, label="trial")
    axes.step(numbers, sign * np.minimum.accumulate(sign * values), where="post", color=COLORS[0], label="best so far")
    failed = [t.number for t in trials if t.value is None]
    if failed:
        axes.plot(failed, np.full(len(failed), 0.03), "x", color=COLORS[1], label="failed",
                  transform=axes.get_xaxis_transform())  # fmt: skip
    if floor is not None:
        axes.axhline(floor, color=COLORS[6], linestyle=":", linewidth=1, label="noise floor")
    axes.xaxis.set_major_locator(ticks(integer=True))
    _tuning_axes(axes, objective, "trial")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return png_of(figure)


def tuning_slices(
    trials: Sequence[Any], best: Any, objective: str, search: Mapping[str, Any], importance: Mapping[str, float]
) -> bytes:
    """Returns a PNG with one panel per hyper-parameter: the value of every trial over it, later trials darker.

    Args:
      trials, best: as in `tuning_history`.
      search: by name, low, high and log of what was searched.
      importance: by name, its share, which the panel's title tells; {} where it is unknown.
    """
    figure = new_figure((3.4 * len(search) + 0.8, 3.2), DPI, layout="constrained")
    finite = [trial for trial in trials if trial.value is not None]
    for place, (name, found) in enumerate(search.items(), start=1):
        axes = figure.add_subplot(1, len(search), place)
        at, values = [t.hyper[name] for t in finite], [t.value for t in finite]
        axes.scatter(at, values, c=[t.number for t in finite], cmap="Blues", vmin=-len(trials) / 2, s=16)
        axes.plot(best.hyper[name], best.value, "*", color=COLORS[1], markersize=11)
        axes.set(xlim=(found.low, found.high), xscale="log" if found.log else "linear")
        if found.log:
            axes.set_xticks(np.geomspace(found.low, found.high, 5))
            axes.xaxis.set_major_formatter("{x:.3g}")
            axes.tick_params(axis="x", which="minor", labelbottom=False)
        _tuning_axes(axes, objective, name)
        share = f", importance {importance[name]:.0%}" if name in importance else ""
        axes.set_title(f"best {best.hyper[name]:.4g}{share}", fontsize=10)
    return png_of(figure)
