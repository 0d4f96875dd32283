"""An optional further record of a training, by wandb or trackio; metrics.jsonl and TensorBoard remain the record.

Neither package is needed, and neither can end a run: what it raises while the run goes on is told once, and the run
goes on without it. What they write locally lies in the workdir.
"""

import hashlib
import importlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from msm.infra.errors import UserError

NAMES = ("none", "wandb", "trackio")


def find(name: str) -> ModuleType | None:
    """The package of that name, None for 'none'. Raises UserError if it is not installed."""
    if name == "none":
        return None
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"training.tracker is {name!r}, which is not installed: pip install {name}, or set it to 'none'"
        ) from error


class Tracker:
    """Sends the scalars of a run to `package` from the first `log` on; a run that goes on is the same run there.

    Args:
      package: of `find`; None: nothing is sent.
      folder: the workdir, whose name is the run's and which identifies it.
      settings: of the run, flat.
    """

    def __init__(self, package: ModuleType | None, folder: Path, settings: Mapping[str, Any]):
        self._package, self._folder, self._settings = package, Path(folder), dict(settings)
        self._begun = False

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the scalars of one step."""
        self._guarded(lambda package: package.log(dict(metrics), step=step))

    def finish(self) -> None:
        """Ends the record, if there is one."""
        if self._begun:
            self._guarded(lambda package: package.finish())
        self._begun = False

    def _guarded(self, act) -> None:
        if self._package is None:
            return
        try:
            if not self._begun:
                self._begin(self._package)
            act(self._package)
        except Exception as error:  # a server that is away must not end a training
            what = " ".join(str(error).split()) or type(error).__name__
            logging.warning("%s records no further: %s; metrics.jsonl does", self._package.__name__, what)
            self._package = None

    def _begin(self, package: ModuleType) -> None:
        options: dict[str, Any] = {"project": "msm", "name": self._folder.name, "config": self._settings}
        if package.__name__ == "wandb":
            key = hashlib.sha256(str(self._folder.resolve()).encode()).hexdigest()[:16]
            options |= {"id": key, "dir": str(self._folder)}
        else:
            os.environ.setdefault("TRACKIO_DIR", str(self._folder / "trackio"))
        package.init(resume="allow", **options)
        self._begun = True
