"""Reads a program that XLA compiled for TPUs: which collectives it runs, and the cycles that the compiler expects."""

import collections
import dataclasses
import re
from collections.abc import Iterator

COLLECTIVES = (
    "all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute", "collective-broadcast",
    "ragged-all-to-all",
)  # fmt: skip
BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}  # all other types end in their number of bits

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|bf16|[a-z]+[0-9]+(?:e[0-9]+m[0-9]+[a-z]*)?)\[([0-9,]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"?([0-9]+)')
_NO_ESTIMATE = 2**63 - 1  # stands for the cycles of an operation that the cost model does not know


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: `name = type opcode(rest`, where `rest` holds operands and attributes."""

    name: str
    type: str
    opcode: str
    rest: str

    def called(self, attribute: str) -> str | None:
        """The computation that an attribute such as `body` names."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.rest)
        return found[1] if found else None


@dataclasses.dataclass(frozen=True)
class Traffic:
    """How often collectives of one kind run, and the bytes of their results on one device."""

    count: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Usage:
    """What a program does, loops multiplied out.

    Attributes:
      collectives: by kind.
      cycles: sum of the cycles that the compiler's cost model expects of each operation; it has none for collectives
        and for copies that run beside the computation.
      unread_loops: loops whose number of turns could not be read; they count once.
      unknown: how often operations run that the cost model does not know; `cycles` lacks theirs.
    """

    collectives: dict[str, Traffic]
    cycles: int
    unread_loops: int
    unknown: int = 0


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The computations of `compiled.as_text()` by name, and the name of the one that the program starts with.

    Raises ValueError if there is none.
    """
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (found := _INSTRUCTION.match(line)):
            current.append(Instruction(*found.groups()))
    if not entry:
        raise ValueError("the text has no ENTRY computation")
    return computations, entry


def num_bytes(type_text: str) -> int:
    """Bytes of an array type such as f32[8,128]{1,0}, or of all arrays of a tuple type; layouts do not count."""
    total = 0
    for name, shape in _ARRAY.findall(type_text):
        bits = BITS.get(name) or int(re.search(r"[0-9]+", name)[0])  # pyright: ignore[reportOptionalSubscript]
        size = 1
        for n in filter(None, shape.split(",")):
            size *= int(n)
        total += size * bits // 8
    return total


def usage(text: str) -> Usage:
    """Counts collectives and expected cycles of a compiled program; loops as often as their conditions say."""
    computations, entry = parse(text)
    counts, sizes = collections.Counter(), collections.Counter()
    cycles, unread, unknown = 0, 0, 0
    for instruction, times, fused in _walk(computations, entry, 1, False):
        kind = instruction.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            counts[kind] += max(times, 1)
            sizes[kind] += max(times, 1) * _result_bytes(instruction, kind)
        if instruction.opcode == "while" and _turns(instruction, computations) is None:
            unread += 1
        if not fused and (found := _CYCLES.search(instruction.rest)):
            if int(found[1]) == _NO_ESTIMATE:
                unknown += times
            else:
                cycles += times * int(found[1])
    return Usage({kind: Traffic(counts[kind], sizes[kind]) for kind in sorted(counts)}, cycles, unread, unknown)


def _walk(
    computations: dict[str, list[Instruction]], name: str, times: int, fused: bool
) -> Iterator[tuple[Instruction, int, bool]]:
    """Yields each instruction that runs, how often, and whether inside a fusion, whose own line has the cycles."""
    for instruction in computations.get(name, ()):
        yield instruction, times, fused
        if instruction.opcode == "while":
            turns = _turns(instruction, computations)
            inside = [("body", times * (1 if turns is None else turns), fused)]
        elif instruction.opcode in ("fusion", "async-start", "call"):
            inside = [(attribute, times, True) for attribute in ("calls", "to_apply")]
        else:
            inside = []
        for attribute, repeated, hidden in inside:
            if called := instruction.called(attribute):
                yield from _walk(computations, called, repeated, hidden)


def _turns(loop: Instruction, computations: dict[str, list[Instruction]]) -> int | None:
    """How often a loop that counts from 0 up to a constant turns: what jax.lax.scan becomes. None for other loops."""
    known = re.search(r'"known_trip_count":\{"n":"([0-9]+)"', loop.rest)
    if known:
        return int(known[1])
    condition = computations.get(loop.called("condition") or "", [])
    if not condition or condition[-1].opcode != "compare" or "direction=LT" not in condition[-1].rest:
        return None
    operands = re.findall(r"%([\w.\-]+)", condition[-1].rest.split(")")[0])
    constants = {i.name: i.rest for i in condition if i.opcode == "constant"}
    limit = re.match(r"([0-9]+)\)", constants.get(operands[-1], "")) if operands else None
    return int(limit[1]) if limit else None


def _result_bytes(instruction: Instruction, kind: str) -> int:
    """Bytes that a collective leaves on one device. Some asynchronous ones have a tuple (operand, result, ...)."""
    if instruction.opcode == kind or kind == "all-reduce":
        return num_bytes(instruction.type)
    arrays = [match.group(0) for match in _ARRAY.finditer(instruction.type)]
    return num_bytes(arrays[1]) if len(arrays) > 1 else num_bytes(instruction.type)
