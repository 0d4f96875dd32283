"""The programs that a run compiles, lowered for given devices and without data: train, solve, sample."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from msm.experiment import Experiment, build
from msm.infra import sharding
from msm.infra.registry import Registry
from msm.losses import get_loss_fn
from msm.modes import sample as generation
from msm.operators.measurement import Measurement
from msm.operators.tasks import simulate
from msm.optimizer import Layout, get_optimizer, get_step_fn, init_state
from msm.predictor_corrector import PCSettings, network_calls
from msm.solvers import get_solver


@dataclasses.dataclass(frozen=True)
class Program:
    """A program, not yet compiled.

    Attributes:
      lowered: for the devices that it was asked for.
      turns: how often the loops around its network turn: levels of noise and masks, or micro-batches; 1 without a loop.
    """

    lowered: jax.stages.Lowered
    turns: int


PROGRAMS: Registry[Callable[[ConfigDict, list[Any], int], Program]] = Registry("program")


def lower(name: str, config: ConfigDict, devices: list[Any], per_device_batch: int) -> Program:
    """Lowers one of PROGRAMS for `devices`, each with its share of the batch. Raises UserError for an unknown name."""
    return PROGRAMS[name](config, devices, per_device_batch)


@PROGRAMS.register("train")
def lower_train(config: ConfigDict, devices: list[Any], per_device_batch: int) -> Program:
    """The step of `run_lib.train`: loss, gradients and their mean over all devices, optimiser, average."""
    experiment = build(config, sharding.get_mesh(devices))
    optimizer = get_optimizer(config)
    loss_fn = get_loss_fn(config, experiment.schedule, experiment.transform, experiment.masks, experiment.denoise)
    params = experiment.template_params()
    state = jax.eval_shape(lambda params: init_state(params, optimizer), params)
    step = sharding.data_parallel_step(get_step_fn(config, loss_fn, optimizer, Layout(params)), experiment.mesh)
    lowered = step.lower(_replicated(state, experiment), _acquisitions(experiment, per_device_batch), _key(experiment))
    return Program(lowered, config.optim.accumulate)


@PROGRAMS.register("solve")
def lower_solve(config: ConfigDict, devices: list[Any], per_device_batch: int) -> Program:
    """A round of `run_lib.evaluate` with msm, or the last of `eval.solvers`, on the measurements of `config.task`."""
    experiment = Experiment.for_task(config, sharding.get_mesh(devices))
    task = experiment.task
    assert task is not None  # of `Experiment.for_task`
    name = "msm" if "msm" in config.eval.solvers else config.eval.solvers[-1]
    solver = get_solver(config, experiment, name)
    measurement = _acquisitions(experiment, per_device_batch)
    if config.task.name != "acquired":
        measurement = jax.eval_shape(
            lambda images, maps, ids: simulate(task, images, maps, ids, config.task.seed, config.task.noise_std),
            _images(experiment, measurement.example_id.size), measurement.maps, measurement.example_id,
        )  # fmt: skip
        measurement = _split(measurement, experiment)
    solve = sharding.data_parallel_solve(solver.solve, experiment.mesh)
    lowered = solve.lower(_key(experiment), experiment.template_params(), measurement, dict(solver.hyper))
    at_once = config.solver.w if name == "msm" and not config.solver.reinject else 1  # masks in one batched call
    return Program(lowered, max(1, solver.nfe // at_once))


@PROGRAMS.register("sample")
def lower_sample(config: ConfigDict, devices: list[Any], per_device_batch: int) -> Program:
    """A round of `run_lib.sample`: unconditional images."""
    experiment = build(config, sharding.get_mesh(devices))
    draw = sharding.data_parallel_solve(generation.get_draw_fn(experiment), experiment.mesh)
    measurement = _acquisitions(experiment, per_device_batch)
    lowered = draw.lower(_key(experiment), experiment.template_params(), measurement, {})
    sampling = config.sampling
    if sampling.method == "predictor_corrector":
        settings = PCSettings(sampling.num_levels, sampling.predictor, sampling.corrector, sampling.corrector_steps)
        return Program(lowered, len(network_calls(settings, experiment.schedule)))
    levels = len(experiment.schedule.grid(sampling.num_levels))
    return Program(lowered, levels * sampling.w if sampling.reinject else levels)


def _placed(tree, sharding_of_all: NamedSharding):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding_of_all), tree)


def _replicated(tree, experiment):
    return _placed(tree, sharding.replicated(experiment.mesh))


def _split(tree, experiment):
    return _placed(tree, NamedSharding(experiment.mesh, P(sharding.AXIS)))


def _key(experiment):
    return _replicated(jax.eval_shape(lambda: jax.random.key(0)), experiment)


def _images(experiment, count: int) -> jax.ShapeDtypeStruct:
    """Shape and type of `count` images."""
    channels = jax.ShapeDtypeStruct((count, *experiment.image_shape), jnp.float32)
    return jax.eval_shape(experiment.transform.from_channels, channels)


def _acquisitions(experiment, per_device_batch: int) -> Measurement:
    """Shapes and placement of a batch of stored acquisitions, as datasets.py reads them."""
    config, count = experiment.config, per_device_batch * experiment.mesh.size
    coils = config.data.num_coils
    maps = jax.ShapeDtypeStruct((count, coils, *experiment.image_shape[:2]), jnp.complex64) if coils else None
    mask = jax.eval_shape(experiment.masks.sample, jax.random.key(0))
    measurement = Measurement(
        y=jax.eval_shape(experiment.transform.forward, _images(experiment, count), maps),
        mask=jax.ShapeDtypeStruct((count, *mask.shape), mask.dtype),
        maps=maps,
        noise_std=jax.ShapeDtypeStruct((count,), jnp.float32),
        example_id=jax.ShapeDtypeStruct((count,), jnp.int32),
    )
    return _split(measurement, experiment)
