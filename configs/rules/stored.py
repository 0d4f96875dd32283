"""The settings that a folder was made with, its config.json: read with defaults, and what a run must agree with."""

import functools
import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from msm.configs.default import get_config
from msm.infra import workdir
from msm.infra.errors import UserError
from msm.models.levels import attention_at

# Settings without which a checkpoint means something else. A name that ends in '.' stands for its whole section.
OF_THE_NETWORK = ("model.", "denoiser.", "schedule.name", "transform.")
OF_THE_DATA = ("data.image_size", "data.num_coils", "data.acquisition")
OF_THE_RUN = (*OF_THE_NETWORK, *OF_THE_DATA, "schedule.", "loss.name", "loss.redraw", "loss.redraw_noise_std")
HOW_TO_COMPUTE = ("model.dtype", "model.remat")  # change speed and memory, not what the parameters mean


def _names(keys: tuple[str, ...], setting: str) -> bool:
    """Whether `keys` name a setting that decides what parameters mean."""
    named = any(f"{setting}.".startswith(key) if key.endswith(".") else setting == key for key in keys)
    return named and setting not in HOW_TO_COMPUTE


def settings_in(folder: Path) -> dict[str, Any] | None:
    """The flat settings in <folder>/config.json, absent ones at their defaults; None if there is no such file."""
    stored = workdir.read_config(folder / "config.json")
    return None if stored is None else {**workdir.flat(get_config()), **stored}


def agree(folder: Path, config: ConfigDict) -> dict[str, Any] | None:
    """`settings_in` a workdir. Raises UserError where a run of `config` would mean something else there."""
    before = settings_in(folder)
    if before is not None:
        of_the_run = functools.partial(_names, OF_THE_RUN)
        workdir.refuse_differences(folder, before, workdir.flat(config), of_the_run, "workdir")
    return before


open_workdir = functools.partial(workdir.open_workdir, agree=agree)
check_workdir = functools.partial(workdir.check_workdir, agree=agree)


def check_checkpoint_config(folder: str | os.PathLike, config: ConfigDict) -> None:
    """Raises UserError if the checkpoints in `folder` belong to a network of another meaning than config's.

    Compared with <folder>/config.json, if there is one: model, denoiser, schedule.name and transform. Shapes alone do
    not tell: a network trained with another sigma_data has the same shapes and gives wrong pictures. At another image
    size than the trained one, it is the levels with attention that must be the same.
    """
    folder = Path(folder).expanduser().resolve()
    before, now = settings_in(folder), workdir.flat(config)
    if before is not None:
        for settings in (before, now):
            resolutions, size = settings["model.attention_resolutions"], settings["data.image_size"]
            settings["model.attention_resolutions"] = list(
                attention_at(config.data.image_size, config.model, resolutions, size)
            )
        of_the_network = functools.partial(_names, OF_THE_NETWORK)
        workdir.refuse_differences(folder, before, now, of_the_network, "checkpoint")


def config_of(folder: str | os.PathLike) -> ConfigDict:
    """Returns the settings in the config.json of a workdir or a folder of pretrained/, absent ones at their defaults.

    Raises UserError if there is none.
    """
    folder = Path(folder).expanduser()
    stored = settings_in(folder)
    if stored is None:
        raise UserError(
            f"{folder / 'config.json'} is missing: name the folder of a workdir or of a pretrained checkpoint"
        )
    config = get_config()
    with config.unlocked():
        for name, value in stored.items():
            section, _, key = name.rpartition(".")
            (config[section] if section else config)[key] = tuple(value) if isinstance(value, list) else value
    return config
