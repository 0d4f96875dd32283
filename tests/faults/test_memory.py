"""The input pipeline holds a few batches and no more, however many it has delivered."""

import pytest

from msm.benchmarks.host_input import MIB, memory_over_steps, resident_mib, toy_step
from tests.helpers.small_runs import small_config

STEPS = 600


@pytest.fixture
def config(tiny_store):
    return small_config(tiny_store)


def growth(config, step) -> tuple[float, float]:
    """How much memory the steps took, and how much their batches held, in MiB."""
    held = []

    def measured(batch):
        held.append(batch.y.nbytes + batch.maps.nbytes)
        step(batch)

    found = memory_over_steps(config, STEPS, measured)
    assert len(found) == 20
    return found[-1] - found[0], sum(held) / MIB


def test_memory_stays_the_same(config):
    grown, delivered = growth(config, toy_step())
    assert delivered > 100
    assert grown < 0.05 * min(delivered, resident_mib())


def test_batches_that_are_kept_would_be_seen(config):
    kept = []
    grown, delivered = growth(config, kept.append)
    assert grown > 0.5 * delivered
