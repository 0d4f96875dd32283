"""BART's pairs of files: NAME.hdr with the dimensions as text, NAME.cfl with complex64 values in Fortran order."""

import math
from pathlib import Path

import numpy as np

from msm.builders.border import check_size
from msm.builders.raw.selection import frames_of
from msm.builders.raw.volume import RAW_READERS, RawVolume, raw_volume
from msm.infra.errors import UserError

_USED = (0, 1, 3, 10, 13)  # readout, phase encoding, coils, frames in time, slices


@RAW_READERS.register("bart")
def read_bart(path: Path, frames: str = "") -> RawVolume:
    """Reads 2-D multi-slice k-space: dimensions 0 (readout), 1 (phase encoding), 3 (coils), 10 (time) and 13 (slices).

    Where dimension 0 has length 1, rows and columns are dimensions 1 and 2. `frames`: see `frames_of`.

    `path` is the .cfl, the .hdr or the name that they share. BART's centred transforms are ours, so values are taken as
    they are. Raises UserError for a missing or truncated half, and for data with other dimensions.
    """
    base = path.with_suffix("") if path.suffix.lower() in (".cfl", ".hdr") else path
    header, data = (_half(base, suffix) for suffix in (".hdr", ".cfl"))
    for half in (header, data):
        if not half.is_file():
            raise UserError(f"{half} is missing: BART's data are two files, .hdr and .cfl, side by side")
    lines = header.read_text(errors="replace").splitlines()
    place = lines.index("# Dimensions") + 1 if "# Dimensions" in lines else len(lines)
    try:
        shape = [int(word) for word in lines[place].split()]
        if not shape:
            raise ValueError("no number")
    except (IndexError, ValueError) as error:
        raise UserError(f"{header} has no line of numbers below '# Dimensions'; write it again with BART") from error
    if min(shape) < 1 or len(shape) > 32:
        raise UserError(f"{header} has dimensions {shape}, which are none; write it again with BART")
    expected = 8 * math.prod(shape)
    check_size(f"{data}: {shape}", 3 * math.prod(shape), 8)
    if data.stat().st_size != expected:
        raise UserError(f"{data} has {data.stat().st_size} bytes, {header.name} says {expected}; copy both again")
    # A slice of a 3-D scan, transformed along its readout, lies in dimensions 1 and 2.
    used = (1, 2, *_USED[2:]) if shape[:1] == [1] else _USED
    others = [f"dimension {axis} of {n}" for axis, n in enumerate(shape) if n != 1 and axis not in used]
    if others:
        raise UserError(
            f"{header}: only dimensions 0, 1, 3, 10 and 13 may be used, found {', '.join(others)}; `bart slice`"
        )
    shape += [1] * (14 - len(shape))
    kspace = np.fromfile(data, np.complex64).reshape([shape[axis] for axis in used], order="F")
    try:
        kspace = kspace[..., frames_of(frames, kspace.shape[3]), :].transpose(4, 3, 2, 0, 1)
    except UserError as error:
        raise UserError(f"{header} {error}") from error
    return raw_volume(header, kspace.reshape((-1, *kspace.shape[2:])))


def _half(base: Path, suffix: str) -> Path:
    """The file of that suffix, which some systems write in capitals."""
    half, capitals = (base.with_name(base.name + written) for written in (suffix, suffix.upper()))
    return capitals if capitals.is_file() and not half.is_file() else half
