"""1, 4 and 8 devices, and 2 processes of 2 devices each, give the same run: really started, in processes of their own.

Differences are relative to the largest magnitude of the array: |a - b|_max <= 1e-5 |b|_max.
"""

import csv
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from msm import datasets
from msm.builders.demo.heads import Brains, default_settings
from msm.builders.store import prepare_store
from tests.helpers import tiny_model
from tests.helpers.checkpoint_runs import steps
from tests.helpers.small_runs import saved_state
from tests.scale.runs import NUM_STEPS, SETTINGS, finish, free_port, get_config, notes, start

pytestmark = pytest.mark.slow

MODES = ("train", "eval", "sample", "tune")
LAYOUTS = ("four", "eight", "pod")
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    """As `tiny_store` with noise 0.1.

    The least-squares step of the solver multiplies rounding by (1 / noise)^2, and rounding depends on the number of
    examples per device: at the demo's noise, 0.005, reconstructions differ by 2e-4 of the largest magnitude.
    """
    path = tmp_path_factory.mktemp("data") / "noisy_store"
    prepare_store(path, Brains(default_settings(32, noise_std=0.1), max_slices=6))
    return str(path)


@pytest.fixture(scope="module")
def runs(store, tmp_path_factory) -> Path:
    """The folder of all runs: 'one', 'four', 'eight', 'pod' and 'resumed', which went from 8 devices to 4 to 1."""
    folder = tmp_path_factory.mktemp("scale")

    def task(run: str, mode: str, **what) -> dict:
        return {"name": f"{run} {mode}", "mode": mode, "workdir": str(folder / "runs" / run), **what}

    def all_modes(run: str) -> list[dict]:
        return [task(run, mode) for mode in MODES]

    single = {"training.batch_size": 1, "training.num_steps": 1}  # a batch of one on one device of the eight
    more = {
        "eight": [
            task("resumed", "train", stop_after=3),
            task("share", "train", devices=1, settings={"0": single}),
        ],
        "four": [task("resumed", "train", stop_after=3)],
        "one": [task("resumed", "train")],
    }
    missing = {"1": {"data.dir": str(folder / "missing")}}
    refused = {**task("pod", "train", settings=missing), "name": "refused"}

    def run_single() -> None:
        for job, devices in (("eight", 8), ("four", 4), ("one", 1)):
            finish(start(folder, job, devices, store=store, tasks=[*all_modes(job), *more[job]]))

    def run_pod() -> None:
        stop_pod(folder, store)
        resume_pod(folder, store, [refused, *all_modes("pod")])

    with ThreadPoolExecutor() as pool:
        for running in [pool.submit(run_single), pool.submit(run_pod)]:
            running.result()
    return folder


