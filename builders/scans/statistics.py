"""What a manifest says of the acquisitions of a store, from nothing but these: acceleration and sigma_data."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from msm.operators.coils import find_acs

SIGMA_DATA_DEFINITION = (
    "root mean square per real scalar of the images, estimated from acquired entries only: |x|^2 is the sum over "
    "acquired entries of (|y|^2 - 2 noise_std^2) / P, P = 1 in the ACS of the example, elsewhere the share of "
    "entries that it acquired"
)


def describe_acquisitions(records: Mapping[str, Sequence]) -> dict[str, Any]:
    """Acceleration and sigma_data from the stored acquisitions alone; sigma_data from train, else from all there is."""
    kept, outside, power = {}, [], []
    for split, stored in records.items():
        shares = []
        for record in (stored[i] for i in range(len(stored))):
            mask = record["mask"]
            if "matrix" in record:  # what is filled up is no part of the scan
                mask = mask[tuple(slice(size) for size in record["matrix"][-mask.ndim :])]
            probability = _probability(mask)
            shares.append(float(mask.mean()))
            outside.append(float(probability.min()))
            if split == "train" or "train" not in records:
                chosen = probability[mask]
                energy = np.abs(record["y"]) ** 2 - 2 * record["noise_std"] ** 2
                pixels = np.prod(record["matrix"]) if "matrix" in record else record["maps"][0].size
                power.append(float(np.sum(energy / chosen, dtype=np.float64)) / float(pixels))
        kept[split] = float(np.mean(shares))
    return {
        "acceleration": {
            "nominal": round(1 / float(np.mean(outside)), 2),
            "effective": {split: round(1 / share, 4) for split, share in kept.items()},
        },
        "sigma_data": round(float(np.sqrt(max(0.0, float(np.mean(power))) / 2)), 4),
        "sigma_data_definition": SIGMA_DATA_DEFINITION,
    }


def _probability(mask: np.ndarray) -> np.ndarray:
    """Float64, shape of a mask (W,) or (H,W): 1 in its ACS, elsewhere the share of the other entries that it has."""
    top, bottom, left, right = find_acs(np.atleast_2d(mask), most=max(mask.shape))
    inside = np.zeros_like(np.atleast_2d(mask))
    inside[top:bottom, left:right] = True
    inside = inside.reshape(mask.shape)
    share = float(mask[~inside].mean()) if not inside.all() else 1.0
    return np.where(inside, 1.0, share or 1.0)
