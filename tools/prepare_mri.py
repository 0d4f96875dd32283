"""Makes a data store of raw multi-coil MRI files: fastMRI, ISMRMRD, BART, plain arrays, or the published code's layout.

  python tools/prepare_mri.py --in FOLDER --out store/mine --size 256 --coils 8
  python tools/prepare_mri.py --in knee --train 'multicoil_train/*' --test 'multicoil_val/*' --size 320 --out store/knee
  python tools/prepare_mri.py --in arrays --axes schw --size 128 --out store/own        # .npy, .npz, HDF5

Files are found recursively. Undersampled scans keep the mask that they were acquired with; slices of fully sampled ones
get one mask each (--acceleration 1 for none), and references in validation and test. Examples have the rows and columns
of their scan, or at most those of --size. Steps: noise whitened where a
noise scan is there, readout oversampling removed, size, coil compression, ESPIRiT maps from the acquired centre, one
scale per volume; docs/how-to/prepare-scans.md explains them, and the manifest records them with the SHA-256 of
every file.

Files that cannot be used are listed at the end, the rest is done, and the exit status is 3. A preparation that was
killed goes on when the same command is given again; a complete store of the same files and options is left alone. No
subject is in two splits (--subject says what one is), and what --train leaves over is unused where it is given.
"""

import functools
import os
import time
from pathlib import Path
from typing import Any

from absl import flags, logging

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # coil maps of small matrices: set it to gpu for large ones

from msm.builders import border
from msm.builders.raw import RAW_READERS, RawVolume, read_raw
from msm.builders.raw.volume import with_pixels
from msm.builders.scans.scan import Options
from msm.builders.scans.store import RawScans
from msm.builders.scans.subjects import SUBJECT_RULES, read_patterns, read_table
from msm.builders.store import prepare_store
from msm.infra import command_line
from msm.operators.masks import MASKS
from msm.operators.shape import parse_size, rows_and_columns
from msm.tools import scan_flags, store_flags

flags.adopt_module_key_flags(scan_flags)

_IN = flags.DEFINE_string("in", None, "Folder of raw files; those below it are taken too.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder of the store.", required=True)
_SIZE = flags.DEFINE_string(
    "size",
    "0",
    "The most rows and columns of the examples, as 256 or 230x180; 0: those of each scan.",
)
_CROP = flags.DEFINE_enum(
    "crop", "resolution", ["resolution", "fov"],
    "resolution: keep the centre of k-space, any mask; fov: keep the centre of the image, fully sampled scans.",
)  # fmt: skip
_COILS = flags.DEFINE_integer("coils", 0, "Compress to so many virtual coils; 0: keep all.")
_MAPS = flags.DEFINE_enum("maps", "espirit", ["espirit", "walsh", "lowres"], "Estimator of the coil maps.")
_SLICES = flags.DEFINE_string("slices", ":", "START:STOP of the slices to take, as in Python, e.g. 0:-5.")
_MASK = flags.DEFINE_enum(
    "mask", "cartesian_random", [name for name in MASKS.names() if name.startswith("cartesian_")],
    "Masks of fully sampled scans.",
)  # fmt: skip
_ACCELERATION = flags.DEFINE_float("acceleration", 4.0, "Nominal R of these masks; 1 leaves the scans whole.")
_ACS = flags.DEFINE_integer("acs_lines", None, "Central lines of these masks; default 20 at 256 and in proportion.")
_SEED = flags.DEFINE_integer("seed", 0, "Fixes the mask of every slice.")
_PIXEL = flags.DEFINE_string("pixel_mm", "", "Rows,columns[,thickness] of a pixel in mm, where files do not tell it.")
_FOV = flags.DEFINE_string("fov_mm", "", "Rows,columns[,thickness] of the image in mm, where files do not tell it.")
_TABLE = flags.DEFINE_string("table", "", "CSV of the published code: FILE, DROP, SLICE_START, SLICE_END.")
_SPLITS = {
    split: flags.DEFINE_string(split, "", f"Files of the {split} split: patterns with commas, or a file of them.")
    for split in ("train", "validation", "test")
}
_SUBJECT = flags.DEFINE_enum(
    "subject", "id", SUBJECT_RULES,
    "What is one subject, who is in one split only: the patient id of the header, what lies in one entry of --in, or "
    "each file.",
)  # fmt: skip
_FULL = flags.DEFINE_bool("keep_full", False, "Store every line of fully sampled scans too, for the oracle.")
_MAX_GB = flags.DEFINE_float("max_gb", border.DEFAULT_GB, "Most memory for the values of one file, in GB.")
_WORKERS = flags.DEFINE_integer("workers", 0, "Files at a time; 0: one per core, at most 4.", lower_bound=0)


