"""Plans a run on a TPU pod without one: compiles the real programs for the chips and prints what the compiler says.

  python tools/tpu_plan.py --config=configs/fastmri256_msm_r4.py --topology=v5e:4x4 --per_device_batch=4
  python tools/tpu_plan.py --config=configs/ffhq128_msm_p04.py --topology=v5p:2x2x4 --per_device_batch=8 --search \
      --programs=train --config.model.dtype=bfloat16 --log=plans.jsonl

Needs libtpu (pip install -r requirements-tpu.txt), no TPU and no data. A full-size program takes minutes to compile and
a few GB of memory; --quick takes a small part of it, see docs/how-to/pods.md.
"""

import dataclasses
import json
import os
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

os.environ["JAX_PLATFORMS"] = "cpu"  # the TPUs are described, not used

from msm.configs.rules import check as config_check
from msm.configs.rules import known_settings
from msm.infra import command_line
from msm.infra.errors import UserError
from msm.planning import ahead, programs
from msm.planning.ahead import GIB, Cost, TooLarge, Topology

FLAGS = flags.FLAGS

NEEDED = {"train": {"all-reduce"}}  # collectives by program: the gradients' mean; samplers need none
HEADS = (
    "config", "program", "slice", "dtype", "remat", "per chip", "HBM GiB", "TFLOP", "GiB accessed", "s", "images/s",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Trial:
    """One compilation: of which program, for how many examples per chip, what came out, and what it took here."""

    program: str
    turns: int
    batch: int
    found: Cost | TooLarge
    quick: bool
    seconds: float

    @property
    def fits(self) -> bool:
        return isinstance(self.found, Cost)


def compile_one(name: str, config: ConfigDict, topology: Topology, batch: int, quick: bool) -> Trial:
    """Lowers and compiles one program for `batch` examples per chip."""
    config = config.copy_and_resolve_references()
    config.training.batch_size = batch * len(topology.devices)
    begin = time.monotonic()
    program = programs.lower(name, config, topology.devices, batch)
    found = ahead.compile_program(program.lowered, quick)
    return Trial(name, program.turns, batch, found, quick, time.monotonic() - begin)


def describe(trial: Trial, topology: Topology, hbm: int) -> str:
    """The report of one compilation, several lines."""
    chips = len(topology.devices)
    head = f"{trial.program}: {trial.batch} per chip, {trial.batch * chips} in all"
    took = f"  compiled in    {trial.seconds:,.0f} s{' (--quick)' if trial.quick else ''}"
    if isinstance(trial.found, TooLarge):
        return "\n".join(
            [f"{head}: does not fit", f"  HBM            {gib(trial.found.peak)} needed, {gib(hbm)} per chip", took]
        )
    cost = trial.found
    turn = f" (one of the loop's {trial.turns} turns)" if trial.turns > 1 else ""
    optimal = f"{cost.optimal_seconds:,.3f} s{turn}" if cost.optimal_seconds >= 0 else "not given"
    lines = [
        head,
        f"  FLOPs          {cost.flops / 1e12:,.3f} T per chip{turn}",
        f"  bytes accessed {gib(cost.bytes_accessed)} per chip{turn}",
        f"  HBM            {gib(cost.peak)} of {gib(hbm)} per chip: {gib(cost.arguments)} arguments, "
        f"{gib(cost.temporary)} temporary, {gib(cost.outputs - cost.aliased)} results, {gib(cost.code)} code",
        f"  collectives    {collectives(cost)}",
        f"  XLA expects    {seconds(cost, topology):,.3f} s ({cost.usage.cycles:,} cycles at "
        f"{topology.chip.clock / 1e9:g} GHz, without communication), {utilisation(trial, topology):.0%} of the peak",
        f"  at best        {optimal}, every operation at full speed (XLA's optimal_seconds)",
        took,
    ]
    needless = cost.usage.collectives.keys() - NEEDED.get(trial.program, set())
    if needless:
        lines.append(f"  note           {', '.join(sorted(needless))}: devices that share a batch need not do this")
    if cost.usage.unread_loops:
        lines.append(f"  note           {cost.usage.unread_loops} loops of unknown length count once in XLA's estimate")
    if cost.usage.unknown:
        lines.append(f"  note           XLA knows no cycles of {cost.usage.unknown} operations: it takes longer")
    return "\n".join(lines)


def gib(count: float) -> str:
    return f"{count / GIB:,.2f} GiB"


def collectives(cost: Cost) -> str:
    """'all-reduce 1 x (0.39 GiB)', or 'none'."""
    kinds = cost.usage.collectives
    return ", ".join(f"{kind} {t.count} x ({gib(t.bytes)})" for kind, t in kinds.items()) or "none"


def seconds(cost: Cost, topology: Topology) -> float:
    """What XLA's cost model expects of a run of the program."""
    return cost.usage.cycles / topology.chip.clock


def utilisation(trial: Trial, topology: Topology) -> float:
    """FLOPs of all turns over what the chip's matrix units could do in the expected time."""
    assert isinstance(trial.found, Cost)
    return trial.turns * trial.found.flops / (seconds(trial.found, topology) * topology.chip.peak)


def record(config_name: str, config: ConfigDict, topology: Topology, hbm: int, trial: Trial) -> dict[str, Any]:
    """One line of --log."""
    cost = trial.found
    row = {
        "config": config_name,
        "topology": topology.name,
        "slice": topology.slice_name,
        "chips": len(topology.devices),
        "program": trial.program,
        "dtype": config.model.dtype,
        "remat": config.model.remat,
        "batch": trial.batch,
        "quick": trial.quick,
        "fits": trial.fits,
        "peak": trial.found.peak,
        "hbm": hbm,
        "compile_seconds": round(trial.seconds),
        "host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    if isinstance(cost, Cost):
        row |= {"flops": cost.flops, "bytes_accessed": cost.bytes_accessed, "turns": trial.turns}
        row["optimal_seconds"] = cost.optimal_seconds
        row |= {"seconds": seconds(cost, topology), "unknown": cost.usage.unknown}
        row |= {"utilisation": utilisation(trial, topology)}
        row["collectives"] = {kind: dataclasses.asdict(t) for kind, t in cost.usage.collectives.items()}
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Lines of --log as a Markdown table, in their order."""
    lines = ["| " + " | ".join(HEADS) + " |", "|---" * len(HEADS) + "|"]
    for row in rows:
        memory = f"{row['peak'] / GIB:.1f} of {row['hbm'] / GIB:.2f}"
        values = ["does not fit", "", "", ""]
        if row["fits"]:
            rate = row["batch"] * row["chips"] / row["seconds"]
            flops, accessed = row["flops"] / 1e12, row["bytes_accessed"] / GIB
            more, less = (">", "<") if row["unknown"] else ("", "")  # operations whose time XLA does not know
            values = [f"{flops:.2f}", f"{accessed:.1f}", f"{more}{row['seconds']:.3g}", f"{less}{rate:.3g}"]
        known = [row[name] for name in ("config", "program", "slice", "dtype")]
        known += ["yes" if row["remat"] else "no", str(row["batch"]), memory]
        lines.append("| " + " | ".join([*known, *values]) + " |")
    return "\n".join(lines)


def find_largest(trial_of: Callable[[int], Trial], start: int, unit: int, hbm: int, trials: int) -> str:
    """Compiles multiples of `unit` until the largest batch is found or `trials` are spent; what is known, in a line."""

    def peak(units: int) -> tuple[int, bool]:
        trial = trial_of(units * unit)
        return trial.found.peak, trial.fits

    fits, fails = ahead.largest_batch(peak, start // unit, hbm, trials)
    beyond = f"{fails * unit} does not fit" if fails else "none was seen not to fit"
    return f"the largest batch per chip seen to fit is {fits * unit}; {beyond}"


def check_flags(config: ConfigDict, names: list[str], batch: int, log: str) -> None:
    """Raises UserError for flags that do not fit the config or the disk, before anything is compiled."""
    config_check.check(config)
    for name in names:
        programs.PROGRAMS[name]
    parts = config.optim.accumulate
    if "train" in names and batch % parts:
        raise UserError(f"--per_device_batch is {batch}: it must be a multiple of optim.accumulate ({parts})")
    try:
        if log:
            open(log, "a").close()
    except OSError as error:
        raise UserError(f"--log {log!r} cannot be written ({error.strerror})") from error


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    config = FLAGS.config
    name = Path(config_flags.get_config_filename(FLAGS["config"])).name.replace(".py", "")  # with its variants
    check_flags(config, FLAGS.programs, FLAGS.per_device_batch, FLAGS.log)
    topology = ahead.get_topology(FLAGS.topology or "")
    hbm = ahead.hbm_bytes(topology)
    print(
        f"{topology.name}: {len(topology.devices)} chips ({topology.slice_name}), programs have {gib(hbm)} of HBM each"
    )
    rows = []

    def trial_of(program: str, batch: int) -> Trial:
        trial = compile_one(program, config, topology, batch, FLAGS.quick)
        rows.append(record(name, config, topology, hbm, trial))
        if FLAGS.log:
            with open(FLAGS.log, "a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
        print(describe(trial, topology, hbm), flush=True)
        return trial

    for program in FLAGS.programs:
        if not FLAGS.search:
            trial_of(program, FLAGS.per_device_batch)
            continue
        unit = config.optim.accumulate if program == "train" else 1
        print(f"{program}: {find_largest(partial(trial_of, program), FLAGS.per_device_batch, unit, hbm, FLAGS.trials)}")
    print("\n" + table(rows))


if __name__ == "__main__":  # other tools define the same flags, and tests import several
    config_flags.DEFINE_config_file("config", None, "configs/NAME.py or configs/NAME.py:VARIANT.")
    flags.DEFINE_string("topology", None, "Kind and shape of the slice, e.g. v5e:4x4 or v4:2x2x4.")
    flags.DEFINE_integer("per_device_batch", 1, "Examples per chip and step.", lower_bound=1)
    flags.DEFINE_list("programs", ["train", "solve"], "What to compile: train, solve, sample.")
    flags.DEFINE_bool("search", False, "Look for the largest batch per chip that fits, by further compilations.")
    flags.DEFINE_integer("trials", 6, "With --search: at most so many compilations per program.", lower_bound=2)
    flags.DEFINE_bool("quick", False, "Ask the compiler for its least effort: sooner done, its seconds too many.")
    flags.DEFINE_string("log", "", "File that every compilation is appended to, one JSON line each.")
    flags.mark_flags_as_required(["config", "topology"])
    command_line.start(main, settings=known_settings)
