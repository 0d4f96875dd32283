"""Ahead-of-time compilation for TPUs that are not there: what a program costs on a chip, and the batch that fits.

The compiler is libtpu's, as on a TPU; it needs a description of the chips and no chip.
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from msm.infra.errors import UserError
from msm.infra.registry import nearest
from msm.planning import hlo

GIB = 2**30
QUICK: dict[str, Any] = {"exec_time_optimization_effort": -1.0}  # the least effort that XLA knows


@dataclasses.dataclass(frozen=True)
class Chip:
    """A generation of TPUs.

    Attributes:
      clock: 1/s, of its matrix units: what their number and size need for the peak that Google publishes.
      peak: bfloat16 operations per second.
      cores: TensorCores of a chip, which names of Cloud TPU slices count for v4 and v5p.
      slice_name: name of a slice of so many cores on Cloud TPU.
      shapes: usual slices.
      options: of the topology. One device for both cores of a v4, as on Cloud TPU.
    """

    clock: float
    peak: float
    cores: int
    slice_name: str
    shapes: tuple[str, ...]
    options: dict[str, str] = dataclasses.field(default_factory=dict)


_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
CHIPS = {
    "v4": Chip(1.05e9, 275e12, 2, "v4", _CUBES, {"chip_config_name": "megacore"}),
    "v5e": Chip(1.5e9, 197e12, 1, "v5litepod", _FLAT),
    "v5p": Chip(1.75e9, 459e12, 2, "v5p", _CUBES),
    "v6e": Chip(1.75e9, 918e12, 1, "v6e", _FLAT),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips to compile for: `chip` describes their generation, `devices` are JAX's, one per chip."""

    name: str
    chip: Chip
    devices: list[Any]

    @property
    def slice_name(self) -> str:
        """As `gcloud --accelerator-type` calls it."""
        return f"{self.chip.slice_name}-{self.chip.cores * len(self.devices)}"


@dataclasses.dataclass(frozen=True)
class Cost:
    """What the compiler says of a program on one chip.

    Attributes:
      flops, bytes_accessed: as XLA counts them, the body of a loop once.
      optimal_seconds: what XLA expects if every operation ran at the chip's full speed, loops once; negative where it
        gives none.
      arguments, outputs, aliased, temporary, code: bytes in HBM; `aliased` is the part of `outputs` that takes the
        place of donated arguments.
      usage: collectives and expected cycles, loops multiplied out.
    """

    flops: float
    bytes_accessed: float
    optimal_seconds: float
    arguments: int
    outputs: int
    aliased: int
    temporary: int
    code: int
    usage: hlo.Usage

    @property
    def peak(self) -> int:
        """Bytes of HBM that the program needs while it runs."""
        return self.arguments + self.outputs - self.aliased + self.temporary + self.code


@dataclasses.dataclass(frozen=True)
class TooLarge:
    """The compiler found no way to fit the program into `available` bytes of HBM; the least it found is `peak`."""

    peak: int
    available: int


def get_topology(name: str) -> Topology:
    """Returns the chips of 'v5e:4x4' and the like. Raises UserError: libtpu missing, or no such topology."""
    known = "; ".join(f"{kind}:{', '.join(chip.shapes)}" for kind, chip in CHIPS.items())
    kind = name.partition(":")[0]
    if kind not in CHIPS:
        raise UserError(f"--topology {name!r}: unknown kind of TPU{nearest(kind, CHIPS)}; known are {known}")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("libtpu is not installed, which compiles for TPUs: pip install -r requirements-tpu.txt")
    # libtpu would ask Google's metadata server what machine this is, and let one process at a time load it.
    os.environ.update(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    os.environ.update(TPU_ACCELERATOR_TYPE="v5litepod-1", TPU_WORKER_HOSTNAMES="localhost", TPU_WORKER_ID="0")
    chip = CHIPS[kind]
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **chip.options).devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--topology {name!r} is refused by libtpu ({reason}); usual ones are {known}") from error
    return Topology(name, chip, list(devices))


def hbm_bytes(topology: Topology) -> int:
    """Bytes of HBM that programs may use on a chip: what the compiler says of a program that is far too large."""
    place = jax.sharding.SingleDeviceSharding(topology.devices[0])
    side = jax.ShapeDtypeStruct((2**20,), jnp.float32, sharding=place)
    found = compile_program(jax.jit(lambda a: jnp.cumsum(a[:, None] * a, axis=0)).lower(side))
    assert isinstance(found, TooLarge), found  # 4 TiB
    return found.available


def compile_program(lowered: jax.stages.Lowered, quick: bool = False) -> Cost | TooLarge:
    """Compiles for the devices that `lowered` is placed on. `quick`: see QUICK."""
    try:
        compiled = lowered.compile(dict(QUICK) if quick else None)
    except jax.errors.JaxRuntimeError as error:
        return read_refusal(str(error), error)
    cost: Any = compiled.cost_analysis()
    memory: Any = compiled.memory_analysis()
    return Cost(
        flops=cost["flops"],
        bytes_accessed=cost["bytes accessed"],
        optimal_seconds=cost.get("optimal_seconds", -1.0),
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        usage=hlo.usage(compiled.as_text() or ""),
    )


def read_refusal(message: str, error: Exception | None = None) -> TooLarge:
    """Reads the compiler's message of a program that does not fit; raises `error` if it is about something else."""
    numbers = r"([0-9.]+)([KMGT]?)"
    for pattern in (rf"\({numbers}\) exceeds available HBM \({numbers}\)", rf"Used {numbers} of {numbers} hbm"):
        if found := re.search(pattern, message):
            units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
            used, available = (float(found[i]) * units[found[i + 1]] for i in (1, 3))
            return TooLarge(int(used), int(available))
    raise error or ValueError(message)


def largest_batch(peak: Callable[[int], tuple[int, bool]], start: int, hbm: int, trials: int = 8) -> tuple[int, int]:
    """Searches the largest batch that fits, with few calls.

    Args:
      peak: peak(batch) -> (bytes needed, whether it fits); bytes grow about linearly with the batch.
      start: the first batch to try.
      hbm: bytes that there are.
      trials: at most so many calls.

    Returns:
      (largest batch seen to fit, 0 if none; smallest batch seen not to fit, 0 if none).
    """
    seen: dict[int, tuple[int, bool]] = {}
    batch = start
    while len(seen) < trials:
        seen[batch] = peak(batch)
        fit, unfit = _bracket(seen)
        if unfit and unfit - fit <= 1:
            break
        batch = _next_batch(seen, fit, unfit, hbm)
    return _bracket(seen)


def _bracket(seen: dict[int, tuple[int, bool]]) -> tuple[int, int]:
    fit = max((n for n, (_, fits) in seen.items() if fits), default=0)
    return fit, min((n for n, (_, fits) in seen.items() if not fits), default=0)


def _next_batch(seen: dict[int, tuple[int, bool]], fit: int, unfit: int, hbm: int) -> int:
    """Where the line through the last two points meets `hbm`; or the middle, where that is not between them."""
    if len(seen) == 1:
        ((n, (used, _)),) = seen.items()
        guess = math.floor(n * hbm / used)
    else:
        (a, (used_a, _)), (b, (used_b, _)) = sorted(seen.items())[-2:]
        slope = (used_b - used_a) / (b - a)
        guess = math.floor(b + (hbm - used_b) / slope) if slope > 0 else 2 * b
    if not unfit:
        return max(fit + 1, min(guess, 8 * fit))
    return guess if fit < guess < unfit else (fit + unfit) // 2
