"""The named experiments of the paper: published sizes and settings, losses traced at full size, steps at toy size."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msm.configs import published
from msm.configs.rules import check as config_check
from msm.experiment import build
from msm.infra import sharding
from msm.losses import get_loss_fn
from msm.models.init import init_params, param_shapes
from msm.operators.measurement import Measurement
from msm.optimizer import Layout, get_optimizer, get_step_fn, init_state
from tests.helpers.toy_data import acquisition

FACES = ("ffhq128_oracle", "ffhq128_msm_p04", "ffhq128_msm_p04_noise01")
SCANS = ("fastmri256_oracle", "fastmri256_msm_r4", "fastmri256_msm_r4_noise01")
PARAMETERS = {**dict.fromkeys(FACES, 105_195_139), **dict.fromkeys(SCANS, 138_284_162)}  # published: 105.2 M, 138.3 M
LOSSES = {"oracle": "dsm", "noise01": "msm_sure"}


def config_of(name: str, variant: str = ""):
    return importlib.import_module(f"msm.configs.{name}").get_config(variant)


def count(tree) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_variant_passes_the_check(name):
    tasks = [task for task in (published.IMAGES if name in FACES else published.MRI) if task != "smoke"]
    assert {"sr4", "box"} <= set(tasks) or {"csmri4", "csmri6"} <= set(tasks)
    solver = config_of(name).solver
    for variant in ("", "smoke", *tasks, *(f"smoke+{task}" for task in tasks)):
        config = config_of(name, variant)
        assert config_check.find_problems(config) == [], variant
        if "smoke" not in variant:
            assert config.solver == solver, "a task is what is reconstructed, not how"


@pytest.mark.parametrize("name", ["ffhq128_msm_p04", "fastmri256_msm_r4"])
def test_train_state_of_the_full_network_has_the_published_size(name):
    config = config_of(name)
    experiment = build(config)
    shapes = param_shapes(experiment.model, experiment.image_shape)
    state = jax.eval_shape(lambda params: init_state(params, get_optimizer(config)), shapes)
    assert count(state.params) == count(state.ema_params) == PARAMETERS[name]
    assert count(state.opt_state) == 2 * PARAMETERS[name] + 2  # two moments; Adam's and the learning rate's step
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((state.params, state.ema_params)))
    image = jax.ShapeDtypeStruct((1, *experiment.image_shape), jnp.float32)
    out = jax.eval_shape(
        lambda p, x, t: experiment.model.apply({"params": p}, x, t),
        shapes,
        image,
        jax.ShapeDtypeStruct((1,), jnp.float32),
    )
    assert out.shape == image.shape


@pytest.mark.parametrize("name", PARAMETERS)
def test_loss_of_the_full_size_has_a_value_per_example(name):
    """By shapes alone, of the network, images and coils as published."""
    config = config_of(name)
    experiment = build(config)
    height, width, channels = experiment.image_shape
    coils = config.data.num_coils
    shapes = {
        "y": ((coils, height, width), jnp.complex64) if coils else ((height, width, channels), jnp.float32),
        "mask": ((1, 1, width) if coils else (height, width, 1), jnp.bool_),
        "maps": ((coils, height, width), jnp.complex64) if coils else None,
        "noise_std": ((), jnp.float32),
        "example_id": ((), jnp.int32),
    }
    batch = Measurement(**{k: v and jax.ShapeDtypeStruct((2, *v[0]), v[1]) for k, v in shapes.items()})
    loss = get_loss_fn(config, experiment.schedule, experiment.transform, experiment.masks, experiment.denoise)
    params = param_shapes(experiment.model, experiment.image_shape)
    found = jax.eval_shape(loss, params, batch, jax.random.key(0))
    assert (found.shape, found.dtype) == ((2,), jnp.float32) and count(params) == PARAMETERS[name]


def test_experiments_of_one_kind_share_network_masks_and_optimiser():
    for names in (FACES, SCANS):
        base = config_of(names[1])
        for name in names:
            config = config_of(name)
            for section in ("model", "denoiser", "masks", "optim", "transform", "training"):
                assert config[section] == base[section], (name, section)
            kind = next((loss for part, loss in LOSSES.items() if part in name), "msm")
            assert config.loss.name == kind


@pytest.mark.parametrize("name", PARAMETERS)
def test_settings_are_the_published(name):
    config = config_of(name)
    experiment = build(config)
    oracle, faces = "oracle" in name, name in FACES
    rate = 1e-5 if faces else 5e-5
    state = get_optimizer(config).init({"w": jnp.ones(())})
    for _ in range(2):  # AdamW with constant gradients moves by the learning rate, from the first step on
        updates, state = get_optimizer(config).update({"w": jnp.float32(100.0)}, state, {"w": jnp.ones(())})
        assert float(updates["w"]) == pytest.approx(-rate, rel=1e-4)
    levels = {float(experiment.schedule.sample(jax.random.key(i))) for i in range(60)}
    assert any(level % 5 for level in levels) == oracle
    grid = experiment.schedule.grid(config.sampling.num_levels)
    assert len(grid) == 200 and grid[-1] == 0
    if not oracle:
        np.testing.assert_array_equal(grid, np.arange(995, -1, -5))
    kept = float(experiment.masks.inclusion_probability().mean())
    assert kept == pytest.approx(10 / 16 if faces else (20 + 236 / 4) / 256)
    calls = {section: config[section].num_levels * config[section].w for section in ("sampling", "solver")}
    assert calls == {"sampling": 200, "solver": 200} if oracle else {"sampling": 600, "solver": 400 if faces else 600}


def toy(config) -> Measurement:
    """Two acquisitions of 32x32 pixels, of scans or of random pictures."""
    masks = build(config).masks
    noise_std = 0.1 if config.loss.name == "msm_sure" else 0.0
    scans, _ = acquisition(32, 2, config.data.num_coils or 1, noise_std)
    if config.data.acquisition == "full":
        scans = dataclasses.replace(scans, mask=np.ones_like(scans.mask))
    if config.data.num_coils:
        return scans
    mask = jax.vmap(masks.sample)(jax.random.split(jax.random.key(0), 2))
    pictures = jax.random.uniform(jax.random.key(1), (2, 32, 32, 3), minval=-1.0)
    mask = mask | (config.data.acquisition == "full")
    y = jnp.where(mask, pictures + noise_std * jax.random.normal(jax.random.key(2), pictures.shape), 0)
    return dataclasses.replace(scans, y=np.asarray(y), mask=np.asarray(mask), maps=None)


def toy_step(name: str):
    """The smoke variant's step function at toy size, and its arguments: state, measurement, key."""
    config = config_of(name, "smoke")
    config.data.update(image_size=32, num_coils=min(config.data.num_coils, 4))
    config.masks.acs_lines = 4
    config.model.update(channel_mult=(1,), num_res_blocks=1, attention_resolutions=())
    config.optim.learning_rate = 0.01
    experiment = build(config)
    measurement = toy(config)
    optimizer = get_optimizer(config)
    loss = get_loss_fn(config, experiment.schedule, experiment.transform, experiment.masks, experiment.denoise)
    params = init_params(experiment.model, 0, experiment.image_shape)
    state = init_state(params, optimizer)
    step = sharding.data_parallel_step(get_step_fn(config, loss, optimizer, Layout(params)), experiment.mesh)
    place = sharding.replicate((state, jax.random.key(0)), experiment.mesh)
    return step, (place[0], sharding.shard_batch(measurement, experiment.mesh), place[1])


# One experiment of each loss is run; of the others, which share all with these, the program is traced.
RUN = ("ffhq128_msm_p04", "ffhq128_oracle", "fastmri256_msm_r4_noise01")


@pytest.mark.parametrize("name", RUN)
def test_smoke_variant_takes_a_step(name):
    step, (state, measurement, key) = toy_step(name)
    before = np.array(state.params)
    state, results = step(state, measurement, key)
    assert int(state.step) == 1
    assert np.isfinite(float(results["loss"])) and float(results["loss"]) > 0
    assert np.abs(np.asarray(state.params) - before).max() == pytest.approx(0.01, rel=0.01)


@pytest.mark.parametrize("name", [name for name in PARAMETERS if name not in RUN])
def test_smoke_variant_can_take_a_step(name):
    step, arguments = toy_step(name)
    state, results = jax.eval_shape(step, *arguments)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, arguments[0])
    assert results["loss"].shape == ()
