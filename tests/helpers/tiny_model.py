"""A network that compiles in a second, and commands that use it, for tests of what happens around a network."""

from collections.abc import Mapping
from pathlib import Path

from flax import linen as nn
from ml_collections import ConfigDict

from msm.models.registry import MODELS
from tests.helpers.small_runs import small_config

CONFIG = "configs/brain64_msm.py:smoke"
SETTINGS = {"data.image_size": 32, "masks.acs_lines": 4, "model.name": "tiny", "denoiser.sandwich": "adjoint"}


class TinyModel(nn.Module):
    """Two convolutions that know the noise level: (B,H,W,channels), (B,) -> (B,H,W,channels)."""

    channels: int

    @nn.compact
    def __call__(self, x, t):
        level = nn.Dense(4)(t[:, None] / 1000)
        hidden = nn.silu(nn.Conv(4, (3, 3))(x) + level[:, None, None, :])
        return nn.Conv(self.channels, (3, 3))(hidden)


def register() -> None:
    """Makes `--config.model.name=tiny` known to this process, once."""
    if "tiny" not in MODELS:
        MODELS.register("tiny")(lambda config, in_channels: TinyModel(in_channels))


def get_config(store: Path, changes: Mapping[str, object]) -> ConfigDict:
    """`small_config` with the tiny network and `changes`, {"section.name": value}."""
    register()
    config = small_config(store)
    config.update_from_flattened_dict({**SETTINGS, **changes})
    return config


def command_line(workdir: Path, store: Path, cache: Path, mode: str = "train", **settings: object) -> list[str]:
    """Arguments of main.py for the tiny network on `tiny_store`; settings are named section__name."""
    changes = {**SETTINGS, "data.dir": store, **{name.replace("__", "."): v for name, v in settings.items()}}
    given = [f"--config.{name}={value}" for name, value in changes.items()]
    return [f"--config={CONFIG}", f"--workdir={workdir}", f"--mode={mode}", f"--cache={cache}", *given]
