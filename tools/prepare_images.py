"""Makes a data store of pictures: every picture gets one mask and one noise draw, y = mask (x + noise).

  python tools/prepare_images.py --folder FFHQ --size 128 --out store/ffhq128            # any folder of PNG and JPEG
  python tools/prepare_images.py --folder DIR --size 64 --test_list FILE --noise_std 0.1 --out store/mine64
  python tools/prepare_images.py --photos --out store/photos64                           # the demo's pictures, 37 MB

Files are found recursively. Splits: --*_list files with one path per line, else --*_count, else FFHQ's where exactly
70,000 files are there (first 100 test, next 100 validation, train from number 1000 on), else a tenth test and a
twentieth validation, at most 1000 each. Files that cannot be used are listed at the end; the rest is done. A complete
store of the same settings is left alone, a damaged one made again. See docs/how-to/prepare-pictures.md.
"""

import os
from pathlib import Path

from absl import flags, logging

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # only masks are drawn with JAX: leave accelerators to the training

from msm.builders.demo.photos import Photos
from msm.builders.pictures.folder import Folder
from msm.builders.pictures.store import PictureSet
from msm.infra import command_line
from msm.infra.errors import UserError
from msm.tools import picture_flags

_FOLDER = flags.DEFINE_string("folder", None, "Take every PNG and JPEG of this folder and those below.")
_PHOTOS = flags.DEFINE_bool("photos", False, "Take patches of photographs that come with scikit-image: the demo.")


def _pictures() -> PictureSet:
    folder, division = _FOLDER.value, picture_flags.division()
    if folder is not None and not _PHOTOS.value:
        return Folder(Path(folder), division)
    if folder is not None or not _PHOTOS.value or picture_flags.divides():
        raise UserError("give either --folder, with lists or counts if you like, or --photos alone")
    return Photos()


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().setFormatter(None)
    picture_flags.make(_pictures())


def start() -> None:
    """The console command."""
    command_line.start(main)


if __name__ == "__main__":
    start()
