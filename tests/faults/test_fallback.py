"""The newest checkpoint of a run is damaged, or its folder deleted: every mode goes on with the one before and says so.

Without any usable one, no mode begins: never random weights.
"""

import json
import os
import shutil
from pathlib import Path

import pytest

from msm import run_lib
from tests.helpers import tiny_model
from tests.helpers.checkpoint_runs import largest_file
from tests.helpers.checks import hashes, message_of
from tests.helpers.small_runs import saved_state

HARM = {
    "truncated": lambda folder: os.truncate(largest_file(folder / "state"), 100),
    "deleted": shutil.rmtree,
}
MODES = {
    "eval": (run_lib.evaluate, "eval/summary.json", lambda found: found["run"]),
    "sample": (run_lib.sample, "samples/generated/summary.json", lambda found: found["run"]),
    "tune": (run_lib.tune, "tune/best.json", lambda found: found["msm"]),
}


def tiny_config(store: Path):
    """Four steps with a checkpoint at each second; one small round or trial of every other mode."""
    changes = {
        **{"training.checkpoint_every": 2, "training.resume_every": 100, "training.num_steps": 4},
        **{"eval.solvers": ("zero_filled", "msm"), "eval.max_examples": 1, "eval.batch_size": 1},
        **{"eval.num_samples": 2, "solver.num_levels": 2, "solver.w": 1, "sampling.num_levels": 2},
        **{"sampling.num_images": 1, "sampling.batch_size": 1, "sampling.check_images": 0},
        **{"sampling.reference_split": "none", "tune.trials": 1, "tune.max_examples": 1, "tune.batch_size": 1},
    }
    return tiny_model.get_config(store, changes)


@pytest.fixture(scope="module")
def trained(tiny_store, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("fallback") / "run"
    run_lib.train(tiny_config(tiny_store), str(run))
    return run


@pytest.fixture
def run(trained, tmp_path, tmp_path_factory):
    """A copy of the run, which the test may harm."""
    shutil.copytree(trained, tmp_path / "run")
    yield tmp_path / "run"


@pytest.mark.parametrize(("mode", "harm"), [("eval", "truncated"), ("sample", "deleted"), ("tune", "deleted")])
def test_a_mode_takes_the_newest_usable_checkpoint(tiny_store, run, mode, harm):
    call, result, facts_of = MODES[mode]
    HARM[harm](run / "checkpoints" / "4")
    before = hashes(run / "checkpoints")
    call(tiny_config(tiny_store), str(run))
    facts = facts_of(json.loads((run / result).read_text()))
    told = facts["checkpoint warning"]
    assert facts["training step"] == 2
    assert told.startswith(f"checkpoint {run}/checkpoints/4 is ") and told.endswith(
        f": using {run}/checkpoints/2 instead"
    )
    [line] = [
        line for line in (run / f"{mode}.log").read_text().splitlines() if "checkpoint" in line and "WARN" in line
    ]
    assert line.endswith(f" WARNING {told}")
    assert hashes(run / "checkpoints") == before


def test_a_sound_run_warns_of_nothing(tiny_store, run):
    summary = run_lib.evaluate(tiny_config(tiny_store), str(run))
    assert summary["run"]["training step"] == 4 and "checkpoint warning" not in summary["run"]
    assert "WARNING checkpoint" not in (run / "eval.log").read_text()


def test_training_goes_on_from_the_checkpoint_before_and_ends_the_same(tiny_store, trained, run):
    config = tiny_config(tiny_store)
    HARM["deleted"](run / "checkpoints" / "4")
    run_lib.train(config, str(run))
    told = (run / "train.log").read_text()
    assert f"WARNING checkpoint {run}/checkpoints/4 is gone: resuming from {run}/checkpoints/2 instead" in told
    assert (run / "metrics.jsonl").read_bytes() == (trained / "metrics.jsonl").read_bytes()
    one, other = saved_state(config, run), saved_state(config, trained)
    assert {name: value.tobytes() for name, value in one.items()} == {n: v.tobytes() for n, v in other.items()}


@pytest.mark.parametrize("mode", [run_lib.train, run_lib.evaluate, run_lib.sample, run_lib.tune])
def test_without_a_usable_checkpoint_no_mode_begins(tiny_store, run, mode):
    config = tiny_config(tiny_store)
    for step in (2, 4):
        HARM["truncated"](run / "checkpoints" / str(step))
    message = message_of(mode, config, str(run))
    assert message.startswith("none of the 2 checkpoints in ") and str(run) in message and "from a backup" in message
    shutil.rmtree(run / "checkpoints")
    message = message_of(mode, config, str(run))
    assert f"{run}/checkpoints/4 and all before it are gone" in message and "from a backup" in message
    assert not [path for path in run.rglob("*") if path.name in ("summary.json", "best.json")]