def stop_pod(folder: Path, store: str) -> None:
    """Two processes of main.py, one of which is told to stop."""
    command = [
        *("main.py", "--config=configs/brain64_msm.py:smoke", f"--workdir={folder / 'runs' / 'pod'}", "--mode=train"),
        *(f"--config.{name}={value}" for name, value in {"data.dir": store, **SETTINGS}.items()),
        *(f"--cache={folder / 'cache'}", f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2"),
    ]
    told = finish(start(folder, "stopped", 2, 2, command=command, stop_after=2), 143, 143)
    (folder / "stopped.txt").write_text("\n--\n".join(told))


def resume_pod(folder: Path, store: str, tasks: list[dict]) -> None:
    """Two processes that do the tasks; then the second leaves all of a sudden."""
    pod = start(folder, "pod", 2, 2, store=store, tasks=tasks)
    told = [process.communicate(timeout=600)[0] for process in pod]
    (folder / "pod.txt").write_text("\n--\n".join([*told, json.dumps([process.returncode for process in pod])]))


def assert_close(found, wanted, what: str = "") -> None:
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert found.shape == wanted.shape and found.dtype == wanted.dtype, what
    difference, size = np.abs(found - wanted).max(), np.abs(wanted).max()
    assert difference <= TOLERANCE * size, f"{what}: {difference:.3g} of {size:.3g}"


def record(runs: Path, run: str) -> list[dict]:
    return [json.loads(line) for line in (runs / "runs" / run / "metrics.jsonl").read_text().splitlines()]


def rows_of(path: Path) -> list[dict]:
    with open(path) as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("run", [*LAYOUTS, "resumed"])
def test_losses_and_gradient_norms_are_those_of_one_device(runs, run):
    found, wanted = record(runs, run), record(runs, "one")
    assert [line["step"] for line in found] == list(range(1, NUM_STEPS + 1))
    for name in ("loss", "grad_norm"):
        assert_close([line[name] for line in found], [line[name] for line in wanted], name)
    assert wanted[-1]["loss"] != wanted[0]["loss"]


@pytest.mark.parametrize("run", [*LAYOUTS, "resumed"])
def test_the_final_state_is_that_of_one_device(runs, store, run):
    tiny_model.register()
    config = get_config(store)
    found, wanted = (saved_state(config, runs / "runs" / name) for name in (run, "one"))
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert_close(found[name], value, name)


@pytest.mark.parametrize("run", LAYOUTS)
def test_reconstructions_are_those_of_one_device(runs, run):
    (path,) = (runs / "runs" / run / "eval" / "rounds").iterdir()
    with np.load(path) as found, np.load(runs / "runs" / "one" / "eval" / "rounds" / path.name) as wanted:
        assert set(found.files) == set(wanted.files) > {"msm/mean", "msm/std", "msm/sample", "volume"}
        for name in ("example_id", "reference", "mask", "volume"):
            np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
        for name in ("zero_filled/mean", "msm/mean", "msm/std", "msm/sample"):
            assert_close(found[name], wanted[name], name)
    found, wanted = (rows_of(runs / "runs" / name / "eval" / "metrics.csv") for name in (run, "one"))
    assert len(found) == len(wanted) == 12
    for name in ("psnr", "ssim", "nmse"):
        assert_close([float(row[name]) for row in found], [float(row[name]) for row in wanted], name)


@pytest.mark.parametrize("run", LAYOUTS)
def test_drawn_images_and_their_distances_are_those_of_one_device(runs, run):
    found, wanted = (runs / "runs" / name / "samples" / "generated" for name in (run, "one"))
    with np.load(found / "images.npz") as mine, np.load(wanted / "images.npz") as theirs:
        assert len(theirs["images"]) == 10
        assert_close(mine["images"], theirs["images"])
    mine, theirs = (rows_of(folder / "memorisation.csv") for folder in (found, wanted))
    assert len(mine) == len(theirs) == 8
    for name in ("nearest_id", "distance"):
        assert_close([float(row[name]) for row in mine], [float(row[name]) for row in theirs], name)


@pytest.mark.parametrize("run", LAYOUTS)
def test_tuning_finds_the_values_of_one_device(runs, run):
    found, wanted = (rows_of(runs / "runs" / name / "tune" / "trials.csv") for name in (run, "one"))
    assert len(found) == len(wanted) == 2
    for name in wanted[0]:
        assert_close([float(row[name]) for row in found], [float(row[name]) for row in wanted], name)
    floors = [json.loads((runs / "runs" / name / "tune" / "best.json").read_text())["msm"] for name in (run, "one")]
    assert floors[0]["examples"] == floors[1]["examples"] == 3
    assert_close(floors[0]["noise_floor"], floors[1]["noise_floor"])


# who does what


def halves(batches: list[list[int]], index: int) -> list[list[int]]:
    return [batch[index * len(batch) // 2 : (index + 1) * len(batch) // 2] for batch in batches]


@pytest.mark.parametrize("mode", ["eval", "sample", "tune"])
def test_each_process_reads_its_half_of_every_batch(runs, mode):
    """Beyond that, process 0 reads what it compares drawn images with and shows in the report."""
    whole = notes(runs, "one")[f"one {mode}"]
    for index in range(2):
        mine = notes(runs, "pod", index)[f"pod {mode}"]
        shared = [batch for batch in whole["acquisitions"] if len(batch) == 8]
        assert mine["acquisitions"][: len(shared)] == halves(shared, index) != []
        alone = [batch for batch in whole["acquisitions"] if len(batch) != 8]
        assert mine["acquisitions"][len(shared) :] == ([] if index else alone)
        if mode == "sample":
            assert mine["references"] == ([] if index else whole["references"])
        else:
            assert mine["references"] == halves(whole["references"], index)


def test_each_process_reads_its_half_of_the_training_stream(runs):
    pictures = [0, 1, 3, 5]
    order = datasets.epoch_order(0, 6, 0, 8 * 100)  # the reader runs ahead of the steps
    for index in range(2):
        batches = notes(runs, "pod", index)["pod train"]["acquisitions"]
        if index == 0:
            batches.remove(pictures)
        stream = [order[8 * step + 4 * index :][:4].tolist() for step in range(100)]
        assert len(batches) >= NUM_STEPS - 3 and all(batch in stream for batch in batches)
        assert all(batch in batches for batch in stream[3:NUM_STEPS])  # it went on after step 3


def test_only_process_0_writes_but_for_checkpoints(runs):
    everything = [{job: notes(runs, job, index) for job in ("stopped", "pod")} for index in range(2)]
    first, second = (
        [path for job in found.values() for task in job.values() for path in task["writes"]] for found in everything
    )
    assert second and not [path for path in second if not re.match(r"pod/checkpoints(-meta)?/", path)]
    names = {Path(path).name for path in first}
    assert {"train.log", "eval.log", "sample.log", "tune.log", "metrics.jsonl", "study.db"} <= names
    for name in ("images.npz", "metrics.csv", "report.html", "summary.json", "best.json", "round_0000.npz"):
        assert [path for path in first if f".{name}.tmp" in path], name


def test_every_process_writes_its_part_of_a_checkpoint(runs):
    (folder,) = (runs / "runs" / "pod" / "checkpoints").iterdir()
    for index in range(2):
        assert (folder / "data" / f"process_{index}-of-2.json").is_file()
    files = [path for path in (folder / "state").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) > 0  # few small arrays: process 0 may write them all


def test_a_notice_to_one_process_stops_both_after_the_same_step(runs):
    told = [re.findall(r"SIGTERM: stopped after step (\d+) of 8", text) for text in stopped(runs)]
    assert told[0] and {*told[0]} == {*told[1]}
    step = int(told[0][0])
    assert 2 <= step < NUM_STEPS
    assert step in steps(runs / "runs" / "pod" / "checkpoints-meta")
    log = (runs / "runs" / "pod" / "train.log").read_text()
    assert f"resuming: {NUM_STEPS} steps from step {step}" in log


def stopped(runs: Path) -> list[str]:
    return (runs / "stopped.txt").read_text().split("\n--\n")


def test_devices_may_change_from_eight_to_four_to_one(runs):
    ends = [notes(runs, job)["resumed train"]["end"] for job in ("eight", "four", "one")]
    assert ends == ["Stopped: stopped by signal 15", "Stopped: stopped by signal 15", "done"]
    log = (runs / "runs" / "resumed" / "train.log").read_text()
    assert re.findall(r"from step (\d): .* batch 8 on (\d) device", log) == [("0", "8"), ("3", "4"), ("6", "1")]


def test_a_mistake_on_one_process_is_told_by_all(runs):
    ends = [notes(runs, "pod", index)["refused"]["end"] for index in range(2)]
    missing = runs / "missing" / "manifest.json"
    assert ends[1].startswith(f"UserError: {missing} is missing; data.dir must name a store: make one by ")
    assert ends[0] == ends[1].replace("UserError: ", "UserError: process 1 of 2: ")


def test_a_process_that_leaves_ends_the_others(runs):
    first, second = json.loads((runs / "pod.txt").read_text().split("\n--\n")[-1])
    assert first != 0 and second == 2


# what is compiled


def programs(runs: Path, job: str, kind: str) -> list[dict]:
    found = [program for task in notes(runs, job).values() for program in task["programs"] if program["kind"] == kind]
    assert found
    return found


@pytest.mark.parametrize("run", LAYOUTS)
def test_the_step_reduces_and_solvers_do_not_communicate(runs, run):
    assert all(program["collectives"] == ["all-reduce"] for program in programs(runs, run, "data_parallel_step"))
    assert all(program["collectives"] == [] for program in programs(runs, run, "data_parallel_solve"))


@pytest.mark.parametrize("run, devices", [("four", 4), ("eight", 8), ("pod", 4)])
@pytest.mark.parametrize("mode", MODES)
def test_work_of_a_device_falls_with_their_number(runs, run, devices, mode):
    """The global batch is the same; what does not shrink is the optimiser, and masks that all examples share."""
    found, wanted = (notes(runs, name)[f"{name} {mode}"]["programs"] for name in (run, "one"))
    assert len(found) == len(wanted) > 0
    for mine, theirs in zip(found, wanted, strict=True):
        assert theirs["flops"] / devices <= mine["flops"] * 1.01 <= 1.1 * theirs["flops"] / devices


def test_work_of_a_device_does_not_grow_with_their_number(runs):
    """Eight devices with an example each, and one device with one example."""
    found = notes(runs, "eight")
    (eight,), (one,) = (found[name]["programs"] for name in ("eight train", "share train"))
    assert abs(eight["flops"] - one["flops"]) <= 0.01 * one["flops"]
