"""Metal in CT: exact limits of the beam, photon noise, traces, interpolation, and the two tasks."""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msm.configs import lung64_ct
from msm.configs.rules.check import find_problems
from msm.infra.errors import UserError
from msm.operators import ct, materials, metal
from msm.operators.tasks import get_measure_fn, get_task, simulate, unknown_pixels
from msm.operators.transform import get_transform
from msm.tools import build_materials
from tests.helpers.checks import message_of
from tests.operators.test_ct import blobs, solve

SIZE = 24


def body(count=1):
    """(B,n,n,1) float32: round bodies of water in air with a little lung and bone; HU / 1000."""
    x = 1.2 * np.minimum(3 * blobs(SIZE), 1)[..., None] - 1
    return np.stack([x, x[:, ::-1]] * count)[:count].astype(np.float32)


def test_tables_hold_what_is_published():
    """NIST's XCOM at 60 and 100 keV in cm^2/g (water, titanium, gold with its K edge between)."""
    published = {"water": (0.2059, 0.1707), "titanium": (0.7661, 0.2721), "gold": (4.528, 5.158)}
    at = [materials.ENERGIES.index(energy) for energy in (60.0, 100.0)]
    for name, values in published.items():
        np.testing.assert_allclose([materials.MASS_ATTENUATION[name][i] for i in at], values, rtol=2e-3)
    assert set(materials.MASS_ATTENUATION) == set(materials.DENSITY) == set(build_materials.COMPOSITION)
    assert tuple(build_materials.ENERGIES) == materials.ENERGIES
    for parts in build_materials.COMPOSITION.values():
        assert sum(parts.values()) == pytest.approx(1, abs=2e-3)


def test_tables_name_the_package_they_come_from(monkeypatch):
    monkeypatch.setitem(sys.modules, "xraydb", None)
    with pytest.raises(UserError, match="pip install xraydb"):
        build_materials.table()


