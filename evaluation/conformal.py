"""Intervals with a guarantee: which nominal level to ask for, so that a new scan's entries are held as often as wanted.

Split conformal prediction for grouped data (Dunn, Wasserman and Ramdas 2023, arXiv 1809.07441; Lee, Barber and Willett
2023, arXiv 2306.06342). Entries of one scan depend on each other, so scans are what is exchangeable. An entry counts
one over the number of its scan's; the scan that is not there yet counts as one more, of which nothing is known.

The guarantee: if the calibrating scans and a new one are exchangeable (same kind of people, scanner and protocol, and
hidden in the same way), an entry drawn at random from those hidden in the new scan lies inside its interval with at
least the wanted probability, whatever the prior and however wrong the spread. It is an average over scans and entries:
it says nothing about one pixel of one scan, about entries that are never acquired, or about another kind of scan.
"""

from collections.abc import Sequence

import numpy as np

GUARANTEE = (
    "an entry drawn at random from those hidden in a new scan lies in its interval of this nominal level with at least "
    "the named probability, if that scan and those judged here are exchangeable; null: too few scans"
)


def conformal_level(levels: Sequence[np.ndarray], wanted: float) -> float:
    """The nominal level whose intervals hold a random entry of a new scan with probability `wanted` or more.

    Args:
      levels: of every calibrating scan, what `calibration.interval_levels` says of its hidden entries; scans without
        any are left out.
      wanted: in (0, 1).

    Returns:
      A nominal level in [0, 1]; infinite where there are too few scans for `wanted`: 1/(1 - wanted) - 1 are needed.
    """
    scans = [np.ravel(scan) for scan in levels if np.size(scan)]
    if not scans:
        return float("inf")
    values = np.concatenate(scans)
    shares = np.concatenate([np.full(scan.size, 1 / (scan.size * (len(scans) + 1))) for scan in scans])
    order = np.argsort(values)
    reached = np.cumsum(shares[order]) >= wanted - 1e-12
    return float(values[order][np.argmax(reached)]) if reached.any() else float("inf")
