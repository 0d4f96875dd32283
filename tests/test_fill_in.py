"""The fill-in loss: whole inputs, of which acquired entries alone are judged; for lines, 2-D masks and blocks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msm.configs.default import get_config
from msm.losses import Completed, get_loss_fn
from msm.models.denoiser import Denoised
from msm.operators.masks import get_masks
from msm.operators.measurement import Measurement
from msm.operators.transform import get_transform
from msm.sde_lib import get_schedule
from tests.helpers.toy_data import smooth_coils

KINDS = ("lines", "entries", "blocks")
SIZE, BATCH = 16, 3


def acquisitions(kind):
    """A config, (B,...) images, and their acquisitions without noise."""
    config, rng = get_config(), np.random.default_rng(0)
    config.loss.name, config.data.image_size = "fill_in", SIZE
    if kind == "blocks":
        config.transform.name, config.data.num_coils, config.data.augment = "identity", 0, ("mirror",)
        config.masks.name, config.masks.grid, config.masks.drop = "random_boxes", 4, 6
        x, maps = rng.uniform(-1, 1, (BATCH, SIZE, SIZE, 3)).astype(np.float32), None
        shape = (BATCH, SIZE, SIZE, 1)
    else:
        x = rng.standard_normal((BATCH, SIZE, SIZE, 2)).astype(np.float32).view(np.complex64)[..., 0]
        maps = np.broadcast_to(smooth_coils(SIZE, 4), (BATCH, 4, SIZE, SIZE))
        shape = (BATCH, 1, 1, SIZE) if kind == "lines" else (BATCH, 1, SIZE, SIZE)
    mask = rng.uniform(size=shape) < 0.5
    z = np.asarray(get_transform(config).forward(jnp.asarray(x), maps))
    ids = np.arange(BATCH, dtype=np.int32)
    return config, x, z, Measurement(np.where(mask, z, 0), mask, maps, np.zeros(BATCH, np.float32), ids)


def loss_of(config, denoise):
    transform, schedule = get_transform(config), get_schedule(config)
    return jax.jit(get_loss_fn(config, schedule, transform, get_masks(config), denoise))


def shrinking(s_t, mask, maps, t):
    """Any denoiser: half of what it sees, which must be the whole measurement."""
    del maps, t
    z0 = 0.5 * jnp.where(mask, s_t, jnp.nan)
    return Denoised(s0=z0, eps=z0, z0=z0)


@pytest.mark.parametrize("kind", KINDS)
def test_no_entry_that_was_not_acquired_is_a_target(kind):
    """Whatever stands in y outside the mask, the loss and the gradient of the network's output stay what they are."""
    config, x, z, measurement = acquisitions(kind)

    def denoise(params, s_t, mask, maps, t):
        out = shrinking(s_t, mask, maps, t)
        return dataclasses.replace(out, z0=out.z0 + params)

    loss, key = loss_of(config, denoise), jax.random.key(0)
    params = jnp.zeros(z.shape, z.dtype)
    other = measurement.replace(y=np.where(measurement.mask, measurement.y, 1e3 * z))
    for values in zip(*(loss(params, Completed(m, x), key) for m in (measurement, other)), strict=True):
        assert values[0] == values[1] and np.isfinite(values[0]) and values[0] > 0

    def total(params, m):
        return jnp.sum(loss(params, Completed(m, x), key))

    config.data.augment = ()  # so that the gradient lies where the mask is
    plain = loss_of(config, denoise)
    gradient = np.asarray(jax.grad(lambda p: jnp.sum(plain(p, Completed(measurement, x), key)))(params))
    seen = np.broadcast_to(measurement.mask, z.shape)
    assert np.all(gradient[~seen] == 0) and np.all(gradient[seen] != 0)
    np.testing.assert_array_equal(jax.grad(total)(params, measurement), jax.grad(total)(params, other))


@pytest.mark.parametrize("kind", KINDS)
def test_the_completion_is_an_input_and_no_target(kind):
    """A network that looks at nothing has the same loss whatever the completion."""
    config, x, _, measurement = acquisitions(kind)

    def blind(params, s_t, mask, maps, t):
        z0 = jnp.zeros_like(s_t) + 0.1
        return Denoised(s0=z0, eps=z0, z0=z0)

    loss = loss_of(config, blind)
    one, other = (loss(None, Completed(measurement, image), jax.random.key(1)) for image in (x, -3 * x))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_completions_and_acquisitions_are_moved_by_the_same_symmetry(kind):
    """The network is shown the completion with noise: at sigma 1e-4 what it sees is what it is judged on."""
    config, x, _, measurement = acquisitions(kind)
    config.schedule.update(sigma_min=1e-4, log_sigma_mean=float(np.log(1e-4)), log_sigma_std=1e-6)

    def identity(params, s_t, mask, maps, t):
        return Denoised(s0=s_t, eps=s_t, z0=s_t)

    loss = loss_of(config, identity)(None, Completed(measurement, x), jax.random.key(2))
    share = 1 if kind == "blocks" else 0.25  # white noise of the image is spread over four coils
    np.testing.assert_allclose(loss, share, rtol=0.35)
