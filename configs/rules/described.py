"""Every setting in words: its default, what it may be and what it means; for --help_settings and the settings page.

Defaults come from `configs.default`, what a value may be from the rules, meanings from the comments beside the
defaults: each is written once.
"""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Sequence

from msm.configs import default
from msm.configs.rules.settings import OPTIONAL, SETTINGS
from msm.infra.errors import UserError
from msm.infra.registry import nearest

MOST_USED = (
    "data.dir", "training.num_steps", "training.batch_size", "optim.learning_rate", "optim.ema_rate", "eval.checkpoint",
    "eval.split", "eval.solvers", "eval.num_samples", "tune.solver",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Described:
    """One setting: its full name, the default as Python, what it must be, and its meaning, which may be empty."""

    name: str
    default: str
    must_be: str
    meaning: str


def sections() -> dict[str, str]:
    """Returns the sections of settings and what each is about, in the order of the config."""
    texts = {"seed": "of initialisation, training noise and sampling; every random number derives from it"}
    for name in dict.fromkeys(path.split(".")[0] for path in SETTINGS if "." in path):
        about = inspect.getdoc(getattr(default, f"_{name}")) or ""
        texts[name] = about.splitlines()[0].rstrip(".")
    return texts


def describe(section: str) -> list[Described]:
    """Returns the settings of a section, or the one setting of that name; UserError for a name that is neither."""
    names = [name for name in SETTINGS if name == section or name.startswith(f"{section}.")]
    if not names:
        raise UserError(f"{section} is no section of settings{nearest(section, [*sections(), *SETTINGS])}: there are "
                        f"{', '.join(sections())}")  # fmt: skip
    config, meanings = default.get_config(), _meanings()
    lines = []
    for name in names:
        value = config
        for part in name.split("."):
            value = value[part] if part in value else "(none)" if name in OPTIONAL else value[part]
        shown = value if value == "(none)" else repr(value)
        lines.append(Described(name, shown, SETTINGS[name].says(), meanings.get(name, "")))
    return lines


def _meanings() -> dict[str, str]:
    """The comment beside each default, with the lines of comment that go on below it."""
    found: dict[str, str] = {"seed": sections()["seed"]}
    for section in sections():
        function = getattr(default, f"_{section}", None)
        last = ""
        for line in inspect.getsource(function).splitlines() if function else ():
            stated = re.match(r"    (\w+(?:\.\w+)+) = .*?(?:  # (.*))?$", line)
            goes_on = re.match(r"    +(?:.*  )?# (.*)$", line)
            if stated:
                last = ".".join([section, *stated[1].split(".")[1:]])
                found[last] = stated[2] or ""
            elif goes_on and last:
                found[last] = f"{found[last]} {goes_on[1]}".strip()
            elif not line.strip().startswith((")", '"')) and not line.strip()[:1].isdigit():
                last = ""
    return found


def told(settings: Sequence[Described], width: int = 110) -> str:
    """Returns settings as text: name and default on one line, then what it must be and what it means."""
    lines = []
    for setting in settings:
        meaning = f"{setting.meaning}. " if setting.meaning else ""
        body = f"{meaning}Must be {setting.must_be}."
        lines.append(f"--config.{setting.name}={setting.default}")
        lines += textwrap.wrap(body, width, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def page() -> str:
    """Returns docs/reference/settings.md, which tools/list_settings.py writes."""
    parts = [
        "# Settings",
        "Which settings are there, what may they be, and what do they mean?",
        "Change one by `--config.SECTION.NAME=VALUE`. `main.py --help_settings SECTION` prints a section.\n"
        "A config of `configs/` changes some of these defaults. This page is written by `tools/list_settings.py`.",
    ]
    for section, about in sections().items():
        parts.append(f"## {section}")
        parts.append(f"{about[:1].upper()}{about[1:]}.")
        rows = ["| setting | default | must be | meaning |", "|---|---|---|---|"]
        for setting in describe(section):
            cells = (f"`{setting.name}`", f"`{setting.default}`", setting.must_be, setting.meaning)
            rows.append("| " + " | ".join(cell.replace("|", "or").replace("<", "&lt;") for cell in cells) + " |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"
