"""l1-wavelet compressed sensing: the image whose wavelet coefficients are sparse, by accelerated proximal steps.

x = argmin_x 1/2 |H x - y|^2 + lam |W x|_1,   W the orthonormal Daubechies-2 transform (coarse band not penalised)

FISTA (Beck and Teboulle, SIAM J. Imaging Sci. 2009) of step 1/|H|^2, which is 1 for MRI; every iteration transforms a
randomly shifted image ("cycle spinning"; Figueiredo and Nowak, IEEE TIP 2003), which removes the blocky
artefacts of a decimated transform. The counterpart of BART's `pics -i 100 -R W:3:0:lam`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from msm.operators import wavelet
from msm.operators.measurement import Measurement
from msm.solvers.registry import SOLVERS, Range, Solver

ITERATIONS = 100
SHIFT_SEED = 0  # the same shifts for every example and run: the solver is deterministic


def soft_threshold(c: jax.Array, level: float | jax.Array) -> jax.Array:
    """Returns c (1 - level/|c|)_+ , the proximal map of level |c|_1 for real or complex `c`, with 0 at 0."""
    magnitude = jnp.abs(c)
    keep = magnitude > level
    return c * jnp.where(keep, 1 - level / jnp.where(keep, magnitude, 1), 0)


def shrink_wavelets(x: jax.Array, level: float | jax.Array, shift: jax.Array) -> jax.Array:
    """Returns `x` with the detail coefficients of the image rolled by `shift` soft-thresholded.

    Args:
      x: (B,H,W) or (B,H,W,channels), real or complex. Sizes that cannot be halved often enough are padded by zeros,
        which makes the proximal step approximate for them.
      level: threshold in units of `x`.
      shift: (2,) int32, rows and columns to roll by.
    """
    height, width = x.shape[1:3]
    levels = min(wavelet.num_levels(height), wavelet.num_levels(width))
    pads = [(0, 0), (0, -height % 2**levels), (0, -width % 2**levels)] + [(0, 0)] * (x.ndim - 3)
    coefficients = wavelet.dwt2(jnp.roll(jnp.pad(x, pads), shift, wavelet.AXES), levels)
    rows, columns = (coefficients.shape[axis] >> levels for axis in wavelet.AXES)
    coarse = coefficients[:, :rows, :columns]
    shrunk = soft_threshold(coefficients, level).at[:, :rows, :columns].set(coarse)
    return jnp.roll(wavelet.idwt2(shrunk, levels), -shift, wavelet.AXES)[:, :height, :width]


@SOLVERS.register("l1_wavelet")
def get_l1_wavelet_solver(config, experiment) -> Solver:
    """Returns the solver. Needs `experiment.operator`; hyper: lam, the threshold, in units of the image."""
    operator = experiment.operator
    shifts = np.random.default_rng(SHIFT_SEED).integers(0, 64, size=(ITERATIONS, 2)).astype(np.int32)

    def solve(key, params, measurement: Measurement, hyper):
        del key, params
        mask, maps = measurement.mask, measurement.maps
        rhs = operator.adjoint(measurement.y, mask, maps)
        length = operator.norm(rhs.shape) ** -2

        def step(carry, shift):
            x, ahead, momentum = carry
            moved = ahead - length * (operator.normal(ahead, mask, maps) - rhs)
            x_new = shrink_wavelets(moved, length * hyper["lam"], shift)
            momentum_new = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
            ahead = x_new + (momentum - 1) / momentum_new * (x_new - x)
            return (x_new, ahead, momentum_new), None

        (x, _, _), _ = jax.lax.scan(step, (length * rhs, length * rhs, jnp.float32(1)), jnp.asarray(shifts))
        return x[None]

    return Solver(solve=solve, hyper={"lam": config.baselines.wavelet}, search={"lam": Range(1e-5, 0.3, log=True)})
