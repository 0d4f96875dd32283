"""The published score-SDE experiments: settings, sizes, losses and solvers traced at full size."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from msm.configs.rules.check import find_problems
from msm.experiment import build
from msm.losses import get_loss_fn
from msm.models.init import param_shapes
from msm.operators.ct import ParallelBeam
from msm.operators.measurement import Measurement
from msm.operators.tasks import get_task
from msm.operators.transform import get_transform
from msm.solvers import get_solver
from msm.solvers.guidance import CONSISTENCY
from tests.helpers.toy_data import fourier

# Parameters as measured; the published hyper-parameters of projection, snr and weight, and whether it has a corrector.
PARAMETERS = {"brats240_ve": 2_676_069, "lidc320_ve": 4_119_015, "lidc128_ve": 13_539_142, "ldct512_ve": 75_669_047}
PROJECTION = {
    "brats240_ve": (0.517, 1.0, True),
    "lidc320_ve": (0.246, 0.841, True),
    "lidc320_ve:sparse_ct": (0.246, 0.841, True),
    "lidc320_ve:mar": (0.246, 0.355, False),
    "lidc320_ve:sparse_mar": (0.261, 0.865, True),
    "lidc320_ve:sparse_mar180": (0.261, 0.27, False),
    "lidc128_ve": (0.206, 1.0, True),
    "ldct512_ve": (0.4, 0.72, True),
}


def config_of(name: str):
    name, _, variant = name.partition(":")
    return importlib.import_module(f"msm.configs.{name}").get_config(variant)


@pytest.mark.parametrize("name", PROJECTION)
def test_hyper_parameters_are_published(name):
    config = config_of(name)
    assert find_problems(config) == []
    own = config.score_sde.projection
    assert (own.snr, own.weight, own.corrector != "none") == PROJECTION[name]
    assert (own.num_levels, own.corrector_steps, own.predictor) == (1000, 1, "reverse_diffusion")


def shapes_of(config) -> Measurement:
    """A batch of two, by shapes."""
    size, coils = config.data.image_size, config.data.num_coils
    shapes = {
        "y": ((coils, size, size), jnp.complex64) if coils else ((size, size, 1), jnp.float32),
        "mask": ((1, 1, size) if coils else (size, size, 1), jnp.bool_),
        "maps": ((coils, size, size), jnp.complex64) if coils else None,
        "noise_std": ((), jnp.float32),
        "example_id": ((), jnp.int32),
    }
    return Measurement(**{k: v and jax.ShapeDtypeStruct((2, *v[0]), v[1]) for k, v in shapes.items()})


@pytest.mark.parametrize("name", PARAMETERS)
def test_full_size_network_has_the_parameters_told(name):
    experiment = build(config_of(name))
    params = param_shapes(experiment.model, experiment.image_shape)
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params)) == PARAMETERS[name]


@pytest.mark.parametrize("name", ["brats240_ve", "lidc320_ve"])
def test_full_size_experiment_trains_and_reconstructs_by_shapes(name):
    config = config_of(name)
    experiment = build(config)
    params, size = param_shapes(experiment.model, experiment.image_shape), config.data.image_size
    batch, key = shapes_of(config), jax.random.key(0)
    loss = get_loss_fn(config, experiment.schedule, experiment.transform, experiment.masks, experiment.denoise)
    assert jax.eval_shape(loss, params, batch, key).shape == (2,)
    operator = get_task(config, experiment.transform).operator
    if not config.data.num_coils:
        y = jax.eval_shape(lambda x: operator.forward(x, True, None), batch.y)
        batch = batch.replace(y=y, mask=jax.ShapeDtypeStruct((2, 1, 1, 1), jnp.bool_))
    solver = get_solver(config, dataclasses.replace(experiment, operator=operator), "projection")
    x = jax.eval_shape(solver.solve, key, params, batch, solver.hyper)
    assert x.shape[:4] == (1, 2, size, size)


def test_brats_masks_have_about_thirty_lines():
    config = config_of("brats240_ve")
    draw = get_task(config, get_transform(config)).draw_mask
    assert draw is not None
    counts = [int(np.sum(draw(jax.random.key(i)))) for i in range(10)]
    assert min(counts) >= 29 and max(counts) <= 31


def test_real_images_have_a_real_adjoint_and_real_noise():
    """<T x, z> = <x, T^H z> in real arithmetic, T^H T = I, one channel, and T as everywhere."""
    transform, rng = get_transform(config_of("brats240_ve")), np.random.default_rng(0)
    x = rng.standard_normal((2, 6, 5)).astype(np.complex64)
    z = (rng.standard_normal((2, 1, 6, 5)) + 1j * rng.standard_normal((2, 1, 6, 5))).astype(np.complex64)
    maps = np.ones((2, 1, 6, 5), np.complex64)
    back = transform.adjoint(jnp.asarray(z), maps)
    assert not np.asarray(back).imag.any()
    forward = transform.forward(jnp.asarray(x), maps)
    np.testing.assert_allclose(forward, fourier(x)[:, None], atol=1e-5)
    np.testing.assert_allclose(np.vdot(forward, z).real, np.vdot(x, back).real, rtol=1e-5)
    np.testing.assert_allclose(transform.adjoint(forward, maps), x, atol=1e-5)
    np.testing.assert_array_equal(transform.from_channels(transform.to_channels(jnp.asarray(x))), x)
    assert transform.to_channels(jnp.asarray(x)).shape == (2, 6, 5, 1)
    for shape, real in (((6, 5), True), ((1, 6, 5), False)):
        noise = np.asarray(transform.noise(jax.random.key(0), shape))
        assert noise.any() and (not noise.imag.any()) == real


def test_fourier_slices_bring_an_image_to_its_views():
    """The merge of projection for CT: alternating with the crop to the image it leads to the views."""
    rng, size = np.random.default_rng(0), 24
    u, truth = (gaussian_filter(rng.standard_normal((1, size, size, 1)), (0, 2, 2, 0)) for _ in range(2))
    u, truth = (
        jnp.asarray(4 * image * np.outer(np.hanning(size), np.hanning(size))[..., None]) for image in (u, truth)
    )
    operator, mask = ParallelBeam(12), np.ones((1, 1, 1, 1), bool)
    y = operator.forward(truth, mask, None)
    measurement = Measurement(y, mask, None, np.zeros(1, np.float32), np.zeros(1, np.int32))
    move = CONSISTENCY["fourier_slice"](operator, measurement, measurement)

    def missed(x):
        return float(jnp.linalg.norm(operator.forward(x, mask, None) - y))

    merge = jax.jit(lambda x, weight: move(x, y, None, weight))
    np.testing.assert_allclose(merge(u, 0.0), u, atol=1e-4)
    errors, x = [missed(u)], u
    for weight in (0.5, *(1.0,) * 20):
        x = merge(x, weight)
        errors.append(missed(x))
    assert errors[1] < 0.8 * errors[0] and errors[2] < 0.8 * errors[1] and errors[-1] < 0.03 * errors[0]
