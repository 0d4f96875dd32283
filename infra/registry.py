"""Name -> implementation tables: the one way in which models, operators, losses and solvers are found by name."""

import difflib
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar, cast

from msm.infra.errors import UserError

T = TypeVar("T")
Entry = TypeVar("Entry")


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns '; did you mean X?' for the known name closest to `name`, or '' if none is close."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""


class Registry(Generic[T]):
    """Maps names to implementations of one kind, e.g. all solvers.

    Example:
      SOLVERS = Registry("solver")

      @SOLVERS.register("msm")
      def get_msm_solver(...): ...
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Decorator that files an implementation under `name`. Raises ValueError if the name is taken."""

        def add(entry: Entry) -> Entry:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = cast(T, entry)  # the decorated class or function keeps its own type
            return entry

        return add

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> T:
        """Returns the implementation. Raises UserError naming the known ones and the nearest match."""
        if name not in self._entries:
            raise UserError(
                f"unknown {self.kind} {name!r}{nearest(name, self._entries)} (known: {', '.join(self.names())})"
            )
        return self._entries[name]
