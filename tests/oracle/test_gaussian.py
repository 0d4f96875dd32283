"""The sampler on Gaussian data, where every score is known and no network is needed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msm.models.denoiser import Denoised
from msm.operators.masks import get_masks
from msm.operators.randomness import example_keys
from msm.operators.transform import get_transform
from msm.sampling import SamplerSettings, fresh_share, get_sampler, reverse_step
from msm.sde_lib import get_schedule
from tests.test_losses import SIZE, toy_config


def gaussian_denoiser(variance, schedule):
    """The exact denoiser of z ~ N(0, variance I): s0 = v / (v + sigma^2) u on the mask."""

    def denoise(s_t, mask, maps, t):
        sigma = schedule.sigma(t).reshape(-1, *[1] * (s_t.ndim - 1))
        u = jnp.where(mask, s_t / schedule.alpha(t).reshape(sigma.shape), 0)
        s0 = variance / (variance + sigma**2) * u
        return Denoised(s0=s0, eps=jnp.where(mask, (u - s0) / sigma, 0), z0=s0)

    return denoise


@pytest.mark.parametrize(("step", "keep", "w"), [("renoise", 1.0, 1), ("ddim", 0.0, 4)])
def test_sampler_variance_follows_the_linear_recursion(step, keep, w):
    """White Gaussian data: every entry obeys a scalar recursion of variances, which the sampler must match."""
    config = toy_config()
    schedule, transform = get_schedule(config), get_transform(config)
    masks, variance, levels, eta = get_masks(config, density=keep), 0.5, 10, 0.7
    settings = SamplerSettings(num_levels=levels, w=w, step=step, mask_order="iid")
    sample = jax.jit(get_sampler(settings, schedule, transform, masks, gaussian_denoiser(variance, schedule)))
    z = sample(
        example_keys(jax.random.key(0), jnp.arange(64)), None, jnp.zeros((64, 2, SIZE, SIZE), jnp.complex64), eta
    )
    acs = np.asarray(masks.inclusion_probability()).reshape(-1) >= 1  # drawn at every level: no entry is left behind
    sigma = np.asarray(schedule.sigma(jnp.asarray(schedule.grid(levels))), np.float64)
    v = sigma[0] ** 2
    for now, after in zip(sigma, [*sigma[1:], 0.0], strict=True):
        gain = variance / (variance + now**2)  # zhat = gain u, eps = (1 - gain) u / sigma
        if after == 0:
            v = gain**2 * v
            break
        fresh = float(fresh_share(step, eta, now, after))
        v = (gain + np.sqrt(after**2 - fresh**2) * (1 - gain) / now) ** 2 * v + fresh**2
    measured = np.mean(np.abs(np.asarray(z)[..., acs]) ** 2) / 2
    count = z[..., acs].size * 2
    assert measured == pytest.approx(v, rel=5 * np.sqrt(2 / count) + 1e-3)


def test_reverse_step_keeps_the_noise_level_of_the_target():
    """u' - zhat has variance sigma'^2 when eps and the fresh noise have variance 1, for both rules and any eta."""
    rng = np.random.default_rng(0)
    eps, xi = rng.standard_normal((2, 200_000)).astype(np.float32)
    for step in ("ddim", "renoise"):
        for eta in (0.0, 0.5, 0.85, 1.0):
            fresh = fresh_share(step, eta, 2.0, 1.3)
            assert float(jnp.std(reverse_step(0.0, eps, xi, 1.3, fresh))) == pytest.approx(1.3, rel=0.01)
    ancestral = 1.3 * np.sqrt(1 - (1.3 / 2.0) ** 2)
    assert float(fresh_share("ddim", 1.0, 2.0, 1.3)) == pytest.approx(ancestral, rel=1e-6)
