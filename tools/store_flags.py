"""What the tools that make stores print at their end: the flags with which main.py uses the store."""

import shlex
from pathlib import Path
from typing import Any

from msm.builders.store import config_flags
from msm.configs import brain64_msm
from msm.models.levels import attention_at
from msm.operators.shape import rows_and_columns

CHECKPOINT = "pretrained/brain64_msm"  # of configs/brain64_msm.py


def lines_of(out: str | Path, manifest: dict[str, Any]) -> list[str]:
    """The flags of the store, those that a network of its own is trained with, and for MRI a command as an example.

    sigma_data and the levels of a network belong to its checkpoint: one that is there is used with its own.
    """
    own = f"--config.denoiser.sigma_data={manifest['sigma_data']:g}"
    if manifest.get("kind", "multicoil") != "multicoil":
        settings = manifest["settings"]
        size = ",".join(map(str, _as_given(settings["image_size"])))
        flags = f"--config.data.dir={shlex.quote(str(out))} --config.data.image_size={size} " + " ".join(
            f"--config.masks.{name}={settings[name]}" for name in ("grid", "drop") if name in settings
        )
        return [f"flags: {flags}", f"and to train a network: {own}"]
    flags = f"--config.data.dir={shlex.quote(str(out))} {config_flags(manifest['settings'])}"
    split = next((name for name in ("test", "validation", "train") if manifest["counts"].get(name)), "test")
    example = (
        f"python main.py --config=configs/brain64_msm.py --mode=eval --workdir=workdir/{Path(out).name} "
        f"--config.eval.checkpoint={CHECKPOINT} --config.eval.split={split} {flags}{_attention(manifest['settings'])}"
    )
    return [f"flags: {flags}", f"and to train a network: {own}", f"with the shipped checkpoint: {example}"]


def _as_given(size: Any) -> tuple[int, ...]:
    return (size,) if isinstance(size, int) else rows_and_columns(size)


def _attention(settings: dict[str, Any]) -> str:
    """The flag that leaves attention at the levels of the shipped network where images have another size; else ''."""
    config = brain64_msm.get_config()
    trained = tuple(config.model.attention_resolutions)
    here = attention_at(settings["image_size"], config.model, trained, config.data.image_size)
    return "" if here == trained else f" --config.model.attention_resolutions='{here}'"
