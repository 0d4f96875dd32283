"""The noiseless MSM loss and the multi-coil operator against numbers of the published reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msm.losses import Problem, msm_loss
from msm.models.denoiser import get_denoise_fn, get_loss_weight
from msm.operators.measurement import Measurement
from msm.operators.transform import get_transform
from msm.sde_lib import get_schedule
from tests.conformance.golden import golden_files, load_network, reference_config


@pytest.mark.parametrize("path", golden_files("loss_*.npz"), ids=lambda p: getattr(p, "stem", p))
def test_msm_loss_equals_the_reference(path):
    stored = np.load(path)
    kind = path.stem.removeprefix("loss_")
    params, apply, network = load_network(path.with_name(f"adm_{kind}.npz"))
    multicoil = "maps" in stored
    config = reference_config(network, "multicoil_fourier" if multicoil else "identity")
    schedule, transform = get_schedule(config), get_transform(config)
    denoise = get_denoise_fn(config, schedule, transform, apply)
    if multicoil:
        maps, mask = jnp.asarray(stored["maps"]), stored["mask"][:, None, None, :].astype(bool)
        z = transform.forward(jnp.asarray(stored["image"]), maps)
        noise = stored["noise"]
    else:
        maps, mask = None, np.moveaxis(stored["mask"], 1, -1).astype(bool)
        z, noise = (jnp.moveaxis(jnp.asarray(stored[name]), 1, -1) for name in ("clean", "noise"))
    np.testing.assert_array_equal(stored["timestep"], 5 * stored["t_index"])
    loss = jax.jit(
        lambda s, n, t: msm_loss(
            Problem(lambda *a: denoise(params, *a), schedule, transform, get_loss_weight(config), "all"),
            Measurement(s, mask, maps, jnp.zeros(len(s)), jnp.arange(len(s))),
            n,
            t,
        )
    )(jnp.where(mask, z, 0), noise, jnp.asarray(stored["timestep"], jnp.float32))
    np.testing.assert_allclose(loss, stored["loss"], rtol=1e-4)


@pytest.mark.parametrize("path", golden_files("mri_sense*.npz"), ids=lambda p: getattr(p, "stem", p))
def test_multicoil_operator_equals_the_reference(path):
    stored = np.load(path)
    transform = get_transform(reference_config({"image_size": 32}, "multicoil_fourier"))
    mask = stored["mask"][:, None, None, :].astype(bool)
    kspace = jnp.where(mask, transform.forward(jnp.asarray(stored["image"]), jnp.asarray(stored["maps"])), 0)
    np.testing.assert_allclose(kspace, stored["kspace"], atol=2e-6 * np.abs(stored["kspace"]).max())
    adjoint = transform.adjoint(jnp.where(mask, jnp.asarray(stored["kspace"]), 0), jnp.asarray(stored["maps"]))
    np.testing.assert_allclose(adjoint, stored["adjoint"], atol=2e-6 * np.abs(stored["adjoint"]).max())
