"""Makes a data store of pictures: every picture gets one mask and one noise draw, y = mask (x + noise).

  python tools/prepare_images.py --photos --out store/photos64                        # the demo: 64x64, noiseless
  python tools/prepare_images.py --photos --noise_std 0.1 --out store/photos64_n10

A complete store of the same settings is left alone, a damaged one made again. See docs/data.md.
"""

import os
import sys
import time
from pathlib import Path

from absl import app, flags, logging

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # only masks are drawn with JAX: leave accelerators to the training

from builders.images import Images, Settings
from builders.photos import Photos
from builders.store import prepare_store
from infra.errors import UserError

_PHOTOS = flags.DEFINE_bool("photos", False, "Take patches of photographs that come with scikit-image: the demo.")
_OUT = flags.DEFINE_string("out", None, "Folder of the store.", required=True)
_SIZE = flags.DEFINE_integer("size", 64, "Rows and columns of the images.")
_MASK = flags.DEFINE_enum("mask", "random_boxes", ["random_boxes"], "Distribution of the masks.")
_GRID = flags.DEFINE_integer("grid", 4, "Blocks per side of a mask; a divisor of the size.")
_DROP = flags.DEFINE_integer("drop", 6, "How many of the grid^2 blocks are missing.")
_NOISE = flags.DEFINE_float("noise_std", 0.0, "Noise per pixel and channel; images are in [-1,1].")
_SEED = flags.DEFINE_integer("seed", 0, "Dataset seed: fixes mask and noise of every example.")


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.INFO)
    start = time.monotonic()
    settings = Settings(_SIZE.value, _MASK.value, _GRID.value, _DROP.value, _NOISE.value, _SEED.value)
    manifest, written = prepare_store(Path(_OUT.value), Images(settings, Photos()))
    if not written:
        print(f"{_OUT.value}: already complete")
        return
    counts = ", ".join(f"{split} {count}" for split, count in manifest["counts"].items())
    print(
        f"{_OUT.value}: {counts} images; {manifest['keep_fraction']['effective']['train']:.1%} of the pixels acquired; "
        f"noise {settings.noise_std:g}; sigma_data {manifest['sigma_data']:.3f}; {time.monotonic() - start:.1f} s"
    )


def run() -> None:
    """Entry point: user errors end in one line and status 2."""
    try:
        app.run(main)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run()
