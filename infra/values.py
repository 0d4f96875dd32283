"""What a setting may be: a range of numbers, a known name, a tuple of such; and how a part declares its settings."""

import dataclasses
import importlib
import math
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from msm.infra.registry import nearest


@dataclasses.dataclass(frozen=True)
class Rule:
    """What one setting must be.

    Attributes:
      holds: whether a value obeys.
      says: completes the sentence "it must be ...".
      hint: what to add for a wrong value, e.g. the nearest known name.
    """

    holds: Callable[[Any], bool]
    says: Callable[[], str]
    hint: Callable[[Any], str] = lambda value: ""

    def problem(self, path: str, value: Any) -> str | None:
        if self.holds(value):
            return None
        return f"{path} is {value!r}: it must be {self.says()}{self.hint(value)}"


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting as its owner declares it, once: the default, what it must be, and its meaning in a few words."""

    default: Any
    rule: Rule
    meaning: str


@dataclasses.dataclass(frozen=True)
class Section:
    """The settings config.NAME.* of a part, by name, and what they are about."""

    about: str
    settings: Mapping[str, Setting]


def integer(low: int, high: int | None = None, other: int | None = None) -> Rule:
    """A whole number in [low, high], or `other`."""
    limits = f"of at least {low}" if high is None else f"from {low} to {high}"

    def holds(value: Any) -> bool:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and (value == other or (low <= value and (high is None or value <= high)))

    return Rule(holds, lambda: f"a whole number {limits}" + ("" if other is None else f", or {other}"))


def number(low: float = -math.inf, high: float = math.inf, above: float = -math.inf, below: float = math.inf) -> Rule:
    """A finite number in [low, high] that is more than `above` and less than `below`."""
    limits = [("at least", low), ("more than", above), ("at most", high), ("less than", below)]
    told = " and ".join(f"{words} {limit:g}" for words, limit in limits if math.isfinite(limit))

    def holds(value: Any) -> bool:
        real = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return real and low <= value <= high and above < value < below

    return Rule(holds, lambda: f"a number of {told}" if told else "a finite number")


def flag() -> Rule:
    """True or False."""
    return Rule(lambda value: isinstance(value, bool), lambda: "True or False")


def text(empty: bool = False) -> Rule:
    """Text; `empty` allows the empty one."""
    return Rule(lambda value: isinstance(value, str) and (empty or value != ""), lambda: "text in quotes")


def folder_inside(reserved: tuple[str, ...]) -> Rule:
    """The name of a folder below the workdir, none of `reserved`."""

    def holds(value: Any) -> bool:
        parts = value.split("/") if isinstance(value, str) else [""]
        return parts[0] not in reserved and not {"", ".", ".."} & set(parts)

    others = f", and none of {', '.join(reserved)}" if reserved else ""
    return Rule(holds, lambda: f"a folder inside the workdir, without '..'{others}")


def name(known: Callable[[], Iterable[str]]) -> Rule:
    """One of the names that `known` returns; it is asked only while a config is checked, so importing this is cheap."""
    return Rule(
        lambda value: isinstance(value, str) and value in known(),
        lambda: f"one of {', '.join(known())}",
        lambda value: nearest(value, known()) if isinstance(value, str) else "",
    )


def name_or_empty(known: Callable[[], Iterable[str]]) -> Rule:
    """One of the names that `known` returns, or empty."""
    rule = name(known)
    return Rule(lambda value: value == "" or rule.holds(value), lambda: f"empty or {rule.says()}", rule.hint)


def choice(*known: str) -> Rule:
    """One of the given names."""
    return name(lambda: known)


def several(item: Rule, at_least: int = 0, repeats: bool = False) -> Rule:
    """A tuple of things that each obey `item`; `repeats` allows the same one twice."""
    what = ("a tuple" if repeats else "a tuple without repeats") + (f" of at least {at_least}" if at_least else "")

    def holds(values: Any) -> bool:
        if not isinstance(values, tuple | list) or len(values) < at_least or not all(map(item.holds, values)):
            return False
        return repeats or len(set(values)) == len(values)

    def hint(values: Any) -> str:
        values = values if isinstance(values, tuple | list) else (values,)
        return next((item.hint(value) for value in values if not item.holds(value)), "")

    return Rule(holds, lambda: f"{what}, each {item.says()}", hint)


def one_or_pair(item: Rule) -> Rule:
    """What obeys `item`, or a pair of such: rows and columns."""

    def holds(value: Any) -> bool:
        return item.holds(value) or (
            isinstance(value, tuple | list) and len(value) == 2 and all(map(item.holds, value))
        )

    return Rule(holds, lambda: f"{item.says()}, or a pair of them as in 230,180 (rows, columns)")


def pair(item: Rule, of: str) -> Rule:
    """Two things that each obey `item`; `of` says what they are."""

    def holds(values: Any) -> bool:
        return isinstance(values, tuple | list) and len(values) == 2 and all(map(item.holds, values))

    return Rule(holds, lambda: f"a pair {of}, each {item.says()}")


def registered(module: str, registry: str, package: str | None = None) -> Callable[[], tuple[str, ...]]:
    """Returns a function that lists msm.`module`.`registry` after importing all of msm.`package`, which fills it."""

    def names() -> tuple[str, ...]:
        if package is not None:
            for found in pkgutil.iter_modules(importlib.import_module(f"msm.{package}").__path__):
                importlib.import_module(f"msm.{package}.{found.name}")
        return getattr(importlib.import_module(f"msm.{module}"), registry).names()

    return names
