"""Every evaluation task: laws of its operator and inverses, its simulated measurement, its config variant."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msm import datasets
from msm.configs import brain64_msm, default, tasks, variants
from msm.configs.rules.check import find_problems
from msm.operators import pixel
from msm.operators.acquisition import Acquisition
from msm.operators.tasks import TASKS, get_task, simulate
from msm.operators.transform import get_transform
from tests.helpers.checks import message_of
from tests.helpers.toy_data import smooth_coils

MRI = ("acquired", "cs_mri")
CT = ("sparse_ct",)  # of square images only
METAL = ("mar", "sparse_mar")  # with the operator of sparse_ct; tests/operators/test_metal.py has their measurements
SHAPES = [(12, 12), (9, 15)]  # rows, columns; super-resolution by 3
COPIES = 2


def task_config(name, size=12):
    """A config of images, or of MRI for the MRI tasks, with every task's settings at toy size."""
    config = default.get_config()
    config.data.image_size = size
    config.task.update(
        name=name,
        acs_lines=2,
        factor=3,
        box_size=size // 3,
        keep=0.5,
        sigma=0.8,
        length=4.0,
        angle=30.0,
        views=3,
    )
    config.masks.acs_lines = 2
    config.solver.cg_steps = 60
    if name not in MRI:
        config.transform.name, config.data.num_coils, config.data.augment = "identity", 0, ("mirror",)
        config.masks.name = "random_boxes"
        config.masks.grid, config.masks.drop = 3, 4
    return config


def normal(rng, shape, dtype=np.float32):
    parts = rng.standard_normal((2, *shape)).astype(np.float32)
    return parts[0] + 1j * parts[1] if dtype == np.complex64 else parts[0]


def inner(a, b):
    return np.vdot(np.asarray(a, np.complex128), np.asarray(b, np.complex128))


def close(a, b, tolerance):
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape and np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


@functools.cache
def case(name, shape, batch=2):
    """Operator and results of everything it can do, on a batch of random images and measurements, all in one program.

    The 'acquired' MRI case has no two rows alike: a 2-D mask, for which conjugate gradients do the inverses.
    """
    rng = np.random.default_rng(5)
    config = task_config(name)
    operator = get_task(config, get_transform(config)).operator
    shape = (shape[0], shape[0]) if name in CT else shape
    if name in MRI:
        x = normal(rng, (COPIES * batch, *shape), np.complex64)
        maps = np.stack([normal(rng, (3, *shape), np.complex64) for _ in range(batch)])
        maps /= np.sqrt(np.sum(np.abs(maps) ** 2, axis=1, keepdims=True))
        mask = rng.random((batch, 1, shape[0] if name == "acquired" else 1, shape[1])) < 0.5
    else:
        x, maps, mask = normal(rng, (COPIES * batch, *shape, 3)), None, np.ones((batch, 1, 1, 1), bool)
        if isinstance(operator, Acquisition):
            mask = rng.random((batch, *shape, 1)) < 0.5
    every_mask = np.concatenate([mask] * COPIES)
    every_maps = None if maps is None else np.concatenate([maps] * COPIES)
    y_shape = jax.eval_shape(lambda v: operator.forward(v, every_mask, every_maps), x).shape
    y = normal(rng, y_shape, x.dtype)
    mu = np.array([0.03, 0.3, 1.0, 0.1], np.float32)

    def everything(x, y, mu):
        def forward(v):
            return operator.forward(v, every_mask, every_maps)

        pinv, solve = operator.get_pinv(mask, maps), operator.get_damped_inverse(mask, maps)
        damped = solve(x, mu)
        return {
            "x": x,
            "y": y,
            "Hx": forward(x),
            "H^Hy": operator.adjoint(y, every_mask, every_maps),
            "H^HHx": operator.normal(x, every_mask, every_maps),
            "H^H(Hx)": operator.adjoint(forward(x), every_mask, every_maps),
            "H+y": pinv(y),
            "H+Hx": pinv(forward(x)),
            "HH+y": forward(pinv(y)),
            "HH+Hx": forward(pinv(forward(x))),
            "H+HH+y": pinv(forward(pinv(y))),
            "damped": damped,
            "undamped": operator.normal(damped, every_mask, every_maps) + mu.reshape(-1, *[1] * (x.ndim - 1)) * damped,
            "limit": solve(operator.adjoint(forward(x), every_mask, every_maps), 0 * mu),
        }

    return operator, {key: np.asarray(value) for key, value in jax.jit(everything)(x, y, mu).items()}


