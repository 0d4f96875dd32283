"""What the tools that make stores of pictures share: flags of size, masks, noise and splits, and the closing lines."""

import time
from pathlib import Path
from typing import Any

from absl import flags

from msm.builders import border
from msm.builders.pictures.folder import Division
from msm.builders.pictures.store import SPLITS, Images, PictureSet, Settings
from msm.builders.store import noise_std, prepare_store
from msm.infra.errors import UserError
from msm.operators.shape import parse_size
from msm.tools import store_flags

_OUT = flags.DEFINE_string("out", None, "Folder of the store.", required=True)
_SIZE = flags.DEFINE_string("size", "64", "Rows and columns of the images, as 64 or 48x64.")
_MASK = flags.DEFINE_enum("mask", "random_boxes", ["random_boxes"], "Distribution of the masks.")
_GRID = flags.DEFINE_integer("grid", 4, "Blocks per side of a mask; a divisor of the size.")
_DROP = flags.DEFINE_integer("drop", 6, "How many of the grid^2 blocks are missing.")
_NOISE = flags.DEFINE_float("noise_std", 0.0, "Noise per pixel and channel; images are in [-1,1].")
_OWN_NOISE = flags.DEFINE_string(
    "own_noise", "0", "Noise that the pictures come with, per pixel and channel, or 'estimate': from the pictures."
)
_MAX_GB = flags.DEFINE_float("max_gb", border.DEFAULT_GB, "Most memory for the values of one file, in GB.")
_SEED = flags.DEFINE_integer("seed", 0, "Dataset seed: fixes mask and noise of every example.")
_LISTS = {
    split: flags.DEFINE_string(f"{split}_list", None, f"File with what is {split}: paths in the folder, by line.")
    for split in SPLITS
}
_COUNTS = {
    split: flags.DEFINE_integer(f"{split}_count", None, f"How much is {split} without a list.", lower_bound=0)
    for split in ("validation", "test")
}


def division() -> Division:
    """Lists and counts as given. Raises UserError where both are given for one split."""
    lists = {split: Path(path) for split, flag in _LISTS.items() if (path := flag.value) is not None}
    counts = {split: count for split, flag in _COUNTS.items() if (count := flag.value) is not None}
    both = [split for split in counts if split in lists]
    if both:
        raise UserError(f"--{both[0]}_list and --{both[0]}_count exclude each other: leave out one")
    return Division(lists, counts)


def divides() -> bool:
    """Whether any list or count was given."""
    return any(flag.value is not None for flag in (*_LISTS.values(), *_COUNTS.values()))


def _own_noise(text: str) -> float | None:
    """The number of --own_noise; None: to be estimated."""
    try:
        return None if text == "estimate" else float(text)
    except ValueError as error:
        raise UserError(f"--own_noise is {text!r}: it must be a number or 'estimate'") from error


def make(pictures: PictureSet) -> None:
    """Makes the store of the flags, unless it is there, and prints what is in it and what was left out."""
    start = time.monotonic()
    settings = Settings(
        parse_size(_SIZE.value or "64"),
        _MASK.value,
        _GRID.value,
        _DROP.value,
        _NOISE.value,
        _SEED.value,
        _own_noise(_OWN_NOISE.value),
    )
    border.set_limit(_MAX_GB.value)
    manifest, written = prepare_store(Path(_OUT.value), Images(settings, pictures))
    took = f"; {time.monotonic() - start:.1f} s" if written else ", already complete"
    print(f"{_OUT.value}: {_told(manifest)}{took}")
    print(*store_flags.lines_of(_OUT.value or "", manifest), sep="\n")
    border.tell(manifest)


def _told(manifest: dict[str, Any]) -> str:
    counts = ", ".join(f"{split} {count}" for split, count in manifest["counts"].items())
    kept = manifest["keep_fraction"]["effective"]["train"]
    return (
        f"{counts} images; {kept:.1%} of the pixels acquired; noise {noise_std(manifest):g}; "
        f"sigma_data {manifest['sigma_data']:.3f}"
    )
