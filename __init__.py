"""Measurement score-based diffusion models: train on incomplete measurements, reconstruct new ones, draw images.

  import msm
  model = msm.load("pretrained/brain64_msm")
  result = model.reconstruct(kspace)                # result.mean, result.std, result.samples, result.maps

See docs/reference/api.md. Importing this is quick: the rest is imported at the first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msm.api import Model, RawVolume, Reconstruction, load, read_raw, train
    from msm.infra.errors import UserError

__all__ = ["Model", "RawVolume", "Reconstruction", "UserError", "load", "read_raw", "solvers", "train"]

_PLACES = {"UserError": "msm.infra.errors"}  # else msm.api


def __getattr__(name: str) -> Any:
    if name == "solvers":  # the room itself, which can be called
        return importlib.import_module("msm.solvers")
    if name not in __all__:
        raise AttributeError(f"module 'msm' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES.get(name, "msm.api")), name)
