"""Pictures of a run as PNG bytes or pixels: slices with their error maps, quality per slice, grids while training.

Images are grey in one window per slice, errors and standard deviations have a perceptually uniform colour map on one
scale per slice. Everything is drawn as stored, first row on top, in its true aspect.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from msm.evaluation.summary import error_map, solver_names

if TYPE_CHECKING:  # Matplotlib takes half a second to load: only who draws waits for it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS = {
    "zero_filled": "Zero-filled",
    "fbp": "FBP",
    "li": "LI + FBP",
    "pseudo_inverse": "Pseudo-inverse",
    "cg_sense": "CG-SENSE",
    "tikhonov": "Tikhonov",
    "l1_wavelet": "l1-wavelet",
    "tv": "Total variation",
    "msm": "MSM",
    "msm_fast": "MSM, fast",
    "ssdu": "SSDU",
    "dps": "DPS",
    "a_dps": "A-DPS",
    "ddnm": "DDNM",
    "projection": "Projection",
    "langevin_projection": "Langevin + proj.",
    "baseline": "Score guidance",
    "langevin": "Langevin",
}
UNREGULARISED = ("zero_filled", "pseudo_inverse")  # their errors would leave the others' maps black
ERROR_MAP, STD_MAP = "inferno", "viridis"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
_MARKERS = "osD^v"  # 5 and 7 share no factor: 35 solvers differ
WINDOW_PERCENTILE = 98.5  # of the reference magnitude: bright fat above it would darken the brain
DPI = 130
_PANEL, _GAP, _TITLE, _LEGEND = 1.95, 0.09, 0.46, 0.52  # inches


def label(solver: str) -> str:
    """Name of a solver for people."""
    return LABELS.get(solver, solver.replace("_", " "))


def upper_end(maps: Sequence[np.ndarray]) -> float:
    """The value below which 99.5 % of the finite pixels lie, rounded up to half a leading digit; 1 without any."""
    values = np.concatenate([np.ravel(m) for m in maps]) if maps else np.zeros(0)
    values = values[np.isfinite(values)]
    top = float(np.percentile(values, 99.5)) if values.size else 0.0
    if top <= 0:
        return 1.0
    step = 0.5 * 10.0 ** np.floor(np.log10(top))
    return float(np.ceil(top / step - 1e-9) * step)


class _Sheet:
    """A figure whose panels are placed by row and column in whole pixels: nothing is clipped, no pixel row is lost.

    A panel is about 256 pixels wide. Where image pixels are square, each becomes the same whole number of pixels; else
    its shorter side does, and the panel has the true aspect.
    """

    def __init__(self, rows: int, columns: int, image_shape: tuple[int, int], aspect: float = 1.0):
        """`aspect`: height over width of a pixel of the images."""
        factor = max(1, round(256 / (image_shape[1] * max(1.0, 1 / aspect))))
        self.panel_height, self.panel_width = _stretched(image_shape, factor, aspect)
        self.dpi = self.panel_width / _PANEL
        self.gap, self.title, self.legend = (round(length * self.dpi) for length in (_GAP, _TITLE, _LEGEND))
        self.width = columns * (self.panel_width + self.gap) + self.gap
        self.height = rows * (self.panel_height + self.title) + self.legend
        self.figure = new_figure((self.width / self.dpi, self.height / self.dpi), self.dpi)

    def _axes(self, left: float, top: float, width: float, height: float) -> Axes:
        box = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def _left(self, column: int) -> int:
        return self.gap + column * (self.panel_width + self.gap)

    def panel(self, row: int, column: int, image: np.ndarray, title: str, **options: Any) -> None:
        """Draws `image` under its two-line title; `options` are imshow's."""
        top = row * (self.panel_height + self.title) + self.title
        axes = self._axes(self._left(column), top, self.panel_width, self.panel_height)
        options.setdefault("interpolation", "nearest")
        axes.imshow(image, aspect="auto", **options)  # the panel has the true aspect
        axes.set_axis_off()
        for line, offset, size, weight in zip(title.split("\n"), (18, 4), (10, 9), ("bold", "normal"), strict=True):
            place: dict[str, Any] = {"xy": (0.5, 1), "xycoords": "axes fraction", "textcoords": "offset points"}
            axes.annotate(line, xytext=(0, offset), ha="center", size=size, weight=weight, **place)

    def colorbar(self, first: int, last: int, colormap: str, top: float, text: str) -> None:
        """Draws a horizontal colour bar from 0 to `top` below columns `first` to `last`."""
        inset = 2 * self.gap
        width = self._left(last) + self.panel_width - self._left(first) - 2 * inset
        above = self.height - self.legend + self.gap
        axes = self._axes(self._left(first) + inset, above, width, round(0.11 * self.dpi))
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        mappable = ScalarMappable(Normalize(0, top), colormap)
        bar = self.figure.colorbar(mappable, cax=axes, orientation="horizontal", extend="max")
        bar.ax.tick_params(labelsize=8, length=2, pad=1)
        bar.ax.xaxis.set_major_locator(ticks(nbins=6 if last > first else 3, steps=[1, 2, 5, 10]))
        bar.set_label(text, fontsize=8, labelpad=1)

    def png(self) -> bytes:
        return png_of(self.figure)