EVERY = [
    pytest.param(name, shape, id=f"{name}-{shape[0]}x{shape[1]}")
    for name in TASKS.names()
    if name not in METAL
    for shape in SHAPES
]


@pytest.mark.parametrize(("name", "shape"), EVERY)
def test_adjoint_and_normal_operator(name, shape):
    operator, r = case(name, shape)
    assert r["H^Hy"].shape == r["x"].shape == operator.image_shape(r["y"].shape)
    assert r["Hx"].dtype == r["y"].dtype and r["H^Hy"].dtype == r["x"].dtype
    assert abs(inner(r["Hx"], r["y"]) - inner(r["x"], r["H^Hy"])) < 1e-5 * abs(inner(r["x"], r["x"]))
    close(r["H^HHx"], r["H^H(Hx)"], 1e-5)


@pytest.mark.parametrize(("name", "shape"), EVERY)
def test_pseudo_inverse_is_moore_and_penroses(name, shape):
    _, r = case(name, shape)
    close(r["HH+Hx"], r["Hx"], 1e-4)
    close(r["H+HH+y"], r["H+y"], 1e-4)
    for there, back in (("x", "H+Hx"), ("y", "HH+y")):  # both products are self-adjoint
        a, b, pa, pb = r[there][:2], r[there][2:], r[back][:2], r[back][2:]
        assert abs(inner(pa, b) - inner(a, pb)) < 1e-4 * np.linalg.norm(a) * np.linalg.norm(b)
    close(r["limit"], r["H+Hx"], 2e-3)  # rounding, times the condition of H^H H


@pytest.mark.parametrize(("name", "shape"), EVERY)
def test_damped_inverse_solves_its_equation(name, shape):
    _, r = case(name, shape)
    assert np.linalg.norm(r["undamped"] - r["x"]) <= 1e-4 * np.linalg.norm(r["x"])


@pytest.mark.parametrize(("name", "shape"), EVERY)
def test_no_operator_amplifies_more_than_its_norm(name, shape):
    operator, r = case(name, shape)
    norm = operator.norm(r["x"].shape)
    assert norm <= 1 + 1e-6
    gains = [np.linalg.norm(hx) / np.linalg.norm(x) for hx, x in zip(r["Hx"], r["x"], strict=True)]
    assert max(gains) <= norm * (1 + 1e-5)


@pytest.mark.parametrize("name", ["sr", "gaussian_blur", "motion_blur", "colorization"])
def test_norm_is_reached(name):
    """Power iteration finds the stated largest singular value."""
    config = task_config(name)
    operator = get_task(config, get_transform(config)).operator
    x = normal(np.random.default_rng(0), (1, 12, 12, 3))

    def step(_, v):
        v = operator.normal(v, None, None)
        return v / jnp.linalg.norm(v)

    x = jax.jit(lambda v: jax.lax.fori_loop(0, 200, step, v))(x)
    assert float(jnp.linalg.norm(operator.forward(x, None, None))) == pytest.approx(operator.norm(x.shape), rel=1e-3)


