"""The door for programs of one's own: a trained network, and what it makes of measurements. No flags, no workdir.

import msm
model = msm.load("pretrained/brain64_msm")
result = model.reconstruct(kspace)
result.mean, result.std
"""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from msm import run_lib
from msm.builders.raw import RawVolume, read_raw
from msm.builders.raw.volume import raw_volume
from msm.builders.scans.scan import Options, prepare_scan
from msm.configs.rules import check as config_check
from msm.configs.rules.stored import config_of
from msm.evaluation.summary import summarize_samples
from msm.experiment import Experiment, build
from msm.infra.errors import UserError
from msm.infra.registry import nearest
from msm.modes import opening
from msm.modes import reconstruct as single_scan
from msm.modes.sample import get_draw_fn
from msm.operators.measurement import PADDING_ID, Array, Measurement
from msm.operators.shape import rows_and_columns
from msm.solvers import SOLVERS, get_solver
from msm.solvers.registry import Solver

__all__ = ["Model", "RawVolume", "Reconstruction", "load", "read_raw", "solvers", "train"]

GIVEN = Path("kspace")  # what messages call an array that was given


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """What was made of a measurement; numpy arrays, all in the units of what was given.

    Attributes:
      mean: (H,W) or (S,H,W) complex64 of MRI, (H,W,K) or (S,H,W,K) float32 of images: the mean of the samples.
      std: float32, shape of mean: the standard deviation of the magnitude over the samples; None of one sample.
      samples: (samples, *mean.shape).
      maps: coil maps that were used, (C,H,W) or (S,C,H,W) complex64; None of images.
      noise_std: the noise that the data were taken to have, per real scalar.
    """

    mean: np.ndarray
    std: np.ndarray | None
    samples: np.ndarray
    maps: np.ndarray | None
    noise_std: float


