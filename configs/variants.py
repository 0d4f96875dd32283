"""Variants of a leaf config: `configs/NAME.py:VARIANT`, or several joined by '+', applied from left to right."""

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from msm.infra.errors import UserError
from msm.infra.registry import nearest


def apply(config: ConfigDict, variant: str, variants: Mapping[str, Callable[[ConfigDict], ConfigDict]]) -> ConfigDict:
    """Returns the config changed by the variants, e.g. 'smoke' or 'smoke+sr4'; unchanged for ''.

    Raises UserError for an unknown variant.
    """
    for name in variant.split("+") if variant else ():
        if name not in variants:
            raise UserError(f"unknown config variant {name!r}{nearest(name, variants)} (known: {', '.join(variants)})")
        config = variants[name](config)
    return config


def demo(config: ConfigDict) -> ConfigDict:
    """The same experiment, short enough to watch: the loss falls, pictures and checkpoints appear."""
    config.training.num_steps = 500
    config.training.log_every = 10
    config.training.checkpoint_every = config.training.sample_every = 250
    return config


def smoke(config: ConfigDict) -> ConfigDict:
    """The same experiment with a tiny network and a few steps, for tests: every line runs, nothing is learned."""
    config.model.num_channels = 8
    config.model.num_heads, config.model.num_head_channels = 1, -1
    config.training.num_steps = 4
    config.training.batch_size = 4
    config.training.log_every = config.training.resume_every = 1
    config.training.checkpoint_every = config.training.sample_every = 2
    config.em.steps, config.em.batch_size, config.em.max_examples = 2, 4, 2
    config.solver.num_levels = config.sampling.num_levels = config.em.num_levels = 3
    for solver in ("projection", "langevin_projection", "baseline", "langevin"):
        config.score_sde[solver].num_levels = 2
    config.dps.num_levels = config.ddnm.num_levels = config.msm_fast.num_levels = 3
    config.eval.batch_size = 4
    config.eval.max_examples = 6
    config.eval.num_samples = 2
    config.tune.trials, config.tune.max_examples, config.tune.batch_size = 3, 2, 4
    config.sampling.num_images = config.sampling.batch_size = 4
    return config
