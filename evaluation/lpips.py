"""LPIPS, the perceptual distance of two images (Zhang et al. 2018, arXiv 1801.03924), version 0.1, as pure functions.

d(x, y) = sum_l mean_pixels sum_c w_lc (f_lc(x) - f_lc(y))^2, where f_l are the activations of a network trained to
classify photographs, scaled to unit length over channels at every pixel, and w_l >= 0 is fitted to people's judgement.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SHIFT = (-0.030, -0.088, -0.188)  # mean and deviation of photographs in [-1, 1], by colour
SCALE = (0.458, 0.448, 0.450)


@dataclasses.dataclass(frozen=True)
class Backbone:
    """The convolutional part of a classifier, each convolution followed by a ReLU.

    Attributes:
      channels: outputs of every convolution, stage by stage; the last ones of each stage are the features compared.
      kernels: widths of every convolution's square kernel, likewise.
      pools: width of the max-pooling with stride 2 before each stage, 0 for none.
      stride: of the very first convolution; all others have stride 1.
      margin: zeros around the input of the very first convolution; the others keep the size.
      min_size: pixels below which nothing is left for the last stage.
    """

    channels: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    pools: tuple[int, ...]
    stride: int
    margin: int
    min_size: int


BACKBONES = {
    "alexnet": Backbone(
        channels=((64,), (192,), (384,), (256,), (256,)),
        kernels=((11,), (5,), (3,), (3,), (3,)),
        pools=(0, 3, 3, 0, 0),
        stride=4,
        margin=2,
        min_size=31,
    ),
    "vgg16": Backbone(
        channels=((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3),
        kernels=((3,) * 2, (3,) * 2, (3,) * 3, (3,) * 3, (3,) * 3),
        pools=(0, 2, 2, 2, 2),
        stride=1,
        margin=1,
        min_size=16,
    ),
}


def param_shapes(network: str) -> dict[str, tuple[int, ...]]:
    """Returns the parameters' names and shapes: conv<i>/kernel (k,k,in,out), conv<i>/bias (out,), head<l> (out,)."""
    shapes: dict[str, tuple[int, ...]] = {}
    inputs, index, backbone = 3, 0, BACKBONES[network]
    for stage, (widths, kernels) in enumerate(zip(backbone.channels, backbone.kernels, strict=True)):
        for width, kernel in zip(widths, kernels, strict=True):
            shapes[f"conv{index}/kernel"], shapes[f"conv{index}/bias"] = (kernel, kernel, inputs, width), (width,)
            inputs, index = width, index + 1
        shapes[f"head{stage}"] = (inputs,)
    return shapes


def _features(network: str, params: Mapping[str, Any], x: jax.Array) -> list[jax.Array]:
    """The activations at the end of every stage, (B,h,w,channels) each, of images (B,H,W,3) in [-1, 1]."""
    backbone, features, index = BACKBONES[network], [], 0
    x = (x - jnp.array(SHIFT)) / jnp.array(SCALE)
    for pool, kernels in zip(backbone.pools, backbone.kernels, strict=True):
        if pool:
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, pool, pool, 1), (1, 2, 2, 1), "VALID")
        for kernel in kernels:
            first = index == 0
            stride, margin = (backbone.stride, backbone.margin) if first else (1, kernel // 2)
            x = jax.lax.conv_general_dilated(
                x,
                params[f"conv{index}/kernel"],
                (stride, stride),
                [(margin, margin)] * 2,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                precision=jax.lax.Precision.HIGHEST,
            )
            x, index = jax.nn.relu(x + params[f"conv{index}/bias"]), index + 1
        features.append(x)
    return features


def distance(network: str, params: Mapping[str, Any], x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns LPIPS of pairs of images, (B,) float32: 0 for equal ones, larger for more different ones.

    Args:
      network: a name of BACKBONES.
      params: see `param_shapes`.
      x, y: (B,H,W,3) in [-1, 1], at least `min_size` pixels high and wide.
    """
    total = jnp.zeros(x.shape[0])
    for stage, features in enumerate(_features(network, params, jnp.concatenate([x, y]))):
        unit = features / (jnp.sqrt(jnp.sum(features**2, axis=-1, keepdims=True)) + 1e-10)
        one, other = jnp.split(unit, 2)
        total += jnp.mean(jnp.sum((one - other) ** 2 * params[f"head{stage}"], axis=-1), axis=(1, 2))
    return total


def get_distance_fn(network: str, params: Mapping[str, np.ndarray]) -> Callable[[np.ndarray, np.ndarray], float]:
    """Returns d(x, y) of two images, each (H,W,3) or (H,W,1) in [-1, 1]; one channel stands for three equal ones."""
    placed = {name: jnp.asarray(value) for name, value in params.items()}
    compiled = jax.jit(functools.partial(distance, network))

    def measure(x: np.ndarray, y: np.ndarray) -> float:
        one, other = (np.broadcast_to(image, (*image.shape[:2], 3)).astype(np.float32)[None] for image in (x, y))
        return float(compiled(placed, one, other)[0])

    return measure
