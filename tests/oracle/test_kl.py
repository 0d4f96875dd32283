"""Theorem 1 of Park et al. 2025 on two pixels, where every density is known: KL(q_full || q_w) <= v^2 C / w.

q_full is what ancestral sampling ('ddim', eta = 1) with the mean of all partial scores has drawn when it reaches the
last noise level; q_w what it has drawn with w random masks per level, weighted by 1/P(j in S) as in the paper. q_full
is Gaussian. q_w is a mixture of Gaussians, one for every sequence of masks, and two pixels with three masks leave few
enough of them: its density is evaluated in full and the KL integrated by quadrature. The step to sigma = 0 adds no
noise and is left out, as the divergence of two deterministic maps is infinite.

The constants. Step k moves u by a_k sigma_k^2 score + f_k noise, with a_k = 1 - sigma'^2/sigma^2, f_k^2 = sigma'^2 a_k.
Given u the two samplers differ in the mean alone, so the chain rule and the convexity of the KL in the masks give

    KL <= sum_k (a_k sigma_k^2)^2 / (2 f_k^2) E_{u ~ q_full} E_masks |score_w - score_full|^2 <= v^2 C / w,

    v^2 = max_k E_{u ~ q_full} E_S |score_S - score_full|^2      the variance of one mask's score, exact for Gaussians
    C   = sum_k (sigma_k^2 - sigma'_k^2) sigma_k^2 / (2 sigma'_k^2)

since w independent masks have 1/w of the variance of one.
"""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from msm.sampling import SamplerSettings
from tests.oracle.theory import (
    ListedMasks,
    Toy,
    aggregates,
    covariance_of,
    covariances,
    distance,
    draw,
    fresh_noise,
    get_exact_denoiser,
    level_sigmas,
    recording,
    stationary,
    toy_schedule,
)

LEVELS = 3
MASKS = np.array([[1, 0], [0, 1], [1, 1]], bool).reshape(3, 1, 1, 2)
TOY = Toy("identity", (1, 1, 2), stationary(2, 0.8, variance=1.0), ListedMasks(MASKS), MASKS)
SCHEDULE = toy_schedule("edm", sigma_min=0.3, sigma_max=3.0)
SIGMAS = level_sigmas(SCHEDULE, LEVELS)


def mixture(w):
    """q_w: probabilities (K,) and covariances (K,2,2) of its Gaussians; w = 0 is q_full."""
    probabilities, components = np.ones(1), SIGMAS[0] ** 2 * np.eye(2)[None]
    for now, after in itertools.pairwise(SIGMAS):
        p, a, _ = aggregates(TOY, now, w, "population")
        fresh = fresh_noise("ddim", 1.0, now, after)
        old = math.sqrt(after**2 - fresh**2) / now
        move = ((1 - old) * a + old * np.eye(2))[:, None]
        components = (move @ components @ move.swapaxes(-1, -2)).reshape(-1, 2, 2) + fresh**2 * np.eye(2)
        probabilities = np.outer(p, probabilities).ravel()
    return probabilities, components


def log_density(q, x):
    """(N,2) -> (N,)."""
    probabilities, components = q
    inverse = np.linalg.inv(components)
    norm = np.log(probabilities) - 0.5 * np.linalg.slogdet(2 * np.pi * components)[1]
    form = np.stack([inverse[:, 0, 0], 2 * inverse[:, 0, 1], inverse[:, 1, 1]], axis=1)
    terms = norm[:, None] - 0.5 * form @ np.stack([x[:, 0] ** 2, x[:, 0] * x[:, 1], x[:, 1] ** 2])
    return np.logaddexp.reduce(terms, axis=0)


def quadrature(covariance, nodes=24):
    """Points (nodes^2,2) and weights that integrate against N(0, covariance)."""
    grid, weights = np.polynomial.hermite_e.hermegauss(nodes)
    points = np.stack(np.meshgrid(grid, grid, indexing="ij"), axis=-1).reshape(-1, 2)
    return points @ np.linalg.cholesky(covariance).T, np.outer(weights, weights).ravel() / weights.sum() ** 2


def divergence(q_full, q, nodes=24):
    """KL(q_full || q)."""
    points, weights = quadrature(q_full[1][0], nodes)
    return float(weights @ (log_density(q_full, points) - log_density(q, points)))


def variances_and_costs():
    """Per step: the variance of one mask's score under q_full, and the factor that the KL bound multiplies it by."""
    levels, _ = covariances(TOY, SIGMAS, 0, "ddim", 1.0)
    variances, costs = [], []
    for (now, after), covariance in zip(itertools.pairwise(SIGMAS), levels, strict=False):
        p, one_mask, _ = aggregates(TOY, now, 1, "population")
        deviation = one_mask - TOY.mean_field(now)
        squares = np.trace(deviation @ covariance @ deviation.swapaxes(1, 2), axis1=1, axis2=2)
        variances.append(p @ squares / now**4)  # score = (zhat - u) / sigma^2
        costs.append((now**2 - after**2) * now**2 / (2 * after**2))
    return np.array(variances), np.array(costs)


def test_divergence_obeys_the_bound_and_falls_with_w():
    """The bound falls like 1/w. The divergence falls faster, towards 1/w^2: the masks act as a little more noise."""
    q_full, ws = mixture(0), np.array([1, 2, 4, 8])
    values = np.array([divergence(q_full, mixture(w)) for w in ws])
    variances, costs = variances_and_costs()
    assert np.all(values > 0)
    assert np.all(values <= variances @ costs / ws)  # step by step
    assert np.all(values <= variances.max() * costs.sum() / ws)  # v^2 C / w
    assert values[0] > 0.05 * variances @ costs  # the bound is not empty
    slope = np.polyfit(np.log(ws), np.log(values), 1)[0]
    assert -2.2 <= slope <= -0.9
    assert values == pytest.approx([0.0964, 0.0305, 0.0114, 0.0039], rel=0.01)


def test_quadrature_has_converged():
    q_full = mixture(0)
    assert divergence(q_full, q_full) == pytest.approx(0, abs=1e-12)
    assert divergence(q_full, mixture(4), nodes=24) == pytest.approx(divergence(q_full, mixture(4), nodes=40), rel=1e-3)


def test_sampler_draws_from_the_mixture():
    """u at the last level, as the sampler hands it to the denoiser, has the covariance and the likelihood of q_w."""
    w, number = 3, 32768
    denoise, calls = recording(get_exact_denoiser(TOY, SCHEDULE, LEVELS), SCHEDULE)
    settings = SamplerSettings(num_levels=LEVELS, w=w, weight="population")
    np.asarray(draw(TOY, SCHEDULE, settings, number, denoise)(jnp.float32(1.0)))
    assert len(calls) == LEVELS
    u = calls[-1][0][:number].reshape(number, 2).astype(np.float64)
    q = mixture(w)
    assert distance(covariance_of(u), np.tensordot(q[0], q[1], 1)) < 0.03
    entropy = 0.0
    for probability, component in zip(*q, strict=True):
        points, weights = quadrature(component, 16)
        entropy -= probability * weights @ log_density(q, points)
    surprise = -log_density(q, u)
    assert abs(surprise.mean() - entropy) < 4 * surprise.std() / math.sqrt(number)
    assert -log_density(mixture(0), u).mean() > surprise.mean() + 0.005  # not q_full
