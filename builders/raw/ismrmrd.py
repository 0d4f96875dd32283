"""ISMRMRD raw data (HDF5): a header and one record per acquired line, the format that scanners are converted to.

Layout: group `dataset` with `xml`, one text, and `data`, records of `head` (counters, flags), `traj` and
`data` (coils x samples, real and imaginary parts in turn, float32). See ismrmrd.github.io. h5py reads it as it stands.
"""

import dataclasses
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from msm.builders.border import check_size
from msm.builders.raw import hdf5
from msm.builders.raw.ismrmrd_header import Header, parse_header
from msm.builders.raw.selection import frames_of
from msm.builders.raw.volume import RAW_READERS, RawVolume, raw_volume, without_oversampling
from msm.infra.errors import UserError

_NOISE, _CALIBRATION, _REVERSE = 19, 20, 22  # flags, counted from 1
_NOT_IMAGE = (23, 24, 26, 27, 28, 29, 30, 31)  # navigators, corrections, feedback, dummy scans, stabilization
_ONE_IMAGE = ("kspace_encode_step_2", "contrast", "set")


@RAW_READERS.register("ismrmrd")
def read_ismrmrd(path: Path, frames: str = "", repetition: int | None = None) -> RawVolume:
    """Reads 2-D Cartesian multi-slice data, averages repeated lines, removes the oversampling of the readout.

    Args:
      path: the file.
      frames: which of several cardiac phases or other frames in time (the counter `phase`, see `frames_of`); those of a
        slice follow each other as slices.
      repetition: which of several repetitions.

    Lines flagged as noise become `noise`, with the size that noise has in the lines of the image: it grows with the
    root of the bandwidth and falls with the root of the number of averages. Lines for calibration alone belong to the
    image unless the header calls the calibration separate or external: then they are `calibration`. Lines of a second
    encoding never do. Slices must have the same lines. A partial echo keeps its oversampling. Raises UserError for a
    file of another kind, for 3-D, non-Cartesian or EPI data, for noise of other coils than the image's, for more than
    one contrast or set, and for phases and repetitions of which none is chosen.
    """
    with h5py.File(path) as file:
        if "dataset" not in (groups := find_groups(file)):
            if groups:
                raise UserError(f"{path} has its scan in {', '.join(groups)}; rename one group to 'dataset'")
            raise UserError(f"{path} has no dataset 'dataset/xml': it is no ISMRMRD file; read it as another format")
        lines = hdf5.find(file, "dataset/data")
        if lines is None:
            raise UserError(f"{path} holds a header and no acquisitions (`dataset/data`); export it again")
        texts = hdf5.read(hdf5.find(file, "dataset/xml"), f"{path}: 'dataset/xml'").ravel()
        records = hdf5.read(lines, f"{path}: 'dataset/data'")
    if not texts.size or not {"head", "data"} <= set(records.dtype.names or ()):
        raise UserError(f"{path} has `dataset` in another layout than ISMRMRD's; export it again")
    header = parse_header(texts[0], path)
    heads, data = records["head"], records["data"]
    image = ~_flagged(heads, _NOISE, *_NOT_IMAGE) & (heads["encoding_space_ref"] == 0)
    apart = np.zeros_like(image)
    if header.calibration in ("separate", "external", "other"):
        apart = image & _flagged(heads, _CALIBRATION)
        image &= ~apart
    image &= _chosen(path, heads, image, frames, repetition)
    _check_sequence(path, header, heads[image])
    header = _as_sampled(header, heads[image])
    kspace, mask, repeats = _grid(path, header, heads[image], data[image])
    noise = _noise(path, heads, data, heads[image][0])
    noise = None if noise is None else noise / np.sqrt(repeats)
    facts = header.facts | _placement(heads[image])
    volume = raw_volume(path, kspace, mask, noise, facts)
    volume = dataclasses.replace(volume, **_calibration(path, header, heads[apart], data[apart], heads[image]))
    return without_oversampling(path, volume, header)


