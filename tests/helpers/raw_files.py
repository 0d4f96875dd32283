"""Raw multi-coil files of the repository's test head, in every format, with what they were simulated from."""

import dataclasses
from pathlib import Path

import h5py
import numpy as np

from msm.builders.demo import simulate
from msm.builders.demo.heads import OFFSETS, SLICES, SOURCE
from tests.builders.test_raw_readers import header, image_lines, write_ismrmrd
from tests.conformance.test_bart import write_cfl


@dataclasses.dataclass(frozen=True)
class RawHead:
    """Simulated scans of slices of brain2, in arbitrary units of the scanner.

    Attributes:
      kspace: (S,C,H,W) complex64 with noise, 0 outside the mask.
      mask: (W,) bool, the same lines in every slice.
      noise: (C,N) complex64 samples without signal.
      images: (S,H,W) complex64 and maps (S,C,H,W): what was simulated.
    """

    kspace: np.ndarray
    mask: np.ndarray
    noise: np.ndarray
    images: np.ndarray
    maps: np.ndarray


def raw_head(
    size: int, count: int, coils: int = 8, acs: int = 12, noise_std: float = 0.005, unit: float = 37.0
) -> RawHead:
    """`count` slices of brain2 with one random mask at R = 4 (size: the whole matrix; acs 0: fully sampled).

    `noise_std` is relative to the 99th percentile of the images, coils have noise of different size and correlation.
    """
    settings = simulate.Settings(size, coils, "cartesian_random", 4.0, acs or size, noise_std)
    numbers = [round(i) for i in np.linspace(2, SLICES["brain2"] - 3, count)]
    with np.load(SOURCE, allow_pickle=False) as heads:
        magnitudes = heads["brain2"][numbers]
    mask = simulate.draw_masks(settings, [OFFSETS["brain2"]])[0]
    ids = [OFFSETS["brain2"] + number for number in numbers]
    drawn = [simulate.simulate(m, mask, settings, i) for m, i in zip(magnitudes, ids, strict=True)]
    # The coils belong to the scanner, not to a slice.
    maps, images = np.stack([drawn[0].maps] * count), np.stack([d.image for d in drawn])
    images = images / np.percentile(np.abs(images), 99) * unit
    rng = np.random.default_rng(7)
    mixing = np.eye(coils) + 0.2 * rng.normal(size=(coils, coils))
    mixing *= np.sqrt(coils) / np.linalg.norm(mixing)

    def noise(*shape):
        white = rng.standard_normal((2, coils, int(np.prod(shape))))
        return (unit * noise_std * (mixing @ (white[0] + 1j * white[1]))).reshape(coils, *shape)

    added = np.stack([noise(size, size) for _ in range(count)])
    kspace = np.where(mask, simulate.fft2c(maps * images[:, None]) + added, 0)
    return RawHead(*(a.astype(np.complex64) for a in (kspace,)), mask, noise(4096).astype(np.complex64),
                   images.astype(np.complex64), maps)  # fmt: skip


def oversampled(kspace: np.ndarray) -> np.ndarray:
    """(...,H,W) k-space read out at twice the rate: of the image with empty rows around it; noise stays inside them."""
    height = kspace.shape[-2]
    before = height - height // 2
    image = np.pad(simulate.ifft2c(kspace), [(0, 0)] * (kspace.ndim - 2) + [(before, height - before), (0, 0)])
    return simulate.fft2c(image).astype(np.complex64)


def write_fastmri(path: Path, head: RawHead, patient: str = "") -> Path:
    """Oversampled readout, the mask, a header."""
    wide = np.where(head.mask, oversampled(head.kspace), 0).astype(np.complex64)
    with h5py.File(path, "w") as file:
        file["kspace"], file["mask"] = wide, head.mask.astype(np.uint8)
        file["ismrmrd_header"] = header(*wide.shape[-2:])
        if patient:
            file.attrs["patient_id"] = patient
    return path


def write_lines(path: Path, head: RawHead, with_noise: bool = False) -> Path:
    """ISMRMRD: the acquired lines only, oversampled; a noise acquisition if asked for."""
    wide = oversampled(head.kspace)
    lines = image_lines(wide, np.flatnonzero(head.mask))
    noise = [(head.noise, {"flags": 1 << 18}, {})] if with_noise else []
    return write_ismrmrd(path, [*noise, *lines], header(*wide.shape[-2:]))


def write_bart(path: Path, head: RawHead) -> Path:
    kspace = head.kspace.transpose(2, 3, 1, 0)
    write_cfl(path, kspace.reshape(*kspace.shape[:2], 1, kspace.shape[2], *[1] * 9, kspace.shape[3]))
    return path.with_suffix(".cfl")


def write_npz(path: Path, head: RawHead, **arrays: np.ndarray) -> Path:
    """Axes schw, the mask, and further arrays such as maps."""
    np.savez(path, kspace=head.kspace, mask=head.mask, **arrays)
    return path
