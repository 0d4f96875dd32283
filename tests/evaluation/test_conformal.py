"""Conformal levels: the wanted coverage of entries of new scans, also where entries of a scan depend on each other."""

import numpy as np
import pytest

from msm.evaluation.conformal import conformal_level


def scans(rng, count, entries=40):
    """Levels of intervals that are too narrow by a factor that differs between scans, of unequally many entries."""
    found = []
    for _ in range(count):
        error = rng.standard_normal(rng.integers(5, entries)) * np.exp(0.5 * rng.standard_normal())
        found.append(np.minimum(1, np.abs(error) / 3))  # any score that grows with the error is a level
    return found


@pytest.mark.parametrize(("wanted", "count"), [(0.5, 3), (0.8, 12), (0.9, 12), (0.9, 40)])
def test_a_new_scan_is_covered_as_wanted(wanted, count):
    rng, held = np.random.default_rng(0), []
    for _ in range(2000):
        *calibrating, new = scans(rng, count + 1)
        held.append(np.mean(new <= conformal_level(calibrating, wanted)))
    error = 3 * np.std(held) / np.sqrt(len(held))
    assert wanted - error < np.mean(held) < wanted + 1.5 / (count + 1) + error


def test_ignoring_the_scans_would_cover_too_little():
    """The quantile of all entries together, as if they were independent, misses the guarantee with few scans."""
    rng, held = np.random.default_rng(1), []
    for _ in range(2000):
        *calibrating, new = scans(rng, 6)
        held.append(np.mean(new <= np.quantile(np.concatenate(calibrating), 0.8)))
    assert np.mean(held) < 0.8 - 3 * np.std(held) / np.sqrt(len(held))


def test_too_few_scans_promise_nothing():
    assert conformal_level([np.array([0.2, 0.4])] * 8, 0.9) == np.inf
    assert conformal_level([np.array([0.2, 0.4])] * 9, 0.9) == 0.4
    assert conformal_level([], 0.5) == conformal_level([np.array([])], 0.5) == np.inf


def test_each_scan_counts_the_same_however_many_entries_it_has():
    many, few = np.full(1000, 0.9), np.full(2, 0.1)
    assert conformal_level([many, few, few], 0.5) == 0.1 and conformal_level([many, few, few], 0.75) == 0.9