def _chosen(path: Path, heads: np.ndarray, image: np.ndarray, frames: str, repetition: int | None) -> np.ndarray:
    """Which lines belong to the frames and the repetition that are asked for."""
    phases, repetitions = (np.unique(heads["idx"][name][image]) for name in ("phase", "repetition"))
    if repetition is None and repetitions.size > 1:
        raise UserError(
            f"{path} has {repetitions.size} repetitions, {repetitions[0]} to {repetitions[-1]}: --repetition takes one"
        )
    if repetition is not None and repetition not in repetitions:
        raise UserError(f"{path} has no repetition {repetition}, only {', '.join(map(str, repetitions))}")
    try:
        taken = phases[frames_of(frames, phases.size)] if phases.size else phases
    except UserError as error:
        raise UserError(f"{path} {error}") from error
    kept = np.isin(heads["idx"]["phase"], taken)
    return kept if repetition is None else kept & (heads["idx"]["repetition"] == repetition)


def _as_sampled(header: Header, heads: np.ndarray) -> Header:
    """The header of lines whose oversampling a converter removed: as many samples as the image has rows.

    They are symmetric about their centre; a partial echo is not, and a header that tells more samples stays true of it.
    """
    counts = np.unique(heads["number_of_samples"])
    symmetric = np.all(heads["center_sample"] == counts[0] // 2)
    if counts.size != 1 or not symmetric or counts[0] >= header.encoded[0] or counts[0] != header.recon[0]:
        return header
    return dataclasses.replace(
        header,
        encoded=(int(counts[0]), *header.encoded[1:]),
        encoded_mm=(header.recon_mm[0], *header.encoded_mm[1:]),
    )


def _calibration(
    path: Path, header: Header, heads: np.ndarray, data: np.ndarray, image: np.ndarray
) -> dict[str, np.ndarray]:
    """The fields `calibration` and `calibration_mask` of a `RawVolume`: separate lines, for every slice."""
    if not heads.size:
        return {}
    slices = np.unique(image["idx"]["slice"])
    if np.unique(image["idx"]["phase"]).size > 1 or not np.isin(slices, heads["idx"]["slice"]).all():
        raise UserError(
            f"{path}: its calibration scan has not the slices of the image ({slices.size} slices, one frame of each)"
        )
    of_image = np.isin(heads["idx"]["slice"], slices)
    heads, data = heads[of_image].copy(), data[of_image]
    heads["idx"]["phase"] = 0
    if np.unique(heads["active_channels"]).tolist() != [image["active_channels"][0]]:
        raise UserError(f"{path}: its calibration scan has other coils than the image; export both with the same")
    kspace, mask, _ = _grid(path, header, heads, data)
    return {"calibration": kspace.astype(np.complex64), "calibration_mask": mask[None]}


def find_groups(file: h5py.File) -> list[str]:
    """Names of the groups of an HDF5 file that are laid out as ISMRMRD's: with a header, `xml`."""
    return [name for name, item in hdf5.items(file) if isinstance(item, h5py.Group) and "xml" in item]


def _flagged(heads: np.ndarray, *flags: int) -> np.ndarray:
    bits = np.uint64(sum(1 << (flag - 1) for flag in flags))
    return (heads["flags"] & bits) != 0


def _samples(path: Path, head: np.void, values: np.ndarray) -> np.ndarray:
    """(C,N) complex64 of one record."""
    coils, count = int(head["active_channels"]), int(head["number_of_samples"])
    values = np.ascontiguousarray(values, np.float32)
    if values.size != 2 * coils * count:
        raise UserError(f"{path}: a record of {coils} coils x {count} samples has {values.size} numbers; copy it again")
    return values.view(np.complex64).reshape(coils, count)


def _placement(heads: np.ndarray) -> dict[str, Any]:
    """'slices', the scanner's numbers, and 'position_mm' and 'directions' of `RawVolume.header` where heads tell them.

    Rows are the readout and columns the phase encoding.
    """
    if np.unique(heads["idx"]["phase"]).size > 1:
        return {}  # frames of one slice are counted as slices, and lie at one place
    numbers, first = np.unique(heads["idx"]["slice"], return_index=True)
    told: dict[str, Any] = {} if np.array_equal(numbers, np.arange(numbers.size)) else {"slices": numbers.tolist()}
    names = ("read_dir", "phase_dir", "slice_dir")
    if not {"position", *names} <= set(heads.dtype.names or ()):
        return told
    axes = np.stack([np.asarray(heads[name][first[0]], float) for name in names])
    lengths = np.linalg.norm(axes, axis=1)
    if not np.isfinite(axes).all() or np.abs(axes @ axes.T - np.eye(3)).max() > 0.01:
        return told  # left empty, or no orientation
    positions = np.asarray(heads["position"][first], float)
    if not np.isfinite(positions).all() or not all(np.allclose(heads[n][first], heads[n][first[0]]) for n in names):
        return told
    return told | {"position_mm": positions.tolist(), "directions": (axes / lengths[:, None]).tolist()}


def _noise(path: Path, heads: np.ndarray, data: np.ndarray, image: np.void) -> np.ndarray | None:
    """(C,N) complex64 as if sampled with the dwell time of the `image`'s head; a time of 0 is taken as equal."""
    chosen = np.flatnonzero(_flagged(heads, _NOISE))
    if not chosen.size:
        return None
    coils, expected = np.unique(heads["active_channels"][chosen]).tolist(), int(image["active_channels"])
    if coils != [expected]:
        found = " and ".join(map(str, coils))
        raise UserError(f"{path}: its noise scan has {found} coils, the image {expected}; export both with the same")
    own, dwell = heads["sample_time_us"][chosen[0]], image["sample_time_us"]
    factor = np.float32(np.sqrt(own / dwell) if min(own, dwell) > 0 else 1)
    return factor * np.concatenate([_samples(path, heads[i], data[i]) for i in chosen], axis=1)


def _check_sequence(path: Path, header: Header, heads: np.ndarray) -> None:
    if not heads.size:
        raise UserError(f"{path} holds no image lines; choose another file")
    if header.trajectory != "cartesian" or header.encoded[2] > 1:
        kind = f"{header.trajectory} with {header.encoded[2]} partitions"
        raise UserError(f"{path} is {kind}; only 2-D Cartesian data can be read: grid or slice it first")
    if heads["trajectory_dimensions"].any():
        raise UserError(f"{path} carries a trajectory for its samples; only Cartesian data can be read: grid it first")
    if _flagged(heads, _REVERSE).any():
        raise UserError(f"{path} has lines read backwards (EPI), which need a correction first; convert it beforehand")
    for name in _ONE_IMAGE:
        found = np.unique(heads["idx"][name])
        if found.size > 1:
            raise UserError(f"{path} has {found.size} values of {name!r}; only one can be read: split the file by it")


def _grid(path: Path, header: Header, heads: np.ndarray, data: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """(slices,C,H,W) complex64 means over repeats of a line, (H,W) bool: what every slice has, and repeats per entry.

    The last is the harmonic mean, by which the mean noise variance of the entries is smaller.
    """
    height, width = header.encoded[:2]
    # Frames of a slice follow each other, as slices of their own.
    slices, place = np.unique(heads["idx"]["slice"].astype(np.int64) << 16 | heads["idx"]["phase"], return_inverse=True)
    coils = int(heads["active_channels"][0])
    check_size(f"{path}: k-space of {slices.size} slices, {coils} coils, {height} x {width}", 3.0 * slices.size * coils
               * height * width, 8)  # fmt: skip
    total = np.zeros((slices.size, coils, height, width), np.complex64)
    count = np.zeros((slices.size, height, width), np.int32)
    columns = heads["idx"]["kspace_encode_step_1"].astype(int) - header.centre + width // 2
    for head, values, number, column in zip(heads, data, place, columns, strict=True):
        line = _samples(path, head, values)
        kept = slice(int(head["discard_pre"]), line.shape[1] - int(head["discard_post"]))
        centre = int(head["center_sample"])
        if not centre and line.shape[1] == height:  # a writer that left the field: a whole line has but one place
            centre = height // 2
        start = height // 2 - centre + kept.start
        stop = start + kept.stop - kept.start
        if not (0 <= column < width and 0 <= start < stop <= height and line.shape[0] == coils):
            found = f"line {head['idx']['kspace_encode_step_1']} of {line.shape[0]} coils, rows {start} to {stop}"
            raise UserError(f"{path}: {found} does not fit into {coils} coils, {height} x {width}; export it again")
        total[number, :, start:stop, column] += line[:, kept]
        count[number, start:stop, column] += 1
    if ((count > 0) != (count[:1] > 0)).any():
        raise UserError(
            f"{path}: the slices or frames have different lines; take one frame by --frames N, or split the file into "
            "files of one mask each"
        )
    return total / np.maximum(count, 1)[:, None], count[0] > 0, float(1 / np.mean(1 / count[count > 0]))
