"""The published score-SDE experiments: settings, sizes, losses and solvers traced at full size."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import run_lib
from configs import published_score
from infra.config_check import find_problems
from losses import get_loss_fn
from models.init import param_shapes
from operators.measurement import Measurement
from operators.tasks import get_task
from operators.transform import get_transform
from solvers import get_solver
from tests.toy_data import fourier

PARAMETERS = {"brats240_ve": 2_676_069}  # measured
HYPER = {"brats240_ve": {"projection": {"snr": 0.517, "weight": 1.0}, "baseline": {"snr": 0.608, "gamma": 1.231}}}


def config_of(name: str):
    return importlib.import_module(f"configs.{name}").get_config()


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
def test_full_size_experiment_trains_and_reconstructs_by_shapes(name):
    config = config_of(name)
    assert find_problems(config) == []
    experiment = run_lib.build(config)
    params = param_shapes(experiment.model, experiment.image_shape)
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params)) == PARAMETERS[name]
    batch, key = shapes_of(config), jax.random.key(0)
    loss = get_loss_fn(config, experiment.schedule, experiment.transform, experiment.masks, experiment.denoise)
    assert jax.eval_shape(loss, params, batch, key).shape == (2,)
    task = get_task(config, experiment.transform)
    experiment = dataclasses.replace(experiment, operator=task.operator)
    for solver_name in published_score.SOLVERS:
        solver = get_solver(config, experiment, solver_name)
        x = jax.eval_shape(solver.solve, key, params, batch, solver.hyper)
        assert x.shape[:4] == (1, 2, config.data.image_size, config.data.image_size)
    for solver_name, hyper in HYPER[name].items():
        assert get_solver(config, experiment, solver_name).hyper == hyper


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
