"""Multi-coil files of the fastMRI archive (HDF5): k-space, a header, and in its test sets a mask.

Layout: `kspace` (slices,C,rows,columns) complex64 with the readout oversampled along the rows, `ismrmrd_header` (XML
text), `mask` (columns,) in files that were undersampled by the archive. Single-coil files, with `kspace` of three axes,
are read as one coil.
"""

from pathlib import Path

import h5py

from msm.builders.raw import hdf5
from msm.builders.raw.ismrmrd_header import parse_header
from msm.builders.raw.volume import RAW_READERS, RawVolume, raw_volume, without_oversampling
from msm.infra.errors import UserError


@RAW_READERS.register("fastmri")
def read_fastmri(path: Path) -> RawVolume:
    """Reads a file and removes the oversampling of the readout, if it was acquired by lines.

    The mask is the file's, where it has one, less the lines that the archive padded with zeros; else see
    `volume.find_acquired`. Raises UserError for a file without `kspace` or header, or with k-space of another kind.
    """
    with h5py.File(path) as file:
        found = {name: hdf5.find(file, name) for name in ("kspace", "ismrmrd_header", "mask")}
        for name in ("kspace", "ismrmrd_header"):
            if found[name] is None:
                raise UserError(f"{path} has no dataset {name!r}: it is no fastMRI file; read it as another format")
        stored = {name: hdf5.read(item, f"{path}: {name!r}") for name, item in found.items() if item is not None}
        kspace = stored["kspace"]
        header = parse_header(stored["ismrmrd_header"].item(), path)
        mask = stored["mask"].astype(bool) if "mask" in stored else None
        texts = {name: file.attrs[name] for name in ("acquisition", "patient_id") if name in file.attrs}
    if header.trajectory != "cartesian":
        raise UserError(f"{path} is {header.trajectory}; only Cartesian data can be read: grid it first")
    if kspace.ndim not in (3, 4) or kspace.dtype.kind != "c":
        raise UserError(f"{path}: `kspace` is {kspace.dtype} {kspace.shape}, not complex (slices,coils,rows,columns)")
    if kspace.ndim == 3:
        kspace = kspace[:, None]
    if mask is not None and mask.size == kspace.shape[-1]:
        mask = mask.ravel()  # (1,1,W,1) in some copies of the archive
    facts = header.facts | {name: str(text) for name, text in texts.items()}
    return without_oversampling(path, raw_volume(path, kspace, mask, header=facts), header)
