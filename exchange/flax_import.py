"""Reads published Flax checkpoints of NCSN++ (github.com/yang-song/score_sde, score_inverse_problems).

The files are msgpack, written by flax.training.checkpoints: nested tables of names and arrays, which hold no code.
Their names count the layers of each kind in the order in which the network makes them; `layer_names` is the list.

    ours                                     theirs
    fourier/frequencies                      GaussianFourierProjection_0/W
    time_embed_0, time_embed_1, in_conv      Dense_0, Dense_1, Conv_0
    down_*_block_*, *_resample, middle_*     ResnetBlockBigGANpp_0, _1, ...
      in_norm, in_conv, time, out_norm,        GroupNorm_0, Conv_0, Dense_0, GroupNorm_1,
      out_conv, skip                           Conv_1, Conv_2
    *_attention_*: norm, qkv, proj_out       AttnBlockpp_0, ...: GroupNorm_0, NIN_0 NIN_1 NIN_2, NIN_3 (each W and b)
    down_*_input                             Combine_*/Conv_0 (input_skip), Downsample_*/Conv2d_0 (residual)
    up_*_out_norm, up_*_out_conv, out_*      GroupNorm_0, Conv_1, ...
    up_*_grow_*                              GroupNorm_0, Conv_1; then Upsample_*/Conv2d_0
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from msm.exchange.torch_import import MOST_TOLD
from msm.infra.errors import UserError
from msm.models.ncsnpp import NCSNpp

RES_BLOCK = {
    "in_norm": "GroupNorm_0",
    "in_conv": "Conv_0",
    "time": "Dense_0",
    "out_norm": "GroupNorm_1",
    "out_conv": "Conv_1",
    "skip": "Conv_2",
}
ATTENTION = {"norm": "GroupNorm_0", "proj_out": "NIN_3"}
QKV = ("NIN_0", "NIN_1", "NIN_2")
NIN_LEAVES = {"kernel": "W", "bias": "b"}


def layer_names(model: NCSNpp) -> dict[str, str]:
    """Our name of each part of the network -> theirs, e.g. up_1_resample -> ResnetBlockBigGANpp_17."""
    counts: Counter[str] = Counter()
    names: dict[str, str] = {}

    def made(ours: str, kind: str, inside: str = "") -> None:
        names[ours] = f"{kind}_{counts[kind]}{inside}"
        counts[kind] += 1

    levels, last = range(len(model.channel_mult)), len(model.channel_mult) - 1
    if model.embedding == "fourier":
        made("fourier", "GaussianFourierProjection")
    for ours, kind in (("time_embed_0", "Dense"), ("time_embed_1", "Dense"), ("in_conv", "Conv")):
        made(ours, kind)
    for level in levels:
        for i in range(model.num_res_blocks):
            made(f"down_{level}_block_{i}", "ResnetBlockBigGANpp")
            if level in model.attention_levels:
                made(f"down_{level}_attention_{i}", "AttnBlockpp")
        if level < last:
            made(f"down_{level}_resample", "ResnetBlockBigGANpp")
            if model.progressive_input == "input_skip":
                made(f"down_{level}_input", "Combine", "/Conv_0")
            elif model.progressive_input == "residual":
                made(f"down_{level}_input", "Downsample", "/Conv2d_0")
    made("middle_block_0", "ResnetBlockBigGANpp")
    made("middle_attention", "AttnBlockpp")
    made("middle_block_1", "ResnetBlockBigGANpp")
    for level in reversed(levels):
        for i in range(model.num_res_blocks + 1):
            made(f"up_{level}_block_{i}", "ResnetBlockBigGANpp")
        if level in model.attention_levels:
            made(f"up_{level}_attention", "AttnBlockpp")
        if model.progressive == "output_skip" or (model.progressive == "residual" and level == last):
            end = "out" if model.progressive == "output_skip" else "grow"
            made(f"up_{level}_{end}_norm", "GroupNorm")
            made(f"up_{level}_{end}_conv", "Conv")
        elif model.progressive == "residual":
            made(f"up_{level}_grow_conv", "Upsample", "/Conv2d_0")
        if level:
            made(f"up_{level}_resample", "ResnetBlockBigGANpp")
    if model.progressive != "output_skip":
        made("out_norm", "GroupNorm")
        made("out_conv", "Conv")
    return names


def published_names(model: NCSNpp, path: tuple[str, ...]) -> tuple[str, ...]:
    """Their names of one of our arrays, e.g. (in_conv, kernel) -> (Conv_0/kernel,); three for the fused q, k and v."""
    part, *layer, leaf = path
    theirs = layer_names(model)[part]
    if not layer:
        if leaf == "frequencies":
            leaf = "W"
        elif theirs.endswith("/Conv2d_0") and leaf == "kernel":
            leaf = "weight"
        return (f"{theirs}/{leaf}",)
    if layer[0] == "qkv":
        return tuple(f"{theirs}/{nin}/{NIN_LEAVES[leaf]}" for nin in QKV)
    if "attention" in part:
        leaf = leaf if layer[0] == "norm" else NIN_LEAVES[leaf]
        return (f"{theirs}/{ATTENTION[layer[0]]}/{leaf}",)
    return (f"{theirs}/{RES_BLOCK[layer[0]]}/{leaf}",)


def read_flax_checkpoint(path: str | Path, key: str = "params_ema") -> tuple[dict[str, np.ndarray], int]:
    """Reads the arrays of a Flax checkpoint by name, a/b/c, and the training steps behind it (0 if it does not say).

    Args:
      path: the file, e.g. checkpoint_26.
      key: entry with the parameters, '/' between nested ones; theirs are params_ema and optimizer/target.

    Raises:
      UserError: the file is missing or damaged, or has no such entry of arrays.
    """
    try:
        state = flax.serialization.msgpack_restore(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read ({error.strerror})") from error
    except Exception as error:  # msgpack and numpy raise a dozen kinds for damaged files
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"checkpoint {path} is no readable Flax file ({what})") from error
    step = _step(path, state.get("step", 0) if isinstance(state, dict) else 0)
    for part in key.split("/") if key else ():
        if not isinstance(state, dict) or part not in state:
            found = ", ".join(map(str, list(state)[:5]))[:200] if isinstance(state, dict) else type(state).__name__
            raise UserError(f"checkpoint {path} has no entry {key!r} (found: {found})")
        state = state[part]
    leaves: dict[tuple, Any] = dict(flatten_dict(state)) if isinstance(state, dict) else {("",): None}
    arrays = {"/".join(map(str, names)): value for names, value in leaves.items()}
    wrong = [name for name, value in arrays.items() if not _is_of_numbers(value)]
    if wrong:
        raise UserError(f"checkpoint {path}: entry {key!r} is no tree of arrays ({wrong[0][:200]!r} is none)")
    with np.errstate(over="ignore"):  # who imports them refuses what is not finite
        return {name: np.asarray(value, np.float32) for name, value in arrays.items()}, step


def _is_of_numbers(value: Any) -> bool:
    """Whether a leaf is an array of real numbers: bfloat16 is one of kind 'V' to numpy."""
    return isinstance(value, np.ndarray) and (value.dtype.kind in "fiu" or value.dtype.name == "bfloat16")


def _step(path: str | Path, told: Any) -> int:
    """The training steps that a file tells. Raises UserError for anything but one whole number."""
    if isinstance(told, int | np.integer | np.ndarray) and np.ndim(told) == 0:
        step = np.asarray(told)
        if step.dtype.kind in "iu" and 0 <= int(step) < 2**63:
            return int(step)
    raise UserError(f"checkpoint {path}: its step is {str(told)[:50]!r}, not a number of training steps")


def flax_to_params(arrays: Mapping[str, np.ndarray], model: NCSNpp, template: Mapping[str, Any]) -> dict[str, Any]:
    """Maps published arrays to our parameters; every name and shape must fit.

    Args:
      arrays: name -> array, as `read_flax_checkpoint` returns them.
      model: the network.
      template: its parameter tree; leaves need only `.shape`.

    Raises:
      UserError: names or shapes that do not fit, in one message with their number and the first of them.
    """
    problems, params, used = [], {}, set()
    flat: dict[tuple[str, ...], Any] = dict(flatten_dict(template))
    for path, leaf in flat.items():
        names = published_names(model, path)
        used.update(names)
        missing = [name for name in names if name not in arrays]
        problems += [f"missing {name}" for name in missing]
        if missing:
            continue
        values = [arrays[name] for name in names]
        if len(leaf.shape) == 2 and values[0].ndim == 4 and values[0].shape[:2] == (1, 1):  # 1x1 convolutions
            values = [value[0, 0] for value in values]
        expected = (*leaf.shape[:-1], leaf.shape[-1] // len(names))
        wrong = [(name, value.shape) for name, value in zip(names, values, strict=True) if value.shape != expected]
        problems += [f"{name} has shape {shape}, the network's is {expected}" for name, shape in wrong]
        if not wrong:
            params[path] = np.concatenate(values, axis=-1).astype(np.float32)
    problems += [f"unexpected {name}" for name in arrays if name not in used]
    if problems:
        told = problems[:MOST_TOLD] + [f"and {len(problems) - MOST_TOLD} more"] * (len(problems) > MOST_TOLD)
        ours = ", ".join(
            f"{key}={getattr(model, key)}"
            for key in (
                "num_channels",
                "channel_mult",
                "num_res_blocks",
                "progressive",
                "progressive_input",
                "embedding",
            )
        )
        raise UserError(
            f"the checkpoint does not fit the network of {ours}; {len(problems)} differences: {'; '.join(told)}"
        )
    return unflatten_dict(params)
