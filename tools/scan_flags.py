"""Flags of the tools that read raw scans: which part of a file is taken, and how its k-space is mended."""

from typing import Any

from absl import flags

FORMAT = flags.DEFINE_string(
    "format", "",
    "fastmri (M4Raw too), ismrmrd (OCMR too), bart, array, cmrxrecon, calgary_campinas, skm_tea or images_maps; "
    "empty: by content.",
)  # fmt: skip
AXES = flags.DEFINE_string("axes", "", "Of plain arrays: one letter per axis, e.g. schw: slice, coil, row, column.")
KEY = flags.DEFINE_string("key", "", "Name of the k-space array in .npz, plain HDF5 and .mat files; empty: kspace.")
CENTRE = flags.DEFINE_string(
    "centre", "",
    "Where the zero frequency of k-space is. Empty: at (H//2, W//2), checked; auto: at the strongest entry; corner: at "
    "(0, 0); ROWS,COLUMNS: so far beyond the centre, not checked.",
)  # fmt: skip
HYBRID = flags.DEFINE_string(
    "hybrid", "", "Axes along which the file holds an image in place of k-space: h (rows), w (columns) or hw."
)
FRAMES = flags.DEFINE_string(
    "frames", "", "Of files with frames in time, phases or echoes: N or START:STOP; each frame counts as a slice."
)
REPETITION = flags.DEFINE_integer("repetition", None, "Which of several repetitions of an ISMRMRD file.")
LEAVE_OUT_COILS = flags.DEFINE_string("leave_out_coils", "", "Numbers of coils, e.g. broken ones: 0,3.")


def reading() -> dict[str, Any]:
    """What the flags say to `builders.raw.read_raw`, as its arguments; a flag that is not given is none."""
    array = {"axes": AXES.value, "key": KEY.value}
    given: dict[str, Any] = {"name": FORMAT.value, "array": {name: value for name, value in array.items() if value}}
    if LEAVE_OUT_COILS.value:
        given["leave_out_coils"] = LEAVE_OUT_COILS.value
    if FRAMES.value:
        given["frames"] = FRAMES.value
    return given if REPETITION.value is None else given | {"repetition": REPETITION.value}
