"""The one seam between network and method: denoise a partial noisy measurement with an image-to-image network.

x_in   = R s_t                          (sandwich: how a partial measurement becomes an image)
x0     = p(x_in, net(...), t)           (parametrization: how the network's output becomes a clean image)
s0_hat = S T x0,  eps_hat = (s_t / alpha - s0_hat) / sigma  on S
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from msm.infra.registry import Registry
from msm.operators.conjugate_gradient import conjugate_gradient
from msm.operators.inverse import falls_into_rows, solve_rows
from msm.operators.operator import per_example
from msm.operators.transform import Transform, normal
from msm.sde_lib import Schedule


@flax.struct.dataclass
class Denoised:
    """What one network call says about a noisy partial measurement.

    Attributes:
      s0: estimate of the noise-free partial measurement, shape of s_t, 0 outside the mask.
      eps: the noise that s_t then holds, N(0,1) per real scalar if the estimate is right, 0 outside the mask.
      z0: the estimate of the whole measurement T x0, of which `s0` is the part inside the mask.
    """

    s0: jax.Array
    eps: jax.Array
    z0: jax.Array


Sandwich = Callable[..., jax.Array]
SANDWICHES: Registry[Callable[..., Sandwich]] = Registry("sandwich")
PARAMETRIZATIONS: Registry[Callable] = Registry("parametrization")


def get_denoise_fn(config, schedule: Schedule, transform: Transform, net: Callable) -> Callable[..., Denoised]:
    """Returns denoise(params, s_t, mask, maps, t) -> Denoised.

    Args:
      config: uses `config.denoiser` {parametrization, sandwich, cg_steps, sigma_data}.
      schedule: signal and noise levels.
      transform: T.
      net: net(params, images (B,H,W,channels) float32, time (B,) float32) -> (B,H,W,channels) float32.

    `denoise` takes s_t (shape of y, its noise at level t (B,)), mask (bool, broadcastable to s_t) and maps. Values of
    s_t outside the mask are never read.
    """
    sandwich = SANDWICHES[config.denoiser.sandwich](config.denoiser, transform)
    estimate = PARAMETRIZATIONS[config.denoiser.parametrization](config.denoiser, transform, net)

    def denoise(params, s_t, mask, maps, t):
        sigma = schedule.sigma(t)
        u = jnp.where(mask, s_t / per_example(schedule.alpha(t), s_t), 0)  # s + sigma n
        x_in = sandwich(u, mask, maps, sigma)
        x0 = estimate(params, x_in, sigma, schedule.net_time(t))
        z0 = transform.forward(x0, maps)
        s0 = jnp.where(mask, z0, 0)
        return Denoised(s0=s0, eps=(u - s0) / per_example(sigma, u), z0=z0)

    return denoise


@SANDWICHES.register("adjoint")
def get_adjoint(denoiser, transform: Transform) -> Sandwich:
    """x_in = T^H S u: zero-filled, what the published code uses."""
    del denoiser

    def adjoint(u, mask, maps, sigma):
        del mask, sigma
        return transform.adjoint(u, maps)

    return adjoint


@SANDWICHES.register("wiener")
def get_wiener(denoiser, transform: Transform) -> Sandwich:
    """x_in = (T^H S T + (sigma/sigma_data)^2 I)^-1 T^H S u: posterior mean, white prior of std sigma_data."""
    steps, sigma_data = denoiser.cg_steps, denoiser.sigma_data

    def wiener(u, mask, maps, sigma):
        b = transform.adjoint(u, maps)
        damping = per_example((sigma / sigma_data) ** 2, b)
        return conjugate_gradient(lambda x: normal(transform, x, mask, maps) + damping * x, b, steps)

    return wiener


@SANDWICHES.register("exact")
def get_exact(denoiser, transform: Transform) -> Sandwich:
    """'wiener' without an error of its steps where masks keep whole columns (`solve_rows`); elsewhere 'wiener'.

    At sigma .005 four conjugate-gradient steps leave half as much misfit again as there has to be.
    """
    iterative, sigma_data = get_wiener(denoiser, transform), denoiser.sigma_data

    def exact(u, mask, maps, sigma):
        if not falls_into_rows(transform, mask, maps):
            return iterative(u, mask, maps, sigma)
        return solve_rows(mask, maps, transform.adjoint(u, maps), (sigma / sigma_data) ** 2)

    return exact


@PARAMETRIZATIONS.register("eps")
def get_eps(denoiser, transform: Transform, net: Callable) -> Callable:
    """x0 = x_in - sigma net(alpha x_in, t): the network predicts noise (Ho et al. 2020), alpha = 1/sqrt(1+sigma^2)."""
    del denoiser

    def estimate(params, x_in, sigma, time):
        scale = per_example(1.0 / jnp.sqrt(1.0 + sigma**2), x_in)
        eps = transform.from_channels(net(params, transform.to_channels(scale * x_in), time))
        return x_in - per_example(sigma, x_in) * eps

    return estimate


@PARAMETRIZATIONS.register("score")
def get_score(denoiser, transform: Transform, net: Callable) -> Callable:
    """x0 = x_in + sigma^2 net(x_in, sigma): the network is the score, told the noise level (Song et al. 2021, VE)."""
    del denoiser

    def estimate(params, x_in, sigma, time):
        del time
        score = transform.from_channels(net(params, transform.to_channels(x_in), sigma))
        return x_in + per_example(sigma**2, x_in) * score

    return estimate


@PARAMETRIZATIONS.register("edm")
def get_edm(denoiser, transform: Transform, net: Callable) -> Callable:
    """x0 = x_in + c_out net(c_in x_in, log sigma) around the Wiener estimate (Karras et al. 2022).

    c_out = sigma sigma_d / sqrt(sigma^2 + sigma_d^2), the white prior's posterior std; c_in = sqrt(sigma^2 +
    sigma_d^2) / sigma_d^2, which brings the Wiener estimate of a whole measurement to unit variance at every noise
    level.
    """
    sigma_data = denoiser.sigma_data

    def estimate(params, x_in, sigma, time):
        total = jnp.sqrt(sigma**2 + sigma_data**2)
        c_in, c_out = per_example(total / sigma_data**2, x_in), per_example(sigma * sigma_data / total, x_in)
        out = net(params, transform.to_channels(c_in * x_in), time)
        return x_in + c_out * transform.from_channels(out)

    return estimate


def get_loss_weight(config) -> Callable[[jax.Array], jax.Array]:
    """Returns weight(sigma): 1/sigma^2 for 'eps' and 'score' (the plain noise loss), 1/c_out^2 for 'edm'."""
    if config.denoiser.parametrization != "edm":
        return lambda sigma: sigma**-2
    return lambda sigma: sigma**-2 + config.denoiser.sigma_data**-2
