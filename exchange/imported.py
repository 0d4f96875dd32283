"""Writes the workdir of a checkpoint that another program trained, for eval and sample."""

import hashlib
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from msm.configs.rules import stored
from msm.infra import checkpoints
from msm.infra.errors import UserError


def write_workdir(
    config: ConfigDict, params: Any, folder: Path, checkpoint: Path, step: int, source: dict[str, Any]
) -> Path:
    """Writes `params` as the averaged ones of a new workdir; returns the checkpoint's folder.

    Args:
      config: the experiment that they belong to.
      params: parameter tree of its network.
      folder: the workdir to make; gets config.json, manifest.json and checkpoints/<step>.
      checkpoint: the file that they come from: its name and SHA-256 are noted.
      step: training steps behind them.
      source: what else is to be noted about where they come from.

    Raises UserError if `folder` has checkpoints already.
    """
    if any((folder / checkpoints.KEPT).glob("*")):
        raise UserError(f"{folder} has checkpoints already: choose another --workdir")
    with open(checkpoint, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    origin = {"file": checkpoint.name, "sha256": digest, **source}
    with stored.open_workdir(folder, config, "import") as run:
        return checkpoints.export_params(run.root, params, step, {"step": step, "imported_from": origin})
