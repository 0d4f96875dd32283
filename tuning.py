"""What tuning judges hyper-parameters by. The default needs no reference: it predicts acquired entries that it hid.

  hide              from a measurement to one with fewer entries, and the mask of those that it lacks
  held_out_error    |M (H xhat - y)|^2 / |M y|^2 per example, M the hidden entries
  get_objective     'held_out', or with references 'psnr' and 'ssim', of the mean over posterior samples

What is hidden is drawn once per example, from (seed, example id): every trial has the same task.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evaluation import PADDING_ID
from infra.errors import UserError
from losses import example_keys
from metrics import STANDARD, natural_range
from operators.acquisition import Acquisition
from operators.masks import centre_lines
from operators.measurement import Array, EvalExample, Measurement
from operators.operator import Operator
from registry import Registry

HIDING = 0x71DE  # sets the keys of what is hidden apart from those of the solvers' noise


def choose(key: jax.Array, candidates: jax.Array, share: float) -> jax.Array:
    """Returns `share` of the True entries, bool of the same shape: at least one, and of several never all."""
    number = jnp.sum(candidates)
    wanted = jnp.clip(jnp.round(share * number), 1, jnp.maximum(number - 1, 1))
    score = jnp.where(candidates, jax.random.uniform(key, candidates.shape), jnp.inf)
    rank = jnp.argsort(jnp.argsort(score.ravel())).reshape(candidates.shape)
    return candidates & (rank < wanted)


def choose_lines(key: jax.Array, mask: jax.Array, share: float, acs_lines: int) -> jax.Array:
    """Returns `share` of the acquired columns outside the ACS, of a mask (1,1,W)."""
    return choose(key, mask & ~centre_lines(mask.shape[-1], acs_lines), share)


def choose_squares(key: jax.Array, mask: jax.Array, share: float, side: int) -> jax.Array:
    """Returns the acquired pixels in `share` of the squares that have any, of a mask (H,W,1).

    Single pixels can be guessed from their neighbours; squares ask for what inpainting does. They tile the image from
    its upper left corner, those at the other edges being cut where `side` does not divide it.
    """
    height, width = mask.shape[:2]
    rows, columns = -(-height // side), -(-width // side)
    padded = jnp.pad(mask[..., 0], ((0, rows * side - height), (0, columns * side - width)))
    some = jnp.any(padded.reshape(rows, side, columns, side), axis=(1, 3))
    chosen = jnp.repeat(jnp.repeat(choose(key, some, share), side, 0), side, 1)
    return mask & chosen[:height, :width, None]


def hide(
    measurement: Measurement, seed: int, choose_entries: Callable[[jax.Array, jax.Array], jax.Array]
) -> tuple[Measurement, jax.Array]:
    """Returns the measurement without some of its entries, and the mask of these: two parts of the acquired ones.

    Args:
      measurement: (B,...).
      seed: of the draws; an example's depends on it and its id alone.
      choose_entries: (key, mask of one example) -> those to hide; they hold for all coils or channels.
    """
    keys = example_keys(jax.random.fold_in(jax.random.key(seed), HIDING), measurement.example_id)
    hidden = jax.vmap(choose_entries)(keys, jnp.asarray(measurement.mask))
    y, mask = jnp.where(hidden, 0, measurement.y), measurement.mask & ~hidden
    return dataclasses.replace(measurement, y=y, mask=mask), hidden


def hidden_energy(y: Array, hidden: Array) -> jax.Array:
    """(B,) |M y|^2."""
    return jnp.sum(jnp.abs(jnp.where(hidden, y, 0)) ** 2, axis=tuple(range(1, y.ndim)))


def held_out_error(operator: Operator, x: Array, measurement: Measurement, hidden: Array) -> jax.Array:
    """(B,) |M (H x - y)|^2 / |M y|^2; nan where nothing was hidden.

    Args:
      operator: H; with the mask `hidden` it is M H.
      x: images (B,...).
      measurement: whole, as it was before `hide`.
      hidden: bool, broadcastable to y.
    """
    error = operator.forward(jnp.asarray(x), hidden, measurement.maps) - measurement.y
    return hidden_energy(error, hidden) / hidden_energy(measurement.y, hidden)


def noise_floor(measurement: Measurement, hidden: Array) -> jax.Array:
    """(B,) what `held_out_error` is on average for the true image: the share of noise in |M y|^2."""
    y = measurement.y
    scalars = hidden_energy(jnp.ones(y.shape), hidden) * (2 if jnp.iscomplexobj(y) else 1)
    return scalars * jnp.asarray(measurement.noise_std) ** 2 / hidden_energy(y, hidden)


@dataclass(frozen=True)
class Judged:
    """A batch of a trial; with several processes, the examples of one.

    Attributes:
      measurement: what the solver is given, numpy.
      score: (B,...) images -> (B,) one value per example.
      counts: (B,) bool, False for padding and for examples that have nothing to say.
      floor: (B,) the least value to expect, where there is one.
    """

    measurement: Measurement
    score: Callable[[np.ndarray], np.ndarray]
    counts: np.ndarray
    floor: np.ndarray | None = None


@dataclass(frozen=True)
class Objective:
    """A number to minimise or maximise: the mean of `Judged.score` over the examples that count.

    Attributes:
      minimise: otherwise it is to be maximised.
      needs_references: whether `judge` takes an `EvalExample`; else a `Measurement`.
      judge: batch -> Judged.
      definition: what it is, in a sentence.
    """

    minimise: bool
    needs_references: bool
    judge: Callable[[Any], Judged]
    definition: str


OBJECTIVES: Registry[Callable[[Any, Operator], Objective]] = Registry("objective")


def get_objective(config, operator: Operator) -> Objective:
    """Returns the objective of `config.tune`; `operator` is H of the task. UserError where it does not fit the task."""
    return OBJECTIVES[config.tune.objective](config, operator)


@OBJECTIVES.register("held_out")
def get_held_out(config, operator: Operator) -> Objective:
    """Hides lines or squares of acquired entries and asks how well the reconstruction from the others predicts them."""
    if not isinstance(operator, Acquisition):
        raise UserError(
            f"tune.objective is 'held_out': task.name {config.task.name!r} measures no entries that could be hidden; "
            "set tune.objective to psnr or ssim, which compare with references"
        )
    settings, mri = config.tune, config.data.num_coils > 0
    acs_lines = config.task.acs_lines if config.task.name == "cs_mri" else config.masks.acs_lines

    def choose_entries(key, mask):
        if mri:
            return choose_lines(key, mask, settings.hide, acs_lines)
        return choose_squares(key, mask, settings.hide, settings.block)

    @jax.jit
    def divide(measurement: Measurement):
        shown, hidden = hide(measurement, config.seed, choose_entries)
        return shown, hidden, hidden_energy(measurement.y, hidden) > 0, noise_floor(measurement, hidden)

    measure = jax.jit(lambda x, measurement, hidden: held_out_error(operator, x, measurement, hidden))

    def judge(measurement: Measurement) -> Judged:
        shown, hidden, some, floor = jax.tree.map(np.asarray, divide(measurement))
        counts = some & (measurement.example_id != PADDING_ID)
        return Judged(shown, lambda x: np.asarray(measure(x, measurement, hidden)), counts, floor)

    what = "lines outside the ACS, of all coils" if mri else f"{settings.block} x {settings.block} squares"
    definition = (
        f"Error over energy of the data, |M (H x - y)|^2 / |M y|^2, where M keeps the {settings.hide:.0%} of the "
        f"acquired {what}, that the reconstruction was not shown; mean over examples. No reference is used."
    )
    return Objective(True, False, judge, definition)


def _with_reference(name: str) -> None:
    metric = next(metric for metric in STANDARD if metric.name == name)

    @OBJECTIVES.register(name)
    def get_metric(config, operator: Operator) -> Objective:
        del config, operator

        def judge(example: EvalExample) -> Judged:
            def score(x: np.ndarray) -> np.ndarray:
                pairs = zip(example.reference, x, strict=True)
                return np.array([metric.measure(r, image, natural_range(r)) for r, image in pairs])

            return Judged(example.measurement, score, example.measurement.example_id != PADDING_ID)

        return Objective(False, True, judge, f"Of references: {metric.definition} Mean over examples.")


for _name in ("psnr", "ssim"):
    _with_reference(_name)
