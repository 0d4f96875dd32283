"""The damped inverse: exact by rows, equal to conjugate gradients, for many right-hand sides."""

import jax.numpy as jnp
import numpy as np
import pytest

from msm.models.denoiser import SANDWICHES
from msm.operators.conjugate_gradient import conjugate_gradient
from msm.operators.inverse import get_damped_inverse
from msm.operators.transform import get_transform, normal
from tests.test_losses import toy_config, toy_measurement


@pytest.mark.parametrize("two_dimensional", [False, True])
def test_damped_inverse_inverts(two_dimensional):
    transform, m = get_transform(toy_config()), toy_measurement(batch=2)
    mask = np.broadcast_to(m.mask, (2, 1, 16, 16)) if two_dimensional else m.mask
    solve = get_damped_inverse(transform, mask, m.maps, cg_steps=80)
    rng = np.random.default_rng(0)
    b = jnp.asarray(rng.standard_normal((6, 16, 16, 2)).astype(np.float32).view(np.complex64)[..., 0])
    mu = jnp.asarray([0.1, 0.02, 1.0, 0.5, 0.05, 0.3])
    x = solve(b, mu)
    back = normal(transform, x, np.tile(mask, (3, 1, 1, 1)), np.tile(m.maps, (3, 1, 1, 1))) + mu[:, None, None] * x
    np.testing.assert_allclose(back, b, atol=2e-4)


def test_rows_agree_with_conjugate_gradients_on_an_odd_size_with_empty_corners():
    rng = np.random.default_rng(1)
    maps = rng.standard_normal((1, 3, 6, 7, 2)).astype(np.float32).view(np.complex64)[..., 0]
    maps[..., 0] = 0  # outside the coils' support
    mask = np.array([1, 0, 1, 1, 0, 1, 0], bool).reshape(1, 1, 1, 7)
    transform = get_transform(toy_config())
    b = jnp.asarray(rng.standard_normal((1, 6, 7, 2)).astype(np.float32).view(np.complex64)[..., 0])
    exact = get_damped_inverse(transform, mask, maps, cg_steps=0)(b, jnp.asarray([0.2]))
    iterated = conjugate_gradient(lambda x: normal(transform, x, mask, maps) + 0.2 * x, b, 60)
    np.testing.assert_allclose(exact, iterated, atol=1e-4 * float(jnp.abs(exact).max()))


def test_the_exact_sandwich_is_the_posterior_mean_that_conjugate_gradients_tend_to():
    """At sigma .005, where their four steps are far from it; masks of entries are as 'wiener' has them."""
    config, m = toy_config(), toy_measurement(batch=2)
    transform, sigma = get_transform(config), jnp.asarray([0.005, 0.3])
    mask = np.broadcast_to(m.mask, (2, 1, 1, m.mask.shape[-1]))
    exact, iterated = (SANDWICHES[name](config.denoiser, transform) for name in ("exact", "wiener"))
    x = exact(m.y, mask, m.maps, sigma)
    b, mu = transform.adjoint(m.y, m.maps), (sigma / config.denoiser.sigma_data)[:, None, None] ** 2

    def misfit(x):
        return np.asarray(jnp.linalg.norm(normal(transform, x, mask, m.maps) + mu * x - b, axis=(1, 2)))

    assert np.all(misfit(x) < 1e-4 * np.linalg.norm(b, axis=(1, 2)))
    assert misfit(iterated(m.y, mask, m.maps, sigma))[0] > 10 * misfit(x)[0]
    two_dimensional = np.broadcast_to(mask, (2, 1, 16, 16))
    both = (sandwich(m.y, two_dimensional, m.maps, sigma) for sandwich in (exact, iterated))
    np.testing.assert_array_equal(*both)