def test_photons_of_one_energy_measure_line_integrals():
    """-log of what arrives is mu_water pixel R (1 + x) outside the trace, and the metal's own length inside."""
    angles, x, beam = ct.view_angles(5), body(2), metal.monochromatic(80.0)
    implant = np.zeros(x.shape, bool)
    implant[:, 10:12, 13:15] = True
    iron = 7.874 * materials.MASS_ATTENUATION["iron"][materials.ENERGIES.index(80.0)]

    @jax.jit
    def both(x, implant):
        share = metal.transmit(0.5 * ct.project(metal.materials_of(x, implant), angles), beam, "iron")
        mu = jnp.where(implant, iron, beam.at_effective("water") * (1 + x))
        return share, 0.5 * ct.project(mu, angles)

    share, exact = both(x, implant)
    np.testing.assert_allclose(-jnp.log(share), exact, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(metal.correct(exact, metal.water_correction(beam)) * beam.at_effective("water"), exact,
                               rtol=1e-4)  # fmt: skip


def test_the_correction_straightens_water_and_leaves_metal():
    """Water to 2 mm in 40 cm; of titanium the beam sees ever less per cm, and the correction for water is too small."""
    beam = metal.tube()
    assert sum(beam.weights) == pytest.approx(1) and min(beam.weights) >= 0
    mean = sum(w * e for w, e in zip(beam.weights, materials.ENERGIES, strict=True))
    assert 60 < mean < 80
    coefficients = metal.water_correction(beam)

    def corrected(lengths, column):
        paths = np.zeros((1, 1, len(lengths), 3), np.float32)
        paths[0, 0, :, column] = lengths
        return np.asarray(metal.correct(-jnp.log(metal.transmit(paths, beam, "titanium")), coefficients))[0, 0, :, 0]

    water = np.linspace(0, 40, 50)
    assert np.abs(corrected(water, 0) - water).max() < 0.2
    hardened = -np.log(np.asarray(metal.transmit(np.array([40.0, 0, 0]).reshape(1, 1, 1, 3), beam, "titanium")))
    assert hardened < 0.97 * 40 * (beam.attenuation("water") @ np.asarray(beam.weights))
    per_cm = np.diff(corrected(np.array([0.0, 1.0, 2.0, 3.0]), 2))
    assert np.all(np.diff(per_cm) < -0.02 * per_cm[0])


def test_photons_are_poisson():
    """Mean and variance of the counts are photons x share; where nothing arrives one is counted."""
    share = np.append(np.full(5_000, 0.02), 0).astype(np.float32)
    *counts, nothing = np.asarray(jax.jit(metal.detect)(jax.random.key(0), share, 1000.0))
    error = np.sqrt(20 / len(counts))
    assert abs(np.mean(counts) - 20) < 5 * error and abs(np.var(counts) / 20 - 1) < 5 * np.sqrt(2.1 / len(counts))
    assert nothing == 1


def test_the_trace_is_exactly_the_rays_that_meet_metal():
    """Of one pixel at every angle: the bins that its shadow reaches, counted from its corners."""
    size, angles = 15, ct.view_angles(12)
    implant = np.zeros((1, size, size, 1), bool)
    implant[0, 3, 9] = True
    trace = np.asarray(metal.metal_trace(implant, angles))[0, :, :, 0]
    down, across = 3 - (size - 1) / 2, 9 - (size - 1) / 2
    corners = [(down + i, across + j) for i in (-0.5, 0.5) for j in (-0.5, 0.5)]
    for view, angle in enumerate(angles):
        places = [c * np.cos(angle) - r * np.sin(angle) + ct.num_bins(size) / 2 for r, c in corners]
        edges = np.arange(ct.num_bins(size))
        reached = np.minimum(edges + 1, max(places)) - np.maximum(edges, min(places))
        assert np.all(trace[view][reached > 0.1]) and not np.any(trace[view][reached < 0])
    assert not metal.metal_trace(np.zeros((1, size, size, 1), bool), angles).any()


def test_metal_is_segmented_by_its_brightness():
    x = np.array([-1.0, 0.0, 1.9, 2.6, 8.0])
    np.testing.assert_array_equal(metal.segment_metal(x), [False, False, False, True, True])


def test_interpolation_is_linear_between_known_bins():
    values = np.array([5.0, 9, 9, 2, 9, 9, 9, 4, 9]).reshape(1, 1, 9, 1).astype(np.float32)
    known = np.array([1, 0, 0, 1, 0, 0, 0, 1, 0], bool).reshape(1, 1, 9, 1)
    expected = np.array([5, 4, 3, 2, 2.5, 3, 3.5, 4, 4]).reshape(1, 1, 9, 1)
    np.testing.assert_allclose(metal.interpolate(values, known), expected, atol=1e-6)
    np.testing.assert_allclose(
        metal.interpolate(values[:, :, ::-1], known[:, :, ::-1]), expected[:, :, ::-1], atol=1e-6
    )
    np.testing.assert_array_equal(metal.interpolate(values, known & False), np.zeros_like(values))
    np.testing.assert_array_equal(metal.interpolate(values, known | True), values)


def mar_config(name, **changes):
    config = lung64_ct.get_config(name)
    config.data.image_size = SIZE
    config.task.update({"views": 7, "field": 12.0} | changes)
    return config


@functools.cache
def scanned():
    """The task 'mar' with photons of one energy; three images, their scans, their implants, the same in other order."""
    config = mar_config("mar")
    task = get_task(config, get_transform(config))
    task = dataclasses.replace(task, scanner=dataclasses.replace(task.scanner, spectrum=metal.monochromatic()))
    images, ids = body(3), np.arange(3, dtype=np.int32)
    run = jax.jit(lambda x, i: (simulate(task, x, None, i, 0, 9.0), unknown_pixels(task, x, i, 0)))
    return task, images, *jax.tree.map(np.asarray, (*run(images, ids), run(images[::-1], ids[::-1].copy())[0]))


def test_scans_of_implants():
    """Known rays hold H x plus noise, and the noise told is theirs; others hold nothing. Its id fixes an example."""
    task, images, m, implant, again = scanned()
    assert m.y.shape == m.mask.shape == (3, SIZE, ct.num_bins(SIZE), 1)
    np.testing.assert_array_equal(m.mask, ~np.asarray(metal.metal_trace(implant, task.operator.angles)))
    assert np.all(m.y[~m.mask] == 0) and np.all(implant.sum((1, 2, 3)) > 0) and np.all(images[implant] > -0.3)
    residual = (m.y - np.asarray(task.operator.forward(images, m.mask, None)))[m.mask]
    assert np.sqrt(np.mean(residual**2)) == pytest.approx(np.sqrt(np.mean(m.noise_std**2)), rel=0.1)
    np.testing.assert_allclose(again.y[::-1], m.y, atol=1e-5)
    assert not np.array_equal(m.mask[0], m.mask[2])


def test_interpolation_beats_leaving_the_trace_out():
    task, images, m, implant, _ = scanned()
    results = {s: solve(s, task.operator, m.y, m.mask) for s in ("fbp", "li")}
    errors = {s: np.linalg.norm(np.where(implant, 0, x - images)) for s, x in results.items()}
    assert errors["li"] < 0.5 * errors["fbp"]
    assert "solver 'li' reconstructs CT" in message_of(solve, "li", None, m.y, m.mask)


@pytest.mark.parametrize(("name", "views"), [("mar", SIZE), ("sparse_mar", 7)])
def test_variants_of_metal_are_sound(name, views):
    config = mar_config(name)
    assert find_problems(config) == []
    task = get_task(config, get_transform(config))
    run = jax.eval_shape(lambda x, i: simulate(task, x, None, i, 0, 0.0), body(2), np.arange(2, dtype=np.int32))
    assert run.y.shape == run.mask.shape == (2, views, ct.num_bins(SIZE), 1) and run.noise_std.shape == (2,)
    assert set(task.settings) - {"views"} == {"metal", "implants", "photons", "field"}
    acquired = lung64_ct.get_config()
    acquired.task.name = "acquired"
    assert get_measure_fn(acquired, get_transform(acquired)) is None
