"""Draws the pictures of docs/how-to/raw-formats.md that show what goes wrong with raw data, from the embedded heads.

  python tools/draw_data_traps.py --out docs/figures

One PNG per trap: centring, oversampling, crop, normalisation, orientation. The same heads give the same pixels.
"""

import io
from pathlib import Path

import numpy as np
from absl import flags
from matplotlib.figure import Figure
from PIL import Image

from msm.builders.demo.heads import SOURCE
from msm.builders.demo.simulate import fft2c, ifft2c
from msm.builders.scans import steps
from msm.infra import command_line
from msm.infra.atomic import atomic_write_bytes

_OUT = flags.DEFINE_string("out", "docs/figures", "Folder of the pictures.")

Panels = dict[str, np.ndarray]  # title -> magnitude image, shown as stored, first row on top
SLICES = (4, 11, 18)


def head(number: int = 11) -> np.ndarray:
    """(128,128) float64 magnitudes of a slice of brain2, largest 1."""
    with np.load(SOURCE, allow_pickle=False) as heads:
        image = heads["brain2"][number].astype(np.float64)
    return image / image.max()


def centring() -> Panels:
    """What transforms without shifts make of k-space whose zero frequency is in the middle."""
    kspace = fft2c(head())
    unshifted = np.fft.ifft2(kspace, norm="ortho")
    return {
        "centred transform": np.abs(ifft2c(kspace)),
        "ifft2 alone, magnitude:\nhalves swapped": np.abs(unshifted),
        "ifft2 alone, real part:\nsign flips at every pixel": np.real(unshifted),
    }


def oversampling() -> Panels:
    """The readout samples twice the field of view; forgotten, the head is squeezed into half of the image."""
    image = head()
    wide = np.pad(image, ((64, 64), (0, 0)))
    squeezed, _ = steps.fit(fft2c(wide)[None, None], np.ones((1, 1, 1, 128), bool), (128, 128), "resolution")
    return {
        "256 x 128": wide,
        "made 128 x 128\nas it is": np.abs(ifft2c(squeezed[0, 0])),
        "oversampling\nremoved": image,
    }


def crop() -> Panels:
    """--crop resolution keeps the field of view, --crop fov the pixel size; both give 64 x 64."""
    kspace, mask = fft2c(head())[None, None], np.ones((1, 1, 1, 128), bool)
    panels = {"128 x 128": head()}
    for name in steps.CROPS:
        panels[f"--crop {name}\n64 x 64"] = np.abs(ifft2c(steps.fit(kspace, mask, (64, 64), name)[0][0, 0]))
    return panels


def normalisation() -> Panels:
    """Three slices of a volume with one scale, and each with its own."""
    images = [head(number) * gain for number, gain in zip(SLICES, (1.0, 0.7, 0.4), strict=True)]
    one = np.percentile(images, 99)
    per_slice = [image / image.max() for image in images]
    return {
        "one scale per volume,\nas here": np.concatenate(images, axis=1) / one,
        "each slice by its maximum:\nbrightness between slices is lost": np.concatenate(per_slice, axis=1),
    }


def orientation() -> Panels:
    """Rows are the readout; archives and viewers turn and mirror pictures."""
    image = head()
    return {
        "rows = readout,\nas stored": image,
        "axes swapped:\nlines would be rows": image.T,
        "rows mirrored, as by viewers\nwhose axis points up": image[::-1],
    }


def draw(panels: Panels) -> bytes:
    """PNG of 32 greys of pictures side by side, each in the window of its own 99.5th percentile."""
    ratios = [image.shape[1] / image.shape[0] for image in panels.values()]
    figure = Figure(figsize=(2.5 * sum(ratios) + 0.1, 3.2), dpi=90, layout="constrained")
    axes = figure.subplots(1, len(panels), width_ratios=ratios, squeeze=False)[0]
    for axis, (title, image) in zip(axes, panels.items(), strict=True):
        axis.imshow(image, cmap="gray", vmin=min(0, image.min()), vmax=np.percentile(image, 99.5))
        axis.set_title(title, fontsize=11)
        axis.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    grey, small = Image.open(buffer).convert("L").quantize(32, dither=Image.Dither.NONE), io.BytesIO()
    grey.save(small, format="png", optimize=True)
    return small.getvalue()


TRAPS = {trap.__name__: trap for trap in (centring, oversampling, crop, normalisation, orientation)}


def main(_: list[str]) -> None:
    for name, trap in TRAPS.items():
        atomic_write_bytes(Path(_OUT.value or "") / f"trap_{name}.png", draw(trap()))


if __name__ == "__main__":
    command_line.start(main)
