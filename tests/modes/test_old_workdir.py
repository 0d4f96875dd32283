"""A workdir that was trained before files and names moved goes on where it was, and reconstructs."""

import json
import tarfile

import pytest

from msm import run_lib
from tests.helpers.paths import ROOT
from tests.helpers.small_runs import small_config


@pytest.fixture
def old_run(tiny_store, tmp_path):
    """The folder of two steps on a store like `tiny_store`, and the settings that it was made with."""
    with tarfile.open(ROOT / "tests/data/old_workdir.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    config = small_config(tiny_store)
    config.model.num_channels, config.model.num_heads = 4, 1
    return tmp_path / "workdir", config


def test_it_resumes(old_run):
    folder, config = old_run
    config.training.num_steps = 3
    run_lib.train(config, str(folder))
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps[0] <= 2 and steps[-1] == 3
    assert "resuming: 3 steps from step 2" in (folder / "train.log").read_text()
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"2", "3"}


def test_it_reconstructs(old_run):
    folder, config = old_run
    config.eval.max_examples, config.eval.batch_size, config.eval.solvers = 2, 2, ("msm_fast",)
    assert run_lib.evaluate(config, str(folder))["run"]["training step"] == 2
