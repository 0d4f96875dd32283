"""What mode tune hides of an acquisition, and how the prediction of the hidden part is scored."""

from functools import partial

import jax
import numpy as np
import pytest

from msm.configs.default import get_config
from msm.evaluation import held_out as tuning
from msm.evaluation.calibration import COVERAGES, coverage
from msm.operators.acquisition import Acquisition
from msm.operators.coils import find_acs
from msm.operators.masks import centre_lines
from msm.operators.measurement import Measurement
from msm.operators.transform import MultiCoilFourier
from msm.solvers.registry import temper
from tests.helpers.toy_data import acquisition, fourier

ACS = 6


@partial(jax.jit, static_argnums=(1, 2))
def hide_lines(measurement, seed=0, share=0.4):
    return tuning.hide(measurement, seed, lambda key, mask: tuning.choose_lines(key, mask, share, ACS))


def test_hidden_lines_are_a_share_of_the_acquired_ones_outside_the_acs():
    whole, _ = acquisition(count=4)
    rest, hidden = jax.tree.map(np.asarray, hide_lines(whole))
    shown, y = rest.mask, rest.y
    assert not (shown & hidden).any() and ((shown | hidden) == whole.mask).all()
    assert not (hidden & np.asarray(centre_lines(32, ACS))).any()
    calibration = np.array([np.diff(find_acs(mask[0])[2:])[0] for mask in whole.mask])
    assert (calibration >= ACS).all()
    candidates = whole.mask.sum((1, 2, 3)) - calibration
    np.testing.assert_array_equal(hidden.sum((1, 2, 3)), np.round(0.4 * candidates))
    assert candidates.min() > 3
    assert (y[np.broadcast_to(hidden, y.shape)] == 0).all()
    np.testing.assert_array_equal(y + np.where(hidden, whole.y, 0), whole.y)


@pytest.mark.parametrize("width", [32, 33, 16])
def test_what_coil_maps_may_come_from_is_never_hidden(width):
    """The same lines as `find_acs` finds, also where they reach an edge, are all there are, or none."""
    rng = np.random.default_rng(0)
    masks = rng.random((20, 1, width)) < rng.uniform(0.3, 1, (20, 1, 1))
    masks[0], masks[1] = True, False
    region = jax.jit(tuning.calibration_region)
    for mask in masks:
        _, _, low, high = find_acs(mask)
        np.testing.assert_array_equal(np.flatnonzero(region(mask[None])), np.arange(low, high))
    points = np.asarray(region(np.ones((1, 40, 30), bool)))[0]
    np.testing.assert_array_equal(np.argwhere(points)[[0, -1]], [[8, 3], [31, 26]])
    assert points.sum() == 24 * 24 and find_acs(np.ones((40, 30), bool)) == (8, 32, 3, 27)


def test_what_is_hidden_depends_on_seed_and_example_alone():
    whole, _ = acquisition(count=4)
    hidden = np.asarray(hide_lines(whole)[1])
    turned = jax.tree.map(lambda a: a[::-1], whole)
    np.testing.assert_array_equal(hide_lines(turned)[1], hidden[::-1])
    assert (np.asarray(hide_lines(whole, 1)[1]) != hidden).any((1, 2, 3)).all()


def test_something_is_hidden_and_something_left():
    key, choose = jax.random.key(0), jax.jit(tuning.choose)
    for acquired, expected in ((0, 0), (1, 1), (2, 1), (10, 9)):
        candidates = np.arange(12) < acquired
        chosen = np.asarray(choose(key, candidates, 0.99))
        assert int(chosen.sum()) == expected and not (chosen & ~candidates).any()
    assert int(choose(key, np.arange(12) < 5, 0.01).sum()) == 1


def test_hidden_pixels_are_whole_squares_of_the_acquired_ones():
    mask = np.zeros((20, 20, 1), bool)
    mask[3:15] = True  # squares of 8, cut at 16: the two upper rows of squares have acquired pixels, six squares
    hidden = np.asarray(jax.jit(lambda key, mask: tuning.choose_squares(key, mask, 0.5, 8))(jax.random.key(3), mask))
    assert not (hidden & ~mask).any()
    squares = [(slice(i, i + 8), slice(j, j + 8)) for i in (0, 8, 16) for j in (0, 8, 16)]
    parts = [(hidden[square] == mask[square]).all() and mask[square].any() for square in squares]
    assert sum(parts) == 3 and sum(hidden[square].any() for square in squares) == 3


def test_the_error_is_that_of_the_hidden_entries_and_the_floor_that_of_their_noise():
    whole, images = acquisition(count=3, noise_std=0.05)
    hidden = np.asarray(hide_lines(whole)[1])
    operator, chosen = Acquisition(MultiCoilFourier()), np.broadcast_to(hidden, whole.y.shape)
    guess = 0.9 * images
    predicted = fourier(whole.maps * guess[:, None])
    expected = [
        np.sum(np.abs(p - y)[c] ** 2) / np.sum(np.abs(y)[c] ** 2)
        for p, y, c in zip(predicted, whole.y, chosen, strict=True)
    ]
    error = jax.jit(lambda x: tuning.held_out_error(operator, x, whole, hidden))
    np.testing.assert_allclose(error(guess), expected, rtol=1e-4)
    truth, floor = error(images), jax.jit(tuning.noise_floor)(whole, hidden)
    np.testing.assert_allclose(truth, floor, rtol=0.2)  # about 700 scalars each: 5 % standard deviation
    assert float(np.mean(truth)) == pytest.approx(float(np.mean(floor)), rel=0.1)


def test_spread_is_best_and_covers_right_where_it_is_that_of_the_errors():
    """Samples and truth are draws of one Gaussian, the samples then drawn together by 2: temperature 2 undoes it."""
    config = get_config()
    config.tune.update(objective="crps", hide=0.5)
    config.masks.acs_lines = 2
    rng = np.random.default_rng(0)

    def draw(*shape):
        return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)

    truth, samples = draw(6, 32, 32), draw(8, 6, 32, 32)
    samples = temper(samples, 0.5)
    operator, maps = Acquisition(MultiCoilFourier()), np.ones((6, 1, 32, 32), np.complex64)
    mask = np.broadcast_to(np.arange(32) % 2 == 0, (6, 1, 1, 32))
    noise_std = 0.3
    y = np.asarray(operator.forward(truth, mask, maps)) + np.where(mask, noise_std * draw(6, 1, 32, 32), 0)
    measurement = Measurement(
        y=y, mask=mask, maps=maps, noise_std=np.full(6, noise_std, np.float32), example_id=np.arange(6, dtype=np.int32)
    )
    objective = tuning.get_objective(config, operator)
    judged = objective.judge(measurement)
    assert objective.of_spread and objective.minimise and not objective.needs_references
    scores = {t: judged.score(temper(samples, t)).mean() for t in (0.5, 1.0, 1.5, 2.0, 2.6, 4.0)}
    assert min(scores, key=lambda t: scores[t]) == 2.0
    levels = judged.levels(temper(samples, 2.0))
    assert levels.shape == (6 * 8 * 32 * 2,)  # 8 of the 15 acquired lines outside the ACS, real and imaginary
    np.testing.assert_array_equal(judged.owners, np.repeat(np.arange(6), 8 * 32 * 2))
    np.testing.assert_allclose(coverage(levels), COVERAGES, atol=0.02)
    assert coverage(judged.levels(samples))[2] < 0.75
