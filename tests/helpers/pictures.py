"""A folder of small pictures of every accepted kind, and stores of it, for tests that need no photographs."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from msm.builders.pictures.folder import Division, Folder
from msm.builders.pictures.store import Images, Settings
from msm.builders.store import prepare_store
from msm.configs import photos64_msm

COUNTS = {"test": 3, "validation": 2}
NOISE_STD = 0.1


def write_pictures(folder: Path, count: int = 11, size: int = 48) -> None:
    """Writes `count` smooth colour pictures, PNG and JPEG, in two folders."""
    rng = np.random.default_rng(0)
    (folder / "below").mkdir(parents=True)
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        place = folder / ("below" if index % 2 else "") / f"{index:02d}.{'png' if index % 3 else 'jpg'}"
        coarse.resize((size + index, size), Image.Resampling.BICUBIC).save(place)


def source(folder: Path, noise_std: float = NOISE_STD, seed: int = 0, size: int = 32) -> Images:
    """Store of the folder: 32 x 32 pixels, 4 x 4 blocks with 6 missing; 3 test and 2 validation pictures."""
    return Images(Settings(image_size=size, noise_std=noise_std, seed=seed), Folder(folder, Division(counts=COUNTS)))


def make_store(folder: Path, out: Path, **changes) -> dict:
    """Writes the store of `source` and returns its manifest."""
    return prepare_store(out, source(folder, **changes))[0]


def small_image_config(store: Path) -> ConfigDict:
    """The smoke variant of the image demo on a store of `source`, two steps of a one-level network."""
    config = photos64_msm.get_config("smoke")
    config.data.dir = str(store)
    config.data.image_size = 32
    config.training.num_steps = 2
    config.model.channel_mult = (1,)
    config.model.attention_resolutions = ()
    config.eval.solvers = ("zero_filled", "msm")
    return config
