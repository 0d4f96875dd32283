"""Where errors are: zones add up, known errors are found where they were put, whole inputs have no alias."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from msm.evaluation import where
from msm.models.denoiser import Denoised
from msm.operators.transform import MultiCoilFourier, get_transform
from msm.sde_lib import get_schedule
from tests.helpers.toy_data import acquisition
from tests.test_losses import toy_config

SIZE = 32


def experiment_of(denoise):
    config = toy_config()
    config.denoiser.sigma_data = 0.3
    return SimpleNamespace(
        config=config, transform=get_transform(config), schedule=get_schedule(config), denoise=denoise
    )


def test_zones_are_told_by_the_distance_from_the_centre():
    zones = where.zones_of(SIZE, 2 * SIZE)
    centre = zones[SIZE // 2]
    assert centre[SIZE] == 0 and zones[0, 0] == 2
    assert [np.sum(centre == zone) for zone in range(3)] == [15, 16, 33]  # |k| < 8, < 16 and the rest of 64 columns


def test_an_error_is_found_where_it_was_put():
    m, images = acquisition(size=SIZE, coils=1)
    m = m.replace(maps=np.ones_like(m.maps))
    transform = MultiCoilFourier()
    z = np.array(transform.forward(images, m.maps))
    column = SIZE // 2 + 12
    z[..., 5, column] += 1.0
    found = where.error_by_zone(transform, np.asarray(transform.adjoint(z, m.maps)), images, m)
    energy = np.abs(np.asarray(transform.forward(images, m.maps))) ** 2
    for example, seen in enumerate(m.mask[:, 0, 0]):
        for kind, entries in (("acquired", seen), ("missing", ~seen)):
            inside = energy[example][..., entries].sum()
            expected = 1 / inside if entries[column] else 0
            assert found["outside", kind][example] == pytest.approx(expected, rel=1e-3, abs=1e-9)
            assert found["centre", kind][example] == pytest.approx(0, abs=1e-9)


def test_zones_of_a_kind_add_up_to_its_error():
    m, images = acquisition(size=SIZE)
    found = where.error_by_zone(MultiCoilFourier(), 0.5 * images, images, m)
    for kind in ("acquired", "missing"):
        np.testing.assert_allclose(sum(found[zone, kind] for zone in where.ZONES), 0.25, rtol=1e-4)


def test_levels_tell_noise_alias_and_errors_in_units_of_sigma():
    """A denoiser that does nothing has an error of 1 sigma in every acquired entry of one coil, shrinkage has less."""

    def nothing(params, s_t, mask, maps, t):
        return Denoised(s0=s_t, eps=s_t, z0=s_t)

    m, images = acquisition(size=SIZE, coils=1)
    m = m.replace(maps=np.ones_like(m.maps))
    rows = where.by_level(experiment_of(nothing), None, images, m, (0.01, 0.2))
    assert [(row["sigma"], row["shown"]) for row in rows] == [
        (0.01, "partial"), (0.01, "whole"), (0.2, "partial"), (0.2, "whole")
    ]  # fmt: skip
    for row in rows:
        assert row["network"] == pytest.approx(1, rel=0.1) and 0 < row["wavelet"] <= 1.001
        shrinkage = 0.3**2 / (0.3**2 + row["sigma"] ** 2)  # of a white prior
        if row["shown"] == "whole":
            assert row["noise"] == pytest.approx(shrinkage, rel=0.1)
    partial, whole = rows[:2]
    assert partial["alias"] > 5 > 0.5 > whole["alias"]
    assert rows[3]["wavelet"] < 0.9


def test_the_key_decides_the_noise():
    def nothing(params, s_t, mask, maps, t):
        return Denoised(s0=s_t, eps=s_t, z0=s_t)

    m, images = acquisition(size=SIZE)
    one, same, other = (where.by_level(experiment_of(nothing), None, images, m, (0.1,), seed) for seed in (0, 0, 1))
    assert one == same and one != other
    assert jax.tree.structure(one) == jax.tree.structure(other)
