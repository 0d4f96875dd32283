"""Simulated scans of slices of the repository's test head, with the maps and images that they were made from."""

import functools

import numpy as np

from msm.builders.demo import simulate
from msm.builders.demo.heads import OFFSETS, SLICES, SOURCE, default_settings
from msm.operators.measurement import Measurement


@functools.cache
def brain_scans(size: int, count: int) -> tuple[Measurement, np.ndarray]:
    """Returns `count` undersampled noisy scans, as in the demo's store of this size, and their images (count,H,W).

    4 coils and 6 ACS lines at 64, 8 coils and 12 lines at 128. Each slice has its own scale factor.
    """
    settings = default_settings(size)
    numbers = [round(i) for i in np.linspace(0, SLICES["brain2"] - 1, count)]
    ids = [OFFSETS["brain2"] + number for number in numbers]
    with np.load(SOURCE, allow_pickle=False) as heads:
        magnitudes = heads["brain2"][numbers]
    y, images, maps, masks = [], [], [], simulate.draw_masks(settings, ids)
    for magnitude, mask, example_id in zip(magnitudes, masks, ids, strict=True):
        simulated = simulate.simulate(magnitude, mask, settings, example_id)
        scale = simulate.volume_scale([simulated])
        filled = np.zeros((settings.num_coils, size, size), np.complex64)
        filled[..., mask] = simulate.acquire(simulated, scale, settings, example_id)
        y.append(filled)
        maps.append(simulated.maps)
        images.append(simulated.image / scale)
    noise_std = np.full(count, settings.noise_std, np.float32)
    scans = Measurement(np.stack(y), masks[:, None, None], np.stack(maps), noise_std, np.array(ids, np.int32))
    return scans, np.stack(images)
