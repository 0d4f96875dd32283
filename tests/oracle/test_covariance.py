"""Sampling without reinjection on Gaussian data: the covariance that is drawn is the exact recursion's.

And what that recursion says: the mean field is biased unless the data are white or S keeps everything; 'ddim' steps
then draw the data's covariance, 'renoise' steps a smaller one.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msm.operators.masks import EquispacedCartesian, RandomBoxes
from msm.operators.transform import Identity
from msm.sampling import SamplerSettings
from tests.oracle.theory import (
    aggregates,
    boxes_toy,
    coils_toy,
    covariance_of,
    covariances,
    distance,
    draw,
    get_exact_denoiser,
    level_sigmas,
    lines_toy,
    toy_schedule,
    white,
    whole,
)

LEVELS = 4

# toy, w, schedule, step, weight, etas, samples: every number of masks with both steps, every step with every eta
CASES = [
    (boxes_toy, 3, "edm", "ddim", "count", (0.85,), 81920),
    (lines_toy, 1, "edm", "ddim", "count", (0.0, 1.0), 98304),
    (coils_toy, 1, "ddpm", "renoise", "count", (0.85, 1.0), 65536),
    (coils_toy, 3, "ddpm", "renoise", "count", (0.0, 0.85), 32768),
    (lines_toy, 8, "edm", "renoise", "count", (1.0,), 98304),
    (lambda: lines_toy(2), 8, "ddpm", "ddim", "population", (0.0, 1.0), 65536),
]


@pytest.mark.parametrize(("toy", "w", "schedule", "step", "weight", "etas", "number"), CASES)
def test_sampled_covariance_is_the_recursion(toy, w, schedule, step, weight, etas, number):
    """Within 2 %, where the Monte-Carlo error (the spread of 16 shares of the samples) is about half of that."""
    toy, schedule = toy(), toy_schedule(schedule)
    run = draw(toy, schedule, SamplerSettings(num_levels=LEVELS, w=w, step=step, weight=weight), number)
    for eta in etas:
        _, expected = covariances(toy, level_sigmas(schedule, LEVELS), w, step, eta, weight)
        shares = np.stack([covariance_of(share) for share in np.split(np.asarray(run(eta)), 16)])
        error = math.sqrt(np.var(shares, axis=0, ddof=1).sum() / 16) / np.linalg.norm(expected)
        assert error < 0.01
        assert distance(shares.mean(0), expected) < 0.02


@pytest.mark.parametrize(
    ("distribution", "listed"),
    [
        (RandomBoxes(4, 2, 2), boxes_toy().listed),
        (EquispacedCartesian(8, 1, 4), lines_toy().listed),
        (EquispacedCartesian(6, 2, 3), coils_toy().listed),
    ],
)
def test_listed_masks_are_what_the_distribution_draws(distribution, listed):
    masks, counts = np.unique(listed, axis=0, return_counts=True)
    drawn = np.asarray(jax.vmap(distribution.sample)(jax.random.split(jax.random.key(0), 4096)))
    share = np.array([np.mean((drawn == mask).all(axis=(1, 2, 3))) for mask in masks])
    assert share.sum() == 1
    np.testing.assert_allclose(share, counts / len(listed), atol=5 * 0.5 / math.sqrt(4096))


@pytest.mark.parametrize("toy", [boxes_toy, lines_toy, coils_toy])
@pytest.mark.parametrize("w", [1, 3])
def test_aggregates_are_unbiased(toy, w):
    """Over the masks, 'population' has the mean field as its mean; 'count' has it too, on the entries it covers."""
    toy = toy()
    p, a, keep = aggregates(toy, 0.5, w, "population")
    np.testing.assert_allclose(np.tensordot(p, a, 1), toy.mean_field(0.5), atol=1e-12)
    p, a, keep = aggregates(toy, 0.5, w, "count")
    uncovered = p @ keep
    np.testing.assert_allclose(uncovered, (1 - toy.probability) ** w, atol=1e-12)
    np.testing.assert_allclose(np.tensordot(p, a, 1), (1 - uncovered)[:, None] * toy.mean_field(0.5), atol=1e-12)


class SameNoise(Identity):
    """Every draw of noise is the same vector, so that examples differ by their masks alone."""

    def noise(self, key, shape):
        del key
        return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("weight", ["count", "population"])
def test_aggregate_of_one_level_over_the_draws_of_masks(weight):
    """E over masks of zhat, given u: the mean field for 'population', the listed average for 'count'."""
    toy, schedule, number, w = lines_toy(), toy_schedule("edm", sigma_max=0.5), 8192, 3
    settings = SamplerSettings(num_levels=1, w=w, weight=weight)
    zhat = np.asarray(draw(toy, schedule, settings, number, transform=SameNoise())(1.0), np.float64)
    u = 0.5 * np.asarray(SameNoise().noise(None, toy.shape), np.float64).ravel()
    p, a, _ = aggregates(toy, 0.5, w, weight)
    expected = toy.mean_field(0.5) @ u if weight == "population" else np.tensordot(p, a, 1) @ u
    standard_error = zhat.std(0) / math.sqrt(number)
    assert np.all(np.abs(zhat.mean(0) - expected) < 5 * standard_error + 1e-6)


def bias(toy, num_levels, step="ddim", eta=1.0):
    """Distance of what the mean field (w -> infinity) draws from the data's covariance."""
    _, drawn = covariances(toy, level_sigmas(toy_schedule("edm"), num_levels), 0, step, eta)
    return distance(drawn, toy.covariance)


