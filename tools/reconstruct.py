"""Reconstructs one raw multi-coil file with a trained checkpoint: images, uncertainty maps, a report.

  python tools/reconstruct.py --raw scan.h5 --checkpoint workdir/mine --out results/scan
  python tools/reconstruct.py --raw scan.h5 --checkpoint pretrained/brain64_msm --out results/scan --formats npz,dicom
  python tools/reconstruct.py --raw kspace.npy --axes schw --size 320 --checkpoint workdir/mine --out results/other

Any format of tools/prepare_mri.py, and its steps; nothing is left out of the scan. The mask is the file's: other
accelerations, equispaced lines, partial Fourier and 2-D masks need no other network. --size is the matrix that is
reconstructed, that of the checkpoint if not given; any multiple of the network's unit will do, though a network is at
its best at the pixel size that it has seen. --out belongs to one raw file: another one is refused there.

Writes into --out: images/NAME.npz (complex and magnitude in the units of the file, std map, pixel size) and what else
--formats names, eval/report.html, eval/metrics.csv (with quality only where the scan is fully sampled), eval/rounds.
"""

import os
import sys
from pathlib import Path

from absl import flags, logging

from msm.infra import command_line

_RAW = flags.DEFINE_string("raw", None, "The raw file.", required=True)
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder of a workdir, or of pretrained/.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder of the results; the same command goes on in it.", required=True)
_FORMATS = flags.DEFINE_list("formats", ["npz", "png"], "Of npz, png, nifti (needs nibabel), dicom (needs pydicom).")
_SOLVERS = flags.DEFINE_list("solvers", ["zero_filled", "cg_sense", "msm"], "The last one's images are written.")
_SAMPLES = flags.DEFINE_integer("samples", 8, "Posterior samples per slice.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch_size", 4, "Slices at a time.", lower_bound=1)
_SIZE = flags.DEFINE_integer("size", 0, "Rows and columns to reconstruct; 0: the checkpoint's.")
_CROP = flags.DEFINE_enum("crop", "resolution", ["resolution", "fov"], "See tools/prepare_mri.py.")
_COILS = flags.DEFINE_integer("coils", 0, "Compress to so many virtual coils; 0: keep all.")
_MAPS = flags.DEFINE_enum("maps", "espirit", ["espirit", "walsh", "lowres"], "Estimator of the coil maps.")
_SLICES = flags.DEFINE_string("slices", ":", "START:STOP of the slices, as in Python.")
_FORMAT = flags.DEFINE_string("format", "", "Of the raw file; empty: by content.")
_AXES = flags.DEFINE_string("axes", "", "Of plain arrays, e.g. schw.")
_KEY = flags.DEFINE_string("key", "kspace", "Of .npz and plain HDF5.")
_CACHE = flags.DEFINE_string(
    "cache", os.path.join(os.path.expanduser("~"), ".cache", "msm-jax"), "Folder of compiled programs; empty: none."
)


def main(_: list[str]) -> None:
    from msm.builders.raw import read_raw
    from msm.builders.scans.scan import Options
    from msm.configs.rules.stored import config_of
    from msm.modes import reconstruct as single_scan
    from msm.reports import volumes as image_files

    logging.set_verbosity(logging.WARNING)
    image_files.check_formats(_FORMATS.value)
    command_line.use_cache(_CACHE.value or "")
    config = config_of(_CHECKPOINT.value or "")
    array = {"axes": _AXES.value, "key": _KEY.value} if _AXES.value else {}
    raw = read_raw(_RAW.value or "", _FORMAT.value, array=array)
    options = Options(
        size=_SIZE.value or config.data.image_size, crop=_CROP.value, coils=_COILS.value, maps=_MAPS.value,
        slices=_SLICES.value, acceleration=1, acs_lines=0,
    )  # fmt: skip
    config.eval.update(
        checkpoint=_CHECKPOINT.value, solvers=tuple(_SOLVERS.value), num_samples=_SAMPLES.value,
        batch_size=_BATCH.value, tuned="", folder="eval", metrics=("standard",),
    )  # fmt: skip
    name = single_scan.name_of(_RAW.value or "")
    volume = single_scan.reconstruct(config, raw, options, name, _OUT.value or "", " ".join(["python", *sys.argv]))
    for written in _FORMATS.value:
        image_files.WRITERS[written](Path(_OUT.value or "") / "images", volume)


def start() -> None:
    """The console command."""
    command_line.start(main)


if __name__ == "__main__":
    start()
