"""Files of the CMRxRecon challenges: MATLAB 7.3 (HDF5), cine and mapping, with frames in time.

Layout as MATLAB has it: (rows, columns, coils, slices, frames), the single frames or slices of some files without the
last axes; HDF5 has the axes in reverse. Complex numbers are pairs of fields. The readout is not oversampled.
"""

from pathlib import Path

import h5py

from msm.builders.raw import hdf5
from msm.builders.raw.arrays import complex_of
from msm.builders.raw.selection import frames_of
from msm.builders.raw.volume import RAW_READERS, RawVolume, raw_volume
from msm.infra.errors import UserError


@RAW_READERS.register("cmrxrecon")
def read_cmrxrecon(path: Path, frames: str = "", key: str = "") -> RawVolume:
    """Reads the only array of the file whose name begins with k, or the one named `key`.

    Args:
      path: the .mat file.
      frames: which of several, see `frames_of`; those of a slice follow each other as slices.
      key: name of the array.

    Raises UserError for a file of MATLAB's older formats, of other axes, and of several frames of which none is chosen.
    """
    if not h5py.is_hdf5(path):
        raise UserError(f"{path} is no MATLAB 7.3 file: save it by save(..., '-v7.3')")
    with h5py.File(path) as file:
        names = [name for name, item in hdf5.items(file) if isinstance(item, h5py.Dataset)]
        found = [key] if key else [name for name in names if name.lower().startswith("k")]
        if len(found) != 1 or found[0] not in names:
            raise UserError(f"{path} holds {', '.join(names) or 'no arrays'}: name that of k-space by --key")
        stored = hdf5.find(file, found[0])
        shape = stored.shape
        if len(shape) not in (3, 4, 5):
            raise UserError(f"{path}: {found[0]!r} has the axes {shape}, not (frames, slices, coils, columns, rows)")
        try:
            taken = frames_of(frames, shape[0] if len(shape) == 5 else 1)
        except UserError as error:
            raise UserError(f"{path} {error}") from error
        values = hdf5.read(stored, f"{path}: {found[0]!r}")
        values = values[taken] if len(shape) == 5 else values
    values = complex_of(values).reshape((len(taken), -1, *shape[-3:]))
    if values.dtype.kind != "c":
        raise UserError(f"{path}: {found[0]!r} is {values.dtype}, no complex k-space")
    kspace = values.transpose(1, 0, 2, 4, 3).reshape((-1, shape[-3], shape[-1], shape[-2]))
    return raw_volume(path, kspace)