@pytest.mark.parametrize(("shape", "factor"), [((16, 16), 4), ((9, 15), 3), ((10, 6), 2), ((5, 7), 1)])
def test_super_resolution_is_jaxs_antialiased_bicubic_resize(shape, factor):
    x = normal(np.random.default_rng(0), (2, *shape, 3))
    small = (2, shape[0] // factor, shape[1] // factor, 3)
    expected = jax.image.resize(x, small, method="cubic", antialias=True)
    np.testing.assert_allclose(pixel.Downsample(factor).forward(x, None, None), expected, atol=1e-5)


def test_blurs_are_circular_convolutions_with_their_kernels():
    x = normal(np.random.default_rng(1), (1, 7, 10, 2))
    for operator in (pixel.GaussianBlur(0.6), pixel.MotionBlur(2.0, 90.0)):
        kernel = operator.kernel((7, 10))
        kernel = kernel / kernel.sum()
        expected = sum(
            kernel[i, j] * np.roll(x, (i, j), axis=(1, 2)) for i in range(7) for j in range(10) if kernel[i, j]
        )
        np.testing.assert_allclose(operator.forward(x, None, None), expected, atol=0.01)  # cut at 1 % of the spectrum
    np.testing.assert_allclose(pixel.GaussianBlur(0.4).forward(x, None, None)[0, 3, 3], _gauss(x, 0.4), atol=1e-5)


def _gauss(x, sigma):
    rows, columns = np.arange(7)[:, None] - 3, np.arange(10)[None] - 3
    columns = (columns + 5) % 10 - 5
    weights = np.exp(-(rows**2 + columns**2) / (2 * sigma**2))
    return np.tensordot(weights / weights.sum(), x[0], 2)


def test_motion_is_a_line_of_the_given_length_and_direction():
    along = pixel.MotionBlur(5.0, 0.0).kernel((16, 16))
    along = np.roll(along / along.sum(), (8, 8), (0, 1))
    # a line of 5 pixels seen through bilinear weights: the ends reach half into their last pixel
    np.testing.assert_allclose(along[8, 5:12], [0.025, 0.175, 0.2, 0.2, 0.2, 0.175, 0.025], atol=1e-3)
    assert along[[7, 9]].max() < 1e-12
    rising = np.roll(pixel.MotionBlur(6.0, 45.0).kernel((16, 16)), (8, 8), (0, 1))
    assert rising[6, 10] > 0.5 * rising.max() > 10 * rising[10, 10]  # up and to the right on the screen


def simulated(name, ids, noise_std=0.05, seed=0):
    config = task_config(name)
    task = get_task(config, get_transform(config))
    rng = np.random.default_rng(3)
    if name in MRI:
        images = np.repeat(normal(rng, (1, 12, 12), np.complex64), len(ids), 0)
        maps = np.broadcast_to(smooth_coils(12, 3), (len(ids), 3, 12, 12))
    else:
        images, maps = np.repeat(normal(rng, (1, 12, 12, 3)), len(ids), 0), None
    run = jax.jit(lambda x, m, i: simulate(task, x, m, i, seed, noise_std))
    return task, images, maps, jax.tree.map(np.asarray, run(images, maps, np.asarray(ids, np.int32)))


@pytest.mark.parametrize("name", [name for name in TASKS.names() if name not in ("acquired", *METAL)])
def test_a_simulated_measurement_depends_on_seed_and_id_alone(name):
    task, images, maps, m = simulated(name, [7, 8, 7, 9])
    clean = np.asarray(task.operator.forward(images, m.mask, maps))
    noise = (m.y - clean)[np.broadcast_to(m.mask, m.y.shape)]
    parts = noise.view(np.float32)
    assert parts.std() == pytest.approx(0.05, rel=6 / np.sqrt(2 * parts.size)) and m.y.dtype == clean.dtype
    assert np.all(m.y[~np.broadcast_to(m.mask, m.y.shape)] == 0) and np.all(m.noise_std == np.float32(0.05))
    np.testing.assert_array_equal(m.y[0], m.y[2])
    np.testing.assert_array_equal(m.mask[0], m.mask[2])
    assert not np.array_equal(m.y[0], m.y[1])
    *_, alone = simulated(name, [8])
    np.testing.assert_allclose(alone.y[0], m.y[1], atol=1e-6)
    *_, other = simulated(name, [7, 8, 7, 9], seed=1)
    assert not np.allclose(other.y, m.y)


def test_masks_of_the_tasks():
    masks = {
        name: simulated(name, range(200))[3].mask for name in ("cs_mri", "box_inpainting", "random_inpainting", "sr")
    }
    assert masks["sr"].shape == (200, 1, 1, 1) and masks["sr"].all()
    box = np.ones((12, 12, 1), bool)
    box[4:8, 4:8] = False
    np.testing.assert_array_equal(masks["box_inpainting"], np.broadcast_to(box, (200, 12, 12, 1)))
    assert masks["random_inpainting"].mean() == pytest.approx(0.5, abs=0.02)
    assert masks["cs_mri"].shape == (200, 1, 1, 12) and masks["cs_mri"][..., 5:7].all()
    assert np.delete(masks["cs_mri"], [5, 6], axis=3).mean() == pytest.approx(0.25, abs=0.05)  # R = 4


def test_evaluation_reads_the_measurements_of_a_task(tiny_config):
    """Whatever the batch size: the same references, other measurements than the store's, at the task's acceleration."""
    tiny_config.task.update(name="cs_mri", acceleration=6.0, acs_lines=4, noise_std=0.0)
    (whole,) = datasets.eval_batches(tiny_config, "test", 6)
    batches = list(datasets.eval_batches(tiny_config, "test", 4))
    for name in ("y", "mask", "noise_std", "example_id"):
        parts = np.concatenate([getattr(batch.measurement, name) for batch in batches])[:6]
        np.testing.assert_allclose(parts, getattr(whole.measurement, name), atol=1e-6)
    assert list(batches[1].measurement.example_id[2:]) == [-1, -1]
    stored = datasets.load_measurements(tiny_config, "test")
    np.testing.assert_array_equal(whole.measurement.maps, stored.maps)
    assert not np.array_equal(whole.measurement.mask, stored.mask)
    transform = get_transform(tiny_config)
    full = transform.forward(jnp.asarray(whole.reference), whole.measurement.maps)
    np.testing.assert_allclose(whole.measurement.y, np.where(whole.measurement.mask, full, 0), atol=1e-5)


def image_config():
    config = default.get_config()
    config.transform.name, config.data.num_coils, config.data.augment = "identity", 0, ("mirror",)
    config.masks.name, config.masks.grid, config.masks.drop = "random_boxes", 4, 6
    return config


@pytest.mark.parametrize("name", [name for name in tasks.IMAGES if name != "published"])
def test_variants_of_images_are_sound_and_compose(name):
    config = variants.apply(image_config(), f"smoke+{name}+published", {"smoke": variants.smoke, **tasks.IMAGES})
    assert find_problems(config) == []
    assert config.eval.folder == name and config.task.name in TASKS and config.model.num_channels == 8
    assert (config.solver.gamma, config.solver.w, config.solver.eta) == (1.75, 2, 0.85)
    assert config.solver.consistency == "pseudo_inverse" and config.solver.num_levels == 200


def test_variants_of_mri():
    config = brain64_msm.get_config("demo+csmri6+published")
    assert find_problems(config) == []
    assert (config.task.name, config.task.acceleration, config.eval.folder) == ("cs_mri", 6.0, "csmri6")
    assert (config.solver.gamma, config.solver.w, config.solver.num_levels) == (2.0, 3, 200)
    assert config.training.num_steps == 500 and config.masks.acceleration == 4.0
    assert "unknown config variant 'csmr4'; did you mean 'csmri4'?" in message_of(brain64_msm.get_config, "smoke+csmr4")
    assert "unknown config variant ''" in message_of(brain64_msm.get_config, "smoke+")


@pytest.mark.parametrize(("masks", "shape"), [("", (1, 1, 12)), ("cartesian_poisson_disc", (1, 12, 12))])
def test_mri_has_masks_of_its_own_if_asked(masks, shape):
    config = task_config("cs_mri")
    config.task.masks = masks
    task = get_task(config, get_transform(config))
    assert task.draw_mask is not None and jax.eval_shape(task.draw_mask, jax.random.key(0)).shape == shape


def test_masks_of_a_task_must_be_of_mri():
    config = brain64_msm.get_config("csmri4")
    config.task.masks = "random_boxes"
    (problem,) = find_problems(config)
    assert problem.startswith("task.masks is 'random_boxes': transform.name 'multicoil_fourier' needs cartesian_random")
    config.task.masks = "cartesian_poison_disc"
    (problem,) = find_problems(config)
    assert "it must be empty or one of" in problem and "did you mean 'cartesian_poisson_disc'?" in problem
