"""Reading the command line, and telling the user about a mistake: one line each, no traceback."""

import functools
import sys
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags

from infra.errors import UserError
from registry import nearest

FLAGS = flags.FLAGS


def start(main: Callable[[list[str]], None], names: bool = False) -> NoReturn:
    """Runs a tool: `main(argv)` with absl's flags. A mistake of the user's ends in one line and status 2.

    `names`: whether argv may hold names beside the flags; else they are a mistake.
    """

    def run(argv: list[str]) -> None:
        try:
            main(argv)
        except UserError as error:
            fail(error)

    app.run(run, flags_parser=functools.partial(parse, names=names))


def parse(argv: list[str], names: bool = False) -> list[str]:
    """absl's parsing, except that a mistake is answered by one line and status 2. `names`: see `start`."""
    try:
        rest = FLAGS(argv)
        if "config" in FLAGS:
            FLAGS.config.lock()  # a config file that does not exist is told at its first use
    except (flags.Error, AttributeError, OSError) as error:
        if "--debug" in argv:
            raise
        fail(_mistake(error, argv))
    if len(rest) > 1 and not names:
        given = ": settings are given as --config.SECTION.SETTING=VALUE" if "config" in FLAGS else ""
        fail(f"unexpected argument {rest[1]!r}{given}")
    return rest


def _mistake(error: BaseException | None, argv: list[str]) -> str:
    """What the user did wrong: absl and ml_collections wrap it, sometimes with its traceback as the message."""
    if isinstance(error, AttributeError):
        from infra.settings import SETTINGS  # loads JAX: not needed to tell the other mistakes

        for name in (a.partition("config.")[2].partition("=")[0] for a in argv if "config." in a.partition("=")[0]):
            if name not in SETTINGS:
                return f"{name} is not a setting{nearest(name, SETTINGS)}; configs/default.py has all"
    text = str(error).splitlines()[-1].strip()
    while error is not None:
        text = str(error) if isinstance(error, UserError) else text
        error = error.__context__
    return text


def tell(problem: object) -> None:
    """Prints one line for each line of `problem` to standard error."""
    print("\n".join(f"error: {line}" for line in str(problem).splitlines()), file=sys.stderr)


def fail(problem: object) -> NoReturn:
    """Tells a problem and ends the program with status 2."""
    tell(problem)
    sys.exit(2)
