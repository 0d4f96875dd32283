"""Plain arrays: .npy, .npz and HDF5 files whose order of axes the user states."""

import zipfile
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np

from msm.builders.numpy_files import Archive, load_array
from msm.builders.raw import hdf5
from msm.builders.raw.volume import RAW_READERS, RawVolume, check_shape, raw_volume
from msm.infra.errors import UserError


@RAW_READERS.register("array")
def read_array(path: Path, axes: str, key: str = "kspace", mask_key: str = "mask", maps_key: str = "maps") -> RawVolume:
    """Reads k-space with its zero frequency at the centre of both axes.

    Args:
      path: a .npy, .npz or HDF5 file. Complex numbers may be pairs of fields real and imag, as MATLAB writes them.
      axes: one letter per axis of the stored array: s slice, c coil, h row (readout), w column (phase encoding), and,
        for real numbers only, p for an axis of length 2 with real and imaginary part. 's' may be missing.
      key: name of the array in .npz and HDF5 files.
      mask_key: name of a mask (W,) or (H,W) there; without one, see `volume.find_acquired`.
      maps_key: name of coil maps there, with the axes of k-space; there need be none.

    Raises UserError for axes that do not fit, a missing name and a file that cannot be read.
    """
    kspace, mask, maps = _load(path, key, mask_key, maps_key)
    stated = f"{path}: the axes are stated as {axes!r}, the array is {kspace.dtype} {kspace.shape}"
    if len(set(axes)) != len(axes) or not set("chw") <= set(axes) <= set("schwp"):
        raise UserError(f"{path}: axes {axes!r} must name c, h, w and, if there, s and p once each, as in 'schw'")
    if len(axes) != kspace.ndim or ("p" in axes) == (kspace.dtype.kind == "c"):
        raise UserError(f"{stated}: state one letter per axis, p for real and imaginary part of a real array")
    if "p" in axes and kspace.shape[axes.index("p")] != 2:
        raise UserError(f"{stated}: the axis p must have length 2")
    if maps is not None and (maps.shape != kspace.shape or maps.dtype.kind != kspace.dtype.kind):
        raise UserError(f"{stated}, its coil maps {maps.dtype} {maps.shape}: they must be alike")
    maps = None if maps is None else _in_order(maps, axes).astype(np.complex64)
    ordered = _in_order(kspace, axes)
    check_shape(f"{stated}, so", ordered.shape)
    return raw_volume(path, ordered, mask, maps=maps)


def _in_order(array: np.ndarray, axes: str) -> np.ndarray:
    """Complex (slices,C,H,W) of an array of the stated axes."""
    if "p" in axes:
        real, imaginary = np.moveaxis(array, axes.index("p"), 0)
        array, axes = real + 1j * imaginary, axes.replace("p", "")
    if "s" not in axes:
        array, axes = array[None], "s" + axes
    return array.transpose([axes.index(letter) for letter in "schw"])


def _load(path: Path, key: str, *others: str) -> tuple:
    """The array `key` of a file and the `others`, None for those that it lacks."""
    if path.suffix.lower() in (".npy", ".npz"):
        try:
            if not zipfile.is_zipfile(path):
                return load_array(path), *(None for _ in others)
            with Archive(path) as stored:
                _refuse_trajectories(path, stored)
                return _member(path, stored, key), *(stored.find(name) for name in others)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    try:
        with h5py.File(path) as file:
            _refuse_trajectories(path, file)
            found = (_dataset(path, file, name) if hdf5.find(file, name) is not None else None for name in others)
            return _dataset(path, file, key), *found
    except OSError as error:
        raise UserError(f"{path} is none of .npy, .npz and HDF5, or it is damaged; convert or copy it again") from error


def _refuse_trajectories(path: Path, names: Iterable[str]) -> None:
    """Raises UserError for a file that says where its samples lie: on no grid, then."""
    if found := [name for name in names if name.lower() in ("traj", "trajectory", "trajectories", "coord", "coords")]:
        raise UserError(f"{path} holds a trajectory, {found[0]!r}; only Cartesian data can be read: grid it first")


def _member(path: Path, container: Archive, key: str) -> np.ndarray:
    if key not in container:
        raise UserError(f"has no array {key!r}, only {', '.join(sorted(container))}: state its name")
    return container[key]


def _dataset(path: Path, file: h5py.File, key: str) -> np.ndarray:
    member = hdf5.find(file, key)
    if member is None:
        raise UserError(f"{path} has no array {key!r}, only {', '.join(sorted(file))}: state its name")
    if isinstance(member, h5py.Group):
        raise UserError(f"{path}: {key!r} is a group, not an array; state the name of an array, e.g. {key}/NAME")
    return complex_of(hdf5.read(member, f"{path}: {key!r}"))


def complex_of(array: np.ndarray) -> np.ndarray:
    """Complex values of two fields for real and imaginary part, as MATLAB and others name them; other arrays as is."""
    for real, imaginary in (("real", "imag"), ("r", "i"), ("re", "im")):
        if array.dtype.names == (real, imaginary):
            return array[real] + 1j * array[imaginary]
    return array
