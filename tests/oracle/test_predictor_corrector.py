"""Predictor-corrector sampling of Gaussian data with exact scores, against its own linear recursion and the data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msm.operators.transform import Identity
from msm.predictor_corrector import CORRECTORS, Level, PCSettings, get_pc_sampler, network_calls
from msm.sde_lib import forward_sde
from tests.oracle.theory import distance, stationary, toy_schedule

PIXELS = 6
COVARIANCE = stationary(PIXELS, 0.7, variance=0.4)
MEAN = np.linspace(-1.0, 1.0, PIXELS)
VALUES, VECTORS = np.linalg.eigh(COVARIANCE)


def schedule_of(name):
    return toy_schedule(name, sigma_min=0.01, sigma_max=100.0)


def exact_score(x, level):
    """-(alpha^2 (Sigma + sigma^2 I))^-1 (x - alpha mean) of each row, in the eigenbasis."""
    basis = jnp.asarray(VECTORS, jnp.float32)
    inside = (x[..., 0] - level.alpha * jnp.asarray(MEAN, jnp.float32)) @ basis
    inside = -inside / (level.alpha**2 * (jnp.asarray(VALUES, jnp.float32) + level.sigma**2))
    return (inside @ basis.T)[..., None]


def draw(settings, schedule, number, snr=0.15, rows=1):
    """(number, PIXELS): images of `rows` rows each."""
    sampler = get_pc_sampler(settings, schedule, Identity(), exact_score)
    keys = jax.random.split(jax.random.key(1), number // rows)
    x = jax.jit(lambda keys: sampler(keys, (number // rows, rows, PIXELS, 1), snr))(keys)
    return np.asarray(x, np.float64).reshape(number, PIXELS)


def moments(settings, schedule, snr=0.15):
    """The sampler's mean of u / data mean (PIXELS,) per eigenvector and variance (PIXELS,), by scalar recursions.

    Written in float64 from the equations of Song et al. 2021; every step is x' = a x + b m + c n for data N(m, v).
    """
    times = np.asarray(schedule.grid(settings.num_levels), np.float64)
    alphas, sigmas = (
        np.asarray(f(jnp.asarray(times, jnp.float32)), np.float64) for f in (schedule.alpha, schedule.sigma)
    )
    drifts, squares = (np.asarray(v, np.float64) for v in forward_sde(schedule, jnp.asarray(times, jnp.float32)))
    mean, variance = np.zeros(PIXELS), np.full(PIXELS, (alphas[0] * sigmas[0]) ** 2)
    centre = VECTORS.T @ MEAN
    for index, purpose, _ in network_calls(settings, schedule):
        nxt = min(index + 1, len(times) - 1)
        a, s, a2, s2 = alphas[index], sigmas[index], alphas[nxt], sigmas[nxt]
        pull = 1 / (a**2 * (VALUES + s**2))  # score = -pull (x - a m)
        if purpose == 0:
            step = 2 * (a / a2) ** 2 * (snr * a * s) ** 2
            keep, score, noise = 1.0, step, np.sqrt(2 * step)
        elif purpose == 2:
            keep, score, noise = 1 / a, a * s**2, 0.0
        elif settings.predictor == "reverse_diffusion":
            added = a**2 * (s**2 - s2**2)
            keep, score, noise = 2 - a / a2, added, np.sqrt(added)
        elif settings.predictor == "ancestral":
            keep, score = a2 / a, a2 / a * a**2 * (s**2 - s2**2)
            noise = a2 * s2 / s * np.sqrt(s**2 - s2**2)
        elif settings.predictor == "probability_flow":
            keep, score, noise = a2 / a, a2 * (s - s2) * s * a, 0.0
        else:
            dt = times[index] - times[nxt]
            keep, score, noise = 1 - drifts[index] * dt, squares[index] * dt, np.sqrt(squares[index] * dt)
        mean = (keep - score * pull) * mean + score * pull * a * centre
        variance = (keep - score * pull) ** 2 * variance + noise**2
    return VECTORS @ mean, VECTORS * variance @ VECTORS.T


PREDICTORS = ("reverse_diffusion", "euler_maruyama", "ancestral", "probability_flow")


@pytest.mark.parametrize(
    ("schedule", "predictor", "corrector"),
    [
        ("ve", "reverse_diffusion", "ald"),
        ("vp", "euler_maruyama", "none"),
        ("subvp", "ancestral", "ald"),
        ("ve", "probability_flow", "none"),
        ("vp", "none", "ald"),
    ],
)
def test_samples_have_the_moments_of_the_recursion(schedule, predictor, corrector):
    number, settings = 4096, PCSettings(30, predictor, corrector, 2)
    x = draw(settings, schedule_of(schedule), number)
    mean, covariance = moments(settings, schedule_of(schedule))
    assert np.all(np.abs(x.mean(0) - mean) < 5 * np.sqrt(np.diag(covariance) / number) + 1e-4)
    trace = np.trace(covariance) / np.linalg.norm(covariance)
    assert distance(np.cov(x.T), covariance) < 2 * np.sqrt((1 + trace**2) / number)


@pytest.mark.parametrize("schedule", ["ve", "vp", "subvp"])
@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("corrector", ["none", "ald"])
def test_many_levels_reach_the_mean_and_the_covariance_of_the_data(schedule, predictor, corrector):
    errors = []
    for levels in (200, 800):
        mean, covariance = moments(PCSettings(levels, predictor, corrector, 1), schedule_of(schedule), snr=0.05)
        errors.append(max(distance(mean, MEAN), distance(covariance, COVARIANCE)))
    assert errors[1] < 0.02, errors
    assert errors[1] < 0.45 * errors[0] or errors[1] < 0.01  # towards what the last level's noise leaves


def test_default_pair_reaches_the_data():
    """Reverse diffusion and Langevin steps of each example's own norms: many pixels make these nearly constant."""
    x = draw(PCSettings(100), schedule_of("ve"), 4096, snr=0.1, rows=64)
    assert np.all(np.abs(x.mean(0) - MEAN) < 0.06)
    assert distance(np.cov(x.T), COVARIANCE) < 0.1


