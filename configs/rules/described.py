"""Every setting in words: its default, what it may be and what it means; for --help_settings and the settings page.

Defaults come from `configs.default`, what a value may be from the rules, meanings from the comments beside the
defaults, and all three of a solver's own settings from what it declares beside itself: each is written once.
"""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence

from msm.configs import default
from msm.configs.rules.settings import OPTIONAL, SETTINGS
from msm.infra.errors import UserError
from msm.infra.registry import nearest

ALIASES = {  # what a setting is called elsewhere; the answer names it, and nothing is guessed silently
    "lr": "optim.learning_rate", "learning_rate": "optim.learning_rate", "wd": "optim.weight_decay",
    "weight_decay": "optim.weight_decay", "clip": "optim.grad_clip", "ema": "optim.ema_rate",
    "warmup": "optim.warmup_steps", "epochs": "training.num_steps", "num_epochs": "training.num_steps",
    "epoch": "training.num_steps", "steps": "training.num_steps", "iterations": "training.num_steps",
    "max_steps": "training.num_steps", "batch": "training.batch_size", "batchsize": "training.batch_size",
    "batch_size": "training.batch_size", "bs": "training.batch_size", "dtype": "model.dtype",
    "precision": "model.dtype", "fp16": "model.dtype", "bf16": "model.dtype", "data": "data.dir",
    "dataset": "data.dir", "data_dir": "data.dir", "data_path": "data.dir", "resolution": "data.image_size",
    "image_size": "data.image_size", "coils": "data.num_coils", "acceleration": "masks.acceleration",
    "checkpoint": "eval.checkpoint", "ckpt": "eval.checkpoint", "weights": "eval.checkpoint",
    "pretrained": "eval.checkpoint", "samples": "eval.num_samples", "num_samples": "eval.num_samples",
    "solver": "eval.solvers", "solvers": "eval.solvers", "split": "eval.split", "trials": "tune.trials",
    "seed": "seed",
}  # fmt: skip
NOTES = {
    "training.num_steps": "it counts steps; an epoch is as many as the store has examples over training.batch_size",
    "eval.checkpoint": "a run goes on by itself when its command is given again",
}

MOST_USED = (
    "data.dir", "training.num_steps", "training.batch_size", "optim.learning_rate", "optim.ema_rate", "eval.checkpoint",
    "eval.split", "eval.solvers", "eval.num_samples", "tune.solver",
)  # fmt: skip


SHARED = {  # settings that several sections have under one name; said where the section does not say it
    "num_levels": "noise levels from the largest to the smallest",
    "w": "masks per level",
    "mask_order": "iid, or complement: no line twice before all were drawn",
    "mask_keep": "density of the masks; 0 draws from p(S), 1 is the whole measurement in one call",
    "reinject": "the w calls of a level see each other's result, or not",
    "weight": "average by how often an entry was drawn, or by its probability; of score_sde the data's share of a step",
    "eta": "share of fresh noise in a step",
    "start_sigma": "noise level to start from; below the schedule's largest: a warm start from CG-SENSE",
    "consistency": "how an estimate is moved to the data, see solvers/",
    "damping": "of least_squares: how much better than under a white prior the estimate is",
    "gamma": "step towards the data, 1 is all the way; of score_sde the likelihood's width over the noise level",
    "predictor": "step from one level to the next, see predictor_corrector.py",
    "corrector": "Langevin steps at a level, see predictor_corrector.py",
    "corrector_steps": "how many of them",
    "snr": "size of a Langevin step",
    "grid": "masks of images: blocks along each side",
    "drop": "masks of images: blocks that are left out",
}

MODES = {
    "train": "learn a prior from the store's acquisitions; the same command resumes",
    "eval": "reconstruct a split by several solvers and write a report",
    "tune": "find a solver's settings, without references",
    "sample": "draw images from the prior, and say how they compare with held-out ones",
}


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
    own = default.solver_sections()
    for name in dict.fromkeys(path.split(".")[0] for path in SETTINGS if "." in path):
        about = own[name].about if name in own else inspect.getdoc(getattr(default, f"_{name}")) or ""
        texts[name] = about.splitlines()[0].rstrip(".")
    return texts


def describe(section: str) -> list[Described]:
    """Returns the settings of a section, or the one setting of that name; UserError for a name that is neither."""
    names = [name for name in SETTINGS if name == section or name.startswith(f"{section}.")]
    if not names:
        near = nearest(section, [*sections(), *SETTINGS])
        raise UserError(f"{section} is no section of settings{near} (there are {', '.join(sections())})")
    config, meanings = default.get_config(), _meanings()
    lines = []
    for name in names:
        value = config
        for part in name.split("."):
            value = value[part] if part in value else "(none)" if name in OPTIONAL else value[part]
        shown = value if value == "(none)" else repr(value)
        meaning = meanings.get(name) or SHARED.get(name.split(".")[-1], "")
        lines.append(Described(name, shown, SETTINGS[name].says(), meaning))
    return lines


def _meanings() -> dict[str, str]:
    """The comment beside each default, with the lines of comment that go on below it."""
    found: dict[str, str] = {"seed": sections()["seed"]}
    for section, own in default.solver_sections().items():
        found |= {f"{section}.{key}": setting.meaning for key, setting in own.settings.items()}
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


def alias(name: str) -> str:
    """Returns the answer to a name of another program's, ' here it is ...'; empty for a name that means nothing."""
    known = ALIASES.get(name.split(".")[-1].replace("-", "_").lower(), "")
    if not known:
        return ""
    note = f" ({NOTES[known]})" if known in NOTES else ""
    return f"here it is --config.{known}=VALUE{note}"


def told(settings: Sequence[Described], width: int = 110) -> str:
    """Returns settings as text: name and default on one line, then what it must be and what it means."""
    lines = []
    for setting in settings:
        meaning = f"{setting.meaning}. " if setting.meaning else ""
        body = f"{meaning}Must be {setting.must_be}."
        lines.append(f"--config.{setting.name}={setting.default}")
        lines += textwrap.wrap(body, width, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def overview(flags: Mapping[str, str]) -> str:
    """Returns what main.py --help says. `flags`: what each flag of the program does, by name."""
    used = [describe(name)[0] for name in MOST_USED]
    width = max(map(len, flags)) + 4
    parts = [
        "Measurement score-based diffusion: train on incomplete measurements, reconstruct new ones, draw images.\n\n"
        "python main.py --config=FILE[:VARIANT] --workdir=FOLDER --mode=MODE [--config.SECTION.NAME=VALUE ...]",
        "modes\n" + "\n".join(f"  {name:<8}{what}" for name, what in MODES.items()),
        "flags\n" + "\n".join(f"  {f'--{name}':<{width}}{what}" for name, what in flags.items()),
        "the settings used most, with the default that a config may change\n" + textwrap.indent(told(used), "  "),
        "more\n"
        f"  {'--help_settings':<29}what each section of settings is about\n"
        f"  {'--help_settings SECTION':<29}every setting of a section, e.g. optim or training.batch_size\n"
        f"  {'tools/reconstruct.py --help':<29}one raw file into images\n"
        f"  {'tools/prepare_mri.py --help':<29}data of your own; also prepare_images.py, prepare_ct.py\n"
        f"  {'docs/index.md':<29}the pages",
    ]
    return "\n\n".join(parts)


def listed_sections() -> str:
    """Returns the sections of settings with what each is about, one a line."""
    about = sections()
    return (
        "\n".join(f"{name:<12}{what}" for name, what in about.items()) + "\n--help_settings SECTION lists one of them."
    )


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
