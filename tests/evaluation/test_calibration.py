"""calibration.py against closed forms: exact coverage for few samples, scores by brute force and by integration."""

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, stats

from msm.evaluation.calibration import (
    COVERAGES,
    POSTERIOR,
    calibration_maps,
    coverage,
    ensemble_crps,
    gaussian_crps,
    interval_levels,
    posterior_figures,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_truth_and_samples_of_one_gaussian_are_covered_exactly(count):
    draws = 3 + 2 * RNG.standard_normal((count + 1, 200_000))
    found = coverage(interval_levels(draws[:-1], draws[-1]))
    np.testing.assert_allclose(found, COVERAGES, atol=5 * np.sqrt(0.25 / 200_000))


def test_too_narrow_samples_cover_too_little():
    draws = RNG.standard_normal((9, 50_000))
    found = coverage(interval_levels(0.5 * draws[:-1], draws[-1]))
    assert all(f < nominal - 0.1 for f, nominal in zip(found, COVERAGES, strict=True))


def test_noise_of_the_truth_is_added():
    samples, truth, noise = (RNG.standard_normal(shape) for shape in ((64, 50_000), 50_000, 50_000))
    found = coverage(interval_levels(samples, truth + 3 * noise, noise_std=3.0))
    np.testing.assert_allclose(found, COVERAGES, atol=0.01)


def test_samples_without_spread():
    levels = interval_levels(np.zeros((3, 2)), np.array([0.0, 1.0]))
    np.testing.assert_array_equal(levels, [0.0, 1.0])


def test_ensemble_score_is_that_of_its_definition():
    samples, truth = RNG.standard_normal((5, 7)), RNG.standard_normal(7)
    pairs = np.mean([np.abs(a - b) for a, b in itertools.permutations(samples, 2)], axis=0)
    expected = np.mean(np.abs(samples - truth), axis=0) - pairs / 2
    np.testing.assert_allclose(ensemble_crps(samples, truth), expected, rtol=1e-12)


def test_ensemble_score_does_not_depend_on_the_number_of_samples():
    truth = 0.7
    scores = ensemble_crps(RNG.standard_normal((3, 400_000)), np.full(400_000, truth))
    expected = gaussian_crps(np.float64(0), np.float64(1), np.float64(truth))
    assert scores.mean() == pytest.approx(expected, abs=5 * scores.std() / np.sqrt(400_000))


def test_gaussian_score_is_the_integral_over_its_distribution():
    def gap(x):
        return (stats.norm.cdf(x, 0.3, 1.7) - (x >= 1.1)) ** 2

    expected = integrate.quad(gap, -20, 1.1)[0] + integrate.quad(gap, 1.1, 20)[0]
    assert gaussian_crps(np.float64(0.3), np.float64(1.7), np.float64(1.1)) == pytest.approx(expected, rel=1e-7)


def test_gaussian_score_is_best_where_the_spread_is_that_of_the_errors():
    truth = 2 * RNG.standard_normal(100_000)
    scores = [gaussian_crps(np.zeros(()), np.float64(std), truth).mean() for std in (1.0, 1.6, 2.0, 2.5, 4.0)]
    assert int(np.argmin(scores)) == 2


def test_maps_are_of_magnitudes():
    samples = np.array([1, 3j, -5]).reshape(3, 1, 1, 1) * np.ones((3, 2, 4, 5), np.complex64)
    reference = np.full((2, 4, 5), -4j, np.complex64)
    maps = calibration_maps(samples, reference)
    assert {name: (array.shape, array.dtype) for name, array in maps.items()} == dict.fromkeys(
        ("level", "crps"), ((2, 4, 5), np.float32)
    )
    np.testing.assert_allclose(maps["level"], 2 * stats.t.cdf(1 / (2 * np.sqrt(4 / 3)), 2) - 1, rtol=1e-6)
    np.testing.assert_allclose(maps["crps"], 5 / 3 - 8 / 6, rtol=1e-6)
    assert calibration_maps(np.zeros((2, 3, 4, 5, 3)), np.zeros((3, 4, 5, 3)))["level"].shape == (3, 4, 5, 3)


def test_figures_look_only_at_the_head():
    reference = np.zeros((32, 32), np.complex64)
    reference[8:24, 8:24] = 1
    head = np.abs(reference) > 0
    spread = RNG.uniform(0.1, 0.5, (32, 32))
    mean = np.where(head, 1 + spread, 50)  # large errors in the air must not count
    level, crps = np.where(head, 0.85, 0.0), np.where(head, 0.25, 9.0)
    figures = posterior_figures(reference, mean, spread, level, crps)
    assert tuple(figures) == POSTERIOR
    assert [figures[name] for name in POSTERIOR] == pytest.approx([1, 1, 0, 0, 1, 1, 0.25])
    flat = posterior_figures(reference, reference, np.zeros((32, 32)), level, crps)
    assert all(math.isnan(value) for value in flat.values())