def test_corrector_steps_are_those_of_each_example():
    """x' = x + step score + sqrt(2 step) n, step = 2 (snr |n| / |score|)^2 of the example; nothing for a zero score."""
    rng = np.random.default_rng(0)
    x, score, noise = rng.standard_normal((3, 3, 2, 4, 1))
    score[2] = 0
    level = Level(jnp.float32(0.5), jnp.float32(1.0), jnp.float32(2.0))
    found = CORRECTORS["langevin"](*(jnp.asarray(a, jnp.float32) for a in (x, score, noise)), level, level, 0.3)
    for i in range(3):
        size = np.linalg.norm(score[i])
        step = 2 * (0.3 * np.linalg.norm(noise[i]) / size) ** 2 if size else 0
        np.testing.assert_allclose(found[i], x[i] + step * score[i] + np.sqrt(2 * step) * noise[i], rtol=2e-5)
    step = 2 * (0.3 * 2.0) ** 2
    found = CORRECTORS["ald"](*(jnp.asarray(a, jnp.float32) for a in (x, score, noise)), level, level, 0.3)
    np.testing.assert_allclose(found, x + step * score + np.sqrt(2 * step) * noise, rtol=2e-5, atol=1e-6)


def test_an_example_does_not_depend_on_the_batch_it_is_drawn_in():
    settings, schedule = PCSettings(6), schedule_of("ve")
    sample = get_pc_sampler(settings, schedule, Identity(), exact_score)
    keys = jax.random.split(jax.random.key(3), 4)
    together = sample(keys, (4, 1, PIXELS, 1), 0.2)
    alone = sample(keys[2:3], (1, 1, PIXELS, 1), 0.2)
    np.testing.assert_allclose(together[2:3], alone, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (PCSettings(2, corrector_steps=2), [(0, 0, 1), (0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 0, 0), (1, 2, 1)]),
        (PCSettings(2, corrector="none"), [(0, 1, 1), (1, 2, 1)]),
        (PCSettings(2, predictor="none", corrector="ald"), [(0, 0, 1), (1, 0, 1), (1, 2, 1)]),
    ],
)
def test_network_calls_are_what_is_needed(settings, expected):
    np.testing.assert_array_equal(network_calls(settings, schedule_of("ve")), expected)
