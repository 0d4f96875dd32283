"""Which examples a batch holds, of training and of evaluation: a function of its number, and all of one shape."""

import functools
from collections.abc import Iterator, Sequence

import numpy as np


def epoch_order(seed: int, num_examples: int, start: int, count: int) -> np.ndarray:
    """Returns which examples the endless training stream holds at places start ... start + count - 1, (count,) int64.

    Each epoch is a permutation fixed by (seed, epoch): the stream is a function of the place, so resuming needs nothing
    but a step number. An epoch's is drawn once and kept while its batches are read, so a batch costs what it holds.
    (Grain's own shuffle walks through 2^16 candidates to order a hundred examples.)
    """
    epochs, places = np.divmod(np.arange(start, start + count), num_examples)
    order = np.empty(count, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        order[here] = _permutation(seed, int(epoch), num_examples)[places[here]]
    return order


@functools.lru_cache(maxsize=4)  # readers run ahead into the next epoch
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(size)


@functools.lru_cache(maxsize=4)
def _bucket_orders(seed: int, epoch: int, sizes: tuple[int, ...]) -> list[np.ndarray]:
    return [np.random.default_rng((seed, epoch, number)).permutation(size) for number, size in enumerate(sizes)]


def buckets_of(shapes: np.ndarray) -> list[np.ndarray]:
    """The places of each shape, ascending; shapes (N,2) in ascending order."""
    _, group = np.unique(shapes, axis=0, return_inverse=True)
    return [np.flatnonzero(group.ravel() == number) for number in range(int(group.max()) + 1)]


def bucket_batch(seed: int, buckets: Sequence[np.ndarray], step: int, batch_size: int) -> np.ndarray:
    """Returns the examples of batch `step` of the endless stream, (batch_size,) int64, all of one bucket.

    An epoch holds every example, each bucket in an order and the batches of all buckets in an order, which (seed,
    epoch) fix. The last batch of a bucket is filled up from the beginning of its order.
    """
    batches = [-(-len(bucket) // batch_size) for bucket in buckets]
    epoch, place = divmod(step, sum(batches))
    turn = int(_permutation(seed, epoch, sum(batches))[place])
    number = int(np.searchsorted(np.cumsum(batches), turn, side="right"))
    within = turn - sum(batches[:number])
    order = _bucket_orders(seed, epoch, tuple(map(len, buckets)))[number]
    return buckets[number][order[np.arange(within * batch_size, (within + 1) * batch_size) % len(order)]]


def spread(
    total: int, shapes: np.ndarray | None, batch_size: int, most: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields batches of evenly spread examples, `most` of them (0: all), each of one shape: places and which are real.

    The last batch of a shape is filled up with its first example, which is not real there. `shapes`: (N,2), or None.
    """
    chosen = np.arange(total)
    if 0 < most < total:
        chosen = np.rint(np.linspace(0, total - 1, most)).astype(int)
    for places in [chosen] if shapes is None else [chosen[bucket] for bucket in buckets_of(shapes[chosen])]:
        for start in range(0, len(places), batch_size):
            indices = places[start : start + batch_size]
            padding = np.repeat(indices[:1], batch_size - len(indices))
            yield np.concatenate([indices, padding]), np.arange(batch_size) < len(indices)
