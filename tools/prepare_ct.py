"""Makes a data store of CT slices: x = HU / 1000, clipped to [-1,1]; their projections are simulated in evaluation.

  python tools/prepare_ct.py --lungs --out store/lung64                          # the demo: two patients, 3 MB
  python tools/prepare_ct.py --folder LIDC-IDRI --size 320 --out store/lidc320   # DICOM, a folder per patient
  python tools/prepare_ct.py --folder DIR --size 128 --test_list FILE --max_slices 40 --out store/mine128

What lies in one entry of --folder is one patient: DICOM series (.dcm, .IMA), NIfTI, NRRD and npz files, at any depth.
Splits are of patients, with lists of their entries or counts as in tools/prepare_images.py. Masks leave out nothing
unless --drop says so. A complete store of the same settings is left alone, a damaged one made again. See
docs/how-to/prepare-ct.md.
"""

import os
from pathlib import Path

from absl import flags, logging

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # only masks are drawn with JAX: leave accelerators to the training

from msm.builders.ct.store import Lungs, Scans
from msm.builders.pictures.store import PictureSet
from msm.infra import command_line
from msm.infra.errors import UserError
from msm.tools import picture_flags

_FOLDER = flags.DEFINE_string("folder", None, "Take the CT volumes of this folder, a patient per entry.")
_LUNGS = flags.DEFINE_bool("lungs", False, "Take the two patients of data/lungs_128.npz: the demo.")
_MAX_SLICES = flags.DEFINE_integer(
    "max_slices", 0, "At most so many slices, evenly spread: of each volume, or of each split of the demo; 0: all.",
    lower_bound=0,
)  # fmt: skip
flags.FLAGS.set_default("drop", 0)


def _pictures() -> PictureSet:
    folder, division = _FOLDER.value, picture_flags.division()
    if folder is not None and not _LUNGS.value:
        return Scans(Path(folder), division, _MAX_SLICES.value)
    if folder is not None or not _LUNGS.value or picture_flags.divides():
        raise UserError("give either --folder, with lists or counts if you like, or --lungs without them")
    return Lungs(_MAX_SLICES.value)


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().setFormatter(None)
    picture_flags.make(_pictures())


def start() -> None:
    """The console command."""
    command_line.start(main)


if __name__ == "__main__":
    start()
