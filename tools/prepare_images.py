"""Makes a data store of pictures: every picture gets one mask and one noise draw, y = mask (x + noise).

  python tools/prepare_images.py --folder FFHQ --size 128 --out store/ffhq128            # any folder of PNG and JPEG
  python tools/prepare_images.py --folder DIR --size 64 --test_list FILE --noise_std 0.1 --out store/mine64
  python tools/prepare_images.py --photos --out store/photos64                           # the demo's pictures, 37 MB

Files are found recursively. Splits: --*_list files with one path per line, else --*_count, else FFHQ's where exactly
70,000 files are there (first 100 test, next 100 validation, train from number 1000 on), else a tenth test and a
twentieth validation, at most 1000 each. Files that cannot be used are listed at the end; the rest is done. A complete
store of the same settings is left alone, a damaged one made again. See docs/data.md.
"""

import os
import sys
import time
from pathlib import Path

from absl import flags, logging

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # only masks are drawn with JAX: leave accelerators to the training

from builders.folder import Division, Folder
from builders.images import SPLITS, Images, PictureSet, Settings
from builders.photos import Photos
from builders.store import prepare_store
from infra import command_line
from infra.errors import UserError

_FOLDER = flags.DEFINE_string("folder", None, "Take every PNG and JPEG of this folder and those below.")
_PHOTOS = flags.DEFINE_bool("photos", False, "Take patches of photographs that come with scikit-image: the demo.")
_OUT = flags.DEFINE_string("out", None, "Folder of the store.", required=True)
_SIZE = flags.DEFINE_integer("size", 64, "Rows and columns of the images.")
_MASK = flags.DEFINE_enum("mask", "random_boxes", ["random_boxes"], "Distribution of the masks.")
_GRID = flags.DEFINE_integer("grid", 4, "Blocks per side of a mask; a divisor of the size.")
_DROP = flags.DEFINE_integer("drop", 6, "How many of the grid^2 blocks are missing.")
_NOISE = flags.DEFINE_float("noise_std", 0.0, "Noise per pixel and channel; images are in [-1,1].")
_SEED = flags.DEFINE_integer("seed", 0, "Dataset seed: fixes mask and noise of every example.")
_LISTS = {
    split: flags.DEFINE_string(f"{split}_list", None, f"File with the {split} pictures: paths in the folder, by line.")
    for split in SPLITS
}
_COUNTS = {
    split: flags.DEFINE_integer(f"{split}_count", None, f"Number of {split} pictures without a list.", lower_bound=0)
    for split in ("validation", "test")
}


def _pictures() -> PictureSet:
    folder = _FOLDER.value
    lists = {split: Path(path) for split, flag in _LISTS.items() if (path := flag.value) is not None}
    counts = {split: count for split, flag in _COUNTS.items() if (count := flag.value) is not None}
    both = [split for split in counts if split in lists]
    if both:
        raise UserError(f"--{both[0]}_list and --{both[0]}_count exclude each other")
    if folder is not None and not _PHOTOS.value:
        return Folder(Path(folder), Division(lists, counts))
    if folder is not None or not _PHOTOS.value or lists or counts:
        raise UserError("give either --folder, with lists or counts if you like, or --photos alone")
    return Photos()


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().setFormatter(None)
    start = time.monotonic()
    settings = Settings(_SIZE.value, _MASK.value, _GRID.value, _DROP.value, _NOISE.value, _SEED.value)
    manifest, written = prepare_store(Path(_OUT.value), Images(settings, _pictures()))
    if not written:
        print(f"{_OUT.value}: already complete")
        return
    counts = ", ".join(f"{split} {count}" for split, count in manifest["counts"].items())
    print(
        f"{_OUT.value}: {counts} images; {manifest['keep_fraction']['effective']['train']:.1%} of the pixels acquired; "
        f"noise {settings.noise_std:g}; sigma_data {manifest['sigma_data']:.3f}; {time.monotonic() - start:.1f} s"
    )
    problems = manifest.get("left_out", {})
    if problems:
        print("files left out:", *(f"  {name}: {problem}" for name, problem in problems.items()), sep="\n")


if __name__ == "__main__":
    command_line.start(main)
