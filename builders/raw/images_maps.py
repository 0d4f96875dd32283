"""The published code's layout: combined images in `x_hat/FILE.h5`, their coil maps in `smps_hat/FILE.h5`.

Both are HDF5 with one dataset named like the folder: (slices,H,W) and (slices,C,H,W) complex. None of it was measured
as it stands: k-space is F (C x), fully sampled, with the noise that is in the images.
"""

from pathlib import Path

import h5py
import numpy as np

from msm.builders.demo.simulate import fft2c
from msm.builders.raw import hdf5
from msm.builders.raw.volume import RAW_READERS, RawVolume, raw_volume
from msm.infra.errors import UserError


@RAW_READERS.register("images_maps")
def read_images_maps(path: Path) -> RawVolume:
    """Reads `x_hat/FILE.h5`, whose maps lie in `smps_hat/FILE.h5` beside that folder.

    Raises UserError for missing maps, or maps of another shape.
    """
    beside = path.parent.parent / "smps_hat" / path.name
    if not beside.is_file():
        raise UserError(f"{path} has no coil maps: {beside} is missing")
    with h5py.File(path) as images_file, h5py.File(beside) as maps_file:
        for file, name in ((images_file, "x_hat"), (maps_file, "smps_hat")):
            if hdf5.find(file, name) is None:
                raise UserError(f"{file.filename} has no dataset {name!r}, only {', '.join(file)}")
        images = hdf5.read(hdf5.find(images_file, "x_hat"), f"{path}: 'x_hat'")
        maps = hdf5.read(hdf5.find(maps_file, "smps_hat"), f"{beside}: 'smps_hat'").astype(np.complex64)
    if images.ndim != 3 or maps.ndim != 4 or (maps.shape[0], *maps.shape[2:]) != images.shape:
        raise UserError(f"{path}: images {images.shape} and coil maps {maps.shape} do not fit")
    return raw_volume(path, fft2c(maps * images[:, None]), np.ones(images.shape[-1], bool), maps=maps)
