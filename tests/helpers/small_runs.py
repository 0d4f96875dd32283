"""Training runs small enough to be repeated in a test: the smoke variant with a network that compiles in seconds."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from msm import datasets, optimizer
from msm.configs import brain64_msm
from msm.experiment import build
from msm.infra.checkpoints import Checkpoints
from msm.models.init import init_params


class Killed(BaseException):
    """Stands for the end of the process."""


def small_config(store: Path) -> ConfigDict:
    """The smoke variant of the demo on `tiny_store`, four steps of a one-level network."""
    config = brain64_msm.get_config("smoke")
    config.data.dir = str(store)
    config.data.image_size = 32
    config.masks.acs_lines = 4
    config.model.channel_mult = (1,)
    config.model.attention_resolutions = ()
    config.eval.solvers = ("zero_filled", "msm")
    return config


def saved_state(config: ConfigDict, folder: Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint in a workdir by its path: step, parameters, their average, optimiser."""
    experiment = build(config)
    params = init_params(experiment.model, 0, experiment.image_shape)
    state = optimizer.init_state(params, optimizer.get_optimizer(config))
    template: Any = jax.tree.map(np.asarray, optimizer.Layout(params).to_tree(state))
    with Checkpoints(folder, config.training.checkpoint_every, config.training.resume_every) as saved:
        restored = saved.restore_latest(template, datasets.get_train_iterator(config))
    assert restored is not None
    leaves = jax.tree_util.tree_flatten_with_path(restored[0])[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same_run(config: ConfigDict, one: Path, other: Path) -> None:
    """Two workdirs hold the same record and the same newest state, bit for bit."""
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    states = [saved_state(config, folder) for folder in (one, other)]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        np.testing.assert_array_equal(value, states[1][name], err_msg=name)
