"""Raw files of the SKM-TEA knee archive (HDF5): 3-D scans of two echoes whose readout is transformed already.

Layout: `kspace` (x, ky, kz, echoes, C) complex64, an image along x; `maps` (x, ky, kz, C, 1), the archive's coil maps.
"""

from pathlib import Path

import h5py
import numpy as np

from msm.builders.raw import hdf5
from msm.builders.raw.selection import frames_of
from msm.builders.raw.volume import RAW_READERS, RawVolume, raw_volume
from msm.infra.errors import UserError


@RAW_READERS.register("skm_tea")
def read_skm_tea(path: Path, frames: str = "") -> RawVolume:
    """Reads the slices across x, with the maps of the file; `frames` chooses the echo, see `frames_of`.

    Raises UserError for an array of another kind, for maps that do not fit, and where no echo is chosen.
    """
    with h5py.File(path) as file:
        stored = hdf5.find(file, "kspace")
        if not isinstance(stored, h5py.Dataset) or stored.ndim != 5 or stored.dtype.kind != "c":
            raise UserError(f"{path} has no complex `kspace` (x, ky, kz, echoes, coils): read it as another format")
        try:
            echoes = frames_of(frames, stored.shape[3], "echoes")
        except UserError as error:
            raise UserError(f"{path} {error}") from error
        kspace = hdf5.read(stored, f"{path}: 'kspace'")[:, :, :, echoes].transpose(0, 3, 1, 2, 4)  # (x, echoes, ky, ..)
        maps = hdf5.find(file, "maps")
        known = None if maps is None else hdf5.read(maps, f"{path}: 'maps'").astype(np.complex64)
    if known is not None and known.shape != (*kspace.shape[:1], *kspace.shape[2:], 1):
        raise UserError(f"{path}: maps {known.shape} do not fit k-space: one set (x, ky, kz, coils, 1)")
    known = None if known is None else np.repeat(known[..., 0].transpose(0, 3, 1, 2), len(echoes), axis=0)
    kspace = kspace.transpose(0, 1, 4, 2, 3)
    return raw_volume(path, kspace.reshape((-1, *kspace.shape[2:])), maps=known)
