"""What tuning judges hyper-parameters by. The default needs no reference: it predicts acquired entries that it hid.

  hide              from a measurement to one with fewer entries, and the mask of those that it lacks
  held_out_error    |M (H xhat - y)|^2 / |M y|^2 per example, M the hidden entries
  get_objective     'held_out', or with references 'psnr' and 'ssim', of the mean over posterior samples, or 'crps',
                    of how well their spread predicts what was hidden

What is hidden is drawn once per example, from (seed, example id): every trial has the same task.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from msm.evaluation.calibration import gaussian_crps, interval_levels
from msm.evaluation.metrics import STANDARD, natural_range
from msm.infra.errors import UserError
from msm.infra.registry import Registry
from msm.operators.acquisition import Acquisition
from msm.operators.coils import CALIBRATION
from msm.operators.masks import centre_lines
from msm.operators.measurement import PADDING_ID, Array, EvalExample, Measurement
from msm.operators.operator import Operator
from msm.operators.randomness import example_keys

HIDING = 0x71DE  # sets the keys of what is hidden apart from those of the solvers' noise


def choose(key: jax.Array, candidates: jax.Array, share: float) -> jax.Array:
    """Returns `share` of the True entries, bool of the same shape: at least one, and of several never all."""
    number = jnp.sum(candidates)
    wanted = jnp.clip(jnp.round(share * number), 1, jnp.maximum(number - 1, 1))
    score = jnp.where(candidates, jax.random.uniform(key, candidates.shape), jnp.inf)
    rank = jnp.argsort(jnp.argsort(score.ravel())).reshape(candidates.shape)
    return candidates & (rank < wanted)


def calibration_region(mask: jax.Array) -> jax.Array:
    """Returns what estimated coil maps may come from, bool, of a mask (1,1,W) or (1,H,W): it must not be hidden.

    Of lines, the acquired ones around the centre without a gap, at most the central `CALIBRATION`; of entries, the
    whole central square of that side (`operators.coils.find_acs` takes no more than these).
    """
    height, width = mask.shape[-2:]
    window = jnp.asarray(centre_lines(width, CALIBRATION))
    if height > 1:
        return jnp.broadcast_to(centre_lines(height, CALIBRATION)[:, None] & window, mask.shape)
    acquired, centre = (mask & window).reshape(-1), width // 2
    right = jnp.cumprod(acquired[centre:])
    left = jnp.cumprod(acquired[centre::-1])[:0:-1]
    return jnp.concatenate([left, right]).astype(bool).reshape(mask.shape)


def choose_lines(key: jax.Array, mask: jax.Array, share: float, acs_lines: int) -> jax.Array:
    """Returns `share` of the acquired columns outside the ACS and `calibration_region`, of a mask (1,1,W).

    Of a mask (1,H,W), entries.
    """
    return choose(key, mask & ~centre_lines(mask.shape[-1], acs_lines) & ~calibration_region(mask), share)


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
      score: (K,B,...) samples -> (B,) one value per example.
      counts: (B,) bool, False for padding and for examples that have nothing to say.
      floor: (B,) the least value to expect, where there is one.
      levels: (K,B,...) samples -> (N,) of all hidden scalars of the examples that count, the level of the smallest
        interval that holds each, see `calibration`; None for objectives of the mean.
      owners: (N,) int, the id of the example that each of `levels` is of.
    """

    measurement: Measurement
    score: Callable[[np.ndarray], np.ndarray]
    counts: np.ndarray
    floor: np.ndarray | None = None
    levels: Callable[[np.ndarray], np.ndarray] | None = None
    owners: np.ndarray | None = None


@dataclass(frozen=True)
class Objective:
    """A number to minimise or maximise: the mean of `Judged.score` over the examples that count.

    Attributes:
      minimise: otherwise it is to be maximised.
      of_spread: whether `Solver.spread` is searched; else `Solver.search`.
      needs_references: whether `judge` takes an `EvalExample`; else a `Measurement`.
      judge: batch -> Judged.
      definition: what it is, in a sentence.
    """

    minimise: bool
    of_spread: bool
    needs_references: bool
    judge: Callable[[Any], Judged]
    definition: str


OBJECTIVES: Registry[Callable[[Any, Operator], Objective]] = Registry("objective")


def get_objective(config, operator: Operator) -> Objective:
    """Returns the objective of `config.tune`; `operator` is H of the task. UserError where it does not fit the task."""
    return OBJECTIVES[config.tune.objective](config, operator)


def _get_division(config, operator: Operator) -> tuple[Callable[[Measurement], Any], str]:
    """Returns divide(measurement) -> (shown, hidden, whether anything is, noise floor), numpy, and what it hides."""
    settings, mri = config.tune, config.data.num_coils > 0
    if not isinstance(operator, Acquisition):
        raise UserError(
            f"tune.objective is {settings.objective!r}: task.name {config.task.name!r} measures no entries that could "
            "be hidden; set tune.objective to psnr or ssim, which compare with references"
        )
    acs_lines = config.task.acs_lines if config.task.name == "cs_mri" else config.masks.acs_lines

    def choose_entries(key, mask):
        if mri:
            return choose_lines(key, mask, settings.hide, acs_lines)
        return choose_squares(key, mask, settings.hide, settings.block)

    @jax.jit
    def divide(measurement: Measurement):
        shown, hidden = hide(measurement, config.seed, choose_entries)
        return shown, hidden, hidden_energy(measurement.y, hidden) > 0, noise_floor(measurement, hidden)

    squares = f"{settings.block} x {settings.block} squares"
    what = "lines outside the block that coil maps come from, of all coils" if mri else squares
    told = f"the {settings.hide:.0%} of the acquired {what}, that the reconstruction was not shown"
    return lambda measurement: jax.tree.map(np.asarray, divide(measurement)), told


