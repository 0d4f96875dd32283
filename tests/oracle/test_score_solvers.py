"""The four score-SDE solvers on Gaussian data with exact scores: their own affine recursion, and the posterior.

Without noise and with the corrector 'ald' or none a solver is affine in y, so that its mean follows exactly. What that
says of boxes_toy (16 correlated pixels, half of them measured, noise_std 0.1; errors of the mean are root mean squares
over y, relative to E[x|y]) stands in DOCUMENTED.
"""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msm.operators.acquisition import Acquisition
from msm.operators.ct import ParallelBeam
from msm.operators.pixel import Downsample
from msm.predictor_corrector import PCSettings, network_calls
from msm.sde_lib import get_schedule
from msm.solvers import get_solver
from tests.helpers.toy_data import acquisition
from tests.oracle.test_posterior import LOUD, QUIET, acquire, exact_posterior, linear_parts, posterior_config, solve
from tests.oracle.theory import boxes_toy, coils_toy, get_exact_denoiser, level_sigmas, toy_schedule, whole

SOLVERS = ("projection", "langevin_projection", "baseline", "langevin")


def solver_config(toy, name, num_levels, **changes):
    config = posterior_config(toy, "ve")
    config.schedule.update(sigma_min=0.02, sigma_max=5.0)
    if name in ("projection", "baseline"):
        config.score_sde[name].corrector = "ald"
    config.score_sde[name].num_levels = num_levels
    config.score_sde.update({key: changes.pop(key) for key in ("consistency", "damping") if key in changes})
    config.score_sde[name].update(changes)
    return config


def settings_of(config, name):
    own = config.score_sde[name]
    return PCSettings(own.num_levels, own.get("predictor", "none"), own.get("corrector", "ald"), own.corrector_steps)


def predict(toy, measurement, config, name):
    """The solver's mean as a matrix (pixels,n) that acts on y: every noise is 0. VE: alpha = 1."""
    operator, seen, _, rho = linear_parts(toy, measurement)
    adjoint, own, common = operator.conj().T, config.score_sde[name], config.score_sde
    pixels, rows = len(adjoint), seen[:, None] * operator
    schedule = toy_schedule("ve", sigma_min=0.02, sigma_max=5.0)
    sigmas = level_sigmas(schedule, own.num_levels)
    prior = adjoint @ toy.covariance @ operator / toy.unit

    def project(x, sigma, weight):
        mu = max(common.damping * rho**2 * (sigma**-2 + config.denoiser.sigma_data**-2), 1e-5)
        inverse = {
            "least_squares": lambda: np.linalg.inv(adjoint @ rows + mu * np.eye(pixels)) @ rows.conj().T,
            "pseudo_inverse": lambda: np.linalg.pinv(rows, rcond=3e-3),
            "adjoint": lambda: rows.conj().T,
        }[common.consistency]()
        return x + weight * inverse @ (np.diag(seen) - rows @ x)

    x = np.zeros((pixels, len(operator)), operator.dtype)
    for index, purpose, opens in network_calls(settings_of(config, name), schedule):
        sigma, after = sigmas[index], sigmas[min(index + 1, len(sigmas) - 1)]
        if "projection" in name and opens and purpose != 2:
            x = project(x, sigma, own.weight)
        score = -np.linalg.inv(prior + sigma**2 * np.eye(pixels)) @ x
        if purpose == 2:
            x = x + sigma**2 * score
            break
        if "projection" not in name:
            score = score + rows.conj().T @ (np.diag(seen) - rows @ x) / ((own.gamma * sigma) ** 2 + rho**2)
        x = x + score * (2 * (own.snr * sigma) ** 2 if purpose == 0 else sigma**2 - after**2)
    if "projection" in name:
        x = project(x, sigmas[-1], 1.0 if name == "projection" else own.weight)
    return x


@pytest.mark.parametrize(
    ("toy", "name", "noise_std", "changes"),
    [
        (boxes_toy, "projection", 0.1, {"weight": 0.8}),
        (coils_toy, "projection", 0.0, {"consistency": "pseudo_inverse"}),
        (boxes_toy, "langevin_projection", 0.0, {"consistency": "adjoint", "weight": 0.7}),
        (boxes_toy, "baseline", 0.1, {}),
        (coils_toy, "langevin", 0.05, {}),
    ],
)
def test_mean_of_a_solver_is_its_affine_recursion(toy, name, noise_std, changes):
    toy = whole(toy())
    config = solver_config(toy, name, 10, **changes)
    measurement = acquire(toy, noise_std)
    x = run(toy, measurement, config, QUIET, name)
    expected = predict(toy, measurement, config, name) @ measurement.y.ravel()
    np.testing.assert_allclose(x, expected, atol=3e-4)


def run(toy, measurement, config, transforms, name):
    """(pixels,): one sample of the project's solver with the exact denoiser."""
    exact = get_exact_denoiser(toy, get_schedule(config), config.score_sde[name].num_levels)

    def denoise(s_t, mask, maps, t):
        return exact(s_t, jnp.broadcast_to(mask, (len(s_t), *toy.listed.shape[1:])), maps, t)

    return solve(toy, measurement, config, transforms, {}, denoise, name)[0]


def error_of_the_mean(name, noise_std, num_levels, **changes):
    toy = whole(boxes_toy())
    measurement = acquire(toy, noise_std)
    exact, _, data = exact_posterior(toy, measurement)
    found = predict(toy, measurement, solver_config(toy, name, num_levels, **changes), name)
    return math.sqrt(np.trace((found - exact) @ data @ (found - exact).T) / np.trace(exact @ data @ exact.T))


