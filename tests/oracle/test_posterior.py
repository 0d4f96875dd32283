"""The MSM posterior solver on Gaussian data with S = I, against its own linear recursion and the exact posterior.

With an exact denoiser D and whole masks a level of the solver is affine in u, so that mean and covariance of its
samples follow exactly. What they say (16 correlated pixels, half of them measured, noise_std 0.1, gamma = damping = 1;
errors of the mean are root mean squares over y, relative to E[x|y]):

- 'renoise' steps (the solver's default): the mean tends to E[x|y] as levels grow, for noiseless and noisy data, but
  slowly, with the inverse of their number: 18 % off after 30 levels, 3 % after 400. With conditional 'draw' (the
  default) the covariance tends to the posterior's: .86 of its trace after 30 levels, .95 after 400, .98 after 1600.
  With 'mean' it tends to (1 + sqrt(1 - eta^2)) / 2 of the posterior's: half of it at eta = 1.
- 'ddim' steps: the mean stays 27 % off however many levels there are, and the covariance is too wide: 1.36 times the
  posterior's trace.
"""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msm.configs.default import get_config
from msm.models.denoiser import Denoised
from msm.operators.acquisition import Acquisition
from msm.operators.masks import get_masks
from msm.operators.measurement import Measurement
from msm.operators.transform import Identity, MultiCoilFourier
from msm.sde_lib import get_schedule
from msm.solvers import get_solver
from msm.solvers.msm import VARIANCES
from tests.oracle.theory import (
    boxes_toy,
    coils_toy,
    covariance_of,
    distance,
    fresh_noise,
    get_exact_denoiser,
    level_sigmas,
    whole,
)

DOCUMENTED = {  # levels, step, eta, conditional -> error of the mean, trace of the covariance over the posterior's
    (30, "renoise", 1.0, "mean"): (0.177, 0.530),
    (30, "renoise", 0.85, "mean"): (0.243, 0.890),
    (400, "renoise", 1.0, "mean"): (0.030, 0.504),
    (30, "ddim", 1.0, "mean"): (0.296, 1.101),
    (400, "ddim", 1.0, "mean"): (0.272, 1.341),
    (30, "renoise", 1.0, "draw"): (0.177, 0.860),
    (400, "renoise", 1.0, "draw"): (0.030, 0.948),
}
HYPER = {"gamma": 1.0, "damping": 1.0, "eta": 1.0, "temperature": 1.0}


class QuietIdentity(Identity):
    def noise(self, key, shape):
        return jnp.zeros_like(super().noise(key, shape))


class QuietCoils(MultiCoilFourier):
    def noise(self, key, shape):
        return jnp.zeros_like(super().noise(key, shape))


LOUD = {"identity": Identity, "multicoil_fourier": MultiCoilFourier}
QUIET = {"identity": QuietIdentity, "multicoil_fourier": QuietCoils}  # the solver is affine: no noise is the mean


