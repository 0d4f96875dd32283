"""tools/compare_runs.py: the table of several evaluations, and what it says of folders that do not fit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from msm.reports.evaluation_page import write_metrics_csv
from msm.tools.compare_runs import compare, differing_facts
from tests.helpers.checks import message_of


def written(folder, values, solver="msm", first_id=0):
    folder.mkdir()
    rows = [{"example_id": first_id + i, "solver": solver, "psnr": v, "ssim": 0.5} for i, v in enumerate(values)]
    write_metrics_csv(folder / "metrics.csv", [*rows, {"example_id": first_id, "solver": "zero_filled", "psnr": 1.0}])
    return folder


def test_table_has_means_errors_and_paired_gains(tmp_path):
    one, two = written(tmp_path / "a", [20.0, 22.0, 24.0]), written(tmp_path / "b", [21.0, 23.0, 25.0])
    header, _, first, second = compare([one, two], "msm", ["psnr", "ssim"]).splitlines()
    assert header == "| run | slices | psnr | ssim | psnr, difference from the first |"
    assert first == f"| {one} | 3 | 22.00 +- 1.15 | 0.500 +- 0.000 |  |"  # 2 / sqrt(3)
    assert second == f"| {two} | 3 | 23.00 +- 1.15 | 0.500 +- 0.000 | +1.00 +- 0.00 |"


@pytest.mark.parametrize(
    ("solver", "metrics", "told"),
    [
        ("mms", ["psnr"], "has no solver 'mms'; did you mean 'msm'? (known: msm, zero_filled)"),
        ("msm", ["pnsr"], "has no pnsr of msm; did you mean 'psnr'? (known: psnr, ssim)"),
    ],
)
def test_unknown_names_are_told_with_the_known_ones(tmp_path, solver, metrics, told):
    assert told in message_of(compare, [written(tmp_path / "a", [20.0, 21.0])], solver, metrics)


def test_other_slices_and_missing_files_are_refused(tmp_path):
    one, other = written(tmp_path / "a", [20.0, 21.0]), written(tmp_path / "b", [20.0, 21.0], first_id=7)
    assert "not evaluated on the same slices" in message_of(compare, [one, other], "msm", ["psnr"])
    assert "run main.py --mode eval first" in message_of(compare, [tmp_path / "none"], "msm", ["psnr"])


def test_unlike_evaluations_are_told(tmp_path):
    folders = [written(tmp_path / name, [20.0, 21.0]) for name in "ab"]
    for folder, noise in zip(folders, (0.005, 0.1), strict=True):
        run = {"command": str(folder), "task": "acquired", "noise std": noise, "hyper-parameters": {"msm": {"eta": 1}}}
        summary = {"run": run, "solvers": {"msm": {"nfe": 30, "num_samples": 4}}}
        (folder / "summary.json").write_text(json.dumps(summary))
    assert differing_facts(folders, "msm") == [f"noise std differs: 0.005 in {folders[0]}, 0.1 in {folders[1]}"]
    assert differing_facts(folders[:1], "msm") == []


def test_the_tool_takes_folders_and_tells_mistakes_in_one_line(tmp_path):
    one = written(tmp_path / "a", [20.0, 21.0])
    tool = Path(__file__).resolve().parents[2] / "tools" / "compare_runs.py"

    def run(*arguments):
        return subprocess.run([sys.executable, tool, *arguments], capture_output=True, text=True, timeout=300)

    done = run("--metrics=psnr", one)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == compare([one], "msm", ["psnr"]) + "\n"
    failed = run("--metric=psnr", one)
    assert (failed.returncode, failed.stdout) == (2, "")
    [line] = failed.stderr.splitlines()
    assert line == "error: --metric is no flag; did you mean 'metrics'? (--help has all)"
