"""Reading the command line, and telling the user about a mistake: one line each, no traceback."""

import ast
import functools
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn, Protocol

from absl import app, flags

from msm.infra import console
from msm.infra.errors import UserError
from msm.infra.registry import nearest

FLAGS = flags.FLAGS
_SETTING = "config."
_MISSING = "must have a value other than None"  # what absl says of a required flag


class Setting(Protocol):
    """What a setting of --config may be."""

    @property
    def says(self) -> Callable[[], str]:
        """Completes the sentence "it must be ..."."""
        ...

    def problem(self, path: str, value: Any) -> str | None:
        """What is wrong with a value, None if nothing."""
        ...


Settings = Callable[[], Mapping[str, Setting]]  # asked after a mistake only, so that every other start is quick


def start(main: Callable[[list[str]], None], names: bool = False, settings: Settings = dict) -> NoReturn:
    """Runs a tool: `main(argv)` with absl's flags. A mistake of the user's ends in one line and status 2.

    Args:
      names: whether argv may hold names beside the flags; else they are a mistake.
      settings: returns those of --config, of a tool that has it.
    """

    def run(argv: list[str]) -> None:
        try:
            main(argv)
        except UserError as error:
            fail(error)

    console.outlive()
    _show_all_flags()
    app.run(run, flags_parser=functools.partial(parse, names=names, settings=settings))


def _show_all_flags() -> None:
    """Makes --help show the flags of all of this program's modules, not only of the one that was started."""
    for module, defined in FLAGS.flags_by_module_dict().items():
        if module.startswith("msm."):
            for flag in defined:
                FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def parse(
    argv: list[str], names: bool = False, settings: Settings = dict, meant: Callable[[str], str] = lambda _: ""
) -> list[str]:
    """absl's parsing, except that a mistake is answered by one line and status 2.

    `names`, `settings`: see `start`. `meant`: of a name that is no setting, the answer that says which one is; else ''.
    """
    try:
        rest = FLAGS(argv)
        if "config" in FLAGS:
            FLAGS.config.lock()  # a config file that does not exist is told at its first use
    except Exception as error:  # a config file is the user's own program: it may raise anything
        if "--debug" in argv:
            raise
        fail(_mistake(error, argv, settings, meant))
    if len(rest) > 1 and not names:
        given = ": settings are given as --config.SECTION.SETTING=VALUE" if "config" in FLAGS else ""
        fail(f"unexpected argument {rest[1]!r}{given}")
    return rest


