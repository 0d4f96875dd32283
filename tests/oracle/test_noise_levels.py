"""The noise that u = z + sigma n holds is the schedule's at every call, whatever eta, step rule and reinjection do.

The denoiser returns the true z, so that u - z is noise alone. The sampler starts from z too: entries that no mask has
covered yet then hold the truth, as they must for their noise level to be right.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msm.models.denoiser import Denoised
from msm.operators.transform import TRANSFORMS
from msm.sampling import SamplerSettings
from tests.oracle.theory import coils_toy, draw, fresh_noise, level_sigmas, lines_toy, recording, toy_schedule

LEVELS, NUMBER = 5, 1024


def get_recorder(toy, schedule, settings):
    """Returns z and record(eta) -> (level, u, mask) of every call of the sampler, with the truth as its denoiser."""
    transform = TRANSFORMS[toy.transform]()
    z = 3 * transform.noise(jax.random.key(9), (NUMBER, *toy.shape))

    def truth(s_t, mask, maps, t):
        z0 = jnp.tile(z, (s_t.shape[0] // NUMBER, 1, 1, 1))
        u = s_t / schedule.alpha(t).reshape(-1, 1, 1, 1)
        s0 = jnp.where(mask, z0, 0)
        sigma = schedule.sigma(t).reshape(-1, 1, 1, 1)
        return Denoised(s0=s0, eps=jnp.where(mask, (u - s0) / sigma, 0), z0=z0)

    denoise, calls = recording(truth, schedule)
    run, times = draw(toy, schedule, settings, NUMBER, denoise, start=z), schedule.grid(LEVELS)

    def record(eta):
        calls.clear()
        np.testing.assert_allclose(np.asarray(run(eta)), np.asarray(z).reshape(NUMBER, -1), atol=1e-5)
        return [(int(np.argmin(np.abs(times - t[0]))), u[:NUMBER], mask[:NUMBER]) for u, mask, t in calls]

    return np.asarray(z), record


@pytest.mark.parametrize(
    ("toy", "schedule", "step", "w", "reinject", "order"),
    [
        (lines_toy, "edm", "ddim", 3, False, "iid"),
        (lines_toy, "ddpm", "renoise", 2, False, "complement"),
        (coils_toy, "edm", "ddim", 2, True, "complement"),
        (lines_toy, "ddpm", "renoise", 3, True, "iid"),
    ],
)
def test_every_call_sees_the_noise_level_of_the_schedule(toy, schedule, step, w, reinject, order):
    """And with independent calls the noises of two levels correlate by sqrt(1 - f^2 / sigma'^2): f of it is fresh."""
    toy, schedule = toy(), toy_schedule(schedule)
    settings = SamplerSettings(num_levels=LEVELS, w=w, step=step, reinject=reinject, mask_order=order)
    sigmas = level_sigmas(schedule, LEVELS)
    z, record = get_recorder(toy, schedule, settings)
    for eta in (0.0, 0.85, 1.0):
        calls = record(eta)
        assert [level for level, _, _ in calls] == list(np.repeat(range(LEVELS), w if reinject else 1))
        for level, u, mask in calls:
            noise = (u - z)[mask] / sigmas[level]
            rounding = 1e-6 * np.abs(z).max() / sigmas[level]  # of u in float32, in units of sigma
            standard_error = 1 / math.sqrt(2 * toy.unit * noise.size)
            assert math.sqrt(np.mean(np.abs(noise) ** 2) / toy.unit) == pytest.approx(1, abs=5 * standard_error + 1e-5)
            assert abs(noise.mean()) < 5 * math.sqrt(toy.unit / noise.size) + rounding
        if reinject:
            continue
        for (now, before, _), (after, behind, _) in itertools.pairwise(calls):
            share = fresh_noise(step, eta, sigmas[now], sigmas[after]) / sigmas[after]
            product = np.mean((behind - z) * (before - z).conj()) / (toy.unit * sigmas[now] * sigmas[after])
            assert product == pytest.approx(math.sqrt(1 - share**2), abs=6 / math.sqrt(z.size))