DOCUMENTED = {  # solver -> error of the mean with its default hyper-parameters, 200 levels
    "projection": 0.0487,
    "langevin_projection": 0.0445,
    "baseline": 0.0763,
    "langevin": 0.1142,
}


@pytest.mark.parametrize("name", SOLVERS)
def test_documented_distances_from_the_posterior(name):
    assert error_of_the_mean(name, 0.1, 200) == pytest.approx(DOCUMENTED[name], abs=0.001)


@pytest.mark.parametrize("name", ["projection", "langevin_projection"])
@pytest.mark.parametrize("consistency", ["least_squares", "pseudo_inverse", "adjoint"])
def test_full_weight_explains_noiseless_data_exactly(name, consistency):
    """H x = y for the samples themselves; for T = I all three consistencies are the published merge."""
    toy = whole(boxes_toy())
    config = solver_config(toy, name, 6, consistency=consistency, weight=1.0)
    measurement = acquire(toy, 0.0)
    x = run(toy, measurement, config, LOUD, name)
    seen = np.broadcast_to(measurement.mask[0], toy.shape).ravel()
    np.testing.assert_allclose(x[seen], measurement.y.ravel()[seen], atol=1e-4)
    assert np.all(np.abs(x[~seen]) > 1e-4)


def scan_solver(name, num_levels=4, num_samples=2, size=16):
    """The solver with a denoiser that shrinks, and scans of two coils."""
    measurement, _ = acquisition(size, 3, 2, 0.01)
    config = posterior_config(whole(coils_toy()))
    config.score_sde[name].num_levels, config.eval.num_samples = num_levels, num_samples
    schedule, transform = toy_schedule("ve", sigma_min=0.02, sigma_max=5.0), LOUD["multicoil_fourier"]()

    def denoise(params, s_t, mask, maps, t):
        return SimpleNamespace(z0=s_t * (0.3 / (0.3 + schedule.sigma(t) ** 2))[:, None, None, None])

    operator = Acquisition(transform)
    experiment = SimpleNamespace(schedule=schedule, transform=transform, operator=operator, denoise=denoise)
    return get_solver(config, experiment, name), measurement


@pytest.mark.parametrize("name", SOLVERS)
def test_an_example_does_not_depend_on_its_batch_mates(name):
    solver, measurement = scan_solver(name)
    run = jax.jit(lambda m: solver.solve(jax.random.key(0), None, m, dict(solver.hyper)))
    together = run(measurement)
    alone = run(jax.tree.map(lambda a: a[1:2], measurement))
    assert together.shape == (2, 3, 16, 16) and not np.allclose(together[0], together[1])
    np.testing.assert_allclose(together[:, 1:2], alone, atol=2e-4 * float(np.abs(together).max()))


@pytest.mark.parametrize("name", SOLVERS)
def test_defaults_are_published_and_inside_the_search(name):
    published = {
        "projection": ({"snr": 0.517, "weight": 1.0}, 2000),
        "langevin_projection": ({"snr": 0.386, "weight": 1.0}, 2101),
        "baseline": ({"snr": 0.608, "gamma": 1.231}, 2000),
        "langevin": ({"snr": 0.212, "gamma": 0.713}, 2101),
    }
    experiment = SimpleNamespace(transform=None, operator=None, schedule=toy_schedule("ve"))
    solver = get_solver(posterior_config(whole(coils_toy())), experiment, name)
    assert (solver.hyper, solver.nfe) == published[name]
    assert set(solver.search) == set(solver.hyper)
    for key, value in solver.hyper.items():
        assert solver.search[key].nearest(value) == value


@pytest.mark.parametrize("name", ["projection", "baseline"])
def test_measurements_need_not_have_the_shape_of_images(name):
    """Super-resolution, and CT with rays that are not known: masks are of the measurement, which may be a sinogram."""
    config = posterior_config(whole(boxes_toy()))
    config.score_sde[name].num_levels = 3
    schedule = toy_schedule("ve", sigma_min=0.02, sigma_max=5.0)

    def denoise(params, s_t, mask, maps, t):
        return SimpleNamespace(z0=jnp.where(mask, 0.5 * s_t, 0))

    truth = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    for operator, mask in ((Downsample(2), True), (ParallelBeam(3), np.arange(12)[:, None] < 9)):
        y = operator.forward(truth, mask, None)
        mask = jnp.broadcast_to(mask, (2, 1, 1, 1) if mask is True else (*y.shape[:3], 1))
        measurement, _ = acquisition(8, 2, 1, 0.0)
        measurement = measurement.replace(y=y, mask=mask, maps=None)
        experiment = SimpleNamespace(
            schedule=schedule, transform=LOUD["identity"](), operator=operator, denoise=denoise
        )
        solver = get_solver(config, experiment, name)
        x = jax.jit(lambda m, s=solver: s.solve(jax.random.key(1), None, m, dict(s.hyper)))(measurement)[0]
        assert x.shape == truth.shape and bool(jnp.isfinite(x).all())
        if name == "projection" and isinstance(operator, Downsample):  # noiseless data and full weight
            np.testing.assert_allclose(operator.forward(x, mask, None), y, atol=1e-3)


def test_memory_does_not_grow_with_the_levels():
    sizes = []
    for levels in (10, 1000):
        solver, measurement = scan_solver("projection", levels, num_samples=1)
        run = jax.jit(lambda m, s=solver: s.solve(jax.random.key(0), None, m, dict(s.hyper)))
        sizes.append(run.lower(measurement).compile().memory_analysis().temp_size_in_bytes)
    image = 3 * 16 * 16 * 8
    assert sizes[1] - sizes[0] < 5 * image  # tables of levels and calls, where stacked images would take 1980
