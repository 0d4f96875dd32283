"""What a setting may be, and which settings must fit each other; and how main.py reads its command line."""

import sys

from absl import flags

from msm.infra import command_line
from msm.infra.errors import UserError


def known_settings():
    """{path: rule} of every setting, e.g. 'model.name'; imports them at the call."""
    from msm.configs.rules.settings import SETTINGS

    return SETTINGS


def parse(argv: list[str]) -> list[str]:
    """main.py's flags: --help and --help_settings [SECTION] are answered, mistakes told by what was meant."""
    words = {word.partition("=")[0].lstrip("-") for word in argv[1:] if word.startswith("-")}
    if words & {"help", "h", "help_settings"}:
        _answer_help(argv, "help_settings" in words)
    return command_line.parse(argv, settings=known_settings, meant=_meant)


def _meant(name: str) -> str:
    from msm.configs.rules.described import alias

    return alias(name)


def _answer_help(argv: list[str], of_settings: bool) -> None:
    """Prints what is asked for and ends the program."""
    from msm.configs.rules import described

    known = flags.FLAGS
    if not of_settings:
        ours = known.flags_by_module_dict()[known.find_module_defining_flag("mode") or ""]
        print(described.overview({"config": known["config"].help, **{flag.name: flag.help for flag in ours}}))
        sys.exit(0)
    section = command_line.value_of(argv, "help_settings")
    try:
        listed = not section or section.startswith("-")
        print(described.listed_sections() if listed else described.told(described.describe(section)))
    except UserError as error:
        command_line.fail(error)
    sys.exit(0)
