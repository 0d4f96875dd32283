"""Evaluation tasks: which operator measures an image, with which masks; and the measurement that a task simulates.

A task other than 'acquired' makes its measurement from an image with one mask and one noise draw, both fixed by (task
seed, example id). Evaluation does that where it reads its data; solvers and training only ever meet a `Measurement`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from operators.acquisition import Acquisition
from operators.ct import ParallelBeam
from operators.masks import MASKS
from operators.measurement import Array, Measurement
from operators.operator import Operator
from operators.pixel import Downsample, GaussianBlur, Grey, MotionBlur
from operators.transform import Transform
from registry import Registry


@dataclass(frozen=True)
class Task:
    """An inverse problem to evaluate on.

    Attributes:
      operator: H.
      draw_mask: draw_mask(key) -> one mask without batch axis; None where all of y is measured.
      settings: the names of `config.task` that describe it.
    """

    operator: Operator
    draw_mask: Callable[[jax.Array], jax.Array] | None = None
    settings: tuple[str, ...] = ()


TASKS: Registry[Callable[..., Task]] = Registry("task")


def get_task(config, transform: Transform) -> Task:
    """Returns the task of `config.task`; `transform` is T of the data. Raises UserError for an unknown name."""
    return TASKS[config.task.name](config, transform)


def simulate(
    task: Task, image: Array, maps: Array | None, example_id: Array, seed: int | Array, noise_std: float | Array
) -> Measurement:
    """y = H x + noise of images x (B,...), with the masks and noise of (seed, example id): the same at every call.

    Args:
      task: not 'acquired'.
      image: (B,H,W,3) float32, or (B,H,W) complex64 for MRI.
      maps: (B,C,H,W) complex64 for MRI, else None.
      example_id: (B,) int32.
      seed: of the task.
      noise_std: standard deviation of the noise per real scalar of y, in its units.
    """
    root = jax.random.key(seed)
    mask_keys, noise_keys = (
        jax.vmap(lambda i, n=n: jax.random.fold_in(jax.random.fold_in(root, i), n))(example_id) for n in range(2)
    )
    whole = jnp.ones((image.shape[0], 1, 1, 1), bool)
    mask = whole if task.draw_mask is None else jax.vmap(task.draw_mask)(mask_keys)
    y = task.operator.forward(image, mask, maps)
    parts = jax.vmap(lambda key: jax.random.normal(key, (2, *y.shape[1:])))(noise_keys)
    noise = jax.lax.complex(parts[:, 0], parts[:, 1]) if jnp.iscomplexobj(y) else parts[:, 0]
    y = jnp.where(mask, y + noise_std * noise, 0)
    return Measurement(y, mask, maps, jnp.full(image.shape[0], noise_std, jnp.float32), example_id)


@TASKS.register("acquired")
def get_acquired(config, transform: Transform) -> Task:
    """The store's own acquisitions: nothing is simulated."""
    return Task(Acquisition(transform, config.solver.cg_steps))


@TASKS.register("cs_mri")
def get_cs_mri(config, transform: Transform) -> Task:
    """Undersampled MRI with masks of the family `masks.name` at the task's acceleration, whatever the store's is."""
    masks = MASKS[config.masks.name](config.task, config.data.image_size)
    acquired = Acquisition(transform, config.solver.cg_steps)
    return Task(acquired, masks.sample, ("acceleration", "acs_lines"))


@TASKS.register("sr")
def get_super_resolution(config, transform: Transform) -> Task:
    """Super-resolution: the image from a bicubically smaller one."""
    del transform
    return Task(Downsample(config.task.factor), settings=("factor",))


@TASKS.register("box_inpainting")
def get_box_inpainting(config, transform: Transform) -> Task:
    """The image without a square in its middle (to the upper left of it where it cannot be centred)."""
    size, box = config.data.image_size, config.task.box_size
    index = np.arange(size) - (size - box) // 2
    inside = (index >= 0) & (index < box)
    keep = ~(inside[:, None] & inside)[..., None]
    return Task(Acquisition(transform), lambda key: jnp.asarray(keep), ("box_size",))


@TASKS.register("random_inpainting")
def get_random_inpainting(config, transform: Transform) -> Task:
    """The image where every pixel, with all its channels, is kept with probability `task.keep`."""
    shape, keep = (config.data.image_size, config.data.image_size, 1), config.task.keep
    return Task(Acquisition(transform), lambda key: jax.random.bernoulli(key, keep, shape), ("keep",))


@TASKS.register("gaussian_blur")
def get_gaussian_blur(config, transform: Transform) -> Task:
    """Deblurring of a Gaussian kernel."""
    del transform
    return Task(GaussianBlur(config.task.sigma), settings=("sigma",))


@TASKS.register("motion_blur")
def get_motion_blur(config, transform: Transform) -> Task:
    """Deblurring of straight camera motion."""
    del transform
    return Task(MotionBlur(config.task.length, config.task.angle), settings=("length", "angle"))


@TASKS.register("colorization")
def get_colorization(config, transform: Transform) -> Task:
    """Colours from a grey image."""
    del config, transform
    return Task(Grey())


@TASKS.register("sparse_ct")
def get_sparse_ct(config, transform: Transform) -> Task:
    """Sparse-view CT: `task.views` parallel-beam projections, evenly spread over 180 degrees."""
    del transform
    return Task(ParallelBeam(config.task.views, config.solver.cg_steps), settings=("views",))