class Model:
    """A trained network with its settings, made by `load`; programs are compiled once per shape of their arguments.

    Attributes:
      config: the settings that it was trained with.
      step: the training step of its parameters.
      params: the averaged parameters.
    """

    def __init__(self, folder: str | os.PathLike):
        self.config = config_of(folder)
        self.config.eval.update(checkpoint=str(Path(folder).expanduser()), tuned="")
        experiment = build(self.config)
        self.params, origin = opening.load_params(experiment, str(folder))
        self.step: int = origin["training step"]
        self._experiment = experiment
        self._programs: dict[tuple, Any] = {}

    @property
    def of_images(self) -> bool:
        """Whether it is of pictures, or CT images, rather than multi-coil MRI."""
        return self.config.data.num_coils == 0

    def reconstruct(
        self,
        kspace: Array | RawVolume,
        mask: Array | None = None,
        maps: Array | None = None,
        noise_std: float | None = None,
        samples: int = 8,
        solver: str = "msm",
        seed: int = 0,
        batch_size: int = 4,
    ) -> Reconstruction:
        """Posterior samples of the images of a measurement, their mean and their spread.

        A slice's samples depend on its data, its number, `samples` and `seed`, not on what else is given. What is not
        given is found as `tools/reconstruct.py` finds it, with the same functions.

        Args:
          kspace: numpy or jax; MRI: (C,H,W) or (S,C,H,W) complex, zero frequency at index (H//2, W//2), orthonormal up
            to one factor; or what `read_raw` returned. Images: (H,W,K) or (S,H,W,K) float in [-1,1].
          mask: bool, what was measured: (W,) or (H,W). None: of MRI what is not 0 in every slice; of images everything.
          maps: coil maps in the shape of kspace; None: estimated by ESPIRiT.
          noise_std: of the noise per real scalar, in the units of kspace; None: of MRI estimated from the outer entries
            or the noise scan, of images 0.
          samples: posterior samples per slice.
          solver: one of `solvers()`.
          seed: of the samples.
          batch_size: slices at a time.

        Raises UserError, one line, for what is not finite, of another shape, or cannot be used by this network.

        >>> model = load("pretrained/brain64_msm")
        >>> lines = (np.arange(64) % 4 == 0) | (abs(np.arange(64) - 32) < 6)
        >>> disc = np.hypot(*np.mgrid[-32:32, -32:32]) < 20
        >>> kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(disc))) * lines
        >>> model.reconstruct(np.stack([kspace] * 4), solver="zero_filled").mean.shape
        (64, 64)
        """
        if solver not in SOLVERS:
            raise UserError(f"solver is {solver!r}{nearest(solver, solvers())} (known: {', '.join(solvers())})")
        if samples < 1 or batch_size < 1:
            raise UserError(f"samples is {samples}, batch_size {batch_size}: both must be at least 1")
        given = self._of_pictures(kspace, mask, noise_std) if self.of_images else self._of_scan(
            kspace, mask, maps, noise_std
        )  # fmt: skip
        drawn = self._solve(given, solver, samples, seed, batch_size) * given.scale
        mean, std = summarize_samples(drawn)
        kept = slice(None) if given.several else 0
        used = given.measurement.maps
        return Reconstruction(
            mean=mean[kept],
            std=None if std is None else std[kept],
            samples=drawn[:, kept],
            maps=None if used is None else np.asarray(used)[kept],
            noise_std=float(given.measurement.noise_std[0] * given.scale),
        )

    def sample(self, n: int, maps: Array | None = None, seed: int = 0) -> np.ndarray:
        """Draws n images from the prior, with the settings `config.sampling`; image i depends on seed and i alone.

        Args:
          n: how many.
          maps: of MRI, coil maps (C,H,W) or (n,C,H,W) that the network sees the images through; None: one coil of
            even sensitivity.

        Returns:
          (n,H,W) complex64 or (n,H,W,K) float32, numpy, in the units of training (MRI: about 1 where it is bright).
        """
        experiment = self._experiment
        rows, columns = rows_and_columns(self.config.data.image_size)
        if n < 1:
            raise UserError(f"n is {n}: draw at least 1 image")
        if self.of_images:
            shape, coils = (n, rows, columns, experiment.transform.channels), None
        else:
            coils = np.ones((1, rows, columns), np.complex64) if maps is None else np.asarray(maps, np.complex64)
            if coils.ndim not in (3, 4) or coils.shape[-2:] != (rows, columns) or coils.shape[:-3] not in ((), (n,)):
                raise UserError(f"maps have shape {coils.shape}: give (C,{rows},{columns}) or ({n},C,{rows},{columns})")
            coils = np.broadcast_to(coils, (n, *coils.shape[-3:]))
            shape = coils.shape
        measurement = _measurement(np.zeros(shape, np.float32 if self.of_images else np.complex64), True, coils, 0.0)
        draw = self._compiled("sample", lambda: get_draw_fn(experiment))
        return np.asarray(draw(jax.random.key(seed), self.params, measurement, {})[0])

    def denoise(self, y: Array, sigma: float, mask: Array | None = None, maps: Array | None = None) -> np.ndarray:
        """One call of the network: the image of a measurement whose noise is N(0, sigma^2) per real scalar.

        Args:
          y: (S,C,H,W) complex or (S,H,W,K) float, in the units of training: images about 1 where they are bright.
          sigma: noise per real scalar, in these units; the schedule's levels are from `sigma_min` to `sigma_max`.
          mask: bool, broadcastable to y: what was measured; None for everything.
          maps: (S,C,H,W) coil maps; None for images, or for MRI one coil of even sensitivity.

        Returns:
          (S,H,W) complex64 or (S,H,W,K) float32, numpy.
        """
        experiment = self._experiment
        data = np.asarray(y, np.float32 if self.of_images else np.complex64)
        if data.ndim != 4 or not np.isfinite(data).all() or not sigma > 0:
            raise UserError(
                f"y has shape {data.shape}, sigma is {sigma}: give (S,C,H,W) or (S,H,W,K), finite, sigma > 0"
            )
        if maps is None and not self.of_images:
            maps = np.ones_like(data)
        seen = _measurement(data, True if mask is None else mask, maps, sigma)

        def call(params, m: Measurement):
            level = experiment.schedule.level(m.noise_std)
            s_t = jnp.where(m.mask, m.y, 0) * experiment.schedule.alpha(level).reshape(-1, 1, 1, 1)
            return experiment.transform.adjoint(experiment.denoise(params, s_t, m.mask, m.maps, level).z0, m.maps)

        return np.asarray(self._compiled("denoise", lambda: call)(self.params, seen))

    def _compiled(self, name: Any, get: Any) -> Any:
        if name not in self._programs:
            self._programs[name] = jax.jit(get())
        return self._programs[name]

    def _of_scan(self, kspace: Any, mask: Any, maps: Any, noise_std: float | None) -> "_Given":
        raw, several = kspace, True
        if not isinstance(kspace, RawVolume):
            data = np.asarray(kspace)
            if data.ndim not in (3, 4) or data.dtype.kind not in "cf":
                raise UserError(f"kspace is {data.dtype} {data.shape}: give complex (C,H,W) or (S,C,H,W)")
            several = data.ndim == 4
            known = None if maps is None else np.asarray(maps, np.complex64)
            if not several:
                data, known = data[None], None if known is None else known[None]
            raw = raw_volume(GIVEN, data, None if mask is None else np.asarray(mask), maps=known)
        elif mask is not None or maps is not None:
            raise UserError("a RawVolume has its own mask and maps: leave these arguments away, or give its kspace")
        options = Options(size=0, acceleration=1, acs_lines=0)
        config = self.config.copy_and_resolve_references()
        single_scan.fit(config, raw, options)
        scan = prepare_scan(raw, options, references=False)
        scale = scan.facts["scale"]
        noise = scan.facts["noise_std"] if noise_std is None else noise_std / scale
        return _Given(config, _measurement(scan.y, scan.masks, scan.maps, noise), np.float32(scale), several)

    def _of_pictures(self, y: Any, mask: Any, noise_std: float | None) -> "_Given":
        data, channels = np.asarray(y, np.float32), self._experiment.transform.channels
        if data.ndim not in (3, 4) or data.shape[-1] != channels or not np.isfinite(data).all():
            raise UserError(f"y has shape {data.shape}: give (H,W,{channels}) or (S,H,W,{channels}), finite, in [-1,1]")
        several = data.ndim == 4
        data = data if several else data[None]
        kept = np.ones(data.shape[1:3], bool) if mask is None else np.asarray(mask, bool)
        if kept.shape[-2:] != data.shape[1:3] or kept.ndim not in (2, 3):
            raise UserError(f"the mask has shape {kept.shape}: give {data.shape[1:3]}")
        config = self.config.copy_and_resolve_references()
        single_scan.set_size(config, data.shape[1:3])
        config.task.name = "acquired"
        config_check.check(config)
        return _Given(config, _measurement(data, kept[..., None], None, noise_std or 0.0), np.float32(1), several)

    def _solve(self, given: "_Given", name: str, samples: int, seed: int, batch_size: int) -> np.ndarray:
        """(K,S,...) of all slices, in the units of training."""
        place = name, samples, given.measurement.y.shape[1:]
        if place not in self._programs:
            config = given.config
            config.eval.num_samples = samples
            solver = get_solver(config, Experiment.for_task(config), name)
            self._programs[place] = solver, jax.jit(solver.solve)
        solver: Solver = self._programs[place][0]
        key, total = jax.random.key(seed), len(given.measurement.y)
        parts = [
            np.asarray(self._programs[place][1](key, self.params, batch, dict(solver.hyper)))
            for batch in _batches(given.measurement, min(batch_size, total))
        ]
        return np.concatenate(parts, axis=1)[:, :total]