@pytest.mark.parametrize(("toy", "remains"), [(boxes_toy, 0.453), (lines_toy, 0.540), (coils_toy, 0.340)])
def test_mean_field_is_biased_however_many_levels(toy, remains):
    """Entries that no mask holds together lose their correlation: a third to a half of the covariance is wrong."""
    values = [bias(toy(), levels) for levels in (80, 320, 1280)]
    assert values[0] > values[1] > values[2] == pytest.approx(remains, abs=0.001)
    assert values[1] - values[2] < 0.02  # more levels would not help


@pytest.mark.parametrize("toy", [whole(boxes_toy()), white(boxes_toy()), whole(coils_toy()), white(lines_toy())])
def test_mean_field_is_exact_for_white_data_or_whole_measurements(toy):
    """The error is that of the step size alone: it falls in proportion to the number of levels."""
    values = [bias(toy, levels) for levels in (80, 320, 1280)]
    assert values[2] < 0.008
    assert values[0] / values[1] == pytest.approx(4, rel=0.15) and values[1] / values[2] == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize("eta", [0.6, 0.85, 1.0])
def test_renoise_steps_draw_too_small_a_covariance_even_from_exact_scores(eta):
    """With S = I and many levels 'renoise' draws (1 + sqrt(1 - eta^2)) / 2 of the covariance: half of it at eta = 1.

    At low noise u' = u - (1 - b) sigma^2 Sigma^-1 u + eta sigma xi with b = sqrt(1 - eta^2), and 2 (1 - b) sigma^2
    Sigma^-1 C = eta^2 sigma^2 I at rest.
    """
    toy = whole(boxes_toy())
    _, drawn = covariances(toy, level_sigmas(toy_schedule("edm"), 1280), 1, "renoise", eta)
    assert distance(drawn, (1 + math.sqrt(1 - eta**2)) / 2 * toy.covariance) < 0.02


def test_whole_measurement_is_ancestral_sampling_of_the_data():
    """S = I, w = 1: each eigenvector of Sigma is sampled on its own, by the textbook scalar recursion."""
    toy, schedule, number = whole(lines_toy()), toy_schedule("edm"), 32768
    values, vectors = np.linalg.eigh(toy.covariance)
    sigmas = level_sigmas(schedule, LEVELS)
    v = np.full(8, sigmas[0] ** 2)
    for now, after in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        gain = values / (values + now**2)
        ratio = (after / now) ** 2  # posterior of u' given u and z: mean (1 - ratio) z + ratio u
        v = ((1 - ratio) * gain + ratio) ** 2 * v + after**2 * (1 - ratio)
    _, drawn = covariances(toy, sigmas, 1, "ddim", 1.0)
    np.testing.assert_allclose(drawn, vectors * v @ vectors.T, rtol=1e-10)
    z = np.asarray(draw(toy, schedule, SamplerSettings(num_levels=LEVELS), number)(1.0), np.float64)
    np.testing.assert_allclose(np.mean((z @ vectors) ** 2, axis=0), v, rtol=5 * math.sqrt(2 / number))


def test_exact_denoiser_refuses_a_mask_that_was_not_listed():
    toy, schedule = lines_toy(), toy_schedule("edm")
    denoise = get_exact_denoiser(toy, schedule, 3)
    t = jnp.full((1,), schedule.grid(3)[1])
    mask = np.zeros((1, 1, 1, 8), bool)
    assert np.isnan(denoise(jnp.ones((1, *toy.shape)), mask, None, t).z0).all()
    z0 = denoise(jnp.ones((1, *toy.shape)), toy.kinds[0][:1], None, t).z0
    expected = toy.posterior_means(float(schedule.sigma(t)[0]))[0] @ np.ones(8)
    np.testing.assert_allclose(np.asarray(z0).ravel(), expected, atol=1e-6)
