"""Metrics against their textbook values, aggregation against closed forms, and what must never be counted."""

import math

import numpy as np
import pytest

import evaluation
from infra.errors import UserError


@pytest.fixture
def arrays():
    """A round of 4 slices and one padding slice, ids out of order: a poor solver, and a good one that draws samples."""
    rng = np.random.default_rng(0)

    def draw(scale):
        return (scale * (rng.normal(size=(5, 24, 20)) + 1j * rng.normal(size=(5, 24, 20)))).astype(np.complex64)

    reference = draw(1.0)
    samples = np.stack([reference + draw(0.1) for _ in range(3)])
    mean, std = evaluation.summarize_samples(samples)
    return {
        "example_id": np.array([7, 3, -1, 5, 4], np.int32),
        "reference": reference,
        "mask": np.ones((5, 1, 1, 20), bool),
        "poor/mean": reference + draw(0.5),
        "poor/seconds": np.full(5, 0.25),
        "good/mean": mean,
        "good/std": std,
        "good/seconds": np.full(5, 2.0),
    }


def test_psnr_of_a_known_error():
    reference = np.zeros((4, 4), np.complex64)
    reference[0, 0] = 2j
    assert evaluation.psnr(reference, reference + 0.2 * (np.abs(reference) == 0), 2.0) == pytest.approx(
        10 * math.log10(4 / (0.04 * 15 / 16)), abs=1e-5
    )
    assert evaluation.psnr(reference, -reference, 2.0) == math.inf  # magnitudes are compared
    assert evaluation.natural_range(reference) == 2.0
    assert evaluation.natural_range(np.zeros((4, 4, 3), np.float32)) == 2.0


def test_no_method_is_rescaled():
    reference = np.linspace(0, 1, 256).reshape(16, 16).astype(np.complex64)
    assert evaluation.nmse(reference, 0.9 * reference) == pytest.approx(0.01, rel=1e-4)
    assert evaluation.psnr(reference, 0.9 * reference, 1.0) < 26
    assert evaluation.ssim(reference, 0.9 * reference, 1.0) < 1


def gaussian_ssim(x, y, data_range):
    """SSIM of Wang et al. 2004 written out: 11 x 11 Gaussian window of sigma 1.5, mean over whole windows."""
    tap = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = np.outer(tap, tap) / tap.sum() ** 2

    def blur(image):
        return np.einsum("ijkl,kl->ij", np.lib.stride_tricks.sliding_window_view(image, (11, 11)), window)

    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mx, my = blur(x), blur(y)
    vx, vy, vxy = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    return np.mean((2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))


def test_ssim_is_the_gaussian_window_one():
    rng = np.random.default_rng(1)
    x, y = rng.uniform(0, 1, (2, 20, 24))
    assert evaluation.ssim(x.astype(np.complex64), y.astype(np.complex64), 1.0) == pytest.approx(
        gaussian_ssim(x, y, 1.0), abs=1e-5
    )
    color = np.stack([x, y, x], axis=-1)
    expected = np.mean([gaussian_ssim(color[..., c], color[..., 2 - c] * 0.5, 2.0) for c in range(3)])
    assert evaluation.ssim(color, color[..., ::-1] * 0.5, 2.0) == pytest.approx(expected, abs=1e-5)


def test_bad_shapes_get_one_line():
    with pytest.raises(UserError, match="differ in shape"):
        evaluation.psnr(np.zeros((8, 8)), np.zeros((8, 9)), 1.0)
    with pytest.raises(UserError, match="at least 11 x 11"):
        evaluation.ssim(np.zeros((8, 8)), np.zeros((8, 8)), 1.0)


def test_samples_give_mean_and_spread_of_magnitudes():
    samples = np.array([1, 1j, -4]).reshape(3, 1, 1, 1) * np.ones((3, 2, 4, 5), np.complex64)
    mean, std = evaluation.summarize_samples(samples)
    np.testing.assert_allclose(mean, (-3 + 1j) / 3 * np.ones((2, 4, 5)), rtol=1e-6)
    np.testing.assert_allclose(std, math.sqrt(3), rtol=1e-6)
    _, std = evaluation.summarize_samples(np.stack([np.zeros((2, 4, 5, 3)), np.full((2, 4, 5, 3), 2.0)]))
    assert std.shape == (2, 4, 5) and std.dtype == np.float32
    np.testing.assert_allclose(std, math.sqrt(2), rtol=1e-6)
    assert evaluation.summarize_samples(samples[:1])[1] is None


def test_padding_is_never_counted(arrays):
    rows = evaluation.measure_round(arrays)
    assert len(rows) == 8 and {row["example_id"] for row in rows} == {3, 4, 5, 7}
    assert evaluation.aggregate(rows)["good"]["psnr"]["n"] == 4
    padded = [*rows, {"example_id": -1, "solver": "good", "psnr": 1e9}]
    assert evaluation.aggregate(padded)["good"] == evaluation.aggregate(rows)["good"]
    assert list(evaluation.merge_rounds([arrays])["example_id"]) == [3, 4, 5, 7]


