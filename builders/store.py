"""Writes a data store: the TFDS folders of `builders/brain.py` and a manifest that describes and guards them.

A store appears whole or not at all: it is written beside its place and renamed. Layout:
  acquisitions/...   datasets 'undersampled' and 'full', splits train, validation, test
  references/...     reference images, splits validation, test
  manifest.json      settings, record counts and ids, file sizes, effective acceleration, sigma_data, licences, versions
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from builders import brain, simulate
from infra.errors import UserError

MANIFEST = "manifest.json"
SIGMA_DATA_DEFINITION = (
    "root mean square per real scalar of the training images, estimated from acquired entries only: "
    "T is an isometry, so |x|^2 = |T x|^2, whose expectation is the sum over acquired entries of "
    "(|y|^2 - 2 noise_std^2) / P(entry acquired)"
)
LICENCES = (
    "Colin27 head from mricron (BSD-3-Clause)",
    "brain1 and brain2 from pyradiomics 3.0.1 (BSD-3-Clause)",
    "full notices: data/README.md",
)
_PACKAGES = ("numpy", "jax", "tensorflow-datasets", "array_record")


def default_settings(size: int, **changes) -> simulate.Settings:
    """Returns the settings of the demo stores: 8 coils at 128, else 4; 6 ACS lines at 64 and in proportion, 4 at least.

    `changes` override fields by name; None leaves the default. Raises UserError for values that make no sense.
    """
    base = simulate.Settings(image_size=size, num_coils=8 if size >= 128 else 4, acs_lines=max(4, 6 * size // 64))
    settings = dataclasses.replace(base, **{name: value for name, value in changes.items() if value is not None})
    for name, valid, rule in (
        ("image_size", 16 <= size <= 128 and size % 2 == 0, "an even number from 16 to 128"),
        ("num_coils", settings.num_coils >= 1, "at least 1"),
        ("acceleration", settings.acceleration >= 1, "at least 1"),
        ("acs_lines", 0 <= settings.acs_lines <= size, f"from 0 to the {size} columns"),
        ("noise_std", settings.noise_std >= 0, "at least 0"),
        ("seed", settings.seed >= 0, "at least 0"),
    ):
        if not valid:
            raise UserError(f"{name} is {getattr(settings, name)}; it must be {rule}")
    return settings


def missing_files(store: Path, manifest: dict) -> list[str]:
    """Returns the files of a store that are absent or not of the size that the manifest notes (a truncated copy)."""
    parts = [*manifest["acquisitions"].values(), manifest["references"]]
    sizes = {name: size for part in parts for name, size in part["files"].items()}
    return [n for n, size in sizes.items() if not (store / n).is_file() or (store / n).stat().st_size != size]


def prepare_store(out: Path, settings: simulate.Settings, max_slices: int = 0) -> tuple[dict, bool]:
    """Makes the store unless it is there.

    Args:
      out: folder of the store.
      settings: what to simulate.
      max_slices: 0, or the most examples per split (a toy store).

    Returns:
      (manifest, whether anything was written). A complete store of the same settings is left alone; a damaged one of
      the same settings is made again.

    Raises:
      UserError: `out` holds a store of other settings, or something else.
    """
    wanted = _identity(settings, max_slices)
    found = _existing(out)
    if found:
        old, new = ({**identity, **identity.get("settings", {})} for identity in (found, wanted))
        differing = [f"{k} {old.get(k)} instead of {v}" for k, v in new.items() if k != "settings" and old.get(k) != v]
        if differing:
            raise UserError(f"{out} is a store with {', '.join(differing)}; choose another --out or delete that folder")
        if not missing_files(out, found):
            return found, False
    temporary = out.parent / f".{out.name}.tmp-{os.getpid()}"
    try:
        manifest = _write(temporary, settings, max_slices) | wanted
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        if out.exists():
            discarded = out.parent / f".{out.name}.old-{os.getpid()}"
            os.rename(out, discarded)
            os.rename(temporary, out)
            shutil.rmtree(discarded)
        else:
            os.rename(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest, True


def _identity(settings: simulate.Settings, max_slices: int) -> dict:
    """What two stores must share to be the same."""
    return {
        "data_version": brain.DATA_VERSION,
        "source_sha256": hashlib.sha256(brain.SOURCE.read_bytes()).hexdigest(),
        "settings": dataclasses.asdict(settings),
        "max_slices": max_slices,
    }


def _existing(out: Path) -> dict | None:
    """Returns the manifest of the store at `out`, {} for a store without a readable one, None if nothing is there."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    known = {MANIFEST, "acquisitions", "references"}
    if not out.is_dir() or {entry.name for entry in out.iterdir()} - known:
        raise UserError(f"{out} exists and is not a data store; choose another --out")
    try:
        return json.loads((out / MANIFEST).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}  # the damaged store is made again


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences what TFDS prints and logs: downloads that do not happen, temporary paths, one bar per split."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


def _write(folder: Path, settings: simulate.Settings, max_slices: int) -> dict:
    """Writes all datasets below `folder` and returns their part of the manifest."""
    download = tfds.download.DownloadConfig(try_download_gcs=False)
    datasets: dict[str, dict] = {}
    with _quiet():
        for name, builder in brain.get_builders(folder, settings, max_slices).items():
            builder.download_and_prepare(file_format="array_record", download_config=download)
            path = Path(builder.data_dir)
            read: Any = builder.as_data_source  # its decorator hides the parameters from type checkers
            sources = {split: read(split=split) for split in builder.info.splits}
            datasets[name] = {
                "path": str(path.relative_to(folder)),
                "files": {str(f.relative_to(folder)): f.stat().st_size for f in sorted(path.iterdir())},
                # ids in the order of the records, which TFDS shuffles
                "ids": {split: [int(r["example_id"]) for r in source] for split, source in sources.items()},
            }
            if name == "undersampled":
                statistics = _statistics(sources, settings)
    heads = brain.simulate_heads(settings)
    return {
        "acquisitions": {name: datasets[name] for name in brain.ACQUISITIONS},
        "references": datasets["references"],
        "counts": {split: len(ids) for split, ids in datasets["undersampled"]["ids"].items()},
        "scales": {e.volume: e.scale for examples in heads.values() for e in examples},
        "licences": list(LICENCES),
        "notes": ["Coil maps, phase, masks and noise are simulated from magnitude images, not measured by a scanner."],
        "versions": {package: importlib.metadata.version(package) for package in _PACKAGES},
        **statistics,
    }


def _statistics(sources: dict, settings: simulate.Settings) -> dict:
    """Returns effective acceleration per split and sigma_data, from the stored undersampled acquisitions alone."""
    probability = simulate.inclusion_probability(settings)
    kept = {split: np.stack([r["mask"] for r in source]) for split, source in sources.items()}
    power = [
        np.sum((np.abs(r["y"]) ** 2 - 2 * r["noise_std"] ** 2) / probability[r["mask"]], dtype=np.float64)
        for r in sources["train"]
    ]
    return {
        "acceleration": {
            "nominal": settings.acceleration,
            "effective": {split: round(float(1 / mask.mean()), 4) for split, mask in kept.items()},
        },
        "sigma_data": round(float(np.sqrt(np.mean(power) / (2 * settings.image_size**2))), 4),
        "sigma_data_definition": SIGMA_DATA_DEFINITION,
    }
