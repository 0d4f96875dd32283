"""What the slices' viewer in a report shows: every slice of every method as small pictures in few files, with texts.

Pictures of one kind ("layer": a method's mean, its error, its std map, a sample) lie side by side in WebP sheets, which
a browser loads when they are first shown. They are exact to 8 bits as long as all fit into `BUDGET` bytes; of more
slices they are compressed, with fewer samples, and the page says so.
"""

import dataclasses
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from msm.evaluation.summary import error_map, solver_names
from msm.reports.figures import ERROR_MAP, STD_MAP, UNREGULARISED, WINDOW_PERCENTILE, label, mask_picture, upper_end

BUDGET = 8_000_000  # bytes of all sheets
SHEET = 2048  # pixels: the largest side of a sheet, which a browser holds uncompressed
_PROBE = 8  # slices whose pictures tell how large all will be


@dataclasses.dataclass(frozen=True)
class Coding:
    """How pictures are stored: WebP quality (None: exact), how many samples of each scan, means over so many pixels."""

    quality: int | None
    frames: int
    shrink: int = 1


CODINGS = (
    *(Coding(*pair) for pair in ((None, 99), (90, 99), (80, 8), (75, 4), (60, 2), (40, 1), (20, 1))),
    *(Coding(quality, 1, shrink) for quality, shrink in ((40, 2), (20, 2), (20, 4))),
)  # fmt: skip


def film_of(samples: np.ndarray) -> dict[str, np.ndarray]:
    """Returns what a round keeps of posterior samples to show them one after the other.

    Args:
      samples: (K,B,H,W) complex or (K,B,H,W,channels) real in [-1, 1].

    Returns:
      'film' (B,K,H,W[,channels]) uint8, and 'film_peak' (B,): the magnitude that 255 stands for; 1 of real images.
    """
    if not np.iscomplexobj(samples):
        scaled, peak = (np.nan_to_num(samples) + 1) / 2, np.ones(samples.shape[1], np.float32)
    else:
        magnitudes = np.nan_to_num(np.abs(samples))
        peak = np.maximum(magnitudes.max(axis=(0, 2, 3)), 1e-12).astype(np.float32)
        scaled = magnitudes / peak[:, None, None]
    return {"film": np.rint(255 * np.clip(scaled, 0, 1)).astype(np.uint8).swapaxes(0, 1), "film_peak": peak}


class Slices:
    """The pictures of a merged round, layer by layer, as uint8; how bright each slice is drawn is decided here."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.arrays = arrays
        self.solvers = solver_names(arrays)
        self.judged = "reference" in arrays
        self.drawn = [solver for solver in self.solvers if f"{solver}/std" in arrays]
        guide = arrays["reference" if self.judged else f"{self.solvers[-1]}/mean"]
        self.shape = guide.shape[1:3]
        self.count = len(guide)
        magnitudes = np.nan_to_num(np.abs(guide)).reshape(self.count, -1)
        self.peaks = np.maximum(magnitudes.max(axis=1), 1e-12)
        self.windows = np.percentile(magnitudes, WINDOW_PERCENTILE, axis=1) / self.peaks
        self.windows[self.windows <= 0] = 1.0
        if guide.ndim == 4:
            self.windows[:] = 1.0  # pictures are shown in their own colours
        self.error_ends = np.array([upper_end(self._errors(index)) for index in range(self.count)])
        stds = [[arrays[f"{solver}/std"][index] for solver in self.drawn] for index in range(self.count)]
        self.std_ends = np.array([upper_end(maps) for maps in stds])

    def _errors(self, index: int) -> list[np.ndarray]:
        """The error maps whose pixels set the scale of a slice's errors."""
        if not self.judged:
            return []
        shown = [solver for solver in self.solvers if solver not in UNREGULARISED] or self.solvers
        reference = self.arrays["reference"][index]
        return [error_map(reference, self.arrays[f"{solver}/mean"][index]) for solver in shown]

    def layers(self, frames: int) -> Iterator[str]:
        """The names of all layers: 'reference', 'mask', and '<solver>/<mean|error|std|film k>'."""
        yield from (["reference"] if self.judged else [])
        yield "measured" if "measured" in self.arrays else "mask"
        for solver in self.solvers:
            yield f"{solver}/mean"
            yield from ([f"{solver}/error"] if self.judged else [])
            yield from ([f"{solver}/std"] if solver in self.drawn else [])
            yield from (f"{solver}/film {k}" for k in range(self.frames(solver, frames)))

    def frames(self, solver: str, most: int) -> int:
        """How many samples of a solver are shown; one alone is no film, and says nothing."""
        kept = min(most, self.arrays[f"{solver}/film"].shape[1]) if f"{solver}/film" in self.arrays else 0
        return kept if kept > 1 else 0

    def picture(self, layer: str, index: int) -> np.ndarray:
        """One picture of a layer: (H,W) or (H,W,3) uint8."""
        solver, _, what = layer.partition("/")
        if layer == "mask":
            return _bytes(_of_shape(mask_picture(self.arrays["mask"][index], self.shape)[0], self.shape))
        if layer == "measured":
            return _colours(_of_shape(_bytes((self.arrays["measured"][index] + 1) / 2), self.shape))
        if layer == "reference":
            return self._image(self.arrays["reference"][index], index)
        if what == "mean":
            return self._image(self.arrays[layer][index], index)
        if what == "error":
            error = error_map(self.arrays["reference"][index], self.arrays[f"{solver}/mean"][index])
            return _bytes(error / self.error_ends[index])
        if what == "std":
            return _bytes(self.arrays[layer][index] / self.std_ends[index])
        frame = self.arrays[f"{solver}/film"][index, int(what.split()[1])]
        if frame.ndim == 3:
            return _colours(frame)
        return _bytes(frame / 255 * (self.arrays[f"{solver}/film_peak"][index] / self.peaks[index]))

    def _image(self, image: np.ndarray, index: int) -> np.ndarray:
        if image.ndim == 3:
            return _colours(_bytes((image + 1) / 2))
        return _bytes(np.abs(image) / self.peaks[index])


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.rint(255 * np.clip(np.nan_to_num(np.asarray(values, np.float32)), 0, 1)).astype(np.uint8)


