"""Seeded damage: what a broken disk, a cut copy or somebody's hand does to the bytes of a file."""

from collections.abc import Iterator

import numpy as np


def mutations(whole: bytes, seed: int, count: int, head: int = 400) -> Iterator[bytes]:
    """Yields `count` damaged versions of a file: changed (mostly in its head), cut, doubled, or extreme values."""
    random = np.random.default_rng(seed)
    for case in range(count):
        data = bytearray(whole)
        where = len(data) if case % 4 == 0 else min(head, len(data))
        kind = case % 5
        if kind == 0:
            data = data[: random.integers(len(data))]
        elif kind == 1:
            place, size = random.integers(where), int(random.choice([1, 2, 4, 8]))
            data[place : place + size] = [b"\xff" * size, b"\x00" * size, b"\x7f" + b"\xff" * (size - 1)][
                random.integers(3)
            ]
        elif kind == 2:
            start, stop = sorted(random.integers(0, len(data) + 1, 2))
            data = data[:stop] + data[start:]
        else:
            for place in random.integers(0, where, random.integers(1, 6)):
                data[place] = random.integers(256)
        yield bytes(data)