def _read(path: Path, reading: dict[str, Any], pixel_mm: str, fov_mm: str) -> RawVolume:
    return with_pixels(path, read_raw(path, **reading), pixel_mm, fov_mm)


def get_source() -> RawScans:
    """What the flags describe."""
    size = parse_size(_SIZE.value or "0")
    acs_lines = max(4, round(20 * (rows_and_columns(size)[1] or 256) / 256)) if _ACS.value is None else _ACS.value
    options = Options(
        size=size, crop=_CROP.value, coils=_COILS.value, maps=_MAPS.value,
        slices=_SLICES.value,
        mask=_MASK.value, acceleration=_ACCELERATION.value, acs_lines=acs_lines, seed=_SEED.value,
        centre=scan_flags.CENTRE.value, hybrid=scan_flags.HYBRID.value,
    )  # fmt: skip
    reading = scan_flags.reading()
    if reading["name"]:
        _ = RAW_READERS[reading["name"]]  # an unknown one is told before files are read
    folder, out = (Path(flags.FLAGS[name].value or "") for name in ("in", "out"))
    given = [f"--{name} {flags.FLAGS[name].value}" for name in _given()]
    return RawScans(
        folder, options, functools.partial(_read, reading=reading, pixel_mm=_PIXEL.value, fov_mm=_FOV.value),
        partial=out.parent / f".{out.name}.scans",
        patterns={split: read_patterns(flag.value) for split, flag in _SPLITS.items() if flag.value},
        table=read_table(Path(_TABLE.value)) if _TABLE.value else None,
        keep_full=_FULL.value, workers=_WORKERS.value,
        command=" ".join(["python tools/prepare_mri.py", "--in FOLDER", *given]),
        reader=_reader(reading),
        subject=_SUBJECT.value,
    )  # fmt: skip


def _reader(reading: dict[str, Any]) -> str:
    """What tells a way of reading from another in a store's identity; as stores have it that were made before."""
    array = reading["array"]
    array = {"axes": array["axes"], "key": array.get("key", "kspace")} if "axes" in array else array
    more = {name: value for name, value in reading.items() if name not in ("name", "array")}
    pixels = (_PIXEL.value, _FOV.value) if _PIXEL.value or _FOV.value else ()
    return repr((reading["name"], array, *pixels, *([more] if more else [])))


def _given() -> list[str]:
    """Names of the flags of this tool that the user set, but for folders and what does not change the store."""
    modules = {str(flags.FLAGS.find_module_defining_flag(name)) for name in ("keep_full", "centre")}
    own = [flag for module in sorted(modules) for flag in flags.FLAGS.get_flags_for_module(module)]
    return [f.name for f in own if f.present and f.name not in ("in", "out", "workers", "max_gb")]


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().setFormatter(None)
    start = time.monotonic()
    border.set_limit(_MAX_GB.value)
    source = get_source()
    manifest, written = prepare_store(Path(_OUT.value), source)
    source.finish()
    settings = manifest["settings"]
    if written:
        counts = ", ".join(f"{split} {count}" for split, count in manifest["counts"].items())
        print(
            f"{_OUT.value}: {counts} slices of {len(manifest['volumes'])} scans; {settings['num_coils']} coils; "
            f"noise {settings['noise_std']:g}; sigma_data {manifest['sigma_data']:g}; {time.monotonic() - start:.1f} s"
        )
    else:
        print(f"{_OUT.value}: already complete")
    print(*store_flags.lines_of(_OUT.value or "", manifest), sep="\n")
    if unused := manifest["unused"]:
        print(f"unused, as --train does not name them: {len(unused)} files, {unused[0]} first")
    border.tell(manifest)


def start() -> None:
    """The console command."""
    command_line.start(main)


if __name__ == "__main__":
    start()
