"""Stores of pictures: fixed, masked, noisy measurements y = mask (x + noise), and, apart from them, their references.

Acquisitions hold the acquired pixels and nothing else. Each picture has one mask and one noise draw, which (seed,
example id) fix. Images are in [-1,1]; x = value / 127.5 - 1 of 8-bit values, so noiseless pixels are stored as these.
"""

import abc
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import jax
import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from msm.builders.store import REFERENCES, Records, refuse
from msm.operators.masks import MaskDistribution, get_masks
from msm.operators.noise import pixel_noise
from msm.operators.shape import Size, as_stored, rows_and_columns, told

DATA_VERSION = "1.0.0"
SPLITS = ("train", "validation", "test")
SIGMA_DATA_DEFINITION = (
    "root mean square per real scalar of the training images, estimated from acquired pixels only: the expectation of "
    "|x|^2 is the sum over acquired pixels of (y^2 - noise_std^2) / P(pixel acquired)"
)
_CHUNK = 64  # masks drawn in one call
_MOST_LOOKED_AT = 1000  # pictures that noise is estimated from


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a measurement of a picture depends on.

    Attributes:
      image_size: rows and columns, one number for squares.
      mask: name of the mask distribution (`operators/masks.py`), with its settings:
      grid: blocks per side; it divides both.
      drop: how many of the grid^2 blocks are missing.
      noise_std: standard deviation of the noise per pixel and channel; images are in [-1,1].
      seed: of the dataset; with an example's id it determines mask and noise.
      own_noise: that the pictures come with, per pixel and channel at `image_size` (shrinking averages it); None: to be
        estimated (`operators.noise.pixel_noise`) from what is acquired of at most 1000 training pictures.
    """

    image_size: Size = 64
    mask: str = "random_boxes"
    grid: int = 4
    drop: int = 6
    noise_std: float = 0.0
    seed: int = 0
    own_noise: float | None = 0.0

    def __post_init__(self):
        shape, size = self.shape, told(self.image_size)
        tiles = self.grid >= 1 and not any(length % self.grid for length in shape)
        rules = (
            ("size", min(shape) >= 8, "at least 8"),
            ("grid", tiles, f"a divisor of size {size}"),
            ("drop", 0 <= self.drop < self.grid**2, f"from 0 to {self.grid**2 - 1}, less than the blocks of the grid"),
            ("noise_std", self.noise_std >= 0, "at least 0"),
            ("seed", self.seed >= 0, "at least 0"),
            ("own_noise", self.own_noise is None or self.own_noise >= 0, "at least 0, or 'estimate'"),
        )
        refuse(dataclasses.asdict(self) | {"size": size}, rules)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return rows_and_columns(self.image_size)

    def total_noise(self) -> float:
        """Standard deviation of both noises together; `own_noise` must be known."""
        assert self.own_noise is not None
        return float(np.hypot(self.noise_std, self.own_noise))

    def identity(self) -> dict[str, Any]:
        """JSON values: the settings, without an `own_noise` of 0, which is what stores without that key have."""
        values = dataclasses.asdict(self) | {"image_size": as_stored(self.image_size)}
        return {name: value for name, value in values.items() if (name, value) != ("own_noise", 0.0)}


@dataclasses.dataclass(frozen=True)
class Form:
    """What the pictures of a set are: `COLOURS` of 8 bits, or `HOUNSFIELD`, slices of CT volumes.

    Attributes:
      kind: of their store, in its manifest.
      channels: K.
      dtype: of the pixels, see `unit_range`.
      volumes: whether they are slices of volumes, which have names.
    """

    kind: str = "images"
    channels: int = 3
    dtype: type = np.uint8
    volumes: bool = False


COLOURS, HOUNSFIELD = Form(), Form("ct", 1, np.int16, True)


@dataclasses.dataclass(frozen=True)
class Picture:
    """One example before it is measured: `pixels` (H,W,K) of its set's form; `name` says where it comes from."""

    example_id: int
    name: str
    pixels: np.ndarray
    volume: str = ""


class PictureSet(Protocol):
    """Where pictures come from: `builders/pictures/folder.py`, `builders/demo/photos.py`, `builders/ct/store.py`."""

    form: ClassVar[Form]

    def identity(self) -> dict[str, Any]:
        """JSON values, beside the `Settings`, that two stores must share to be the same."""
        ...

    def read(self, size: Size, scratch: Path) -> Mapping[str, Sequence[Picture]]:
        """Pictures of `size`, rows and columns, by split, ids unique over all; `scratch` may hold them while needed."""
        ...

    def describe(self) -> dict[str, Any]:
        """Part of the manifest, asked for after `read`: 'command' (without --out and settings), 'licences', ..."""
        ...


def get_mask_distribution(settings: Settings) -> MaskDistribution:
    """p(S) of a store."""
    masks = {"name": settings.mask, "grid": settings.grid, "drop": settings.drop}
    return get_masks(ConfigDict({"masks": masks, "data": {"image_size": settings.image_size}}))


