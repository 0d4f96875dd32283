"""Prints what a config's network costs before anything runs: parameters by layer, FLOPs, memory. Seconds at any size.

  python tools/inspect_config.py --config=configs/brain64_msm.py
  python tools/inspect_config.py --config=configs/brain64_msm.py --config.model.remat=True --batch_size=4

Nothing is compiled or executed: shapes come from tracing, FLOPs from the traced program.
"""

import dataclasses
import os
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

os.environ["JAX_PLATFORMS"] = (
    "cpu"  # the cost analysis of a traced program exists for this backend, and needs no device
)

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jax.extend.core import Literal

from msm.configs.rules import check as config_check
from msm.configs.rules import known_settings
from msm.infra import command_line
from msm.models.init import param_shapes
from msm.models.levels import level_sizes
from msm.models.registry import get_model
from msm.operators.shape import image_size
from msm.operators.transform import get_transform

_CONFIG = config_flags.DEFINE_config_file("config", None, "configs/NAME.py or configs/NAME.py:VARIANT.")
_BATCH = flags.DEFINE_integer("batch_size", 0, "Images per device; 0: the config's training.batch_size.", lower_bound=0)

MIB = 2**20
# Images that pass through the network for each image of a batch; 1 for all other losses. `msm_sure` denoises the
# measurement, a shifted copy of it, and the noised one: all three are kept for the backward pass.
PASSES = {"msm_sure": 3}


@dataclasses.dataclass(frozen=True)
class Summary:
    """Cost of a network.

    Attributes:
      shapes: (layer path, parameter name) -> shape.
      gflop: floating-point operations of a forward pass of one image, in 10^9; a multiply-add counts as two.
      saved_bytes: intermediate results that a backward pass of one image needs, before the compiler merges any: an
        upper estimate of what a training step holds per image.
    """

    shapes: dict[tuple[str, str], tuple[int, ...]]
    gflop: float
    saved_bytes: int

    @property
    def num_params(self) -> int:
        return sum(_size(shape) for shape in self.shapes.values())


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def _saved_bytes(model: nn.Module, params, image, time) -> int:
    """Bytes that the backward pass keeps of the forward pass; every array once, without parameters and input."""

    def kept(params, image, time):
        return jax.tree.leaves(jax.vjp(lambda p: model.apply({"params": p}, image, time), params)[1])

    program = jax.make_jaxpr(kept)(params, image, time).jaxpr
    results = {var for var in program.outvars if not isinstance(var, Literal)} - set(program.invars)
    return sum(_size(var.aval.shape) * var.aval.dtype.itemsize for var in results)


def summarize(config: ConfigDict) -> Summary:
    """Traces the network of `config` on one image of `config.data.image_size`; raises UserError as `get_model` does."""
    channels = get_transform(config).channels
    shape = (*image_size(config), channels)
    model = get_model(config, channels)
    params = param_shapes(model, shape)
    image, time = jax.ShapeDtypeStruct((1, *shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    cost: Any = jax.jit(lambda p, x, t: model.apply({"params": p}, x, t)).lower(params, image, time).cost_analysis()
    leaves: dict[tuple[str, ...], Any] = dict(flatten_dict(params))
    flat = {("/".join(path[:-1]), path[-1]): leaf.shape for path, leaf in leaves.items()}
    return Summary(flat, cost["flops"] / 1e9, _saved_bytes(model, params, image, time))


def report(config: ConfigDict, summary: Summary, batch_size: int) -> str:
    """Formats the parameter table, the levels and the totals as text."""
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    for (layer, name), shape in summary.shapes.items():
        layers.setdefault(layer, {})[name] = shape
    width = max(map(len, layers))
    lines = []
    for layer, shapes in layers.items():
        text = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in sorted(shapes.items(), reverse=True))
        lines.append(f"{layer:{width}}  {sum(map(_size, shapes.values())):>12,}  {text}")
    lines += ["", *_level_lines(config.model, image_size(config)), "", *_total_lines(config, summary, batch_size)]
    return "\n".join(lines)


def _level_lines(model: ConfigDict, image_size: tuple[int, int]) -> list[str]:
    rows, columns = (level_sizes(size, model.patch_size, len(model.channel_mult)) for size in image_size)
    sizes = level_sizes(image_size, model.patch_size, len(model.channel_mult))
    wanted = tuple(model.attention_resolutions)
    lines = []
    for height, width, size, mult in zip(rows, columns, sizes, model.channel_mult, strict=True):
        attention = ", attention" if size in wanted else ""
        lines.append(f"feature maps {height}x{width}: {model.num_channels * mult} channels{attention}")
    unused = [str(size) for size in wanted if size not in sizes]
    if unused:
        lines.append(f"note: model.attention_resolutions {', '.join(unused)}: no feature map has this size, no effect")
    return lines


def _total_lines(config: ConfigDict, summary: Summary, batch_size: int) -> list[str]:
    params = summary.num_params * 4 / MIB
    passes, parts = PASSES.get(config.loss.name, 1), config.optim.accumulate
    saved = passes * summary.saved_bytes / MIB
    step = 3 * passes * batch_size * summary.gflop
    own = (5 + (parts > 1)) * params  # optim.accumulate sums the gradients of its parts
    total = own + batch_size / parts * saved
    times = f"{3 * passes} forward passes" + (f", as loss.name {config.loss.name!r} takes {passes}" * (passes > 1))
    at_once = f"{batch_size} images" + (f", {batch_size // parts} at a time (optim.accumulate)" * (parts > 1))
    return [
        f"parameters       {summary.num_params:,} ({params:,.1f} MiB in float32)",
        f"forward pass     {summary.gflop:,.2f} GFLOP per image",
        f"training step    {step:,.1f} GFLOP for {batch_size} images ({times})",
        f"training memory  at most about {total:,.0f} MiB for {at_once}: {own:,.0f} for parameters, "
        f"EMA, two Adam moments and gradients, {saved:,.1f} per image for the backward pass",
    ]


def main(argv: list[str]) -> None:
    del argv
    config = _CONFIG.value
    config_check.check(config)
    print(report(config, summarize(config), _BATCH.value or config.training.batch_size))


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    command_line.start(main, settings=known_settings)
