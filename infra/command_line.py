"""Reading the command line, and telling the user about a mistake: one line each, no traceback."""

import sys
from typing import NoReturn

from absl import flags

from infra.errors import UserError
from registry import nearest

FLAGS = flags.FLAGS


def parse(argv: list[str]) -> list[str]:
    """absl's parsing, except that a mistake is answered by one line and status 2."""
    try:
        rest = FLAGS(argv)
        FLAGS.config.lock()  # a config file that does not exist is told at its first use
    except (flags.Error, AttributeError, OSError) as error:
        if "--debug" in argv:
            raise
        fail(_mistake(error, argv))
    if len(rest) > 1:
        fail(f"unexpected argument {rest[1]!r}: settings are given as --config.SECTION.SETTING=VALUE")
    return rest


def _mistake(error: BaseException | None, argv: list[str]) -> str:
    """What the user did wrong: absl and ml_collections wrap it, sometimes with its traceback as the message."""
    if isinstance(error, AttributeError):
        from infra.config_check import SETTINGS  # loads JAX: not needed to tell the other mistakes

        for name in (a.partition("config.")[2].partition("=")[0] for a in argv if "config." in a.partition("=")[0]):
            if name not in SETTINGS:
                return f"{name} is not a setting{nearest(name, SETTINGS)}; configs/default.py has all"
    text = str(error).splitlines()[-1].strip()
    while error is not None:
        text = str(error) if isinstance(error, UserError) else text
        error = error.__context__
    return text


def fail(problem: object) -> NoReturn:
    """Prints one line for each line of `problem` to standard error and ends the program with status 2."""
    print("\n".join(f"error: {line}" for line in str(problem).splitlines()), file=sys.stderr)
    sys.exit(2)
