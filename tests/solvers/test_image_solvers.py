"""Every solver on every image task: exact cases, Gaussian posteriors, and an evaluation with its report."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msm import datasets, run_lib
from msm.configs import tasks, variants
from msm.experiment import build
from msm.models.denoiser import Denoised, get_denoise_fn
from msm.models.init import init_params
from msm.modes import evaluate as evaluation
from msm.modes import opening
from msm.operators import wavelet
from msm.operators.masks import get_masks
from msm.operators.measurement import EvalExample
from msm.operators.tasks import TASKS, get_task, simulate
from msm.operators.transform import Identity, get_transform
from msm.reports import figures
from msm.sde_lib import get_schedule
from msm.solvers import get_solver
from tests import test_sampling as mri
from tests.operators.test_tasks import METAL, MRI, normal, task_config
from tests.test_losses import PARAMS, linear_net, toy_measurement

IMAGE_TASKS = [name for name in TASKS.names() if name not in (*MRI, *METAL)]
CLASSICAL = ("zero_filled", "pseudo_inverse", "tikhonov", "cg_sense", "l1_wavelet", "tv")
SIZE = 12
WAVELET_SIZE = 36  # the smallest multiple of 12 with details for wavelets to penalise
MIX = {"mix": np.asarray([[0.3, -0.1, 0], [0.2, 0.4, 0.1], [0, 0.1, -0.2]], np.float32), "gain": np.float32(0.5)}


def gains(size=SIZE):
    """(H, W//2+1, 1) variance of every frequency of a smooth random image: its covariance is diagonal there."""
    rows, columns = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
    return (1.0 / (0.02 + rows**2 + columns**2))[..., None].astype(np.float32) * 0.02


def filtered(x, power):
    return jnp.fft.irfft2(power * jnp.fft.rfft2(x, axes=(1, 2)), s=x.shape[1:3], axes=(1, 2))


def smooth_images(count, seed=0, size=SIZE):
    white = normal(np.random.default_rng(seed), (count, size, size, 3))
    return np.asarray(filtered(white, np.sqrt(gains(size))), np.float32)


def experiment(config, denoise=None):
    """What solvers need of one, with the task's operator; the network is `linear_net` unless a denoiser is given."""
    schedule, transform = get_schedule(config), get_transform(config)
    return types.SimpleNamespace(
        config=config,
        schedule=schedule,
        transform=transform,
        operator=get_task(config, transform).operator,
        masks=get_masks(config),
        denoise=denoise or get_denoise_fn(config, schedule, transform, linear_net),
    )


def gaussian_denoise(params, s_t, mask, maps, t):
    """The exact denoiser of images with the spectrum `gains`, seen whole: E[x | x + sigma n] (edm: t = log sigma)."""
    del params, maps
    sigma = jnp.exp(t)[:, None, None, None]
    x0 = filtered(s_t, gains() / (gains() + sigma**2))
    s0 = jnp.where(mask, x0, 0)
    return Denoised(s0=s0, eps=(s_t - s0) / sigma, z0=x0)


def msm_config(name, **changes):
    config = task_config(name)
    config.solver.num_levels, config.eval.num_samples = 4, 2
    config.schedule.sigma_max = 10.0
    config.solver.update(changes)
    return config


def measured(config, images, noise_std):
    task = get_task(config, get_transform(config))
    ids = np.arange(len(images), dtype=np.int32)
    return jax.jit(lambda x: simulate(task, x, None, ids, 0, noise_std))(images)


@functools.cache
def classical_results(name):
    """{solver: reconstructions} of two smooth images, noise 0.01, in one program."""
    config = task_config(name, WAVELET_SIZE)
    solvers = {solver: get_solver(config, experiment(config), solver) for solver in CLASSICAL}
    m = measured(config, smooth_images(2, size=WAVELET_SIZE), 0.01)
    run = jax.jit(lambda m: {key: s.solve(None, None, m, s.hyper)[0] for key, s in solvers.items()})
    return m, {key: np.asarray(value) for key, value in run(m).items()}


def total_variation(x):
    return np.sum(np.sqrt(sum(np.abs(np.roll(x, -1, axis) - x) ** 2 for axis in (1, 2))))


@jax.jit
def detail(x):
    """Sum of the magnitudes of the wavelet coefficients that `l1_wavelet` penalises, mean over shifts of the image."""
    coarse = WAVELET_SIZE // 2
    details = [
        wavelet.dwt2(jnp.roll(x, (i, j), (1, 2)), 1).at[:, :coarse, :coarse].set(0) for i in (0, 1) for j in (0, 1)
    ]
    return sum(jnp.sum(jnp.abs(d)) for d in details) / 4


@pytest.mark.parametrize("name", IMAGE_TASKS)
def test_classical_solvers_minimise_their_cost_on_every_task(name):
    m, results = classical_results(name)
    operator = experiment(task_config(name, WAVELET_SIZE)).operator
    for key, x in results.items():
        assert x.shape == (2, WAVELET_SIZE, WAVELET_SIZE, 3) and x.dtype == np.float32 and np.isfinite(x).all(), key
    np.testing.assert_array_equal(results["tikhonov"], results["cg_sense"])
    np.testing.assert_allclose(results["zero_filled"], operator.adjoint(m.y, m.mask, None), atol=1e-6)
    residuals = {key: np.linalg.norm(operator.forward(x, m.mask, None) - m.y) ** 2 / 2 for key, x in results.items()}
    assert residuals["pseudo_inverse"] < min(residuals["tikhonov"], residuals["tv"], residuals["l1_wavelet"]) + 1e-6
    ridge = operator.normal(results["tikhonov"], m.mask, None) + 0.001 * results["tikhonov"]
    np.testing.assert_allclose(ridge, operator.adjoint(m.y, m.mask, None), atol=1e-5)
    for solver, lam, penalty in (("tv", 0.005, total_variation), ("l1_wavelet", 0.001, detail)):
        costs = {key: residuals[key] + lam * penalty(x) for key, x in results.items()}
        others = [costs[key] for key in ("pseudo_inverse", "tikhonov", "zero_filled")]
        assert costs[solver] < min(others), solver


INVERTIBLE = {
    "random_inpainting": {"keep": 1.0},
    "sr": {"factor": 1},
    "gaussian_blur": {"sigma": 0.45},
    "motion_blur": {"length": 1.0},
}


@pytest.mark.parametrize(
    ("name", "changes"),
    [*((name, {}) for name in INVERTIBLE), ("gaussian_blur", {"mask_keep": 0.0, "w": 2, "reinject": True})],
    ids=str,
)
def test_noiseless_data_of_an_invertible_operator_give_the_exact_image(name, changes):
    """With gamma = 1, whatever the network says."""
    config = msm_config(name, consistency="pseudo_inverse", **changes)
    config.task.update(INVERTIBLE[name])
    images = smooth_images(2)
    m = measured(config, images, 0.0)
    solver = get_solver(config, experiment(config), "msm")
    samples = jax.jit(solver.solve)(jax.random.key(0), MIX, m, {**solver.hyper, "eta": 0.85})
    np.testing.assert_allclose(samples, np.broadcast_to(images, samples.shape), atol=2e-5)


def posterior_mean(operator, m, images):
    """(H^H H + noise^2 Sigma^-1)^-1 H^H y for the prior of `gains`, by dense algebra in float64, per example."""
    unit = np.eye(SIZE * SIZE * 3, dtype=np.float32).reshape(-1, SIZE, SIZE, 3)
    covariance = np.asarray(filtered(unit, gains()), np.float64).reshape(len(unit), -1)
    means = []
    for index in range(len(images)):
        mask = m.mask[index : index + 1]
        h = np.asarray(jax.jit(lambda x, mask=mask: operator.forward(x, mask, None))(unit), np.float64)
        h = h.reshape(len(unit), -1).T
        y = np.asarray(m.y[index], np.float64).ravel()
        noise = float(m.noise_std[index]) ** 2 * np.eye(len(y))
        means.append(covariance @ h.T @ np.linalg.solve(h @ covariance @ h.T + noise, y))
    return np.stack(means).reshape(images.shape)


class Quiet(Identity):
    """T = I whose noise is its mean, 0: a sampler that is linear in its noise returns the mean of its samples."""

    def noise(self, key, shape):
        return jnp.zeros(shape)


@pytest.mark.parametrize("name", IMAGE_TASKS)
def test_mean_of_the_samples_comes_near_the_posterior_mean_of_a_gaussian(name):
    """Exact denoiser, whole measurements: nearer to the closed form than pseudo-inverse and Tikhonov image."""
    config = msm_config(name, num_levels=100)
    config.eval.num_samples, config.denoiser.sigma_data = 1, float(np.sqrt(gains().mean()))
    images = smooth_images(2, seed=1)
    m = measured(config, images, 0.05)
    e = experiment(config, gaussian_denoise)
    exact = posterior_mean(e.operator, m, images)
    distance = {}
    for other in ("pseudo_inverse", "tikhonov"):
        baseline = get_solver(config, e, other)
        distance[other] = np.linalg.norm(np.asarray(baseline.solve(None, None, m, baseline.hyper)[0]) - exact)
    e.transform = Quiet()
    solver = get_solver(config, e, "msm")
    mean = np.asarray(jax.jit(solver.solve)(jax.random.key(0), None, m, solver.hyper)[0])
    distance["msm"] = np.linalg.norm(mean - exact)
    assert distance["msm"] < 0.5 * min(distance["pseudo_inverse"], distance["tikhonov"])


@pytest.mark.parametrize(
    ("name", "changes"), [("sr", {"consistency": "pseudo_inverse"}), ("box_inpainting", {"start_sigma": 1.0})], ids=str
)
def test_result_of_an_image_does_not_depend_on_its_batch_mates(name, changes):
    config = msm_config(name, **changes)
    solver = get_solver(config, experiment(config), "msm")
    m = measured(config, smooth_images(3), 0.02)
    solve, key = jax.jit(solver.solve), jax.random.key(1)
    together = solve(key, MIX, m, solver.hyper)
    assert together.shape == (2, 3, SIZE, SIZE, 3) and bool(jnp.all(jnp.isfinite(together)))
    alone = solve(key, MIX, jax.tree.map(lambda a: a[2:], m), solver.hyper)
    np.testing.assert_allclose(alone[:, 0], together[:, 2], atol=2e-4)
    assert not np.allclose(together[0], together[1])


def store_of_images(config, count=3):
    """Stand-ins for the functions of `datasets` that evaluation calls: the task's measurements of smooth images."""
    images = np.clip(smooth_images(count), -1, 1)
    measurement = jax.tree.map(np.asarray, measured(config, images, 0.01))
    info = {"settings": {"noise_std": 0.0}, "notes": ["Toy images."]}
    return {
        "dataset_info": lambda *_: info,
        "eval_batches": lambda *_: iter([EvalExample(measurement, images)]),
    }


@pytest.mark.parametrize("variant", ["sr4", "box"])
def test_an_image_task_is_evaluated_and_reported(variant, tmp_path, monkeypatch):
    config = variants.apply(task_config("acquired"), f"smoke+{variant}", {"smoke": variants.smoke, **tasks.IMAGES})
    config.transform.name, config.data.num_coils, config.data.augment = "identity", 0, ("mirror",)
    config.masks.name = "random_boxes"
    config.masks.grid, config.masks.drop = 3, 4
    config.model.channel_mult, config.model.attention_resolutions = (1,), ()
    config.eval.solvers, config.eval.batch_size = ("pseudo_inverse", "tikhonov", "msm"), 3
    for name, function in store_of_images(config).items():
        monkeypatch.setattr(datasets, name, function)
    params = init_params(build(config).model, 0, (SIZE, SIZE, 3))
    monkeypatch.setattr(opening, "load_params", lambda *_: (params, {"checkpoint": "this workdir", "training step": 7}))
    monkeypatch.setattr(opening.checkpoints, "kept_steps", lambda _: [7])
    shown = []
    panel = figures._Sheet.panel
    monkeypatch.setattr(
        figures._Sheet, "panel", lambda s, r, c, i, t, **o: (shown.append(t), panel(s, r, c, i, t, **o))
    )
    summary = run_lib.evaluate(config, str(tmp_path / "run"), "python main.py")
    assert summary["run"]["task"] == config.task.name and "coils" not in summary["run"]
    assert summary["run"]["noise std"] == 0.01 and summary["run"]["title"] == "Reconstruction of test images"
    told = {"sr4": {"factor": 4, "seed": 0}, "box": {"box_size": 6, "seed": 0}}
    assert summary["run"]["task's settings"] == told[variant]
    text = (tmp_path / "run" / variant / "report.html").read_text()
    assert "Tikhonov" in text and "Pseudo-inverse" in text
    pictured = {"sr4": "Measured\n3 x 3 pixels", "box": "Sampling mask\n108 of 144 points, R = 1.33"}
    assert pictured[variant] in shown
    with np.load(tmp_path / "run" / variant / "rounds" / "round_0000.npz") as stored:
        assert stored["msm/mean"].shape == (3, SIZE, SIZE, 3) and np.isfinite(stored["msm/mean"]).all()
    before = evaluation.stamp_of(config, {}, params, {})
    config.task.seed = 1
    assert evaluation.stamp_of(config, {}, params, {}) != before


def test_msm_of_mri_takes_the_pseudo_inverse_too():
    """Full noiseless MRI data: one step returns the exact image."""
    config = mri.solver_config(consistency="pseudo_inverse", num_levels=2)
    m = toy_measurement(batch=2)
    transform = get_transform(config)
    x = transform.adjoint(jnp.asarray(m.y), m.maps)
    full = m.replace(y=np.asarray(transform.forward(x, m.maps)), mask=np.ones_like(m.mask))
    solver = get_solver(config, mri.experiment(config), "msm")
    samples = jax.jit(solver.solve)(jax.random.key(0), PARAMS, full, {**solver.hyper, "eta": 0.85})
    np.testing.assert_allclose(samples, np.broadcast_to(x, samples.shape), atol=2e-5)
