"""The order of training batches: of several shapes, each batch of one, every example in every epoch."""

import numpy as np

from msm.builders.order import bucket_batch, buckets_of, spread

SHAPES = np.array([(8, 6)] * 5 + [(6, 8)] * 3 + [(8, 8)])


def test_buckets_hold_the_examples_of_one_shape():
    buckets = buckets_of(SHAPES)
    assert [bucket.tolist() for bucket in buckets] == [[5, 6, 7], [0, 1, 2, 3, 4], [8]]


def test_batches_are_of_one_shape_and_an_epoch_has_every_example():
    buckets = buckets_of(SHAPES)
    batches = [bucket_batch(3, buckets, step, 2) for step in range(2 * 6)]  # 2 + 3 + 1 batches an epoch
    assert all(len({tuple(SHAPES[i]) for i in batch}) == 1 for batch in batches)
    for epoch in (batches[:6], batches[6:]):
        assert set(np.concatenate(epoch)) == set(range(9))
    assert [b.tolist() for b in batches[:6]] != [b.tolist() for b in batches[6:]]
    again = [bucket_batch(3, buckets, step, 2) for step in (7, 2, 11)]
    np.testing.assert_array_equal(again, [batches[7], batches[2], batches[11]])
    assert any((bucket_batch(4, buckets, step, 2) != batches[step]).any() for step in range(6))


def test_evaluation_batches_are_of_one_shape_and_one_size():
    found = list(spread(len(SHAPES), SHAPES, 2))
    real = [places[kept] for places, kept in found]
    assert sorted(np.concatenate(real)) == list(range(9)) and all(len(places) == 2 for places, _ in found)
    assert all(len({tuple(SHAPES[i]) for i in places}) == 1 for places, _ in found)
    assert [places.tolist() for places, _ in spread(5, None, 2)] == [[0, 1], [2, 3], [4, 4]]
