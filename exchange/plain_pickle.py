"""Reads pickles of plain values without Python's unpickler, so that no file can run code, reach objects or fill memory.

A pickle is a program for a stack machine. This machine knows the instructions that plain values, names and arrays need;
a name is looked up nowhere but by the function that the caller gives, and nothing is called but a `Maker` of his.
"""

import pickle
import pickletools
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, Protocol, cast

from msm.infra.errors import UserError

MOST_OPCODES = 1_000_000  # the pickle of an ADM U-Net, of which the trainer keeps three copies, has some 100,000

# What a damaged or hostile file can make zipfile, pickletools and numpy raise.
DAMAGE = (
    pickle.UnpicklingError,
    zlib.error,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)

_PUSHED = frozenset((
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8",
))  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_KEYS = str | int | float | bool | None  # a tuple may nest so deeply that hashing it ends the process


class Maker:
    """A name that stands for a function of ours, the only thing that a pickle can call."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[..., Any]):
        self.make = make


class Settable(Protocol):
    """A value that the pickle gives a state afterwards (BUILD); a plain table takes any and ignores it."""

    def set_state(self, state: Any) -> None: ...


class Source(Protocol):
    """What a pickle is read from; reading beyond its end gives less."""

    def read(self, size: int, /) -> bytes: ...

    def readline(self) -> bytes: ...


class Bounded:
    """A file from its place on, of which a pickle may be at most so long: a huge length in it allocates nothing."""

    def __init__(self, file: BinaryIO, left: int):
        self._file, self._left = file, left

    def read(self, size: int, /) -> bytes:
        return self._took(self._file.read(min(size, self._left)))

    def readline(self) -> bytes:
        return self._took(self._file.readline(self._left))

    def _took(self, data: bytes) -> bytes:
        self._left -= len(data)
        return data


def read_pickle(source: Source, find: Callable[[str, str], Any], persistent: Callable[[Any], Any] | None = None) -> Any:
    """Returns the value of the pickle at the source's place, behind which it stops.

    Args:
      source: the pickle.
      find: what stands for a name (module, name), often a `Maker`; raises UserError for one that is not known.
      persistent: what stands for a persistent id.

    Raises UserError for instructions that no plain value needs, or too many; one of `DAMAGE` where it is no pickle.
    """
    machine = _Machine(find, persistent)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(cast(Any, source))):
        if count > MOST_OPCODES:
            raise UserError(f"its pickle has more than {MOST_OPCODES} instructions")
        if opcode.name == "STOP":
            return machine.pop()
        machine.step(opcode.name, argument)
    raise EOFError("the pickle does not end")


class _Machine:
    def __init__(self, find: Callable[[str, str], Any], persistent: Callable[[Any], Any] | None):
        self._find, self._persistent = find, persistent
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise ValueError("the pickle takes from an empty stack")
        return self._stack.pop()

    def _pop_mark(self) -> list[Any]:
        """What was pushed since the last MARK."""
        place = self._marks.pop()
        taken = self._stack[place:]
        del self._stack[place:]
        return taken

    def step(self, name: str, argument: Any) -> None:
        """Does one instruction."""
        if name in _PUSHED:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        else:
            action = getattr(self, f"_do_{name.lower()}", None)
            if action is None:
                raise UserError(f"its pickle has the instruction {name}, which no plain value needs")
            action(argument)

    def _do_proto(self, version: int) -> None:
        if version > 5:
            raise UserError(f"its pickle is of protocol {version}")

    def _do_frame(self, _: Any) -> None:
        """Frames only tell how much to read ahead."""

    def _do_mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def _do_empty_dict(self, _: Any) -> None:
        self._stack.append({})

    def _do_empty_list(self, _: Any) -> None:
        self._stack.append([])

    def _do_tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._pop_mark()))

    def _do_tuple1(self, _: Any) -> None:
        self._stack.append((self.pop(),))

    def _do_tuple2(self, _: Any) -> None:
        last, first = self.pop(), self.pop()
        self._stack.append((first, last))

    def _do_tuple3(self, _: Any) -> None:
        last, middle, first = self.pop(), self.pop(), self.pop()
        self._stack.append((first, middle, last))

    def _do_list(self, _: Any) -> None:
        self._stack.append(self._pop_mark())

    def _do_dict(self, _: Any) -> None:
        pairs = self._pop_mark()
        self._stack.append({})
        self._put(pairs)

    def _do_append(self, _: Any) -> None:
        value = self.pop()
        self._top(list).append(value)

    def _do_appends(self, _: Any) -> None:
        values = self._pop_mark()
        self._top(list).extend(values)

    def _do_setitem(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self._put([key, value])

    def _do_setitems(self, _: Any) -> None:
        self._put(self._pop_mark())

    def _top(self, kind: type) -> Any:
        value = self.pop()
        self._stack.append(value)
        if not isinstance(value, kind):
            raise TypeError(f"the pickle fills a {type(value).__name__} as a {kind.__name__}")
        return value

    def _put(self, pairs: list[Any]) -> None:
        table = self._top(dict)
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            table[as_key(key)] = value

    def _do_put(self, place: int) -> None:
        self._memo[place] = self._top(object)

    _do_binput = _do_long_binput = _do_put

    def _do_memoize(self, _: Any) -> None:
        self._do_put(len(self._memo))

    def _do_get(self, place: int) -> None:
        self._stack.append(self._memo[place])

    _do_binget = _do_long_binget = _do_get

    def _do_global(self, names: str) -> None:
        module, _, name = names.partition(" ")
        self._stack.append(self._find(module, name))

    def _do_stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise TypeError("the pickle has a name that is no text")
        self._stack.append(self._find(module, name))

    def _do_binpersid(self, _: Any) -> None:
        if self._persistent is None:
            raise UserError("its pickle refers to something outside it")
        self._stack.append(self._persistent(self.pop()))

    def _do_reduce(self, _: Any) -> None:
        arguments, maker = self.pop(), self.pop()
        if not isinstance(maker, Maker) or not isinstance(arguments, tuple):
            raise TypeError(f"the pickle calls a {type(maker).__name__}")
        self._stack.append(maker.make(*arguments))

    def _do_build(self, _: Any) -> None:
        state = self.pop()
        value = self._top(object)
        if isinstance(value, dict):  # torch.save notes `_metadata` on a state dict
            return
        value.set_state(state)


def as_key(value: Any) -> _KEYS:
    """A value that may be a key. Raises TypeError for others."""
    if not isinstance(value, _KEYS):
        raise TypeError(f"the pickle has a {type(value).__name__} as a key")
    return value


def make_table(pairs: Any = ()) -> dict[Any, Any]:
    """What `collections.OrderedDict(pairs)` makes, for pairs in a list as Python 2 wrote them."""
    if not isinstance(pairs, list | tuple) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
        raise TypeError("the pickle makes a table of something that is no list of pairs")
    return {as_key(key): value for key, value in pairs}
