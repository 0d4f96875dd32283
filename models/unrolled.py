"""SSDU: a reconstruction learned from undersampled scans by hiding a part of what was acquired.

Yaman et al., Self-supervised learning of physics-guided reconstruction neural networks without fully sampled reference
data, MRM 2020. The acquired lines Omega are split into Theta, which is reconstructed from, and Lambda, on which the
result is judged; the split is drawn anew at every step, as in the multi-mask form (Yaman et al. 2022), never in the
calibration lines. With x_0 = C(0), the damped least-squares image of Theta,

    x_k = C(D(x_{k-1})),   C(v) = argmin_x |H x - y|^2 + mu |x - v|^2 = v + (H^H H + mu I)^-1 H^H (y - H v)

for k = 1..K: alternate regularisation and data consistency with shared weights; K = 1 is one network call. The
regulariser D is the denoiser of every other method, told of noise sigma = `ssdu.sigma` in the image: under 'edm' the
network corrects x / (1 + (sigma/sigma_d)^2) by c_out, which is close to sigma, times its output. So sigma is how wrong
x_{k-1} may be, and mu = (noise_std / sigma)^2 at least LEAST_MU. Published: learned mu, K = 10, a ResNet.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from msm.models.denoiser import Denoised
from msm.operators.conjugate_gradient import conjugate_gradient
from msm.operators.measurement import Array, Measurement
from msm.operators.operator import Operator, per_example
from msm.operators.transform import Transform
from msm.sde_lib import Schedule

CG_STEPS = 10  # of a data-consistency step, the same in training and in reconstruction
LEAST_MU = 1e-3  # of noiseless data: so many steps solve no worse condition


def split(key: jax.Array, mask: jax.Array, always: jax.Array, share) -> tuple[jax.Array, jax.Array]:
    """Returns (Theta, Lambda), which share out `mask` (bool, one example): Lambda has none of `always`.

    Of the n other acquired entries of the mask, round(share n) go to Lambda, at least one where there is one.
    """
    free = mask & ~always
    number = jnp.sum(free)
    hidden = jnp.clip(jnp.round(share * number).astype(number.dtype), jnp.minimum(1, number), number)
    score = jnp.where(free, jax.random.uniform(key, mask.shape), 2.0).ravel()
    judged = (jnp.argsort(jnp.argsort(score)) < hidden).reshape(mask.shape)
    return mask & ~judged, judged


def get_consistency(operator: Operator, y: Array, mask: Array, maps: Array | None, mu: jax.Array) -> Callable:
    """Returns C of the module's docstring, for a batch; mu (B,) > 0."""

    def damped(x):
        return operator.normal(x, mask, maps) + per_example(mu, x) * x

    def consistent(v):
        residual = operator.adjoint(y, mask, maps) - operator.normal(v, mask, maps)
        return v + conjugate_gradient(damped, residual, CG_STEPS)

    return consistent


def get_reconstruct_fn(config, schedule: Schedule, transform: Transform, operator: Operator) -> Callable:
    """Returns reconstruct(denoise, measurement) -> x_K, images (B,...); denoise(s_t, mask, maps, t) has its parameters.

    Reads `y` inside `mask` alone. Uses `config.ssdu` {sigma, unrolls}.
    """
    sigma, unrolls = config.ssdu.sigma, config.ssdu.unrolls

    def reconstruct(denoise: Callable[..., Denoised], m: Measurement) -> jax.Array:
        mu = jnp.maximum((m.noise_std / sigma) ** 2, LEAST_MU)
        consistent = get_consistency(operator, m.y, m.mask, m.maps, mu)
        level = schedule.level(jnp.full(mu.shape, sigma))
        whole = jnp.ones((mu.shape[0], 1, 1, 1), bool)

        def regularise(x):
            z = transform.forward(x, m.maps)
            out = denoise(per_example(schedule.alpha(level), z) * z, whole, m.maps, level)
            return transform.adjoint(out.z0, m.maps)

        x = consistent(jnp.zeros(operator.image_shape(m.y.shape), transform.dtype))
        for _ in range(unrolls):  # not a scan: XLA's CPU backend computes convolutions in loops several times slower
            x = consistent(regularise(x))
        return x

    return reconstruct


def normalised_loss(estimate: jax.Array, y: jax.Array, mask: jax.Array) -> jax.Array:
    """(B,): |u - v|_2 / |u|_2 + |u - v|_1 / |u|_1 for u = y and v = estimate inside the mask; 0 for an empty one.

    The derivative at u = v is 0.
    """
    axes = tuple(range(1, y.ndim))

    def root(a):  # whose derivative at 0 is 0
        return jnp.where(a > 0, jnp.sqrt(jnp.where(a > 0, a, 1)), 0)

    def norms(a):
        square = jnp.where(mask, (jnp.conj(a) * a).real, 0)
        return root(jnp.sum(square, axis=axes)), jnp.sum(root(square), axis=axes)

    pairs = zip(norms(estimate - y), norms(y), strict=True)
    return jnp.sum(jnp.stack([error / jnp.where(size > 0, size, 1) for error, size in pairs]), axis=0)
