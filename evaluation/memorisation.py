"""Has a drawn image been copied from the training data? Its distance to every training acquisition, where acquired.

There is no clean training image to compare with, so an image x is measured as each acquisition i was:

    d(x, i) = min_g |S_i T_i g(x) - y_i| / |y_i|

over the acquired entries, g running over the symmetries that training showed the network (`data.augment`): a copy that
was mirrored, moved or given another phase is a copy. A perfect copy has the noise that is left in y_i, about
noise_std sqrt(scalars) / |y_i|; an empty image has 1.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from msm.operators.augment import reflect
from msm.operators.measurement import Measurement
from msm.operators.transform import Transform

COPY_RATIO = 1 / 3  # Yoon et al. 2023, Gu et al. 2023: nearer than a third of what is usual

DEFINITIONS = {
    "distance to training": (
        "Of an image x to a training acquisition i: the smallest |S_i T_i g(x) - y_i| / |y_i| over acquired entries, "
        "g over the symmetries of data.augment (mirrored; moved, at the shift where x correlates best with the "
        "zero-filled image; any global phase). About the relative noise of y_i for a copy, 1 for an empty image."
    ),
    "nearest / second": (
        "Distance to the nearest training acquisition over that to the second nearest. Where training holds nearly "
        "equal acquisitions (overlapping patches, neighbouring slices) a copy is near to both and this stays about 1: "
        "then only nearest / held-out can tell a copy."
    ),
    "nearest / held-out": (
        "Distance to the nearest training acquisition over the median of that of the held-out reference images, which "
        "were never trained on. Held-out images are of other people or slices: an image drawn from the training "
        "people's distribution is a little nearer without being a copy."
    ),
    "flagged": (
        f"Images where either ratio is below {COPY_RATIO:.2f}: look at them beside their nearest acquisition. Without "
        "held-out images the second ratio is missing, and an image that the first does not flag cannot be judged: it "
        "is counted as 'not judged'."
    ),
}


def get_distance_fn(config, transform: Transform) -> Callable[[jax.Array, Measurement], jax.Array]:
    """Returns distances(images (K,...), measurement of B) -> (K,B) float32: d(x, i) of the module's docstring.

    Padding (example_id -1) is infinitely far. Images are taken one by one, so memory is that of one batch of
    measurements whatever K is.
    """
    steps = tuple(config.data.augment)
    image_axes = (-2, -1) if transform.real_scalars == 2 else (-3, -2)

    def mirrored(x: jax.Array) -> jax.Array:
        """(V,...): every mirror image of one image that the symmetries know."""
        if "flip" in steps:
            x = jnp.stack([x, reflect(x, image_axes[0])])
            return jnp.concatenate([x, reflect(x, image_axes[1])])
        return jnp.stack([x, x[:, ::-1]]) if "mirror" in steps else x[None]

    def moved(x: jax.Array, zero_filled: jax.Array) -> jax.Array:
        """(B,...): the image, for each acquisition at the shift within 1/16 of its size that correlates best."""
        if "shift" not in steps:
            return jnp.broadcast_to(x, zero_filled.shape)
        rows, columns = x.shape
        correlation = jnp.fft.ifft2(jnp.conj(jnp.fft.fft2(x)) * jnp.fft.fft2(zero_filled))
        score = jnp.abs(correlation) if "phase" in steps else correlation.real
        near = [np.minimum(np.arange(n), n - np.arange(n)) <= n // 16 for n in (rows, columns)]
        score = jnp.where(np.outer(*near), score, -jnp.inf).reshape(len(zero_filled), -1)
        best = jnp.argmax(score, axis=1)
        return jax.vmap(lambda offset: jnp.roll(x, (offset // columns, offset % columns), (0, 1)))(best)

    def residual(x: jax.Array, measurement: Measurement, zero_filled: jax.Array) -> jax.Array:
        """|S T g(x) - y|^2, (B,), of one mirror image."""
        axes = tuple(range(1, measurement.y.ndim))
        seen = jnp.where(measurement.mask, transform.forward(moved(x, zero_filled), measurement.maps), 0)
        if "phase" in steps:
            product = jnp.sum(jnp.conj(seen) * measurement.y, axis=axes, keepdims=True)
            size = jnp.abs(product)
            seen = seen * jnp.where(size > 0, product / jnp.maximum(size, 1e-30), 1)
        return jnp.sum(jnp.abs(seen - measurement.y) ** 2, axis=axes)

    def distances(images: jax.Array, measurement: Measurement) -> jax.Array:
        y = jnp.where(measurement.mask, measurement.y, 0)
        measurement = dataclasses.replace(measurement, y=y)
        zero_filled = transform.adjoint(y, measurement.maps)
        energy = jnp.sum(jnp.abs(y) ** 2, axis=tuple(range(1, y.ndim)))

        def of_one(image):
            found = jax.lax.map(lambda x: residual(x, measurement, zero_filled), mirrored(image))
            return jnp.sqrt(jnp.min(found, axis=0) / jnp.maximum(energy, 1e-30))

        return jnp.where(measurement.example_id < 0, jnp.inf, jax.lax.map(of_one, images))

    return distances


def nearest_two(
    best: tuple[np.ndarray, np.ndarray] | None, distances: np.ndarray, ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the two smallest distances (K,2) and their ids (K,2) so far; inf and -1 where there are fewer.

    Args:
      best: what an earlier call returned, None at first.
      distances: (K,B), of further acquisitions.
      ids: (B,) their example ids.
    """
    if best is None:
        best = np.full((len(distances), 2), np.inf), np.full((len(distances), 2), -1)
    values = np.concatenate([best[0], distances], axis=1)
    names = np.concatenate([best[1], np.broadcast_to(ids, distances.shape)], axis=1)
    order = np.argsort(values, axis=1, kind="stable")[:, :2]
    return np.take_along_axis(values, order, 1), np.take_along_axis(names, order, 1)


