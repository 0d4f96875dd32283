"""The image demo's pictures: square patches of photographs that come with scikit-image, all CC0 or public domain.

Two photographs are the test split and appear nowhere else. Validation is a part of three others that shares no pixel
with training. Licences: data/README.md.
"""

import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from msm.builders.pictures.store import COLOURS, Form, Picture
from msm.operators.shape import Size, rows_and_columns

PACKAGE = "skimage.data"
TRAIN = {  # name: (file, factor by which it is made smaller: means of square cells)
    "camera": ("camera.png", 1),
    "chelsea": ("chelsea.png", 1),
    "rocket": ("rocket.jpg", 1),
    "brick": ("brick.png", 1),
    "grass": ("grass.png", 1),
    "gravel": ("gravel.png", 1),
    "hubble_deep_field": ("hubble_deep_field.jpg", 2),
    "retina": ("retina.jpg", 3),
}
TEST = {"astronaut": ("astronaut.png", 1), "coffee": ("coffee.png", 1)}
VALIDATION = ("camera", "chelsea", "rocket")  # their rightmost columns
VALIDATION_COLUMNS = 128
# Patches per photograph: rows and columns of an evenly spaced grid.
GRIDS = {"train": (16, 18), "validation": (5, 3), "test": (10, 12)}
LICENCES = (
    "camera, chelsea, coffee, brick, grass, gravel, retina: CC0",
    "astronaut, hubble_deep_field, rocket: public domain",
    "from scikit-image (BSD-3-Clause); sources: data/README.md",
)


def read_photo(file: str, factor: int) -> np.ndarray:
    """(H,W,3) uint8 of a file of scikit-image, grey repeated in three channels, `factor` times smaller."""
    with files(PACKAGE).joinpath(file).open("rb") as stream, Image.open(stream) as image:
        return np.asarray(image.convert("RGB").reduce(factor))


def regions() -> dict[str, list[tuple[str, np.ndarray]]]:
    """Returns (photograph, pixels (H,W,3) uint8) of each split; no two share a pixel."""
    photos = {name: read_photo(*spec) for name, spec in TRAIN.items()}
    cut = {name: photos[name].shape[1] - VALIDATION_COLUMNS for name in VALIDATION}
    return {
        "train": [(name, photo[:, : cut.get(name)]) for name, photo in photos.items()],
        "validation": [(name, photos[name][:, cut[name] :]) for name in VALIDATION],
        "test": [(name, read_photo(*spec)) for name, spec in TEST.items()],
    }


def patches(pixels: np.ndarray, size: Size, grid: tuple[int, int]) -> list[tuple[int, int]]:
    """Top left corners (row, column) of an evenly spaced grid of patches that reaches all four edges."""
    rows, columns = (
        np.rint(np.linspace(0, length - side, n)).astype(int)
        for length, side, n in zip(pixels.shape, rows_and_columns(size), grid, strict=False)
    )
    return [(int(row), int(column)) for row in rows for column in columns]


class Photos:
    """The `builders.images.PictureSet` of the demo."""

    form: ClassVar[Form] = COLOURS

    def identity(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for file, _ in (TRAIN | TEST).values():
            digest.update(files(PACKAGE).joinpath(file).read_bytes())
        return {"source_sha256": digest.hexdigest()}

    def read(self, size: Size, scratch: Path) -> Mapping[str, Sequence[Picture]]:
        del scratch
        found: dict[str, list[Picture]] = {}
        number, (rows, columns) = 0, rows_and_columns(size)
        for split, photos in regions().items():
            found[split] = []
            for name, pixels in photos:
                for row, column in patches(pixels, size, GRIDS[split]):
                    patch = pixels[row : row + rows, column : column + columns]
                    found[split].append(Picture(number, f"{name} {row},{column}", patch))
                    number += 1
        return found

    def describe(self) -> dict[str, Any]:
        return {"command": "python tools/prepare_images.py --photos", "licences": list(LICENCES)}