def _stretched(shape: tuple[int, int], factor: float, aspect: float) -> tuple[int, int]:
    """Height and width in whole pixels of an image whose pixels are `aspect` times as high as they are wide.

    The shorter side of a pixel becomes `factor` pixels.
    """
    return round(shape[0] * factor * max(1.0, aspect)), round(shape[1] * factor * max(1.0, 1 / aspect))


def _enlarged(pixels: np.ndarray, factor: int, aspect: float = 1.0) -> np.ndarray:
    """(h,w,3) of pixels (H,W,3) in their true aspect, by repeating rows and columns."""
    places = (
        np.minimum(np.arange(new) * old // new, old - 1)
        for old, new in zip(pixels.shape[:2], _stretched(pixels.shape[:2], factor, aspect), strict=True)
    )
    return pixels[np.ix_(*places)]


def _aspect_of(arrays: Mapping[str, np.ndarray], index: int) -> float:
    """Height over width of a pixel of one slice of a round; 1 where the round does not tell."""
    return float(arrays["aspect"][index]) if "aspect" in arrays else 1.0


def new_figure(inches: tuple[float, float], dpi: float, **options: Any) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=inches, dpi=dpi, **options)


def ticks(**options: Any) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(**options)


def png_of(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _displayable(image: np.ndarray, peak: float) -> tuple[np.ndarray, dict[str, Any]]:
    """Pixels and imshow options of an image: grey magnitude in the window [0, peak], or colours of a [-1, 1] image."""
    if image.ndim == 3:
        return np.clip((np.nan_to_num(image, nan=-1) + 1) / 2, 0, 1).squeeze(), {"cmap": "gray", "vmin": 0, "vmax": 1}
    return np.abs(image), {"cmap": "gray", "vmin": 0, "vmax": peak}


def mask_picture(mask: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, str]:
    """The sampling mask at image size and its title, e.g. '20 of 64 lines'."""
    picture = mask[..., 0] if mask.shape[-1] == 1 else mask[0]
    rays = picture.shape[0] > 1 and picture.shape != shape  # of CT: views and bins, which are no pixels
    kept, total = int(mask.sum()), mask.size
    things = "rays" if rays else "lines" if mask.shape == (1, 1, shape[1]) else "points"
    picture = picture if rays else np.broadcast_to(picture, shape)
    reduction = f", R = {total / kept:.2f}" if kept else ""
    return picture, f"Sampling mask\n{kept} of {total} {things}{reduction}"


def slice_figure(arrays: Mapping[str, np.ndarray], index: int, scores: Mapping[str, Mapping[str, float]]) -> bytes:
    """Returns a PNG of one slice: reference and every solver's image above the mask and the absolute errors.

    Where all of y is measured, y is drawn instead of the mask: the smaller, blurred or grey image.

    Solvers that drew samples get a column more: one of their samples (where stored) above their std map. The scale of
    the errors holds 99.5 % of the pixels of all maps but those of UNREGULARISED solvers.

    Args:
      arrays: a round (see `evaluation`).
      index: which of its slices.
      scores: metrics by solver; 'psnr' and 'ssim' go into the titles.
    """
    reference, solvers = arrays["reference"][index], solver_names(arrays)
    drawn = [solver for solver in solvers if f"{solver}/std" in arrays]
    height, width = reference.shape[:2]
    errors = {solver: error_map(reference, arrays[f"{solver}/mean"][index]) for solver in solvers}
    stds = {solver: arrays[f"{solver}/std"][index] for solver in drawn}
    error_end = upper_end([errors[solver] for solver in solvers if solver not in UNREGULARISED] or [*errors.values()])
    std_end = upper_end(list(stds.values()))
    peak = float(np.percentile(np.abs(reference), WINDOW_PERCENTILE)) or 1.0
    sheet = _Sheet(2, 1 + len(solvers) + len(drawn), (height, width), _aspect_of(arrays, index))

    def draw(row, column, image, title):
        pixels, options = _displayable(image, peak)
        sheet.panel(row, column, pixels, title, interpolation="bicubic" if width < 256 else "nearest", **options)

    draw(0, 0, reference, f"Reference\n{height} x {width} pixels")
    if "measured" in arrays:
        measured = arrays["measured"][index]
        pixels, options = _displayable(measured, peak)
        size = f"{measured.shape[0]} x {measured.shape[1]} pixels"
        sheet.panel(1, 0, pixels, f"Measured\n{size}{', grey' if measured.shape[-1] == 1 else ''}", **options)
    else:
        mask, title = mask_picture(arrays["mask"][index], (height, width))
        sheet.panel(1, 0, mask, title, cmap="gray", vmin=0, vmax=1)
    for column, solver in enumerate(solvers, start=1):
        mean, score = arrays[f"{solver}/mean"][index], scores[solver]
        name = f"{label(solver)}, mean" if solver in drawn else label(solver)
        figures = (
            f"\n{score['psnr']:.2f} dB, SSIM {score['ssim']:.3f}" if "psnr" in score else "\nno content to compare"
        )
        draw(0, column, mean, f"{name}{figures}")
        title = f"{label(solver)}, |error|\nroot mean square {np.sqrt(np.mean(errors[solver] ** 2)):.3f}"
        sheet.panel(1, column, errors[solver], title, cmap=ERROR_MAP, vmin=0, vmax=error_end)
    for column, solver in enumerate(drawn, start=1 + len(solvers)):
        row = 1 if f"{solver}/sample" in arrays else 0
        if row:
            draw(0, column, arrays[f"{solver}/sample"][index], f"{label(solver)}, one sample\nof the posterior")
        correlation = scores[solver].get("std_error_correlation", np.nan)
        title = f"{label(solver)}, std map\ncorrelation with |error| {correlation:.2f}"
        sheet.panel(row, column, stds[solver], title, cmap=STD_MAP, vmin=0, vmax=std_end)
    sheet.colorbar(1, len(solvers), ERROR_MAP, error_end, "absolute error, one scale for all methods")
    if drawn:
        first = 1 + len(solvers)
        sheet.colorbar(first, first + len(drawn) - 1, STD_MAP, std_end, "standard deviation")
    return sheet.png()


def measured_figure(arrays: Mapping[str, np.ndarray], index: int, scores: Mapping[str, Mapping[str, float]]) -> bytes:
    """Returns a PNG of one slice without reference: the mask, every solver's image, a posterior sample and std maps.

    Args as in `slice_figure`; images share one window, that of the last solver's. There are no scores to show.
    """
    del scores
    solvers, mask = solver_names(arrays), arrays["mask"][index]
    drawn = [solver for solver in solvers if f"{solver}/std" in arrays]
    images = {solver: arrays[f"{solver}/mean"][index] for solver in solvers}
    height, width = images[solvers[-1]].shape[:2]
    peak = float(np.percentile(np.abs(images[solvers[-1]]), WINDOW_PERCENTILE)) or 1.0
    stds = {solver: arrays[f"{solver}/std"][index] for solver in drawn}
    std_end = upper_end(list(stds.values()))
    sheet = _Sheet(1, 1 + len(solvers) + 2 * len(drawn), (height, width), _aspect_of(arrays, index))
    picture, title = mask_picture(mask, (height, width))
    sheet.panel(0, 0, picture, title, cmap="gray", vmin=0, vmax=1)
    images |= {f"{solver}/sample": arrays[f"{solver}/sample"][index] for solver in drawn}
    for column, (name, image) in enumerate(images.items(), start=1):
        solver, _, sample = name.partition("/")
        what = "one sample" if sample else "mean of the samples" if solver in drawn else f"{height} x {width} pixels"
        pixels, options = _displayable(image, peak)
        sheet.panel(0, column, pixels, f"{label(solver)}\n{what}", interpolation="bicubic", **options)
    first = 1 + len(images)
    for column, solver in enumerate(drawn, start=first):
        sheet.panel(0, column, stds[solver], f"{label(solver)}\nstd map", cmap=STD_MAP, vmin=0, vmax=std_end)
    if drawn:
        sheet.colorbar(first, first + len(drawn) - 1, STD_MAP, std_end, "standard deviation")
    return sheet.png()


def quality_plot(rows: Sequence[Mapping[str, Any]], metric: str = "psnr", axis_label: str = "PSNR (dB)") -> bytes:
    """Returns a PNG of one metric over the slices, one line per solver, means in the legend."""
    figure = new_figure((11, 3.4), DPI, layout="constrained")
    axes = figure.add_subplot()
    solvers = list(dict.fromkeys(row["solver"] for row in rows))
    one = len({row.get("volume") for row in rows}) == 1 and all("slice" in row for row in rows)
    order = {key: number for number, key in enumerate(sorted({row["example_id"] for row in rows}), start=1)}
    place = {row["example_id"]: row["slice"] for row in rows} if one else order
    for index, solver in enumerate(solvers):
        mine = (row for row in rows if row["solver"] == solver and metric in row)
        points = sorted((place[row["example_id"]], row[metric]) for row in mine)
        ids, values = (np.array(part, float) for part in zip(*points, strict=True))
        style = {"color": COLORS[index % len(COLORS)], "marker": _MARKERS[index % len(_MARKERS)], "markersize": 4}
        axes.plot(ids, values, linewidth=1.4, label=f"{label(solver)}, mean {values.mean():.2f}", **style)
    axes.set(xlabel="slice" if one else "slice, in the order of the table", ylabel=axis_label)
    axes.xaxis.set_major_locator(ticks(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, reverse=True)
    return png_of(figure)


def reliability_plot(levels: Mapping[str, np.ndarray]) -> bytes:
    """Returns a PNG: how often intervals hold the reference over how often they should, one line per solver.

    Args:
      levels: by name, 1-D, the level of the smallest interval that holds each entry's truth.
    """
    figure = new_figure((6.2, 4), DPI, layout="constrained")
    axes = figure.add_subplot()
    nominal = np.linspace(0, 1, 101)
    axes.plot(nominal, nominal, ":", color="#777777", linewidth=1, label="calibrated")
    for index, (name, values) in enumerate(levels.items()):
        held = np.searchsorted(np.sort(values), nominal, side="right") / values.size
        axes.plot(nominal, held, color=COLORS[index % len(COLORS)], linewidth=1.6, label=label(name))
    axes.set(xlabel="level of the interval", ylabel="share of entries inside it", xlim=(0, 1), ylim=(0, 1), aspect=1)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return png_of(figure)


def training_grid(zero_filled: np.ndarray, mask: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Returns the picture that is saved while training: per example, from the top, zero-filled, mask, samples.

    It shows nothing but what was acquired and drawn: there is no reference. The window of an example is set by its
    zero-filled image, hence stays the same over a run. Pixels that are not finite are red.

    Args:
      zero_filled: (N,H,W) complex or (N,H,W,channels) float in [-1, 1].
      mask: (N,...) bool, broadcastable as in `Measurement`.
      samples: (K,*zero_filled.shape): K samples, one row each.

    Returns:
      (height, width, 3) uint8: N columns of 2 + K panels, each magnified to at least 128 pixels.
    """
    shape = zero_filled.shape[1:3]
    factor = max(1, -(-128 // min(shape)))
    columns = []
    for index, start in enumerate(zero_filled):
        peak = 1.2 * float(np.abs(start).max()) or 1.0
        panels = [_pixels(start, peak), _pixels(mask_picture(mask[index], shape)[0].astype(np.complex64), 1.0)]
        panels += [_pixels(sample[index], peak) for sample in samples]
        framed = [np.pad(panel.repeat(factor, 0).repeat(factor, 1), ((2, 2), (2, 2), (0, 0))) for panel in panels]
        columns.append(np.concatenate(framed, axis=0))
    return np.concatenate(columns, axis=1)


def _pixels(image: np.ndarray, peak: float) -> np.ndarray:
    """(H,W,3) uint8 of an image in the window of `_displayable`; red where it is not finite."""
    finite = np.all(np.isfinite(image).reshape(*image.shape[:2], -1), axis=-1, keepdims=True)
    pixels, options = _displayable(np.where(np.isfinite(image), image, 0), peak)
    scaled = np.clip(pixels / options["vmax"], 0, 1) * 255
    scaled = np.broadcast_to(scaled[..., None], (*scaled.shape, 3)) if scaled.ndim == 2 else scaled
    return np.where(finite, np.rint(scaled), np.array([255, 0, 0])).astype(np.uint8)


def image_grid(images: np.ndarray, columns: int = 8, aspect: float = 1.0) -> np.ndarray:
    """Returns images side by side, row by row, as (height, width, 3) uint8.

    Complex images are shown as magnitudes, each in a grey window up to its own maximum, others as they are.

    Args:
      images: (N,H,W) complex or (N,H,W,channels) float in [-1, 1].
      columns: images per row.
      aspect: height over width of a pixel.
    """
    factor = max(1, -(-128 // min(_stretched(images.shape[1:3], 1, aspect))))
    tiles = [_pixels(image, float(np.abs(image).max()) or 1.0) for image in images]
    tiles = [np.pad(_enlarged(tile, factor, aspect), ((2, 2), (2, 2), (0, 0))) for tile in tiles]
    columns = min(columns, len(tiles))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[start : start + columns], axis=1) for start in range(0, len(tiles), columns)]
    return np.concatenate(rows, axis=0)


def encode_png(picture: np.ndarray) -> bytes:
    """PNG of pixels (H,W,3) uint8."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, picture, format="png")
    return buffer.getvalue()
