"""What several processes of a run compare as soon as they have met, before anything is read or written."""

from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from msm import datasets
from msm.infra import agreement, at_hand, processes


def require_agreement(flags: Mapping[str, Any], config: ConfigDict, cache: str) -> None:
    """Raises UserError, on all processes alike, where they differ in flags, settings, versions, code or store.

    A store at a URL is copied to this machine first, below `cache`, and `config.data.dir` then names the copy.

    Args:
      flags: of the command line that must be equal, by name.

    A run of one process has nothing to compare.
    """
    several = jax.process_count() > 1
    if several:
        agreement.require_same_program(flags, config)
    with processes.together():
        config.data.dir = at_hand.store(config.data.dir, cache)
    if not several:
        return
    with processes.together():
        info = datasets.dataset_info(config)
    agreement.require_same_store(info)