def test_merged_rounds_equal_one_round(arrays):
    halves = [{key: value[part] for key, value in arrays.items()} for part in (slice(0, 2), slice(2, None))]
    merged, whole = evaluation.merge_rounds(halves[::-1]), evaluation.merge_rounds([arrays])
    for key, value in whole.items():
        np.testing.assert_array_equal(merged[key], value)
    with pytest.raises(UserError, match="twice"):
        evaluation.merge_rounds([arrays, arrays])
    with pytest.raises(UserError, match="different solvers"):
        evaluation.merge_rounds([arrays, {key: value for key, value in arrays.items() if "good" not in key}])
    with pytest.raises(UserError, match="no evaluation round"):
        evaluation.merge_rounds([])


def test_data_range_moves_psnr_as_stated(arrays):
    natural, wide = evaluation.measure_round(arrays), evaluation.measure_round(arrays, data_range=100.0)
    peak = np.abs(arrays["reference"][0]).max()
    assert wide[0]["psnr"] - natural[0]["psnr"] == pytest.approx(20 * math.log10(100 / peak), abs=1e-4)
    each = evaluation.measure_round(arrays, data_range=np.array([100.0, 1, 1, 1, 1]))
    assert each[0]["psnr"] == wide[0]["psnr"] and each[2]["psnr"] != wide[2]["psnr"]


def rows_of(values, solver="a"):
    return [{"example_id": index, "solver": solver, "psnr": float(value)} for index, value in enumerate(values)]


def test_aggregate_equals_closed_forms():
    values = np.random.default_rng(2).normal(30, 2, 200)
    entry = evaluation.aggregate(rows_of(values))["a"]["psnr"]
    assert entry["mean"] == pytest.approx(values.mean())
    assert entry["standard_error"] == pytest.approx(values.std(ddof=1) / math.sqrt(200))
    half = 1.96 * entry["standard_error"]
    np.testing.assert_allclose(entry["ci95"], [values.mean() - half, values.mean() + half], atol=0.1 * half)
    assert evaluation.aggregate(rows_of(values)[::-1])["a"]["psnr"] == entry


def test_aggregate_of_one_slice_and_of_infinite_values():
    single = evaluation.aggregate(rows_of([30.0]))["a"]["psnr"]
    assert single["mean"] == 30 and math.isnan(single["standard_error"]) and single["ci95"] == [30, 30]
    perfect = evaluation.aggregate(rows_of([math.inf, math.inf]))["a"]["psnr"]
    assert perfect["mean"] == math.inf
    broken = evaluation.aggregate(rows_of([30.0, math.nan]))["a"]["psnr"]
    assert math.isnan(broken["mean"]) and broken["n"] == 2  # one failed slice is not averaged away


def test_paired_difference_uses_the_same_slices():
    rows = rows_of([20, 30, 40]) + rows_of([21, 32, 39], "b")[::-1]
    gain = evaluation.paired_difference(rows, "b", "a")
    assert gain["mean"] == pytest.approx(2 / 3) and gain["positive"] == 2 and gain["n"] == 3
    assert gain["standard_error"] == pytest.approx(np.std([1, 2, -1], ddof=1) / math.sqrt(3))
    with pytest.raises(UserError, match="same slices"):
        evaluation.paired_difference(rows[1:], "b", "a")
    with pytest.raises(UserError, match="'missing'"):
        evaluation.paired_difference(rows, "missing", "a")


def test_posterior_figures_look_only_at_the_head():
    rng = np.random.default_rng(3)
    reference = np.zeros((32, 32), np.complex64)
    reference[8:24, 8:24] = 1
    spread = rng.uniform(0.1, 0.5, (32, 32))
    mean = np.where(np.abs(reference) > 0, 1 + spread, 50)  # large errors in the air must not count
    figures = evaluation.posterior_figures(reference, mean, spread)
    assert figures["std_error_correlation"] == pytest.approx(1)
    assert figures["spread_to_error"] == pytest.approx(1)
    flat = evaluation.posterior_figures(reference, reference, np.zeros((32, 32)))
    assert all(math.isnan(value) for value in flat.values())


def test_summary_states_gains_definitions_and_cost(arrays):
    rows = evaluation.measure_round(arrays)
    summary = evaluation.summarize(
        rows, "good", {"step": 3}, {"good": 50}, {"good": 3}, definitions={"data range": "the volume's maximum"}
    )
    assert summary["solvers"]["good"]["nfe"] == 50 and summary["solvers"]["poor"]["nfe"] == 0
    assert summary["solvers"]["good"]["num_samples"] == 3 and summary["solvers"]["poor"]["num_samples"] == 1
    assert summary["gains"]["poor"]["psnr"]["mean"] > 5 and summary["gains"]["poor"]["psnr"]["positive"] == 4
    assert summary["definitions"]["data range"] == "the volume's maximum"
    assert set(evaluation.METRICS + evaluation.POSTERIOR) <= set(summary["definitions"])
    with pytest.raises(UserError, match="no result of solver 'msm'"):
        evaluation.summarize(rows, "msm", {}, {})


def test_chosen_slices():
    rows = rows_of([25, 21, 29, 23, 27])
    assert evaluation.choose_slices(rows, "a") == {"worst": 1, "median": 0, "best": 2}  # 2 is the middle id as well
    assert evaluation.choose_slices(rows, "a", fixed=4) == {"worst": 1, "median": 0, "best": 2, "fixed": 4}
    assert evaluation.choose_slices(rows_of([25]), "a") == {"worst": 0}
    assert evaluation.choose_slices(rows_of([25, math.nan, 20]), "a")["worst"] == 1
    with pytest.raises(UserError, match="no result"):
        evaluation.choose_slices(rows, "b")
