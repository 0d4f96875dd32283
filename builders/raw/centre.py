"""Where k-space has its zero frequency: measured, checked, and mended where the user says so.

k-space is peaked: a sixteenth of the lines hold most of its energy, and its image along the same axis is spread. So an
array that is more concentrated after a Fourier transform than before is an image along that axis (hybrid, x-ky), and
the strongest line of k-space is at most a few from n//2. All is measured on a few slices and coils, in about a second.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from msm.builders.raw.volume import RawVolume
from msm.infra.errors import UserError

AXES = {"h": -2, "w": -1}
_NAMES = {"h": "rows", "w": "columns"}
_SLICES, _COILS = 3, 8  # that are looked at
_PEAKED = 1.1  # how much more concentrated k-space is than its image, at least


@dataclasses.dataclass(frozen=True)
class Finding:
    """What an array is along one axis.

    Attributes:
      offset: of the strongest line from n//2, in lines.
      tolerated: how large it may be: 2 lines, or a 64th of them, or as far as no line was acquired.
      kind: 'k-space', 'image' (hybrid arrays) or 'flat' (noise, or lines in no order).
      split: whether the image lies across its edges with an empty middle: made by a transform without shifts.
    """

    offset: int
    tolerated: int
    kind: str
    split: bool


def fourier(array: np.ndarray, axis: int, inverse: bool = False) -> np.ndarray:
    """Centred orthonormal transform along one axis, complex64."""
    transform = np.fft.ifft if inverse else np.fft.fft
    shifted = transform(np.fft.ifftshift(array, axes=axis), axis=axis, norm="ortho")
    return np.fft.fftshift(shifted, axes=axis).astype(np.complex64)


def measure(kspace: np.ndarray, mask: np.ndarray) -> dict[str, Finding]:
    """What k-space (S,C,H,W), 0 outside `mask` (1,1,W) or (1,H,W), is along 'h' and 'w'."""
    sample = _sample(kspace)
    whole = np.broadcast_to(mask, (1, *kspace.shape[2:]))[0]
    found = {}
    for letter, axis in AXES.items():
        length = kspace.shape[axis]
        image = fourier(sample, axis, inverse=True)
        before, after = _profile(sample, axis), _profile(image, axis)
        ratio = _share(before) / _share(after)
        kind = "k-space" if ratio >= _PEAKED else "image" if ratio <= 1 / _PEAKED else "flat"
        acquired = np.flatnonzero(whole.any(axis=-1 if letter == "h" else 0))
        nearest = int(np.min(np.abs(acquired - length // 2)))
        quarter = length // 4
        first, middle, last = after[:quarter].sum(), after[quarter : length - quarter].sum(), after[-quarter:].sum()
        found[letter] = Finding(
            offset=int(np.argmax(before)) - length // 2,
            tolerated=max(2, length // 64, nearest),
            kind=kind,
            split=bool(min(first, last) > middle),
        )
    return found


def _sample(kspace: np.ndarray) -> np.ndarray:
    """The strongest of a few slices and coils, each slice with energy 1."""
    places = np.unique(np.linspace(0, len(kspace) - 1, 3 * _SLICES).astype(int))
    energy = np.array([float(np.sum(np.abs(kspace[i]).astype(np.float64) ** 2)) for i in places])
    chosen = places[np.argsort(-energy, kind="stable")[:_SLICES]]
    chosen = [i for i in chosen if energy[places == i][0] > 0]
    strength = sum(np.sum(np.abs(kspace[i]).astype(np.float64) ** 2, axis=(1, 2)) for i in chosen)
    coils = np.argsort(-np.asarray(strength), kind="stable")[:_COILS]
    picked = np.stack([kspace[i][coils] for i in chosen])
    return picked / np.sqrt(np.sum(np.abs(picked).astype(np.float64) ** 2, axis=(1, 2, 3), keepdims=True))


def _profile(array: np.ndarray, axis: int) -> np.ndarray:
    """Energy of every line along an axis."""
    others = tuple(i for i in range(array.ndim) if i != array.ndim + axis)
    return np.sum(np.abs(array).astype(np.float64) ** 2, axis=others)


def _share(profile: np.ndarray) -> float:
    """Share of the energy in the strongest sixteenth of the lines."""
    return float(np.sort(profile)[::-1][: -(-len(profile) // 16)].sum() / profile.sum())


def check_flags(centre: str, hybrid: str) -> None:
    """Raises UserError for a --centre or --hybrid that says nothing."""
    if centre not in ("", "auto", "corner") and _shift_of(centre) is None:
        raise UserError(f"--centre is {centre!r}: it must be auto, corner, or ROWS,COLUMNS such as 0,8")
    if hybrid not in ("", "h", "w", "hw"):
        raise UserError(f"--hybrid is {hybrid!r}: it must be h (image along the rows), w (columns) or hw")


def _shift_of(text: str) -> tuple[int, int] | None:
    try:
        rows, columns = (int(part) for part in text.split(","))
    except ValueError:
        return None
    return rows, columns


def centred(raw: RawVolume, centre: str = "", hybrid: str = "") -> tuple[RawVolume, list[str]]:
    """A scan whose zero frequency is at (H//2, W//2), and what was done for it.

    Args:
      raw: as read.
      centre: '' checks; 'corner' moves the zero frequency from (0, 0); 'R,C' moves it from R rows and C columns beyond
        the centre and believes the result, '0,0' the file; 'auto' moves the strongest line to the centre, and an image
        that lies across the edges into the middle.
      hybrid: letters of the axes along which the array is an image, which are transformed first.

    Raises UserError for an array that is, after that, not k-space along both axes, has its peak elsewhere or its image
    across the edges; the line says which flag mends it.
    """
    check_flags(centre, hybrid)
    done = []
    for letter in hybrid:
        raw = _transformed(raw, letter)
        done.append(f"transformed along its {_NAMES[letter]}")
    stated = _shift_of(centre)
    if stated is not None:
        moved = _rolled(raw, [-n for n in stated])
        return moved, done + ([f"k-space moved by {-stated[0]} rows and {-stated[1]} columns"] if any(stated) else [])
    if centre == "corner":
        raw = _rolled(raw, [n // 2 for n in raw.kspace.shape[2:]])
        done.append("zero frequency moved from the corner")
    found = measure(raw.kspace, raw.mask)
    _refuse_other_kinds(found)
    if centre == "auto":
        shift = [-f.offset if abs(f.offset) > f.tolerated else 0 for f in found.values()]
        if any(shift):
            raw = _rolled(raw, shift)
            done.append(f"k-space moved by {shift[0]} rows and {shift[1]} columns")
            found = measure(raw.kspace, raw.mask)
    if centre in ("auto", "corner") and any(f.split for f in found.values()):
        letters = [letter for letter, f in found.items() if f.split]
        raw = _halves_swapped(raw, letters)
        done.append(f"halves of the image swapped along its {' and '.join(_NAMES[n] for n in letters)}")
        found = measure(raw.kspace, raw.mask)
    _refuse_other_places(found, raw.kspace.shape[2:])
    return raw, done


def _refuse_other_kinds(found: dict[str, Finding]) -> None:
    images = [letter for letter, f in found.items() if f.kind == "image"]
    if images:
        where = " and ".join(_NAMES[letter] for letter in images)
        raise UserError(
            f"the array is an image along its {where}, no k-space (or not Cartesian): --hybrid {''.join(images)} "
            "transforms it; --centre 0,0 takes it as it is"
        )
    flat = [_NAMES[letter] for letter, f in found.items() if f.kind == "flat"]
    if flat:
        raise UserError(
            f"k-space does not fall off along its {' and '.join(flat)}: noise, lines in another order, or no Cartesian "
            "k-space; check --axes, or take it as it is by --centre 0,0"
        )


def _refuse_other_places(found: dict[str, Finding], shape: Sequence[int]) -> None:
    if any(abs(f.offset) > f.tolerated for f in found.values()):
        offsets = [f.offset for f in found.values()]
        corner = all(abs(abs(o) - n // 2) <= 2 for o, n in zip(offsets, shape, strict=True))
        mend = "--centre corner" if corner else f"--centre auto or --centre {offsets[0]},{offsets[1]}"
        raise UserError(
            f"the peak of k-space is {offsets[0]} rows and {offsets[1]} columns from its centre, index (H//2, W//2): "
            f"{mend} moves it there, --centre 0,0 takes it as it is"
        )
    split = [_NAMES[letter] for letter, f in found.items() if f.split]
    if split:
        raise UserError(
            f"the image lies across the edges of its {' and '.join(split)} with an empty middle, as a transform "
            "without shifts leaves it: --centre auto moves it, --centre 0,0 takes it as it is"
        )


def _transformed(raw: RawVolume, letter: str) -> RawVolume:
    """Fourier transform of an image along one axis, all of whose entries are then known if one is."""
    axis = AXES[letter]
    mask = np.broadcast_to(raw.mask.any(axis=axis, keepdims=True), (1, *raw.kspace.shape[2:]))
    mask = mask[:, :1] if (mask == mask[:, :1]).all() else mask
    kspace = np.where(mask, fourier(raw.kspace, axis), 0).astype(np.complex64)
    return dataclasses.replace(raw, kspace=kspace, mask=np.array(mask))


def _rolled(raw: RawVolume, shift: Sequence[int]) -> RawVolume:
    """k-space, mask and calibration moved by (rows, columns), over the edges: a slope of the image's phase."""

    def roll(array):
        rows = shift[0] if array.shape[-2] > 1 else 0
        return np.roll(array, (rows, shift[1]), axis=(-2, -1))

    names = ("kspace", "mask", "calibration", "calibration_mask")
    changed = {name: getattr(raw, name) for name in names}
    return dataclasses.replace(raw, **{n: None if array is None else roll(array) for n, array in changed.items()})


def _halves_swapped(raw: RawVolume, letters: Sequence[str]) -> RawVolume:
    """The image moved by half of its size along these axes: alternating signs of k-space, and maps moved along."""
    kspace, maps, apart = raw.kspace, raw.maps, raw.calibration
    for letter in letters:
        axis = AXES[letter]
        length = kspace.shape[axis]
        phase = np.exp(-2j * np.pi * (np.arange(length) - length // 2) * (length // 2) / length)
        phase = phase.astype(np.complex64).reshape((-1, 1) if axis == -2 else (-1,))
        kspace, apart = kspace * phase, None if apart is None else apart * phase
        maps = None if maps is None else np.roll(maps, length // 2, axis=axis)
    return dataclasses.replace(raw, kspace=kspace, maps=maps, calibration=apart)
