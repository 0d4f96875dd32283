"""How a mode that uses trained parameters begins: its folders are checked, its parameters loaded, its log opened."""

import logging
from typing import Any

from ml_collections import ConfigDict

from msm.configs.rules import stored
from msm.experiment import Experiment
from msm.infra import checkpoints, writers
from msm.infra.workdir import Workdir


def check_folders(config: ConfigDict, folder: str, mode: str, network: bool = True) -> None:
    """Raises UserError if the workdir cannot be used or holds no checkpoint: known before data are read."""
    stored.check_workdir(folder, config, mode)
    if network:
        checkpoints.kept_steps(config.eval.checkpoint or folder)


def load_params(experiment: Experiment, folder: str) -> tuple[Any, dict[str, Any]]:
    """EMA parameters of the workdir, or of the folder that `eval.checkpoint` names, and what a report says of them.

    The latter: 'checkpoint', 'training step', and 'checkpoint warning' if that is not the newest that there was.
    """
    named = experiment.config.eval.checkpoint
    stored.check_checkpoint_config(named or folder, experiment.config)
    told: list[str] = []
    params, step = checkpoints.load_ema_params(named or folder, experiment.template_params(), warn=told.append)
    warning = {"checkpoint warning": told[0]} if told else {}
    return params, {"checkpoint": named or "this workdir", "training step": step, **warning}


def setup_logging(run: Workdir, origin: dict[str, Any]) -> None:
    """Opens the log of the run's mode, which begins with the warning of `load_params`, if there is one."""
    writers.setup_logging(run.root, run.mode)
    if "checkpoint warning" in origin:
        logging.warning("%s", origin["checkpoint warning"])