def _mistake(error: BaseException, argv: list[str], settings: Settings, meant: Callable[[str], str]) -> str:
    """What the user did wrong: absl and ml_collections wrap it, sometimes with its traceback as the message."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    ours = [cause for cause in causes if isinstance(cause, UserError)]
    if ours:
        return str(ours[-1])
    if isinstance(error, flags.UnrecognizedFlagError) and not error.flagname.startswith(_SETTING):
        if answer := meant(error.flagname):
            return f"--{error.flagname} is no flag: {answer}"
        return f"--{error.flagname} is no flag{nearest(error.flagname, FLAGS)} (--help has all)"
    text = str(error)
    if _MISSING in text:
        return "\n".join(f"--{name} is missing: {_described(FLAGS[name].help)}" for name in _missing())
    if (wrong := re.match(r"flag --([\w.]+)=(.*?): ", text, re.DOTALL)) and wrong[1] != "config":
        return _wrong_value(wrong[1], wrong[2], settings())
    if valueless := re.match(r"Missing value for flag --([\w.]+)", text):
        return f"--{valueless[1]} has no value: write --{valueless[1]}=VALUE"
    return "\n".join(_unknown_settings(argv, settings(), meant)) or _broken_config(causes[-1], value_of(argv, "config"))


def _described(help_text: str) -> str:
    return help_text.rstrip(".")[:1].lower() + help_text.rstrip(".")[1:]


def _missing() -> list[str]:
    """The required flags that were not given."""
    required = [name for name in FLAGS if any(_MISSING in rule.message for rule in FLAGS[name].validators)]
    return [name for name in required if FLAGS[name].value is None]


def value_of(argv: Iterable[str], flag: str) -> str:
    """The text that the command line gives to a flag, as --flag=text or --flag text."""
    words = list(argv)
    for place, word in enumerate(words):
        name, separate, text = word.lstrip("-").partition("=")
        if name == flag and word.startswith("-"):
            return text if separate else " ".join(words[place + 1 : place + 2])
    return ""


def _wrong_value(flag: str, text: str, settings: Mapping[str, Setting]) -> str:
    name = flag.removeprefix(_SETTING)
    if name in settings:
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        return settings[name].problem(name, value) or f"{name} is {text!r}: it must be {settings[name].says()}"
    if flag != name:
        inside = next((known for known in settings if known.startswith(f"{name}.")), "")
        return f"{name} is a section of settings: set one of them, e.g. --{_SETTING}{inside}=VALUE"
    parser = FLAGS[flag].parser
    known = getattr(parser, "enum_values", None)
    if known:
        return f"--{flag} is {text!r}: it must be one of {', '.join(known)}{nearest(text, known)}"
    return f"--{flag} is {text!r}: it must be {parser.syntactic_help or 'something else'}"


def _unknown_settings(argv: Iterable[str], settings: Mapping[str, Setting], meant: Callable[[str], str]) -> list[str]:
    """A line for every --config.NAME that is no setting."""

    def answer(name: str) -> str:
        near, last = nearest(name, settings), name.split(".")[-1]
        elsewhere = name == last or not any(known.endswith(f".{last}") for known in settings)
        other = meant(name) if elsewhere else ""
        if other and not any(f"'{known}'" in near and f".{known}=" in other for known in settings):
            return f"{name} is not a setting of configs/default.py: {other}"
        return f"{name} is not a setting of configs/default.py{near}"

    given = [word.lstrip("-").partition("=")[0] for word in argv if word.lstrip("-").startswith(_SETTING)]
    names = [name.removeprefix(_SETTING) for name in given]
    unknown = [name for name in names if name not in settings]
    return [answer(name) for name in unknown]


def _broken_config(error: BaseException, given: str) -> str:
    """What is wrong with the file that --config names."""
    name, _, variant = given.partition(":")
    if not name:
        return "--config is empty: give an experiment's file, e.g. configs/brain64_msm.py"
    path = Path(name)
    if not path.is_file():
        known = [candidate.as_posix() for candidate in Path(os.path.dirname(name) or ".").glob("*.py")]
        what = "is a folder" if path.is_dir() else "does not exist"
        short = Path("configs") / f"{path.name.removesuffix('.py')}.py"
        if short.is_file() and path != short and not path.is_dir():
            return f"--config {name} does not exist: write --config={short}{given[len(name) :]}"
        return f"--config {name} {what}{nearest(name, known)} (the experiments of this repository are in configs/)"
    if isinstance(error, SyntaxError):
        return f"--config {name}: line {error.lineno} is no Python ({error.msg}): give a file such as those of configs/"
    if isinstance(error, AttributeError) and "get_config" in str(error):
        return f"--config {name} has no function get_config: give an experiment's file, e.g. configs/brain64_msm.py"
    if isinstance(error, TypeError) and variant and "get_config() takes 0" in str(error):
        return f"--config {name} has no variants: leave ':{variant}' away"
    lines = [step.lineno for step in traceback.extract_tb(error.__traceback__) if Path(step.filename) == path]
    where, what = f", line {lines[-1]}" if lines else "", " ".join(str(error).split())
    return f"--config {name}{where}: {type(error).__name__}: {what} (--debug shows the traceback)"


def use_cache(folder: str) -> None:
    """Makes JAX keep compiled programs in `folder`, made if missing, unless it is empty.

    A folder that cannot be written costs time and no result: the program goes on without, and says so.
    """
    import jax

    if not folder:
        return
    folder = os.path.expanduser(folder)
    try:
        if "://" not in folder:  # a bucket is JAX's own business
            os.makedirs(folder, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
    except OSError as error:
        print(
            f"warning: --cache {folder} cannot be written ({error.strerror}): going on without, every start compiles "
            "anew; name another folder, or none with --cache=",
            file=sys.stderr,
        )
        return
    jax.config.update("jax_compilation_cache_dir", folder)


def tell(problem: object) -> None:
    """Prints one line for each line of `problem` to standard error."""
    print("\n".join(f"error: {line}" for line in str(problem).splitlines()), file=sys.stderr)


def fail(problem: object) -> NoReturn:
    """Tells a problem and ends the program with status 2."""
    tell(problem)
    sys.exit(2)
