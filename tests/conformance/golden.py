"""Finds the golden files in the folder named by MSM_GOLDEN, and reads the networks among them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from msm.configs.default import get_config
from msm.exchange.torch_files import read_state_dict
from msm.exchange.torch_import import state_dict_to_params
from msm.models.init import param_shapes
from msm.models.registry import get_model


def golden_files(pattern: str) -> list:
    """Paths for `parametrize`: one skipped case that says why if MSM_GOLDEN is unset, a failing one if it is empty."""
    folder = os.environ.get("MSM_GOLDEN")
    if not folder:
        return [pytest.param(None, marks=pytest.mark.skip(reason="MSM_GOLDEN names no folder of golden files"))]
    found = sorted(Path(folder).glob(pattern))
    return found or [Path(folder) / pattern]  # opening it fails, and names it


def reference_config(network: dict, transform: str):
    """The published experiment's settings around a network of the golden files."""
    config = get_config()
    config.data.image_size = network["image_size"]
    config.transform.name = transform
    for name in ("num_channels", "num_res_blocks", "num_heads", "num_head_channels"):
        if name in network:
            config.model[name] = network[name]
    for name in ("channel_mult", "attention_resolutions"):
        if name in network:
            config.model[name] = tuple(network[name])
    config.denoiser.parametrization, config.denoiser.sandwich, config.schedule.name = "eps", "adjoint", "ddpm"
    return config


def load_network(path: Path):
    """Reads adm_*.npz and the state dict beside it.

    Returns:
      (params, apply, network): apply(params, images (B,H,W,C), time (B,)) -> (B,H,W,C); network is the stored config.
    """
    network = json.loads(str(np.load(path)["config"]))
    config = reference_config(network, "identity")
    model = get_model(config, network["in_channels"])
    template = param_shapes(model, (network["image_size"], network["image_size"], network["in_channels"]))
    params = state_dict_to_params(read_state_dict(path.with_suffix(".pt")), config.model, template)
    return params, lambda p, x, t: model.apply({"params": p}, x, t), network