def keep_probability(settings: Settings) -> np.ndarray:
    """(H,W) float32: with which probability each pixel is acquired."""
    return np.asarray(get_mask_distribution(settings).inclusion_probability())[..., 0]


@functools.lru_cache(maxsize=1)
def _mask_drawer(settings: Settings):
    masks, key = get_mask_distribution(settings), jax.random.key(settings.seed)
    return jax.jit(jax.vmap(lambda example_id: masks.sample(jax.random.fold_in(key, example_id))))


def draw_masks(settings: Settings, example_ids: Sequence[int]) -> np.ndarray:
    """(N,H,W) bool, one draw per example from the distribution that `operators/masks.py` defines by that name."""
    padded = np.resize(np.asarray(example_ids, np.int32), -(-len(example_ids) // _CHUNK) * _CHUNK)  # one compilation
    drawn = [np.asarray(_mask_drawer(settings)(chunk)) for chunk in padded.reshape(-1, _CHUNK)]
    return np.concatenate(drawn)[: len(example_ids), ..., 0]


def unit_range(values: np.ndarray) -> np.ndarray:
    """8-bit values (uint8) or Hounsfield units / 1000 (int16) as float32 in [-1,1]; float32 comes back as it is."""
    if values.dtype == np.int16:
        return values / np.float32(1000)
    return values / np.float32(127.5) - np.float32(1) if values.dtype == np.uint8 else values


def acquire(pixels: np.ndarray, mask: np.ndarray, settings: Settings, example_id: int) -> np.ndarray:
    """The acquired pixels (n,K) of a picture, row by row: float32 in [-1,1] with noise, without any as they are."""
    acquired = pixels[mask]
    if not settings.noise_std:
        return acquired
    noise = np.random.default_rng((settings.seed, example_id)).standard_normal(acquired.shape)
    return (unit_range(acquired) + settings.noise_std * noise).astype(np.float32)


@dataclasses.dataclass
class ImageConfig(tfds.core.BuilderConfig):
    """A named variant of the data: what to measure, and of which pictures (by split)."""

    settings: Settings = dataclasses.field(default_factory=Settings)
    pictures: Mapping[str, Sequence[Picture]] = dataclasses.field(default_factory=dict, repr=False)  # TFDS logs this
    form: Form = COLOURS


def _tensor(shape: tuple[int | None, ...], dtype, encoding=tfds.features.Encoding.BYTES) -> tfds.features.Tensor:
    return tfds.features.Tensor(shape=shape, dtype=dtype, encoding=encoding)


class _Images(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version(DATA_VERSION)
    RELEASE_NOTES: ClassVar[dict[str, str]] = {DATA_VERSION: "First version."}
    splits: ClassVar[tuple[str, ...]] = SPLITS

    @abc.abstractmethod
    def _features(self) -> dict:
        """The fields of a record."""

    @abc.abstractmethod
    def _record(self, picture: Picture, mask: np.ndarray) -> dict:
        """One record, without the fields that all have."""

    def _info(self) -> tfds.core.DatasetInfo:
        common = {"example_id": tfds.features.Tensor(shape=(), dtype=np.int32), "name": tfds.features.Text()}
        common |= {"volume": tfds.features.Text()} if self.builder_config.form.volumes else {}
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.builder_config.description} Masks and noise are simulated.",
            features=tfds.features.FeaturesDict(common | self._features()),
            license="That of the pictures; see manifest.json.",
        )

    def _split_generators(self, dl_manager) -> dict:
        del dl_manager  # nothing to download
        pictures = self.builder_config.pictures
        return {split: self._generate_examples(pictures[split]) for split in self.splits if len(pictures[split])}

    def _generate_examples(self, pictures: Sequence[Picture]) -> Iterator[tuple[int, dict]]:
        for start in range(0, len(pictures), _CHUNK):
            chunk = [pictures[i] for i in range(start, min(start + _CHUNK, len(pictures)))]
            masks = draw_masks(self.builder_config.settings, [picture.example_id for picture in chunk])
            for picture, mask in zip(chunk, masks, strict=True):
                common = {"example_id": picture.example_id, "name": picture.name}
                common |= {"volume": picture.volume} if self.builder_config.form.volumes else {}
                yield picture.example_id, common | self._record(picture, mask)


class ImageAcquisitions(_Images, skip_registration=True):
    """Acquired pixels `y` (n,K), row by row, their `mask` (H,W) and `noise_std`. No clean image.

    The variant 'full' has every pixel without noise.
    """

    name = "image_acquisitions"

    def _settings(self) -> Settings:
        config = self.builder_config
        return dataclasses.replace(config.settings, noise_std=0.0) if config.name == "full" else config.settings

    def _features(self) -> dict:
        settings, form = self._settings(), self.builder_config.form
        return {
            "y": _tensor((None, form.channels), np.float32 if settings.noise_std else form.dtype),
            "mask": _tensor(settings.shape, np.bool_, tfds.features.Encoding.ZLIB),
            "noise_std": tfds.features.Tensor(shape=(), dtype=np.float32),
        }

    def _record(self, picture: Picture, mask: np.ndarray) -> dict:
        settings = self._settings()
        mask = np.ones_like(mask) if self.builder_config.name == "full" else mask
        y = acquire(picture.pixels, mask, settings, picture.example_id)
        return {"y": y, "mask": mask, "noise_std": settings.total_noise()}


class ImageReferences(_Images, skip_registration=True):
    """Reference picture `image` (H,W,K) of each validation and test acquisition."""

    name = "image_references"
    splits: ClassVar[tuple[str, ...]] = ("validation", "test")

    def _features(self) -> dict:
        shape, form = self.builder_config.settings.shape, self.builder_config.form
        return {"image": _tensor((*shape, form.channels), form.dtype)}

    def _record(self, picture: Picture, mask: np.ndarray) -> dict:
        del mask
        return {"image": picture.pixels}


class Images:
    """The source of a store of pictures (see `builders.store.Source`)."""

    def __init__(self, settings: Settings, pictures: PictureSet):
        self.settings, self.pictures = settings, pictures
        self._loaded: Mapping[str, Sequence[Picture]] = {}
        self._known = settings  # with the pictures' own noise as a number, after `load`

    def identity(self) -> dict[str, Any]:
        return {
            "data_version": DATA_VERSION,
            "settings": self.settings.identity(),
            **self.pictures.identity(),
        }

    def load(self, scratch: Path) -> None:
        self._loaded = self.pictures.read(self.settings.image_size, scratch)
        if self.settings.own_noise is None:
            found = _own_noise(next(self._loaded[split] for split in SPLITS if len(self._loaded[split])), self.settings)
            self._known = dataclasses.replace(self.settings, own_noise=found)

    def get_builders(self, folder: Path) -> dict[str, tfds.core.GeneratorBasedBuilder]:
        def build(cls: type[_Images], place: str, name: str, description: str) -> _Images:
            config = ImageConfig(
                name=name,
                description=description,
                settings=self._known,
                pictures=self._loaded,
                form=self.pictures.form,
            )
            return cls(data_dir=str(folder / place), config=config, file_format="array_record")

        return {
            "undersampled": build(ImageAcquisitions, "acquisitions", "undersampled", "Masked, noisy pictures."),
            "full": build(ImageAcquisitions, "acquisitions", "full", "Whole, noiseless pictures."),
            REFERENCES: build(ImageReferences, "references", "images", "Reference pictures of the acquisitions."),
        }

    def describe(self, records: Records) -> dict[str, Any]:
        settings = self.settings
        described = self.pictures.describe()
        flags = " ".join(f"--{name} {value}" for name, value in _flags(settings).items())
        return {
            "kind": self.pictures.form.kind,
            "notes": ["Masks and noise are simulated."],
            **self._noise(),
            **described,
            "command": f"{described['command']} {flags}",
            **_statistics(records["undersampled"], settings, self.pictures.form.channels),
        }

    def _noise(self) -> dict[str, Any]:
        """What the manifest says of noise that the pictures came with; nothing if they have none."""
        if self.settings.own_noise == 0:
            return {}
        source = "estimated, an upper bound" if self.settings.own_noise is None else "given"
        own = round(self._known.own_noise or 0.0, 6)
        return {"noise_std": round(self._known.total_noise(), 6), "own_noise": {"noise_std": own, "from": source}}


def _own_noise(pictures: Sequence[Picture], settings: Settings) -> float:
    """Noise of the pictures themselves, from the pixels that their masks acquire of evenly spread ones."""
    chosen = [pictures[i] for i in np.unique(np.linspace(0, len(pictures) - 1, _MOST_LOOKED_AT).astype(int))]
    masks = draw_masks(settings, [picture.example_id for picture in chosen])
    return pixel_noise((unit_range(p.pixels), mask) for p, mask in zip(chosen, masks, strict=True))


def _flags(settings: Settings) -> dict[str, str]:
    values = {name: "estimate" if value is None else value for name, value in settings.identity().items()}
    del values["image_size"]
    values = {"size": told(settings.image_size), **values}
    return {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in values.items()}


def _statistics(records: Mapping[str, Sequence], settings: Settings, channels: int) -> dict[str, Any]:
    """Kept share of pixels, its reciprocal, and sigma_data, from the stored undersampled acquisitions alone."""
    probability = keep_probability(settings)
    kept = {split: np.mean([record["mask"].mean() for record in stored]) for split, stored in records.items()}
    power = [
        np.sum((unit_range(r["y"]) ** 2 - r["noise_std"] ** 2) / probability[r["mask"]][:, None], dtype=np.float64)
        for r in records["train"]
    ]
    nominal = float(np.mean(probability))
    return {
        "keep_fraction": {"nominal": nominal, "effective": {split: round(float(k), 4) for split, k in kept.items()}},
        "acceleration": {
            "nominal": round(1 / nominal, 4),
            "effective": {split: round(float(1 / k), 4) for split, k in kept.items()},
        },
        "sigma_data": round(float(np.sqrt(max(0.0, np.mean(power)) / (channels * np.prod(settings.shape)))), 4),
        "sigma_data_definition": SIGMA_DATA_DEFINITION,
    }
