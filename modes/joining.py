"""What several processes of a run compare as soon as they have met, before anything is read or written."""

from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from msm import datasets
from msm.infra import agreement, processes


def require_agreement(flags: Mapping[str, Any], config: ConfigDict) -> None:
    """Raises UserError, on all processes alike, where they differ in flags, settings, versions, code or store.

    Args:
      flags: of the command line that must be equal, by name.

    A run of one process has nothing to compare.
    """
    if jax.process_count() == 1:
        return
    agreement.require_same_program(flags, config)
    with processes.together():
        info = datasets.dataset_info(config)
    agreement.require_same_store(info)
