"""What a config describes, built once: schedule, operators, network and denoiser on a mesh of devices."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import jax
from flax import linen as nn
from ml_collections import ConfigDict

from msm.infra import sharding
from msm.models.denoiser import Denoised, get_denoise_fn
from msm.models.init import param_shapes
from msm.models.registry import get_model
from msm.operators.acquisition import Acquisition
from msm.operators.masks import MaskDistribution, get_masks
from msm.operators.operator import Operator
from msm.operators.shape import image_size
from msm.operators.tasks import Task, get_task
from msm.operators.transform import Transform, get_transform
from msm.sde_lib import Schedule, get_schedule


@dataclass(frozen=True)
class Experiment:
    """Everything static that a config describes; built once, closed over by all that is compiled.

    `operator` is the H of what solvers are given: the store's acquisitions, or the task's of `for_task`.
    """

    config: ConfigDict
    mesh: jax.sharding.Mesh
    schedule: Schedule
    transform: Transform
    operator: Operator
    masks: MaskDistribution
    model: nn.Module
    denoise: Callable[..., Denoised]
    task: Task | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H,W,channels) as the network sees an image."""
        return (*image_size(self.config), self.transform.channels)

    def template_params(self) -> Any:
        """Shapes and placement of the parameters, without any values."""
        place = sharding.replicated(self.mesh)
        shapes = param_shapes(self.model, self.image_shape)
        return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes)

    @classmethod
    def for_task(cls, config: ConfigDict, mesh: jax.sharding.Mesh | None = None) -> Self:
        """`build`, with the operator of what evaluation reconstructs, `config.task`, and that task."""
        experiment = build(config, mesh)
        task = get_task(config, experiment.transform)
        return cls(**{**vars(experiment), "operator": task.operator, "task": task})


def build(config: ConfigDict, mesh: jax.sharding.Mesh | None = None) -> Experiment:
    """Builds schedule, operators and network of a config. Raises UserError for unknown names."""
    transform, schedule = get_transform(config), get_schedule(config)
    model = get_model(config, transform.channels)

    def net(params, images, time):
        return model.apply({"params": params}, images, time)

    return Experiment(
        config=config,
        mesh=sharding.get_mesh() if mesh is None else mesh,
        schedule=schedule,
        transform=transform,
        operator=Acquisition(transform, config.solver.cg_steps),
        masks=get_masks(config),
        model=model,
        denoise=get_denoise_fn(config, schedule, transform, net),
    )
