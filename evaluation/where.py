"""Where a reconstruction's error is: by distance from the centre of k-space, in acquired and in missing entries, and by
noise level on what training shows the network and on what solvers show it."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from msm.operators.measurement import Measurement
from msm.operators.operator import per_example
from msm.operators.transform import Transform
from msm.solvers.l1_wavelet import shrink_wavelets

ZONES = ("centre", "middle", "outside")
THRESHOLDS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0)  # of wavelet shrinkage, in units of sigma
SHIFTS = ((0, 0), (3, 5), (6, 2), (1, 7))  # the transform's places over which a shrunk image is the mean


def zones_of(height: int, width: int) -> np.ndarray:
    """(H,W) int: 0 where the distance from the centre of k-space is below 1/8 of the size, 1 below 1/4, else 2."""
    rows, columns = ((np.arange(n) - n // 2) / n for n in (height, width))
    return np.digitize(np.hypot(rows[:, None], columns), (1 / 8, 1 / 4))


def error_by_zone(transform: Transform, x, reference, measurement: Measurement) -> dict[tuple[str, str], np.ndarray]:
    """|P T (x - reference)|^2 / |P_missing or P_acquired T reference|^2 of multi-coil scans, (B,) per zone and kind.

    P keeps the entries of one zone that were 'acquired' or 'missing'. All zones of a kind have its whole energy below
    them: they add up to the kind's NMSE.

    Args:
      x, reference: (B,H,W) complex.
      measurement: whose mask and maps they are seen with.
    """
    error = np.abs(np.asarray(transform.forward(jnp.asarray(x - reference), measurement.maps))) ** 2
    energy = np.abs(np.asarray(transform.forward(jnp.asarray(reference), measurement.maps))) ** 2
    mask, zone = np.broadcast_to(measurement.mask, error.shape), zones_of(*error.shape[-2:])
    found = {}
    for kind, entries in (("acquired", mask), ("missing", ~mask)):
        whole = np.where(entries, energy, 0).sum(axis=(1, 2, 3))
        for number, name in enumerate(ZONES):
            found[name, kind] = np.where(entries & (zone == number), error, 0).sum(axis=(1, 2, 3)) / whole
    return found


def get_level_fn(experiment) -> Callable[..., Mapping[str, jax.Array]]:
    """Returns compare(params, reference, measurement, mask, sigma, key) -> figures of one noise level, () each.

    z = T reference + sigma n is shown on the entries of `mask`, `measurement.mask` being training's and all entries
    the solvers'; all errors are mean squares per real scalar of the entries that are shown, over sigma^2:

      noise, alias    of the network's input R S z: |T R S sigma n|, |T R S T reference - T reference|
      network         of its estimate
      wavelet         of the best of `THRESHOLDS` of soft-thresholded wavelets of the same input, chosen on these images

    The reference is looked at to make z and to judge: for diagnosis alone.
    """
    config, transform = experiment.config, experiment.transform
    from msm.models.denoiser import SANDWICHES

    sandwich = SANDWICHES[config.denoiser.sandwich](config.denoiser, transform)

    @jax.jit
    def compare(params, reference, measurement: Measurement, mask, sigma, key):
        z = transform.forward(reference, measurement.maps)
        noise = sigma * transform.noise(key, z.shape)
        level = jnp.full(z.shape[:1], sigma)
        t = experiment.schedule.level(level)
        maps = measurement.maps

        def mean_square(image):  # an error of the image, on the entries that are shown
            error = jnp.where(mask, transform.forward(image, maps), 0)
            count = transform.real_scalars * jnp.sum(jnp.broadcast_to(mask, z.shape))
            return jnp.sum(jnp.abs(error) ** 2) / (count * sigma**2)

        from_noise, from_signal = (sandwich(jnp.where(mask, a, 0), mask, maps, level) for a in (noise, z))
        x_in = from_noise + from_signal
        s_t = per_example(experiment.schedule.alpha(t), z) * jnp.where(mask, z + noise, 0)
        estimate = experiment.denoise(params, s_t, mask, maps, t).z0
        shrunk = [
            sum(shrink_wavelets(x_in, level * sigma, jnp.asarray(shift)) for shift in SHIFTS) / len(SHIFTS)
            for level in THRESHOLDS
        ]

        def image_error(image):  # of the whole image, in units of sigma
            scalars = transform.to_channels(image).size
            return jnp.sqrt(jnp.sum(jnp.abs(image) ** 2) / (scalars * sigma**2))

        return {
            "noise": image_error(from_noise),
            "alias": image_error(from_signal - reference),
            "network": mean_square(transform.adjoint(estimate, maps) - reference),
            "wavelet": jnp.min(jnp.stack([mean_square(image - reference) for image in shrunk])),
        }

    return compare


def by_level(
    experiment, params: Any, reference: np.ndarray, measurement: Measurement, sigmas: tuple[float, ...], seed: int = 0
) -> list[dict[str, float]]:
    """Rows of `get_level_fn`: for every sigma a row of 'partial' inputs (training's) and one of 'whole' ones."""
    compare, rows = get_level_fn(experiment), []
    masks = {"partial": np.asarray(measurement.mask), "whole": np.ones_like(measurement.mask)}
    for number, sigma in enumerate(sigmas):
        key = jax.random.fold_in(jax.random.key(seed), number)
        for shown, mask in masks.items():
            found = compare(params, reference, measurement, mask, jnp.float32(sigma), key)
            rows.append({"sigma": sigma, "shown": shown, **{name: float(value) for name, value in found.items()}})
    return rows
