"""Finds a network by its config name: every network maps (noisy image, time) to an image of the same shape."""

import importlib
import pkgutil
from collections.abc import Callable

from flax import linen as nn
from ml_collections import ConfigDict

from msm import models
from msm.infra.registry import Registry

MODELS: Registry[Callable[[ConfigDict, int], nn.Module]] = Registry("model")


def get_model(config: ConfigDict, in_channels: int) -> nn.Module:
    """Builds the network `config.model.name` without parameters (see models/init.py for those).

    Args:
      config: experiment settings; only `config.model` and `config.data.image_size` are read.
      in_channels: real channels of the image, in and out: 2 for complex MRI (re, im), 3 for colour.

    Returns:
      A flax.linen module; `apply({"params": p}, x, t)` takes x (B,H,W,in_channels) float32 and t (B,) float32 (a
      timestep or any other noise-level number, fractions allowed) and returns (B,H,W,in_channels) float32.

    Raises:
      UserError: unknown network, or settings that do not fit each other.
    """
    for module in pkgutil.iter_modules(models.__path__):  # every file may register networks
        importlib.import_module(f"{models.__name__}.{module.name}")
    return MODELS[config.model.name](config, in_channels)
