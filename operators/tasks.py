"""Evaluation tasks: which operator measures an image, with which masks; and the measurement that a task simulates.

A task other than 'acquired' makes its measurement from an image with one mask and one noise draw, both fixed by (task
seed, example id). Evaluation does that where it reads its data; solvers and training only ever meet a `Measurement`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from msm.infra.registry import Registry
from msm.operators.acquisition import Acquisition
from msm.operators.ct import ParallelBeam
from msm.operators.masks import MASKS
from msm.operators.measurement import Array, Measurement
from msm.operators.metal import Scanner, tube
from msm.operators.operator import Operator
from msm.operators.pixel import Downsample, GaussianBlur, Grey, MotionBlur
from msm.operators.shape import image_size
from msm.operators.transform import Transform


@dataclass(frozen=True)
class Task:
    """An inverse problem to evaluate on.

    Attributes:
      operator: H.
      draw_mask: draw_mask(key) -> one mask without batch axis; None where all of y is measured.
      settings: the names of `config.task` that describe it.
      scanner: where a measurement is not H x + noise, what makes it and its mask.
    """

    operator: Operator
    draw_mask: Callable[[jax.Array], jax.Array] | None = None
    settings: tuple[str, ...] = ()
    scanner: Scanner | None = None


TASKS: Registry[Callable[..., Task]] = Registry("task")


def get_task(config, transform: Transform) -> Task:
    """Returns the task of `config.task`; `transform` is T of the data. Raises UserError for an unknown name."""
    return TASKS[config.task.name](config, transform)


def simulate(
    task: Task, image: Array, maps: Array | None, example_id: Array, seed: int | Array, noise_std: float | Array
) -> Measurement:
    """y = H x + noise of images x (B,...), with the masks and noise of (seed, example id): the same at every call.

    A task with a scanner has its own measurement, noise and mask: `noise_std` is not read.

    Args:
      task: not 'acquired'.
      image: (B,H,W,3) float32, or (B,H,W) complex64 for MRI.
      maps: (B,C,H,W) complex64 for MRI, else None.
      example_id: (B,) int32.
      seed: of the task.
      noise_std: standard deviation of the noise per real scalar of y, in its units.
    """
    mask_keys, noise_keys = (_keys(seed, example_id, stream) for stream in range(2))
    if task.scanner is not None:
        y, mask, told = jax.vmap(task.scanner.measure)(mask_keys, image)
        return Measurement(jnp.where(mask, y, 0), mask, maps, told, example_id)
    whole = jnp.ones((image.shape[0], 1, 1, 1), bool)
    mask = whole if task.draw_mask is None else jax.vmap(task.draw_mask)(mask_keys)
    y = task.operator.forward(image, mask, maps)
    parts = jax.vmap(lambda key: jax.random.normal(key, (2, *y.shape[1:])))(noise_keys)
    noise = jax.lax.complex(parts[:, 0], parts[:, 1]) if jnp.iscomplexobj(y) else parts[:, 0]
    y = jnp.where(mask, y + noise_std * noise, 0)
    return Measurement(y, mask, maps, jnp.full(image.shape[0], noise_std, jnp.float32), example_id)


def unknown_pixels(task: Task, image: Array, example_id: Array, seed: int | Array) -> jax.Array | None:
    """(B,H,W,1) bool: what no metric should look at, the implants that `simulate` puts into images; None for none."""
    if task.scanner is None:
        return None
    return jax.vmap(task.scanner.draw_metal)(_keys(seed, example_id, 0), image)


def get_measure_fn(config, transform: Transform) -> Callable[[Array, Measurement], tuple[Measurement, Any]] | None:
    """Returns measure(images, acquired) -> `simulate`, `unknown_pixels`, as numpy arrays, with the ids and maps of what
    the store acquired of these images; None where `config.task.name` is 'acquired' and nothing is simulated."""
    if config.task.name == "acquired":
        return None
    task, seed, noise_std = get_task(config, transform), config.task.seed, config.task.noise_std

    @jax.jit
    def run(images, maps, ids):
        return simulate(task, images, maps, ids, seed, noise_std), unknown_pixels(task, images, ids, seed)

    def measure(images, acquired):
        return jax.tree.map(np.asarray, run(images, acquired.maps, acquired.example_id))

    return measure


def _keys(seed: int | Array, example_id: Array, stream: int) -> jax.Array:
    """One key per example, for masks (stream 0) or noise (1)."""
    root = jax.random.key(seed)
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(root, i), stream))(example_id)


@TASKS.register("acquired")
def get_acquired(config, transform: Transform) -> Task:
    """The store's own acquisitions: nothing is simulated."""
    return Task(Acquisition(transform, config.solver.cg_steps))


@TASKS.register("cs_mri")
def get_cs_mri(config, transform: Transform) -> Task:
    """Undersampled MRI with masks of a family and at an acceleration of the task, whatever the store's are."""
    masks = MASKS[config.task.masks or config.masks.name](config.task, config.data.image_size)
    acquired = Acquisition(transform, config.solver.cg_steps)
    return Task(acquired, masks.sample, ("masks", "acceleration", "acs_lines"))


@TASKS.register("sr")
def get_super_resolution(config, transform: Transform) -> Task:
    """Super-resolution: the image from a bicubically smaller one."""
    del transform
    return Task(Downsample(config.task.factor), settings=("factor",))


@TASKS.register("box_inpainting")
def get_box_inpainting(config, transform: Transform) -> Task:
    """The image without a square in its middle (to the upper left of it where it cannot be centred)."""
    box = config.task.box_size
    index = (np.arange(size) - (size - box) // 2 for size in image_size(config))
    rows, columns = ((place >= 0) & (place < box) for place in index)
    keep = ~(rows[:, None] & columns)[..., None]
    return Task(Acquisition(transform), lambda key: jnp.asarray(keep), ("box_size",))


@TASKS.register("random_inpainting")
def get_random_inpainting(config, transform: Transform) -> Task:
    """The image where every pixel, with all its channels, is kept with probability `task.keep`."""
    shape, keep = (*image_size(config), 1), config.task.keep
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


@TASKS.register("mar")
def get_mar(config, transform: Transform) -> Task:
    """Metal artefact reduction: as many views as the longer side has pixels, without the rays that meet implants."""
    del transform
    return _with_metal(config, max(image_size(config)))


@TASKS.register("sparse_mar")
def get_sparse_mar(config, transform: Transform) -> Task:
    """The same from `task.views` views."""
    del transform
    return _with_metal(config, config.task.views, "views")


def _with_metal(config, views: int, *settings: str) -> Task:
    operator, task = ParallelBeam(views, config.solver.cg_steps), config.task
    scanner = Scanner(operator, task.metal, task.implants, task.photons, task.field, tube())
    return Task(operator, settings=(*settings, "metal", "implants", "photons", "field"), scanner=scanner)