@OBJECTIVES.register("held_out")
def get_held_out(config, operator: Operator) -> Objective:
    """Hides lines or squares of acquired entries and asks how well the reconstruction from the others predicts them."""
    divide, what = _get_division(config, operator)
    measure = jax.jit(lambda x, measurement, hidden: held_out_error(operator, x, measurement, hidden))

    def judge(measurement: Measurement) -> Judged:
        shown, hidden, some, floor = divide(measurement)
        counts = some & (measurement.example_id != PADDING_ID)
        return Judged(shown, lambda x: np.asarray(measure(x.mean(axis=0), measurement, hidden)), counts, floor)

    definition = (
        f"Error over energy of the data, |M (H x - y)|^2 / |M y|^2, where M keeps {what}; mean over examples. No "
        "reference is used."
    )
    return Objective(True, False, False, judge, definition)


def real_scalars(array: np.ndarray) -> np.ndarray:
    """(..., n) -> (..., n) real or (..., 2 n), real parts before imaginary ones."""
    return np.concatenate([np.real(array), np.imag(array)], axis=-1) if np.iscomplexobj(array) else array


@OBJECTIVES.register("crps")
def get_spread_score(config, operator: Operator) -> Objective:
    """Hides entries and asks how well a Gaussian of the samples' mean and spread, with the noise, predicts them.

    A proper score: it is best where hidden entries lie as far from the mean as the spread says.
    """
    divide, what = _get_division(config, operator)
    predict = jax.jit(
        lambda samples, measurement, hidden: jax.lax.map(
            lambda x: operator.forward(x, hidden, measurement.maps), samples
        )
    )

    def judge(measurement: Measurement) -> Judged:
        shown, hidden, some, _ = divide(measurement)
        counts = some & (measurement.example_id != PADDING_ID)
        chosen = np.broadcast_to(hidden, measurement.y.shape)

        def of_example(samples: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
            """Of each example: what its samples predict (K,n), what was measured (n,), and its noise."""
            predicted, y = np.asarray(predict(samples, measurement, hidden)), np.asarray(measurement.y)
            for i, noise_std in enumerate(measurement.noise_std):
                yield real_scalars(predicted[:, i][:, chosen[i]]), real_scalars(y[i][chosen[i]]), float(noise_std)

        def score(samples: np.ndarray) -> np.ndarray:
            share = 1 + 1 / len(samples)  # the mean of the samples errs too
            values = []
            for predicted, y, noise_std in of_example(samples):
                std = np.sqrt(share * predicted.var(axis=0, ddof=1) + noise_std**2)
                crps = gaussian_crps(predicted.mean(axis=0), np.maximum(std, 1e-12), y)
                values.append(crps.mean() / np.sqrt(np.mean(y**2)) if y.size else np.nan)
            return np.array(values)

        def levels(samples: np.ndarray) -> np.ndarray:
            found = zip(of_example(samples), counts, strict=True)
            return np.concatenate([interval_levels(*example).ravel() for example, counted in found if counted])

        per_entry = 2 if np.iscomplexobj(measurement.y) else 1
        sizes = per_entry * chosen.sum(axis=tuple(range(1, chosen.ndim)))
        owners = np.repeat(np.asarray(measurement.example_id)[counts], sizes[counts])
        return Judged(shown, score, counts, levels=levels, owners=owners)

    definition = (
        "Continuous ranked probability score of Gaussians with the samples' mean and variance, plus that of the noise, "
        f"over the root mean square of the data, both on {what}; mean over examples. No reference is used."
    )
    return Objective(True, True, False, judge, definition)


def _with_reference(name: str) -> None:
    metric = next(metric for metric in STANDARD if metric.name == name)

    @OBJECTIVES.register(name)
    def get_metric(config, operator: Operator) -> Objective:
        del operator

        def judge(example: EvalExample) -> Judged:
            reference = example.reference
            if reference is None:
                raise UserError(
                    f"tune.objective is {name!r}: split {config.tune.split!r} of {config.data.dir} has no references; "
                    "set it to held_out, which needs none"
                )

            def score(samples: np.ndarray) -> np.ndarray:
                pairs = zip(reference, samples.mean(axis=0), strict=True)
                return np.array([metric.measure(r, image, natural_range(r)) for r, image in pairs])

            return Judged(example.measurement, score, example.measurement.example_id != PADDING_ID)

        return Objective(False, False, True, judge, f"Of references: {metric.definition} Mean over examples.")


for _name in ("psnr", "ssim"):
    _with_reference(_name)