def rows_of(kind: str, image_ids: np.ndarray, values: np.ndarray, names: np.ndarray, usual: float) -> list[dict]:
    """Returns one row per image for the table: what it is, its two nearest acquisitions, both ratios, 'flagged'.

    'flagged' is None, not False, where the ratio to held-out images is missing and the other does not flag: between
    nearly equal acquisitions that other one is blind.

    Args:
      kind: 'drawn' or 'held-out'.
      image_ids: (K,).
      values, names: of `nearest_two`.
      usual: median distance of held-out images to their nearest acquisition; nan where there are none.
    """
    rows = []
    for image_id, (first, second), name in zip(image_ids, values, names[:, 0], strict=True):
        row = {"kind": kind, "image_id": int(image_id), "nearest_id": int(name), "distance": float(first)}
        # With one acquisition there is no second; two perfect copies are each other's second.
        row["over_second"] = float(first / second) if 0 < second < np.inf else (1.0 if second == 0 else float("nan"))
        row["over_held_out"] = float(first / usual)
        flagged = row["over_second"] < COPY_RATIO or row["over_held_out"] < COPY_RATIO
        row["flagged"] = None if np.isnan(usual) and not flagged else bool(flagged)
        rows.append(row)
    return rows


def summarize(rows: list[dict]) -> dict[str, dict[str, Any]]:
    """Returns {kind: {'images', 'flagged', 'not_judged', and of each figure {'min', 'median', 'max'}}}.

    'flagged' and 'not_judged' count images; 'flagged' is None where no image can be judged.
    """
    table = {}
    for kind in dict.fromkeys(row["kind"] for row in rows):
        mine = [row for row in rows if row["kind"] == kind]
        judged = [row["flagged"] for row in mine if row["flagged"] is not None]
        table[kind] = {"images": len(mine), "flagged": sum(judged) if judged else None}
        table[kind]["not_judged"] = len(mine) - len(judged)
        for name in ("distance", "over_second", "over_held_out"):
            column = np.array([row[name] for row in mine])
            table[kind][name] = {
                k: float(f(column)) for k, f in (("min", np.min), ("median", np.median), ("max", np.max))
            }
    return table