@dataclasses.dataclass(frozen=True)
class _Given:
    """A measurement of S slices in the units of training, of which `scale` is one, and the settings for its size."""

    config: ConfigDict
    measurement: Measurement
    scale: np.float32
    several: bool


def _measurement(y: np.ndarray, mask: Any, maps: Any, noise_std: float) -> Measurement:
    """Slices numbered from 0, y set to 0 outside the mask."""
    count, whole = len(y), np.asarray(mask, bool)
    whole = whole.reshape((1,) * (4 - whole.ndim) + whole.shape)
    whole = np.broadcast_to(whole, (count, *whole.shape[1:]))
    return Measurement(
        y=np.where(whole, y, np.zeros((), y.dtype)),
        mask=whole,
        maps=maps,
        noise_std=np.full(count, noise_std, np.float32),
        example_id=np.arange(count, dtype=np.int32),
    )


def _batches(measurement: Measurement, size: int) -> Iterator[Measurement]:
    """Batches of one size; the last is filled up with copies of its first slice."""
    total = len(measurement.y)
    for start in range(0, total, size):
        place = np.arange(start, start + size)
        row = np.where(place < total, place, start)
        batch = jax.tree.map(lambda a, row=row: np.asarray(a)[row], measurement)
        yield batch.replace(example_id=np.where(place < total, place, PADDING_ID).astype(np.int32))


def load(folder: str | os.PathLike) -> Model:
    """The trained network of a workdir or of a folder such as pretrained/brain64_msm.

    Raises UserError where there is no config.json or no checkpoint that can be read.
    """
    return Model(folder)


def solvers() -> tuple[str, ...]:
    """The names of all solvers, for `Model.reconstruct`."""
    return SOLVERS.names()


def train(config: ConfigDict, folder: str | os.PathLike) -> Model:
    """Trains by a config, e.g. `msm.configs.brain64_msm.get_config()`, in `folder`, and returns the trained network.

    What is in the folder is gone on with. Raises UserError for what is wrong in the config.
    """
    config_check.check(config, "train")
    run_lib.train(config, str(folder))
    return load(folder)
