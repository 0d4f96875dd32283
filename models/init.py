"""Initial network parameters, drawn by numpy: a full-size network in a second or two, not in half a minute."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from msm.models import layers


def param_shapes(model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Returns the parameter tree as ShapeDtypeStructs without computing anything; image_shape is (H,W,C)."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    time = jax.ShapeDtypeStruct((1,), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image, time)["params"]


def _generator(seed: int, path: tuple[str, ...]) -> np.random.Generator:
    """Random stream of one parameter: adding a layer leaves every other layer's initial values as they were."""
    digest = hashlib.sha256("/".join(path).encode()).digest()
    return np.random.Generator(np.random.SFC64([seed, *np.frombuffer(digest, np.uint32).tolist()]))


def init_params(model: nn.Module, seed: int, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Draws initial parameters as the published network does.

    Kernels and biases are uniform within the network's `initial_bounds`; without, +-1/sqrt(fan_in), PyTorch's default.
    Normalisation scales are 1 and biases 0, the layers named in `layers.ZERO_INIT_LAYERS` (last convolution of a block,
    attention projection, output) are 0, frequencies of Fourier features normal with the network's `fourier_scale`.

    Args:
      model: network from `get_model`.
      seed: non-negative integer; equal seeds give equal parameters on every machine.
      image_shape: (H,W,C) of one image; only C changes the result.

    Returns:
      Nested dict of float32 numpy arrays for `model.apply({"params": ...}, ...)`.
    """
    shapes: dict[tuple[str, ...], Any] = dict(flatten_dict(param_shapes(model, image_shape)))
    bounds = getattr(model, "initial_bounds", layers.initial_bounds)
    params = {}
    for path, leaf in shapes.items():
        kernel = shapes.get((*path[:-1], "kernel"))
        if path[-1] == "frequencies":
            draws = _generator(seed, path).standard_normal(leaf.shape, np.float32)
            params[path] = getattr(model, "fourier_scale", 1.0) * draws
            continue
        if kernel is None:  # normalisation
            params[path] = np.full(leaf.shape, 1.0 if path[-1] == "scale" else 0.0, np.float32)
            continue
        bound = bounds(path[-2], kernel.shape)[path[-1] == "bias"]
        values = np.zeros(leaf.shape, np.float32)
        if bound:
            _generator(seed, path).random(out=values, dtype=np.float32)
            values *= 2 * bound
            values -= bound
        params[path] = values
    return unflatten_dict(params)
