"""What tells that a checkpoint is damaged or gone: the checksums inside it, and the workdir's record of the newest.

`<workdir>/checkpoints.json` holds the newest complete step of each tier, {"checkpoints": 400, "checkpoints-meta": 450}.
"""

import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from msm.infra import plain_json
from msm.infra.atomic import atomic_write_json

SEAL = "meta/checksums.json"
RECORD = "checkpoints.json"


def seal(folder: Path) -> None:
    """Stores the checksums of a complete checkpoint beside its files."""
    if jax.process_index() == 0 and folder.is_dir():  # a rolling one may have been deleted meanwhile
        atomic_write_json(folder / SEAL, _checksums(folder))


def find_damage(folder: Path) -> str:
    """Returns which file of a sealed checkpoint is missing or changed, or ''; process 0 decides for all."""
    damage = ""
    if jax.process_index() == 0 and (folder / SEAL).exists():  # none: killed between completion and sealing
        try:
            sealed, now = plain_json.parse((folder / SEAL).read_bytes()), _checksums(folder)
            damage = next((f"{name} is missing or changed" for name in sealed if sealed[name] != now.get(name)), "")
        except (OSError, ValueError, AttributeError) as error:
            damage = f"{SEAL}: {one_line(error)}"
    if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(np.int32(bool(damage))):
        damage = damage or "process 0 found it so"
    return damage


def note_newest(root: Path, newest: Mapping[str, int]) -> None:
    """Writes the record: for each tier its newest complete step."""
    if jax.process_index() == 0:
        atomic_write_json(root / RECORD, dict(newest))


def read_newest(root: Path) -> dict[str, int]:
    """Returns the record; {} if there is none (an exported checkpoint), or one that nobody can read any more."""
    try:
        record = plain_json.parse((root / RECORD).read_bytes())
    except (OSError, ValueError):
        return {}
    return {tier: step for tier, step in record.items() if isinstance(step, int)} if isinstance(record, dict) else {}


def find_lost(root: Path, present: Mapping[str, Iterable[int]]) -> Path | None:
    """Returns the newest recorded checkpoint of these tiers if it is newer than all that are there, else None.

    Args:
      root: workdir.
      present: the steps that are there, by tier.
    """
    record = read_newest(root)
    step, tier = max((record.get(tier, -1), tier) for tier in present)
    return root / tier / str(step) if step > max((s for steps in present.values() for s in steps), default=-1) else None


def one_line(error: BaseException) -> str:
    """Kind and beginning of an error's text."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}{'...' if len(text) > 200 else ''}"


def _checksums(folder: Path) -> dict[str, int]:
    """Returns {"state/_METADATA": crc32, ...} of every file in a checkpoint."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SEAL)
    return {path.relative_to(folder).as_posix(): zlib.crc32(path.read_bytes()) for path in files}
