"""Multi-channel files of the Calgary-Campinas brains (HDF5): 3-D scans whose readout is transformed already.

Layout: `kspace` (x, ky, kz, 2 C) float32, hybrid: an image along x (sagittal slices), k-space along the others, the
real and imaginary parts of a coil side by side in the last axis. The archive's own programs transform without shifts.
"""

from pathlib import Path

import h5py
import numpy as np

from msm.builders.raw import hdf5
from msm.builders.raw.centre import centred
from msm.builders.raw.volume import RAW_READERS, RawVolume, raw_volume
from msm.infra.errors import UserError


@RAW_READERS.register("calgary_campinas")
def read_calgary_campinas(path: Path, key: str = "kspace") -> RawVolume:
    """Reads the sagittal slices; where the zero frequency and the image lie is measured (`centre.centred`).

    Raises UserError for an array of another kind.
    """
    with h5py.File(path) as file:
        stored = hdf5.find(file, key)
        if stored is None:
            raise UserError(f"{path} has no dataset {key!r}, only {', '.join(file)}: read it as another format")
        shape, dtype = getattr(stored, "shape", ()), getattr(stored, "dtype", np.dtype("O"))
        if len(shape) != 4 or shape[-1] % 2 or dtype.kind != "f":
            raise UserError(
                f"{path}: {key!r} is {dtype} {shape}, not the archive's real (x, ky, kz, 2 coils); "
                "read it as another format"
            )
        values = hdf5.read(stored, f"{path}: {key!r}").astype(np.float32)
    kspace = (values[..., 0::2] + 1j * values[..., 1::2]).transpose(0, 3, 1, 2)
    return centred(raw_volume(path, kspace), "auto")[0]
