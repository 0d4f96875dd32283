"""The program as its users start it: train, eval, tune and sample in processes of their own, on a toy store."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.io import imread
from skimage.metrics import peak_signal_noise_ratio

from msm.configs.rules.check import find_problems
from msm.experiment import build
from msm.losses import Completed, get_loss_fn
from msm.models.init import param_shapes
from msm.modes import em
from msm.operators.measurement import Measurement
from tests.helpers.checks import hashes
from tests.helpers.paths import ROOT

MODES = ("train", "eval", "tune", "sample")
ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu"}


def start(mode: str, workdir: Path, store: Path, cache: Path) -> subprocess.CompletedProcess:
    settings = {"data.dir": store, "data.image_size": 32, "masks.acs_lines": 4, "model.channel_mult": "(1,)"}
    command = [
        *(sys.executable, "main.py", "--config=configs/brain64_msm.py:smoke", f"--workdir={workdir}", f"--mode={mode}"),
        *(f"--config.{name}={value}" for name, value in settings.items()),
        f"--cache={cache}",
    ]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def first(tiny_store, tmp_path_factory):
    """(workdir, {mode: finished process}, {file: hash} when all was done) of one run of each mode."""
    workdir = tmp_path_factory.mktemp("e2e") / "run"
    cache = tmp_path_factory.mktemp("e2e_cache")
    done = {mode: start(mode, workdir, tiny_store, cache) for mode in MODES}
    for mode, process in done.items():
        assert process.returncode == 0, f"{mode}: {process.stderr}"
    return workdir, done, hashes(workdir)


@pytest.mark.slow
def test_workdir_holds_what_the_design_promises(first):
    workdir, _, files = first
    promised = [
        *("config.json", "manifest.json", "metrics.jsonl", "train.log", "eval.log", "sample.log"),
        *("samples/step_0000002.png", "samples/step_0000004.png", "eval/metrics.csv", "eval/summary.json"),
        *(f"samples/generated/{name}" for name in ("images.npz", "grid.png", "nearest.png", "memorisation.csv")),
        *("samples/generated/summary.json", "samples/generated/report.html", "samples/generated/rounds/round_0000.npz"),
        "eval/report.html",
        *(
            "tune.log",
            *(f"tune/{name}" for name in ("best.json", "trials.csv", "history.png", "slices.png", "study.db")),
        ),
        *("eval/rounds/round_0000.npz", "eval/rounds/round_0001.npz", "eval/figures/psnr_per_slice.png"),
    ]
    assert not [name for name in promised if name not in files]
    assert any(name.startswith("tensorboard/events") for name in files)
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"2", "4"}
    assert {path.name for path in (workdir / "checkpoints-meta").iterdir()} == {"1", "3"}
    assert len([name for name in files if re.fullmatch(r"eval/figures/slice_\w+\.png", name)]) >= 3
    assert not [name for name in files if "tmp" in Path(name).name]  # every file has its final name


@pytest.mark.slow
def test_files_of_a_run_can_be_read(first):
    workdir, _, files = first
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    assert set(json.loads((workdir / "manifest.json").read_text())) == set(MODES)
    assert json.loads((workdir / "config.json").read_text())["data"]["image_size"] == 32
    for name in files:
        if name.endswith(".png"):
            assert imread(workdir / name).std() > 0, name
    rows = (workdir / "eval" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + 6 * 5  # a header, then six scans by five solvers


@pytest.mark.slow
def test_console_shows_the_log_and_nothing_else(first):
    """Every line is one of ours, with the time of day; no chatter of libraries, no warning, no traceback."""
    _, done, _ = first
    for mode, process in done.items():
        assert process.stdout == "", mode
        lines = process.stderr.splitlines()
        # XLA itself complains on standard error where a compilation is slow.
        lines = [line for line in lines if "slow" not in line.lower() and "***" not in line and "took" not in line]
        ours = re.compile(r"^\d\d:\d\d:\d\d |^(per volume|zero_filled|cg_sense|l1_wavelet|msm|report:) ?")
        assert lines and not [line for line in lines if line and not ours.match(line)], mode


@pytest.mark.slow
def test_summary_can_be_recomputed_from_the_stored_images(first):
    """PSNR by scikit-image from rounds/*.npz, padding left out, equals what summary.json says."""
    workdir, _, _ = first
    summary = json.loads((workdir / "eval" / "summary.json").read_text())
    values = {solver: [] for solver in summary["solvers"]}
    for path in sorted((workdir / "eval" / "rounds").glob("*.npz")):
        with np.load(path) as arrays:
            real = arrays["example_id"] >= 0
            for solver, found in values.items():
                for reference, mean in zip(arrays["reference"][real], arrays[f"{solver}/mean"][real], strict=True):
                    pair = (np.abs(reference).astype(float), np.abs(mean).astype(float))
                    found.append(peak_signal_noise_ratio(*pair, data_range=pair[0].max()))
    assert set(values) == {"zero_filled", "cg_sense", "l1_wavelet", "msm_fast", "msm"}
    for solver, found in values.items():
        stated = summary["solvers"][solver]["psnr"]
        assert len(found) == stated["n"] == 6
        assert np.mean(found) == pytest.approx(stated["mean"], rel=1e-5)


@pytest.mark.slow
def test_report_shows_the_stated_numbers(first):
    workdir, _, _ = first
    page = (workdir / "eval" / "report.html").read_text()
    summary = json.loads((workdir / "eval" / "summary.json").read_text())
    for entry in summary["solvers"].values():
        assert f"{entry['psnr']['mean']:.2f}" in page
    assert "--mode=eval" in page


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_same_command_again_changes_no_result(first, mode):
    """Rounds hold how long they took: one that was computed again would differ."""
    workdir, done, before = first
    process = subprocess.run(done[mode].args, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=900)
    assert process.returncode == 0, process.stderr
    results = ("checkpoints", "metrics.jsonl", "samples/", "eval/rounds/", "eval/metrics.csv", "eval/summary.json")
    after = {name: digest for name, digest in hashes(workdir).items() if name.startswith(results)}
    assert after == {name: digest for name, digest in before.items() if name.startswith(results)}


NAMES = sorted({p.stem for p in (ROOT / "configs").glob("*.py")} - {"__init__", "default"})
EXPERIMENTS = [name for name in NAMES if hasattr(importlib.import_module(f"msm.configs.{name}"), "get_config")]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_config_builds_and_its_loss_has_a_value_per_example(name):
    """By shapes alone: nothing is compiled."""
    config = importlib.import_module(f"msm.configs.{name}").get_config("smoke")
    assert find_problems(config) == []
    experiment = build(config)
    height, width, channels = experiment.image_shape
    coils = config.data.num_coils
    arrays = {
        "y": ((coils, height, width), jnp.complex64) if coils else ((height, width, channels), jnp.float32),
        "mask": ((1, 1, width) if coils else (height, width, 1), jnp.bool_),
        "maps": ((coils, height, width), jnp.complex64) if coils else None,
        "noise_std": ((), jnp.float32),
        "example_id": ((), jnp.int32),
    }
    image = ((height, width), jnp.complex64) if coils else ((height, width, channels), jnp.float32)
    if config.loss.name == "em":  # completions are whole images
        mask = ((1,) * len(image[0]), jnp.bool_)
        arrays |= {"y": image, "mask": mask, "maps": ((height, width), jnp.bool_) if coils else None}
    batch = Measurement(**{k: v and jax.ShapeDtypeStruct((2, *v[0]), v[1]) for k, v in arrays.items()})
    if config.loss.name == "fill_in":
        batch = Completed(batch, jax.ShapeDtypeStruct((2, *image[0]), image[1]))
    loss_fn = em.get_image_loss(experiment) if config.loss.name in ("em", "fill_in") else get_loss_fn(
        config, experiment.schedule, experiment.transform, experiment.masks, experiment.denoise
    )  # fmt: skip
    params = param_shapes(experiment.model, experiment.image_shape)
    loss = jax.eval_shape(loss_fn, params, batch, jax.random.key(0))
    assert loss.shape == (2,) and loss.dtype == jnp.float32
