"""Maps PyTorch's names and layouts of the ADM U-Net to ours, and back; `torch_files.py` reads and writes the files."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from msm.infra.errors import UserError

# Our layer name inside a block -> the reference's.
LAYER_NAMES = {
    "in_norm": "in_layers.0",
    "in_conv": "in_layers.2",
    "time": "emb_layers.1",
    "out_norm": "out_layers.0",
    "out_conv": "out_layers.3",
    "skip": "skip_connection",
    "norm": "norm",
    "qkv": "qkv",
    "proj_out": "proj_out",
}
OUTPUT_NAMES = {"out_norm": "out.0", "out_conv": "out.2"}
KERNEL_DIMS = {"skip": 2, "qkv": 1, "proj_out": 1}  # 1x1 convolutions there (2-D or 1-D) that are linear maps here

MOST_TOLD = 20  # differences that an error lists; a wrong network has hundreds


def _reference_name(path: tuple[str, ...]) -> str:
    """Our path -> the reference's name: (input_blocks_1_0, in_conv, bias) -> input_blocks.1.0.in_layers.2.bias."""
    *blocks, layer, leaf = path
    if blocks:
        layers = [re.sub(r"_(\d+)", r".\1", blocks[0]), LAYER_NAMES[layer]]
    else:
        layers = [OUTPUT_NAMES.get(layer) or re.sub(r"_(\d+)", r".\1", layer)]
    return ".".join([*layers, "bias" if leaf == "bias" else "weight"])


def _to_torch(path: tuple[str, ...], value: np.ndarray) -> np.ndarray:
    """Our array layout -> PyTorch's: (kh,kw,in,out) -> (out,in,kh,kw); (in,out) -> (out,in[,1[,1]])."""
    if path[-1] != "kernel":
        return value
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1)
    return value.T.reshape(value.shape[::-1] + (1,) * KERNEL_DIMS.get(path[-2], 0))


def _from_torch(path: tuple[str, ...], value: np.ndarray) -> np.ndarray:
    """Inverse of `_to_torch`."""
    if path[-1] != "kernel":
        return value
    if value.ndim == 4 and path[-2] not in KERNEL_DIMS:
        return value.transpose(2, 3, 1, 0)
    return value.reshape(value.shape[:2]).T


def drop_variances(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Keeps the first half of the output channels: a network saved with `learn_sigma` predicts (noise, variance).

    Raises UserError if there is no output layer, or not an even number of channels.
    """
    out = {name: np.asarray(state_dict[name]) for name in ("out.2.weight", "out.2.bias") if name in state_dict}
    if len(out) < 2 or any(value.ndim < 1 or value.shape[0] % 2 for value in out.values()):
        found = ", ".join(f"{name} {value.shape}" for name, value in out.items()) or "no out.2.weight"
        raise UserError(f"the state dict has no output of noise and variance, which halves into two ({found})")
    return {**state_dict, **{name: value[: value.shape[0] // 2] for name, value in out.items()}}


def state_dict_to_params(
    state_dict: Mapping[str, np.ndarray], model_config: ConfigDict, params_template: Mapping[str, Any]
) -> dict[str, Any]:
    """Maps a reference state dict to our parameters.

    Args:
      state_dict: name -> array, as `read_state_dict` returns it.
      model_config: `config.model` of the template; only named in errors, beside what the state dict tells of its own.
      params_template: our parameter tree of the same network; leaves need only `.shape` (see `init.param_shapes`).

    Returns:
      The tree of `params_template` with float32 numpy leaves.

    Raises:
      UserError: names or shapes that do not fit, in one message with their number and the first of them.
    """
    template: dict[tuple[str, ...], Any] = dict(flatten_dict(params_template))
    names = {path: _reference_name(path) for path in template}
    problems = [f"missing {name}" for name in names.values() if name not in state_dict]
    problems += [f"unexpected {name}" for name in state_dict if name not in set(names.values())]
    params = {}
    for path, name in names.items():
        if name not in state_dict:
            continue
        expected = _to_torch(path, np.empty(template[path].shape, np.bool_)).shape
        value = np.asarray(state_dict[name])
        if value.shape != expected:
            problems.append(f"{name} has shape {value.shape}, the network's is {expected}")
        else:
            params[path] = np.ascontiguousarray(_from_torch(path, value), np.float32)
    if problems:
        keys = ("num_channels", "channel_mult", "num_res_blocks", "attention_resolutions", "patch_size")
        ours = ", ".join(f"model.{key}={model_config[key]}" for key in keys)
        told = problems[:MOST_TOLD] + [f"and {len(problems) - MOST_TOLD} more"] * (len(problems) > MOST_TOLD)
        raise UserError(
            f"the state dict does not fit the network of {ours}{_saved_with(state_dict)}; "
            f"{len(problems)} differences: {'; '.join(told)}"
        )
    return unflatten_dict(params)


def _saved_with(state_dict: Mapping[str, np.ndarray]) -> str:
    """What a state dict tells of its own network, for an error message."""
    names = ("time_embed.0.weight", "input_blocks.0.0.weight", "out.2.bias")
    embedding, first, last = (np.shape(state_dict.get(name, ())) for name in names)
    if (len(embedding), len(first), len(last)) != (2, 4, 1):
        return "; the file holds no ADM U-Net"
    width, channels, outputs = embedding[1], first[1], last[0]
    text = f"; the file was saved with num_channels={width}, {channels} channels in and {outputs} out"
    return text + (" (learn_sigma: it predicts variances too, which can be dropped)" if outputs == 2 * channels else "")


def params_to_state_dict(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Maps our parameters to the reference's names and layouts: the exact inverse of `state_dict_to_params`."""
    flat: dict[tuple[str, ...], Any] = dict(flatten_dict(jax.tree.map(np.asarray, params)))
    return {_reference_name(path): np.ascontiguousarray(_to_torch(path, v)) for path, v in flat.items()}