def _colours(image: np.ndarray) -> np.ndarray:
    return image[..., 0] if image.shape[-1] == 1 else image


def _of_shape(picture: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The picture at the size of an image: the mask of CT's rays, which are no pixels, is stretched to it."""
    rows, columns = (np.arange(size) * have // size for size, have in zip(shape, picture.shape[:2], strict=True))
    return picture[np.ix_(rows, columns)]


def _encode(picture: np.ndarray, coding: Coding, layer: str) -> bytes:
    """WebP of a sheet. Masks are always exact: they cost little, and a line is there or not."""
    image, buffer = Image.fromarray(picture), io.BytesIO()
    if coding.quality is None or layer == "mask":
        image.save(buffer, "WEBP", lossless=True)
    else:
        image.reduce(coding.shrink).save(buffer, "WEBP", quality=coding.quality)
    return buffer.getvalue()


def choose_coding(slices: Slices, budget: int = BUDGET) -> Coding:
    """The best way of storing with which all pictures, judged by a few, fit into `budget` bytes; at worst the last."""
    probed = sorted({int(place) for place in np.linspace(0, slices.count - 1, _PROBE)})
    for coding in CODINGS:
        total = 0
        for layer in slices.layers(coding.frames):
            total += len(_encode(np.concatenate([slices.picture(layer, i) for i in probed]), coding, layer))
        if total * slices.count / len(probed) <= budget:
            return coding
    return CODINGS[-1]


def sheets(slices: Slices, coding: Coding) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Returns the sheets by file name, and where each slice lies in them.

    Returns:
      files: 'viewer_<layer>_<sheet>.webp' -> bytes.
      layout: 'columns' and 'rows' of pictures in a full sheet, and 'layers': names of files by layer, in order.
    """
    height, width = slices.shape
    side = SHEET * coding.shrink  # of a sheet before it is made smaller
    columns = max(1, min(side // width, math.ceil(math.sqrt(slices.count * height / width))))
    rows = max(1, min(side // height, math.ceil(slices.count / columns)))
    files: dict[str, bytes] = {}
    names: dict[str, list[str]] = {}
    for number, layer in enumerate(slices.layers(coding.frames)):
        names[layer] = []
        for start in range(0, slices.count, columns * rows):
            inside = range(start, min(start + columns * rows, slices.count))
            tiles = [slices.picture(layer, index) for index in inside]
            sheet = np.zeros((rows * height, columns * width, *tiles[0].shape[2:]), np.uint8)
            for place, tile in enumerate(tiles):
                top, left = height * (place // columns), width * (place % columns)
                sheet[top : top + height, left : left + width] = tile
            name = f"viewer_{number:02d}_{len(names[layer])}.webp"
            files[name] = _encode(sheet, coding, layer)
            names[layer].append(name)
    return files, {"columns": columns, "rows": rows, "layers": names}


def viewer_of(
    arrays: Mapping[str, np.ndarray], rows: Sequence[Mapping[str, Any]], chosen: Mapping[str, int]
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Returns the sheets by name, and all that the page's script needs, as plain values.

    Args:
      arrays: a merged round; may hold 'slice' (N,), the scanner's numbers, and 'aspect' (N,), height over width of a
        pixel.
      rows: of `evaluation.measure_round`.
      chosen: of `evaluation.choose_slices`.
    """
    slices = Slices(arrays)
    coding = choose_coding(slices)
    files, layout = sheets(slices, coding)
    ids = [int(key) for key in arrays["example_id"]]
    place = {key: index for index, key in enumerate(ids)}
    scores: dict[str, list[str]] = {solver: [""] * len(ids) for solver in slices.solvers}
    for row in rows:
        if "psnr" in row and row["example_id"] in place:
            text = f"{row['psnr']:.2f} dB, SSIM {row['ssim']:.3f}" if math.isfinite(row["psnr"]) else "not finite"
            scores[row["solver"]][place[row["example_id"]]] = text
    panels = [{"name": "Reference", "image": "reference", "texts": []}] if slices.judged else []
    for solver in slices.solvers:
        panel: dict[str, Any] = {"name": label(solver), "image": f"{solver}/mean", "texts": scores[solver]}
        panel |= {kind: name for kind in ("error", "std") if (name := f"{solver}/{kind}") in layout["layers"]}
        panel["film"] = [f"{solver}/film {k}" for k in range(slices.frames(solver, coding.frames))]
        panels.append(panel)
    panels.append(_given_panel(arrays, slices.shape))
    return files, {
        **layout,
        "size": [int(side) for side in slices.shape],
        "aspect": _aspect(arrays, slices.shape),
        "slices": [_slice_name(arrays, index) for index in range(slices.count)],
        "jumps": {reason: place[key] for reason, key in chosen.items()},
        "panels": panels,
        "window": [round(float(value), 4) for value in slices.windows],
        "ends": {"error": _short(slices.error_ends), "std": _short(slices.std_ends)},
        "colours": {"error": _table(ERROR_MAP), "std": _table(STD_MAP)},
        "coding": _told(coding),
        "error_shown": slices.judged,
        "std_shown": bool(slices.drawn),
        "film_shown": any(panel.get("film") for panel in panels),
    }


def _given_panel(arrays: Mapping[str, np.ndarray], shape: tuple[int, int]) -> dict[str, Any]:
    """What was given: the mask, or y itself where all of it is measured."""
    if "measured" in arrays:
        height, width = arrays["measured"].shape[1:3]
        return {"name": "Measured", "image": "measured", "texts": [f"{height} x {width} pixels"] * len(arrays["mask"])}
    texts = [mask_picture(mask, shape)[1].split("\n")[1] for mask in arrays["mask"]]
    return {"name": "Mask", "image": "mask", "texts": texts}


def _aspect(arrays: Mapping[str, np.ndarray], shape: tuple[int, int]) -> float:
    """Width over height of a slice as it is in the body: pixels need not be square."""
    height, width = shape
    return width / (height * float(arrays["aspect"][0] if "aspect" in arrays else 1.0))


def _slice_name(arrays: Mapping[str, np.ndarray], index: int) -> str:
    """The volume and the number that the scanner gave the slice, where they are known; else the example's id."""
    known = "slice" in arrays and arrays["slice"][index] >= 0
    number = arrays["slice" if known else "example_id"][index]
    volume = str(arrays["volume"][index]) if "volume" in arrays else ""
    what = "slice" if known else "example"
    return f"{volume}, {what} {int(number)}" if volume else f"{what} {int(number)}"


def _short(values: np.ndarray) -> list[float]:
    return [float(f"{value:.3g}") for value in values]


def _table(name: str) -> list[str]:
    """A colour map as three tables of 17 values for red, green and blue."""
    from matplotlib import colormaps

    colours = colormaps[name](np.linspace(0, 1, 17))[:, :3]
    return [" ".join(f"{value:.3f}" for value in channel) for channel in colours.T]


def _told(coding: Coding) -> str:
    """What the reader must know of how pictures are stored."""
    if coding.quality is None:
        return "Pictures are exact to 8 bits."
    smaller = "" if coding.shrink == 1 else f", means of {coding.shrink} x {coding.shrink} pixels"
    return f"So many slices are stored compressed (WebP, quality {coding.quality}{smaller}); rounds/ has the values."
