"""Reconstructs one raw multi-coil file with a trained checkpoint: images, uncertainty maps, a report.

  python tools/reconstruct.py --raw scan.h5 --checkpoint workdir/mine --out results/scan
  python tools/reconstruct.py --raw scan.h5 --checkpoint pretrained/brain64_msm --out results/scan --formats npz,dicom
  python tools/reconstruct.py --raw kspace.npy --axes schw --size 320 --checkpoint workdir/mine --out results/other

Any format of tools/prepare_mri.py, and its steps; nothing is left out of the scan. The mask is the file's: other
accelerations, equispaced lines, partial Fourier and 2-D masks need no other network. Images have the rows and columns
of the scan, even or odd, or at most those of --size: a network is at its best at the pixel size that it has seen. --out
belongs to one raw file: another one is refused there.

Writes into --out: images/NAME.npz (complex and magnitude in the units of the file, std map, pixel size) and what else
--formats names, eval/report.html, eval/metrics.csv (with quality only where the scan is fully sampled), eval/rounds.
"""

import dataclasses
import os
import sys
from pathlib import Path

from absl import flags, logging

from msm.infra import command_line
from msm.infra.errors import UserError
from msm.tools import scan_flags

flags.adopt_module_key_flags(scan_flags)

_RAW = flags.DEFINE_string("raw", None, "The raw file.", required=True)
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder of a workdir, or of pretrained/.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder of the results; the same command goes on in it.", required=True)
_FORMATS = flags.DEFINE_list("formats", ["npz", "png"], "Of npz, png, nifti, dicom.")
_SOLVERS = flags.DEFINE_list("solvers", ["zero_filled", "cg_sense", "msm"], "The last one's images are written.")
_SAMPLES = flags.DEFINE_integer("samples", 8, "Posterior samples per slice.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch_size", 4, "Slices at a time.", lower_bound=1)
_SIZE = flags.DEFINE_string("size", "0", "The most rows and columns, as 256 or 230x180; 0: those of the scan.")
_CROP = flags.DEFINE_enum("crop", "resolution", ["resolution", "fov"], "See tools/prepare_mri.py.")
_COILS = flags.DEFINE_integer("coils", 0, "Compress to so many virtual coils; 0: keep all.")
_MAPS = flags.DEFINE_enum("maps", "espirit", ["espirit", "walsh", "lowres"], "Estimator of the coil maps.")
_SLICES = flags.DEFINE_string("slices", ":", "START:STOP of the slices, as in Python.")
_PIXEL = flags.DEFINE_string("pixel_mm", "", "Rows,columns[,thickness] of a pixel in mm, in place of the file's.")
_FOV = flags.DEFINE_string("fov_mm", "", "Rows,columns[,thickness] of the image in mm, in place of the file's.")
_PATIENT = flags.DEFINE_enum(
    "patient", "keep", ["keep", "hash", "drop"],
    "What becomes of the patient's name and id in the images: hash keeps a hash of the id.",
)  # fmt: skip
_CACHE = flags.DEFINE_string(
    "cache", os.path.join(os.path.expanduser("~"), ".cache", "msm-jax"), "Folder of compiled programs; empty: none."
)


_CALLED = {  # settings that this tool sets: what its user calls them
    "eval.solvers": "--solvers", "eval.num_samples": "--samples", "eval.batch_size": "--batch_size",
    "eval.checkpoint": "--checkpoint",
}  # fmt: skip


def in_own_words(message: str) -> str:
    """The message of a mistake with this tool's flags in place of the settings that they set."""
    for setting, flag in _CALLED.items():
        message = message.replace(f"--config.{setting}", flag).replace(setting, flag)
    return message


def main(_: list[str]) -> None:
    try:
        _reconstruct()
    except UserError as error:
        raise UserError(in_own_words(str(error))) from error


def _reconstruct() -> None:
    from msm.builders.raw import read_raw
    from msm.builders.raw.volume import with_pixels
    from msm.builders.scans.scan import Options
    from msm.configs.rules.stored import config_of
    from msm.modes import reconstruct as single_scan
    from msm.operators.shape import parse_size
    from msm.reports import volumes as image_files

    logging.set_verbosity(logging.WARNING)
    image_files.check_formats(_FORMATS.value)
    command_line.use_cache(_CACHE.value or "")
    config = config_of(_CHECKPOINT.value or "")
    path = Path(_RAW.value or "")
    raw = with_pixels(path, read_raw(path, **scan_flags.reading()), _PIXEL.value or "", _FOV.value or "")
    options = Options(
        size=parse_size(_SIZE.value or "0"), crop=_CROP.value, coils=_COILS.value, maps=_MAPS.value,
        slices=_SLICES.value, acceleration=1, acs_lines=0,
        centre=scan_flags.CENTRE.value, hybrid=scan_flags.HYBRID.value,
    )  # fmt: skip
    config.eval.update(
        checkpoint=_CHECKPOINT.value, solvers=tuple(_SOLVERS.value), num_samples=_SAMPLES.value,
        batch_size=_BATCH.value, tuned="", folder="eval", metrics=("standard",),
    )  # fmt: skip
    name = single_scan.name_of(_RAW.value or "")
    volume = single_scan.reconstruct(config, raw, options, name, _OUT.value or "", " ".join(["python", *sys.argv]))
    facts = image_files.patient_facts(volume.facts, _PATIENT.value or "")
    volume = dataclasses.replace(volume, facts=facts)
    for written in _FORMATS.value:
        image_files.WRITERS[written](Path(_OUT.value or "") / "images", volume)


def start() -> None:
    """The console command."""
    command_line.start(main)


if __name__ == "__main__":
    start()