def acquire(toy, noise_std, seed=0):
    """A measurement (batch of one) of a random draw from the toy: the left half of the entries, with noise."""
    rng = np.random.default_rng(seed)
    n, complex_data = len(toy.covariance), toy.unit == 2

    def normal():
        return rng.standard_normal(n) + (1j * rng.standard_normal(n) if complex_data else 0)

    values, vectors = np.linalg.eigh(toy.covariance / toy.unit)
    z = vectors @ (np.sqrt(np.maximum(values, 0)) * normal())
    seen = np.zeros(toy.listed.shape[1:], bool)
    axis = 2 if complex_data else 1
    seen[(slice(None),) * axis + (slice(0, seen.shape[axis] // 2),)] = True
    y = np.where(np.broadcast_to(seen, toy.shape), (z + noise_std * normal()).reshape(toy.shape), 0)
    return Measurement(
        y=y[None].astype(np.complex64 if complex_data else np.float32),
        mask=seen[None],
        maps=None if toy.maps is None else toy.maps[None],
        noise_std=np.full(1, noise_std, np.float32),
        example_id=np.zeros(1, np.int32),
    )


def posterior_config(toy, schedule="edm", **changes):
    config = get_config()
    config.schedule.name = schedule
    config.transform.name = toy.transform
    config.masks.name, config.masks.grid, config.masks.drop = "random_boxes", 2, 2
    if toy.maps is not None:
        config.masks.name, config.masks.acs_lines = "cartesian_random", 2
    config.data.image_size = toy.shape[-1] if toy.maps is not None else toy.shape[0]
    config.solver.num_levels, config.eval.num_samples = 30, 1
    config.solver.update(conditional="mean", variance="white")  # affine
    config.solver.update(changes)
    return config


def solve(toy, measurement, config, transforms, hyper, denoise=None, name="msm"):
    """(K,pixels): the samples of the project's solver."""
    schedule, transform = get_schedule(config), transforms[toy.transform]()
    exact = denoise or get_exact_denoiser(toy, schedule, config.solver.num_levels)
    experiment = SimpleNamespace(
        config=config,
        schedule=schedule,
        transform=transform,
        operator=Acquisition(transform, config.solver.cg_steps),
        masks=get_masks(config),
        denoise=lambda params, s_t, mask, maps, t: exact(s_t, mask, maps, t),
    )
    solver = get_solver(config, experiment, name)
    x = jax.jit(solver.solve)(jax.random.key(0), None, measurement, {**solver.hyper, **hyper})
    return np.asarray(x).reshape(x.shape[0], -1)


def linear_parts(toy, measurement):
    """T (n,pixels), which entries are seen (n,), y (n,), rho."""
    operator = np.eye(len(toy.covariance)) if toy.operator is None else toy.operator
    seen = np.broadcast_to(measurement.mask[0], toy.shape).ravel()
    return operator, seen, measurement.y.astype(operator.dtype).ravel(), float(measurement.noise_std[0])


def predict(toy, measurement, config, hyper):
    """The solver's samples: their mean as a matrix K (pixels,n) that acts on y, and their covariance.

    At every level zhat = (I - gamma T R T^H M) T T^H D u + gamma T R T^H M y, R = (T^H M T + mu I)^-1, with
    mu = damping (rho / r)^2, r^-2 = sigma^-2 + sigma_data^-2; R T^H M is (M T)^+ for 'pseudo_inverse'. With
    conditional 'draw' y has further noise of std rho, and T^H D u of std r.
    """
    operator, seen, _, rho = linear_parts(toy, measurement)
    adjoint, n = operator.conj().T, len(operator)
    sigmas = level_sigmas(get_schedule(config), config.solver.num_levels)
    mean, covariance = np.zeros((n, n), operator.dtype), toy.unit * sigmas[0] ** 2 * np.eye(n)
    for now, after in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        variance = 1 / (now**-2 + config.denoiser.sigma_data**-2)
        mu = max(hyper["damping"] * rho**2 / variance, 1e-5)
        inverse = np.linalg.inv(adjoint @ (seen[:, None] * operator) + mu * np.eye(len(adjoint))) @ (adjoint * seen)
        if config.solver.consistency == "pseudo_inverse":
            inverse = np.linalg.pinv(seen[:, None] * operator)
        gain = hyper["gamma"] * operator @ inverse
        move = (np.eye(n) - gain) @ operator @ adjoint @ toy.posterior_means(now)[0]
        zhat, drawn = move @ mean + gain, np.zeros_like(covariance)
        if config.solver.conditional == "draw":
            kept = (np.eye(n) - gain) @ operator
            drawn = toy.unit * (variance * kept @ kept.conj().T + rho**2 * gain @ gain.conj().T)
        spread = move @ covariance @ move.conj().T + drawn
        fresh = fresh_noise(config.solver.step, hyper["eta"], now, after)
        old = math.sqrt(max(0.0, after**2 - fresh**2)) / now
        step = (1 - old) * move + old * np.eye(n)
        mean, covariance = (1 - old) * zhat + old * mean, step @ covariance @ step.conj().T
        covariance = covariance + (1 - old) ** 2 * drawn + toy.unit * fresh**2 * np.eye(n)
    return adjoint @ zhat, adjoint @ spread @ operator


def exact_posterior(toy, measurement):
    """E[x|y] as a matrix (pixels,n) that acts on y, the posterior covariance of x, and the covariance of y (n,n)."""
    operator, seen, _, rho = linear_parts(toy, measurement)
    prior = operator.conj().T @ toy.covariance @ operator  # T^H T = I
    rows = seen[:, None] * operator
    data = rows @ prior @ rows.conj().T + toy.unit * rho**2 * np.diag(seen)
    gain = prior @ rows.conj().T @ np.linalg.pinv(data, rtol=1e-10)
    return gain, prior - gain @ rows @ prior, data


@pytest.mark.parametrize(
    ("toy", "noise_std", "schedule", "step", "consistency", "hyper"),
    [
        (boxes_toy, 0.0, "ddpm", "renoise", "least_squares", {}),
        (boxes_toy, 0.1, "edm", "ddim", "least_squares", {"eta": 0.85, "damping": 2.0}),
        (boxes_toy, 0.0, "edm", "renoise", "pseudo_inverse", {"eta": 0.85, "gamma": 1.75}),
        (coils_toy, 0.1, "edm", "renoise", "least_squares", {}),
        (coils_toy, 0.05, "ddpm", "ddim", "least_squares", {"eta": 0.0, "gamma": 0.7}),
    ],
)
def test_mean_of_the_solver_is_the_affine_recursion(toy, noise_std, schedule, step, consistency, hyper):
    """Without noise the solver returns the mean over its samples, to rounding."""
    toy, hyper = whole(toy()), {**HYPER, **hyper}
    config = posterior_config(toy, schedule, num_levels=12, step=step, consistency=consistency)
    measurement = acquire(toy, noise_std)
    x = solve(toy, measurement, config, QUIET, hyper)[0]
    expected = predict(toy, measurement, config, hyper)[0] @ measurement.y.ravel()
    np.testing.assert_allclose(x, expected, atol=2e-4)


@pytest.mark.parametrize(("toy", "noise_std"), [(boxes_toy, 0.0), (coils_toy, 0.1)])
def test_plug_and_play_is_the_mean_of_renoised_samples(toy, noise_std):
    """For an affine denoiser: one run without noise is the mean of infinitely many with eta 1, for num_samples 1."""
    toy, measurement = whole(toy()), acquire(toy(), noise_std)
    config = posterior_config(toy, num_levels=12, step="plug_and_play")
    config.eval.num_samples = 3
    x = solve(toy, measurement, config, LOUD, {})
    expected = predict(toy, measurement, posterior_config(toy, num_levels=12, step="renoise"), HYPER)[0]
    assert x.shape[0] == 1
    np.testing.assert_allclose(x[0], expected @ measurement.y.ravel(), atol=2e-4)


@pytest.mark.parametrize(
    ("toy", "step", "conditional"),
    [
        (boxes_toy, "renoise", "mean"),
        (coils_toy, "ddim", "mean"),
        (boxes_toy, "renoise", "draw"),
        (coils_toy, "renoise", "draw"),
    ],
)
def test_samples_have_the_mean_and_the_covariance_of_the_recursion(toy, step, conditional):
    toy, number = whole(toy()), 4096
    config = posterior_config(toy, step=step, num_levels=8, conditional=conditional)
    config.eval.num_samples = number
    measurement = acquire(toy, 0.1)
    x = solve(toy, measurement, config, LOUD, HYPER)
    matrix, covariance = predict(toy, measurement, config, HYPER)
    mean = matrix @ measurement.y.ravel()
    assert np.all(np.abs(x.mean(0) - mean) < 5 * np.sqrt(np.diag(covariance).real / number))
    trace = np.trace(covariance).real / np.linalg.norm(covariance)
    assert distance(covariance_of(x - mean), covariance) < 2 * math.sqrt((1 + trace**2) / number)


def compare_with_posterior(noise_std, num_levels, step="renoise", eta=1.0, conditional="mean"):
    """Error of the solver's mean (root mean square over y, relative to E[x|y]), and its spread: ratio of the traces."""
    toy = whole(boxes_toy())
    config = posterior_config(toy, num_levels=num_levels, step=step, conditional=conditional)
    measurement = acquire(toy, noise_std)
    matrix, covariance = predict(toy, measurement, config, {"gamma": 1.0, "damping": 1.0, "eta": eta})
    exact, posterior, data = exact_posterior(toy, measurement)

    def mean_square(a):
        return np.trace(a @ data @ a.T)

    error = math.sqrt(mean_square(matrix - exact) / mean_square(exact))
    return error, float(np.trace(covariance) / np.trace(posterior))


@pytest.mark.parametrize("noise_std", [0.0, 0.1])
@pytest.mark.parametrize("eta", [0.85, 1.0])
def test_drawn_conditionals_give_mean_and_covariance_of_the_posterior(noise_std, eta):
    """A level then is a step of the Gibbs sampler of (x, x + sigma n): as sigma -> 0 its conditional is exact."""
    found = [compare_with_posterior(noise_std, n, eta=eta, conditional="draw") for n in (100, 400, 1600)]
    errors, ratios = zip(*found, strict=True)
    assert errors[2] < 0.02 and errors[1] / errors[2] > 2.8
    assert ratios[2] == pytest.approx(1, abs=0.025) and abs(1 - ratios[2]) < abs(1 - ratios[1])


@pytest.mark.parametrize(("toy", "noise_std"), [(boxes_toy, 0.0), (boxes_toy, 0.1), (coils_toy, 0.1)])
def test_the_residual_tells_the_variance_of_an_estimate(toy, noise_std):
    """Of x0 = x + r n, whatever share of the entries is acquired, and without the data's noise."""
    toy, variance, number = toy(), 0.04, 512
    config, measurement = posterior_config(toy), acquire(toy, noise_std)
    transform = LOUD[toy.transform]()
    experiment = SimpleNamespace(operator=Acquisition(transform), transform=transform, masks=get_masks(config))
    many = jax.tree.map(lambda a: jnp.broadcast_to(jnp.asarray(a), (number, *a.shape[1:])), measurement)
    keys = jax.random.split(jax.random.key(1), 3)
    shape = (number, *transform.image_shape(many.y.shape)[1:])
    x = transform.noise(keys[0], shape)
    acquired = experiment.operator.forward(x, many.mask, many.maps)
    y = acquired + noise_std * jnp.where(many.mask, transform.noise(keys[1], many.y.shape), 0)
    estimate = VARIANCES["residual"](config, experiment, many.replace(y=y))
    estimated = x + jnp.sqrt(variance) * transform.noise(keys[2], shape)
    found = estimate(estimated, 10.0, jax.random.split(jax.random.key(2), number))
    assert float(jnp.median(found)) == pytest.approx(variance, rel=0.1)
    assert float(jnp.max(estimate(x + 10.0, 10.0, jax.random.split(keys[0], number)))) <= 0.3**2 * 1.001


@pytest.mark.parametrize("noise_std", [0.0, 0.1])
@pytest.mark.parametrize("eta", [0.85, 1.0])
def test_renoise_mean_tends_to_the_posterior_mean_but_its_spread_does_not(noise_std, eta):
    """A level's fixed point m has Sigma^-1 m = H^T (y - H m) / rho^2 as sigma -> 0, as the posterior mean has."""
    errors, ratios = zip(*(compare_with_posterior(noise_std, n, eta=eta) for n in (100, 400, 1600)), strict=True)
    assert errors[2] < 0.02
    assert errors[0] / errors[1] > 2.3 and errors[1] / errors[2] > 2.8  # like 1 / levels
    assert ratios[2] == pytest.approx((1 + math.sqrt(1 - eta**2)) / 2, rel=0.01)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_steps_stay_away_from_the_posterior(eta):
    (before, _), (after, ratio) = (compare_with_posterior(0.1, n, "ddim", eta) for n in (100, 400))
    assert after > 0.1 and before == pytest.approx(after, rel=0.025)
    assert ratio > 1.3


def test_documented_distances_from_the_posterior():
    """The numbers of this file's docstring and of docs/method.md, for noise_std 0.1."""
    for arguments, expected in DOCUMENTED.items():
        assert compare_with_posterior(0.1, *arguments) == pytest.approx(expected, abs=0.001)


def test_invertible_noiseless_problem_returns_the_image_whatever_the_network_says():
    """gamma = 1: what is left of a random network is the damping floor, 1e-5 of its error."""
    toy = whole(boxes_toy())
    x = np.random.default_rng(3).standard_normal(16).astype(np.float32)
    measurement = acquire(toy, 0.0)
    measurement = measurement.replace(y=x.reshape(1, *toy.shape), mask=np.ones_like(measurement.mask))

    def random_network(s_t, mask, maps, t):
        del maps
        z0 = jnp.asarray(np.random.default_rng(4).standard_normal(s_t.shape), s_t.dtype) + 0.3 * jnp.roll(s_t, 1, -1)
        s0 = jnp.where(mask, z0, 0)
        return Denoised(s0=s0, eps=jnp.where(mask, s_t - s0, 0), z0=z0)

    config = posterior_config(toy, num_levels=5)
    config.eval.num_samples = 2
    samples = solve(toy, measurement, config, LOUD, HYPER, random_network)
    np.testing.assert_allclose(samples, np.broadcast_to(x, samples.shape), atol=1e-4)
