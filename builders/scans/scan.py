"""One raw scan as training examples: the steps of `builders/scans/steps.py` in their order, and the result on disk."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from msm.builders.raw import RawVolume
from msm.builders.raw.centre import centred, check_flags
from msm.builders.scans import content, steps
from msm.builders.scans.steps import CROPS
from msm.infra.atomic import atomic_file
from msm.infra.errors import UserError
from msm.operators.coils import COIL_MAPS, find_acs, get_coil_maps
from msm.operators.masks import MaskDistribution, get_masks
from msm.operators.noise import outer_noise
from msm.operators.shape import Size, rows_and_columns


@dataclasses.dataclass(frozen=True)
class Options:
    """What preparation does with every scan.

    Attributes:
      size: the most rows and columns of the examples, one number or both; 0: those of the scan.
      crop: how a scan gets that size, see `steps.fit`.
      coils: most coils of an example; scans with more are compressed. 0: as many as the scan has.
      maps: name of the coil map estimator (`operators/coils.py`), for scans whose file holds no maps.
      slices: 'START:STOP' of the slices to take, as in Python.
      centre, hybrid: what is done where k-space is not centred or an image along an axis, see `raw.centre.centred`.
      mask, acceleration, acs_lines, seed: of the one mask that each slice of a fully sampled scan gets; acceleration 1
        keeps it whole. Scans that are undersampled keep the mask they were acquired with.
    """

    size: Size
    crop: str = "resolution"
    coils: int = 0
    maps: str = "espirit"
    slices: str = ":"
    mask: str = "cartesian_random"
    acceleration: float = 4.0
    acs_lines: int = 20
    seed: int = 0
    centre: str = ""
    hybrid: str = ""

    def __post_init__(self):
        check_flags(self.centre, self.hybrid)
        columns = rows_and_columns(self.size)[1] or self.acs_lines
        for name, valid, rule in (
            ("size", self.size == 0 or min(rows_and_columns(self.size)) >= 8, "at least 8, or 0 for that of the scan"),
            ("crop", self.crop in CROPS, f"one of {', '.join(CROPS)}"),
            ("coils", self.coils >= 0, "at least 0 (all)"),
            ("maps", self.maps in COIL_MAPS, f"one of {', '.join(COIL_MAPS.names())}"),
            ("slices", _slice_of(self.slices) is not None, "START:STOP, e.g. 2:-5"),
            ("acceleration", self.acceleration >= 1, "at least 1"),
            ("acs_lines", 0 <= self.acs_lines <= columns, f"from 0 to the {columns} columns"),
            ("seed", self.seed >= 0, "at least 0"),
        ):
            if not valid:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be {rule}")

    def shape_of(self, matrix: tuple[int, int]) -> tuple[int, int]:
        """(H,W) of the examples of a scan of so many rows and columns: no more than `size`, and no more than it has."""
        if self.size == 0:
            return matrix
        rows, columns = rows_and_columns(self.size)
        return min(rows, matrix[0]), min(columns, matrix[1])


def _slice_of(text: str) -> slice | None:
    try:
        start, stop = (int(part) if part else None for part in text.split(":"))
    except ValueError:
        return None
    return slice(start, stop)


@dataclasses.dataclass(frozen=True)
class Scan:
    """A prepared scan of S slices.

    Attributes:
      y: (S,C,H,W) complex64, divided by the scale, 0 where not acquired.
      masks: (S,1,1,W) bool of lines, or (S,1,H,W).
      maps: (S,C,H,W) complex64.
      images: (S,H,W) complex64 references, in the units of y; None unless the scan is fully sampled and
        they were asked for.
      full: (S,C,H,W) complex64, every entry of a fully sampled scan; None if it was not kept.
      facts: plain values: 'slices', the scanner's numbers, 'places' in the file, 'scale', 'noise_std' per real scalar
        in the units of y, 'noise_from', 'steps' in their order, 'matrix' of the file, 'shape' of the examples, 'coils',
        'pixel_mm' (rows, columns, thickness) if known, 'aspect' (height over width of a pixel), 'full' whether fully
        sampled, 'lines' whether masks are, 'acs_lines' of the narrowest mask, 'kept' share of entries, 'empty', places
        that were asked for and hold nothing. `builders/scans/store.py` adds 'subject', a name that tells patients
        apart, and 'kspace', a hash of the raw values.
    """

    y: np.ndarray
    masks: np.ndarray
    maps: np.ndarray
    images: np.ndarray | None
    full: np.ndarray | None
    facts: dict[str, Any]


def draw_masks(options: Options, shape: tuple[int, int], example_ids: np.ndarray) -> np.ndarray:
    """(S,1,1,W) bool, or (S,1,H,W) of entries: one draw per example from the distribution of that name.

    It is fixed by (seed, example id).
    """
    draw = _mask_drawer(shape, options.mask, options.acceleration, min(options.acs_lines, shape[1]), options.seed)
    return np.asarray(draw(np.asarray(example_ids, np.int32)))


@functools.cache
def _mask_drawer(size: tuple[int, int], mask: str, acceleration: float, acs_lines: int, seed: int):
    masks = {"name": mask, "acceleration": acceleration, "acs_lines": acs_lines}
    drawn: MaskDistribution = get_masks(ConfigDict({"masks": masks, "data": {"image_size": size}}))
    return jax.jit(jax.vmap(lambda example_id: drawn.sample(jax.random.fold_in(jax.random.key(seed), example_id))))


def prepare_scan(
    raw: RawVolume, options: Options, first_id: int = 0, keep_full: bool = False, references: bool = True
) -> Scan:
    """Turns a raw scan into examples: slices, whitening, size, mask, coil compression, maps, one scale.

    Coil compression, maps, scale and the estimate of the noise see what the mask acquired and nothing else. Where no
    mask is drawn, the scan acquired all that the file holds, and its noise is estimated before the size is changed. The
    references of a fully sampled scan have maps of their own, from its whole centre, which take as long again. The id
    of slice i of the file is `first_id` + i.

    Raises UserError for a scan that the options do not fit.
    """
    chosen = np.arange(len(raw.kspace))[_slice_of(options.slices)]
    if not chosen.size:
        raise UserError(f"slices {options.slices} leave none of the {len(raw.kspace)} slices")
    raw, mended = centred(raw, options.centre, options.hybrid)
    asked, chosen = chosen, chosen[content.signal(raw.kspace[chosen])]
    done = [f"{chosen.size} of {len(raw.kspace)} slices", *mended]
    kspace, mask = raw.kspace[chosen], raw.mask[None]
    known = None if raw.maps is None else raw.maps[chosen]
    matrix = raw.kspace.shape[2], raw.kspace.shape[3]
    shape = options.shape_of(matrix)
    apart = content.separate(raw, chosen, shape, options.crop)
    if raw.noise is not None:
        white = steps.whitening(raw.noise)
        kspace = steps.combine_coils(white, kspace)
        known = None if known is None else steps.combine_coils(white, known)
        apart = None if apart is None else (steps.combine_coils(white, apart[0]), apart[1])
        done.append("noise whitened")
    if shape != matrix:
        kspace, mask = steps.fit(kspace, mask, shape, options.crop)
        known = None if known is None else steps.fit_maps(known, shape, options.crop)
    whole = f"{matrix[0]} x {matrix[1]}"
    done.append(f"{whole} kept" if shape == matrix else f"{whole} to {shape[0]} x {shape[1]} by {options.crop}")
    full, masks = steps.is_full(mask), np.repeat(mask, chosen.size, axis=0)
    drawn = full and options.acceleration > 1
    if drawn:
        masks = masks & draw_masks(options, shape, first_id + chosen)
        done.append(f"{options.mask} mask, R {options.acceleration:g}, {options.acs_lines} ACS lines, per slice")
    y = np.where(masks, kspace, 0)
    noise = _noise_of(raw, chosen, y, masks, drawn)
    if 0 < options.coils < y.shape[1]:
        done.append(f"{y.shape[1]} to {options.coils} coils")
        virtual = steps.compression(y, options.coils)
        noise = np.sqrt(np.abs(virtual) ** 2 @ noise**2)
        y, kspace = steps.combine_coils(virtual, y), steps.combine_coils(virtual, kspace)
        known = None if known is None else steps.combine_coils(virtual, known)
        apart = None if apart is None else (steps.combine_coils(virtual, apart[0]), apart[1])
    origin = " of the calibration scan" if apart is not None else ""
    done.append(f"maps by {options.maps}{origin}" if known is None else "maps of the file")
    estimate = get_coil_maps(options.maps)
    maps = np.asarray(estimate(*(apart or (y, masks)))) if known is None else steps.unit_maps(known)
    kept = content.support(maps)
    if not kept.all():
        y, kspace, masks, maps, chosen = y[kept], kspace[kept], masks[kept], maps[kept], chosen[kept]
    scale = steps.volume_scale(y, maps)
    if not scale > 0:
        raise UserError("the images that the coil maps combine are 0 throughout: is the centre of k-space acquired?")
    noise_std = float(np.sqrt(np.mean(noise**2)) / scale)
    numbers = np.asarray(raw.header.get("slices", np.arange(len(raw.kspace))))
    empty = sorted(set(asked.tolist()) - set(chosen.tolist()))
    done += content.doubts(numbers[empty].tolist(), noise_std)
    facts = {
        "places": chosen.tolist(),
        "slices": numbers[chosen].tolist(),
        "empty": empty,
        "scale": scale,
        "noise_std": noise_std,
        "noise_from": "edges of k-space and image" if raw.noise is None else "noise scan",
        "steps": [*done, f"divided by {scale:.6g}"],
        "matrix": list(matrix),
        "shape": list(shape),
        "coils": y.shape[1],
        "full": full,
        **_mask_facts(masks),
        **_geometry(raw, shape, options.crop),
    }
    images = None
    if full and references:
        whole = maps if known is not None or apart is not None else np.asarray(estimate(kspace, mask))
        images = (steps.zero_filled(kspace, whole) / scale).astype(np.complex64)
    return Scan(
        y=(y / scale).astype(np.complex64),
        masks=masks,
        maps=maps,
        images=images,
        full=(kspace / scale).astype(np.complex64) if full and keep_full else None,
        facts=facts,
    )


def _noise_of(raw: RawVolume, chosen: np.ndarray, y: np.ndarray, masks: np.ndarray, drawn: bool) -> np.ndarray:
    """(C,) noise of every coil: 1 where a noise scan has whitened it, else estimated from what was acquired."""
    if raw.noise is not None:
        return np.ones(y.shape[1])
    return outer_noise(y, masks) if drawn else outer_noise(raw.kspace[chosen], raw.mask[None])


def _mask_facts(masks: np.ndarray) -> dict[str, Any]:
    acs_lines = min(_acs_lines(mask) for mask in masks)
    return {"lines": masks.shape[-2] == 1, "acs_lines": acs_lines, "kept": float(masks.mean())}


def _acs_lines(mask: np.ndarray) -> int:
    """Fully acquired lines around the centre of a mask (1,1,N), or the smaller side of the block of a (1,N,N) one."""
    top, bottom, left, right = find_acs(mask[0], most=mask.shape[-1])
    return right - left if mask.shape[-2] == 1 else min(bottom - top, right - left)


def _geometry(raw: RawVolume, shape: tuple[int, int], crop: str) -> dict[str, Any]:
    """'pixel_mm', where the file tells the field of view, and 'aspect', height over width of a pixel of the examples.

    Where the file is silent, its own pixels are taken to be square.
    """
    height, width = raw.kspace.shape[2:]
    grid = (height, width) if crop == "fov" else shape
    if "fov_mm" not in raw.header:
        return {"aspect": round(height / grid[0] * grid[1] / width, 6)}
    rows, columns, thickness = raw.header["fov_mm"]
    pixel = rows / grid[0], columns / grid[1]
    return {"pixel_mm": [*(round(size, 4) for size in pixel), thickness], "aspect": round(pixel[0] / pixel[1], 6)}


def save_scan(path: Path, scan: Scan) -> None:
    """Writes a scan, whole or not at all; of `y` only what was acquired."""
    arrays = {name: getattr(scan, name) for name in ("masks", "maps", "images", "full")}
    acquired = {f"y{i}": pack(y, mask) for i, (y, mask) in enumerate(zip(scan.y, scan.masks, strict=True))}
    stored = {name: array for name, array in arrays.items() if array is not None}
    with atomic_file(path) as file:
        np.savez(file, allow_pickle=False, facts=np.array(json.dumps(scan.facts)), **stored, **acquired)


def load_scan(path: Path) -> Scan:
    """Reads what `save_scan` wrote. Raises OSError, ValueError, KeyError or zipfile.BadZipFile for a damaged file."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        masks, maps = stored["masks"], stored["maps"]
        y = np.zeros(maps.shape, np.complex64)
        for i, mask in enumerate(masks):
            unpack(y[i], stored[f"y{i}"], mask)
        facts = json.loads(str(stored["facts"]))
        return Scan(y, masks, maps, stored.get("images"), stored.get("full"), facts)


def pack(y: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The acquired entries of (C,H,W): columns (C,H,n) of a mask (1,1,W) of lines, else (C,n), row by row."""
    return y[..., mask[0, 0]] if mask.shape[-2] == 1 else y[:, mask[0]]


def unpack(y: np.ndarray, acquired: np.ndarray, mask: np.ndarray) -> None:
    """Puts what `pack` returned into `y`, in place."""
    if mask.shape[-2] == 1:
        y[..., mask[0, 0]] = acquired
    else:
        y[:, mask[0]] = acquired
