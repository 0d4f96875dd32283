"""Aggregation against closed forms, volumes against hand-computed values, and what must never be counted."""

import math

import numpy as np
import pytest

from msm.evaluation import metrics
from msm.evaluation import summary as evaluation
from msm.evaluation.calibration import calibration_maps
from msm.infra.errors import UserError


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
        **{f"good/{kind}": values for kind, values in calibration_maps(samples, reference).items()},
        "good/seconds": np.full(5, 2.0),
    }


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


def test_slices_without_content_are_in_no_mean_and_named(arrays):
    arrays["reference"][0] = 0
    rows = evaluation.measure_round(arrays)
    summary = evaluation.summarize(rows, "good", {}, {})
    assert all(summary["solvers"][name]["psnr"]["n"] == 3 for name in ("poor", "good"))
    assert summary["gains"]["poor"]["psnr"]["n"] == 3 and summary["solvers"]["good"]["seconds"]["n"] == 4
    assert "of 1 slices hold nothing to compare: 7." in summary["absent"]["slices without content"]
    told = evaluation.format_table(summary)
    assert "nan" not in told and math.isfinite(summary["solvers"]["good"]["ssim"]["mean"])
    flat, zeros = np.full((1, 24, 20, 1), -1.0), np.zeros((1, 24, 20, 1))
    constant = {"example_id": np.array([1]), "reference": flat, "a/mean": zeros}
    assert "psnr" not in evaluation.measure_round(constant)[0]
    arrays["volume"] = np.array(["x", "y", "", "y", "y"])
    assert {row["volume"] for row in evaluation.measure_volumes(arrays)} == {"y"}


def test_no_table_says_nan(arrays):
    del arrays["poor/seconds"]
    arrays["poor/mean"][0] = np.nan
    summary = evaluation.summarize(evaluation.measure_round(arrays), "good", {}, {})
    assert "not finite" in evaluation.format_table(summary) and "nan" not in evaluation.format_table(summary)


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


@pytest.fixture
def volumes():
    """Three slices of volume 'a' (one is padding), one of 'b', one of none; magnitudes and errors as easy numbers."""
    peaks, errors = np.array([4.0, 1.0, 9.0, 2.0, 3.0]), np.array([0.4, 0.2, 5.0, 0.5, 0.1])
    reference = np.zeros((5, 12, 12), np.complex64)
    reference[:, :6] = 1j * peaks[:, None, None]
    return {
        "example_id": np.array([2, 0, -1, 7, 9], np.int32),
        "volume": np.array(["a", "a", "a", "b", ""]),
        "reference": reference,
        "mask": np.ones((5, 1, 1, 12), bool),
        "zero/mean": np.abs(reference) + errors[:, None, None],
    }


def test_volumes_by_hand(volumes):
    rows = evaluation.measure_volumes(volumes)
    assert [(row["volume"], row["slices"], row["solver"]) for row in rows] == [("a", 2, "zero"), ("b", 1, "zero")]
    first, second = rows
    # Volume a: error 0.4 in one slice, 0.2 in the other, peak 4; energy 72 (16 + 1).
    assert first["psnr"] == pytest.approx(10 * math.log10(4**2 / ((0.4**2 + 0.2**2) / 2)), abs=1e-5)
    assert first["nmse"] == pytest.approx(144 * (0.4**2 + 0.2**2) / (72 * 17), rel=1e-5)
    slices = [metrics.ssim(volumes["reference"][i], volumes["zero/mean"][i], 4.0) for i in (0, 1)]
    assert first["ssim"] == pytest.approx(np.mean(slices))
    own_range = metrics.ssim(volumes["reference"][1], volumes["zero/mean"][1], 1.0)
    assert first["ssim"] != pytest.approx((slices[0] + own_range) / 2, abs=1e-5)
    # A volume of one slice is that slice.
    slice_row = next(row for row in evaluation.measure_round(volumes) if row["example_id"] == 7)
    assert {name: second[name] for name in metrics.METRICS} == {name: slice_row[name] for name in metrics.METRICS}
    assert second["psnr"] == pytest.approx(10 * math.log10(4 / 0.25), abs=1e-5)


def test_volume_psnr_is_not_the_mean_over_slices(volumes):
    per_slice = [row["psnr"] for row in evaluation.measure_round(volumes) if row.get("volume") == "a"]
    assert per_slice == pytest.approx([20.0, 10 * math.log10(1 / 0.04)], abs=1e-5)
    assert evaluation.measure_volumes(volumes)[0]["psnr"] - np.mean(per_slice) == pytest.approx(5.051, abs=1e-3)


def test_summary_of_volumes(volumes):
    rows, per_volume = evaluation.measure_round(volumes), evaluation.measure_volumes(volumes)
    assert [row.get("volume") for row in rows] == ["a", "a", "b", None]
    summary = evaluation.summarize(rows, "zero", {}, {}, volumes=per_volume, absent={"lpips": "no weights"})
    assert summary["volumes"]["slices"] == {"a": 2, "b": 1}
    entry = summary["volumes"]["solvers"]["zero"]
    assert set(entry) == set(metrics.METRICS)
    assert entry["psnr"]["n"] == 2
    assert entry["psnr"]["mean"] == pytest.approx(np.mean([row["psnr"] for row in per_volume]))
    assert summary["absent"] == {"lpips": "no weights"}
    assert set(summary["solvers"]["zero"]) == {*metrics.METRICS, "nfe", "num_samples"}
    text = evaluation.format_table(summary).splitlines()
    assert [line.split()[:2] for line in text] == [
        ["per", "slice"],
        ["zero", f"{summary['solvers']['zero']['psnr']['mean']:.2f}"],
        ["per", "volume"],
        ["zero", f"{entry['psnr']['mean']:.2f}"],
    ]


@pytest.mark.parametrize("names", [None, ["", "", "", "", ""]])
def test_without_volumes_the_summary_says_so(volumes, names):
    volumes = {key: value for key, value in volumes.items() if key != "volume"}
    if names is not None:
        volumes["volume"] = np.array(names)
    assert evaluation.measure_volumes(volumes) == []
    summary = evaluation.summarize(evaluation.measure_round(volumes), "zero", {}, {})
    assert summary["volumes"] == {} and "single images" in summary["absent"]["per volume"]
    assert "volume" not in evaluation.format_table(summary)


def test_further_measures_follow_the_standard_ones(arrays):
    count = metrics.Metric("bright", lambda reference, result, peak: float(np.abs(result).max() / peak), "Brightest.")
    row = evaluation.measure_round(arrays, measures=[*metrics.STANDARD, count])[0]
    assert list(row)[:6] == ["example_id", "solver", "psnr", "ssim", "nmse", "bright"]
    assert row["bright"] == pytest.approx(np.abs(arrays["poor/mean"][0]).max() / np.abs(arrays["reference"][0]).max())


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
