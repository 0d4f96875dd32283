"""Training in rounds: what a round learns from, exact resume wherever it is killed, the best round for evaluation."""

import ast
import json
import shutil
import warnings
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from msm import datasets, run_lib
from msm.configs import brain64_em
from msm.configs.rules.check import find_problems
from msm.experiment import build
from msm.infra import checkpoints, rounds
from msm.modes import completion, em
from tests.helpers import tiny_model
from tests.helpers.pictures import small_image_config
from tests.helpers.small_runs import Killed


def em_config(store):
    """The tiny network in two rounds of two steps."""
    config, own = tiny_model.get_config(store, {"denoiser.sandwich": "wiener"}), brain64_em.get_config("smoke")
    for section in ("loss", "schedule", "optim", "em"):
        config[section].update(own[section])
    return config


@pytest.fixture
def config(tiny_store):
    return em_config(tiny_store)


@pytest.fixture(scope="module")
def trained(tiny_store, tmp_path_factory):
    """The workdir of a run that was never interrupted."""
    folder = tmp_path_factory.mktemp("em")
    run_lib.train(em_config(tiny_store), str(folder))
    return folder


def state_of(folder, step=4):
    """Every array of a kept checkpoint by its path."""
    with warnings.catch_warnings(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        warnings.simplefilter("ignore")  # that no sharding is asked for
        tree = reader.restore(folder / "checkpoints" / str(step) / "state")
    return {jax.tree_util.keystr(path): np.asarray(a) for path, a in jax.tree_util.tree_flatten_with_path(tree)[0]}


def assert_same(one, other):
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    assert (one / "em/rounds.json").read_bytes() == (other / "em/rounds.json").read_bytes()
    first, second = state_of(one), state_of(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def test_rounds_are_recorded_and_move_the_parameters(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["round"]) for line in lines] == [(1, 0), (2, 0), (3, 1), (4, 1)]
    assert ["held_out" in line for line in lines] == [False, True, False, True]
    report = json.loads((trained / "em/rounds.json").read_text())
    errors = [entry["held_out"] for entry in report["rounds"]]
    assert errors == [lines[1]["held_out"], lines[3]["held_out"]] and report["best"] == int(np.argmin(errors))
    assert all(0 < error < 2 for error in errors)
    states = state_of(trained, 2), state_of(trained, 4)
    assert any(
        np.any(states[0][name] != states[1][name]) for name in states[0] if name.startswith("['train']['params']")
    )


@pytest.mark.parametrize("batch", [1, 4])
def test_a_run_killed_in_a_round_resumes_bit_for_bit(config, trained, tmp_path, monkeypatch, batch):
    """It dies at the first and at the last step, of which none and three are saved."""
    make, made = completion.Pool.batch, []

    def die(self, places):
        made.append(places)
        if len(made) == batch:
            raise Killed
        return make(self, places)

    monkeypatch.setattr(completion.Pool, "batch", die)
    with pytest.raises(Killed):
        run_lib.train(config, str(tmp_path))
    monkeypatch.setattr(completion.Pool, "batch", make)
    if batch == 4:  # completions that are lost are made again, from parameters that the checkpoint holds
        shutil.rmtree(tmp_path / "em/round_01")
    run_lib.train(config, str(tmp_path))
    assert_same(tmp_path, trained)


def test_a_run_killed_while_it_completes_keeps_the_batches_that_are_done(config, trained, tmp_path, monkeypatch):
    write, written = rounds.write, []

    def die_at_the_second(path, stamp, arrays):
        written.append(path.name)
        if len(written) == 2:
            raise Killed
        write(path, stamp, arrays)

    monkeypatch.setattr(rounds, "write", die_at_the_second)
    with pytest.raises(Killed):
        run_lib.train(config, str(tmp_path))
    monkeypatch.setattr(rounds, "write", lambda path, *a: (written.append(path.name), write(path, *a)))
    run_lib.train(config, str(tmp_path))
    assert written[0] not in written[1 : written.index(written[0], 1) if written.count(written[0]) > 2 else 3]
    assert_same(tmp_path, trained)


def test_evaluation_is_given_the_best_round(config, tmp_path, monkeypatch):
    errors = iter([0.1, 0.3])
    monkeypatch.setattr(em.Judge, "error", lambda self, params: next(errors))
    run_lib.train(config, str(tmp_path))
    assert json.loads((tmp_path / "em/rounds.json").read_text())["best"] == 0
    experiment = build(config)
    best, step = checkpoints.load_ema_params(tmp_path, experiment.template_params())
    assert step == 4
    first = state_of(tmp_path, 2)
    for path, value in jax.tree_util.tree_flatten_with_path(best)[0]:
        name = jax.tree_util.keystr(path)
        np.testing.assert_array_equal(np.asarray(value), first[f"['train']['ema_params']{name}"])


def test_the_first_round_may_start_from_another_checkpoint(config, trained, tmp_path):
    config.em.checkpoint, config.em.start = str(trained), "prior"
    config.training.num_steps = 2
    run_lib.train(config, str(tmp_path))
    start = {n: v for n, v in state_of(tmp_path, 2).items() if n.startswith("['start']")}
    before = state_of(trained, 4)
    assert start
    for name, value in start.items():
        np.testing.assert_array_equal(value, before[name.replace("['start']", "['ema_params']")])
    assert not np.array_equal(state_of(tmp_path, 2)["['ema_params']" + name.removeprefix("['start']")], value)


def test_references_that_are_nan_change_no_bit(nan_reference_store, trained, tmp_path):
    """Neither completing nor learning nor judging looks at them."""
    run_lib.train(em_config(nan_reference_store), str(tmp_path))
    assert_same(tmp_path, trained)


@pytest.mark.parametrize("module", [em, completion], ids=lambda module: module.__name__)
def test_rounds_have_no_way_to_a_reference(module):
    tree = ast.parse(Path(module.__file__).read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not {"reference", "References", "open_references", "eval_batches", "EvalExample"} & used
    assert "dataset_info" in used or "open_acquisitions" in used  # the way that there is


@pytest.mark.parametrize("kind", ["scans", "pictures"])
def test_fill_in_goes_on_with_fresh_completions_and_resumes_bit_for_bit(
    kind, config, image_store, tmp_path, monkeypatch
):
    """Completions are made from a part of what was acquired and hold that part; the optimiser is not started anew."""
    if kind == "pictures":
        config = small_image_config(image_store)
        config.model.name, config.training.num_steps, config.training.batch_size = "tiny", 4, 2
        config.em.update(steps=2, batch_size=2, num_levels=2, augment=("mirror",))
    config.loss.name = "fill_in"
    config.em.update(restart=False, hide=0.3, solver="msm_fast", num_samples=1)
    assert find_problems(config, "train") == []
    pools, make = [], completion.Pool.batch

    def watched(self, places):
        pools.append(self)
        if len(pools) == 4:
            raise Killed
        return make(self, places)

    monkeypatch.setattr(completion.Pool, "batch", watched)
    with pytest.raises(Killed):
        run_lib.train(config, str(tmp_path / "killed"))
    assert np.any(pools[0].images != pools[3].images)
    for folder in ("killed", "straight"):
        run_lib.train(config, str(tmp_path / folder))
    assert_same(tmp_path / "killed", tmp_path / "straight")
    assert int(state_of(tmp_path / "straight")["['train']['step']"]) == 4
    experiment, batch = build(config), make(pools[0], np.arange(2))
    m = pools[0].acquisitions.batch(np.arange(2))
    seen = completion._show(config, 0, m).mask
    assert np.all(m.mask | ~seen) and 0 < seen.sum() < m.mask.sum()
    z = np.asarray(experiment.transform.forward(batch.image, m.maps))
    shown = np.broadcast_to(seen, z.shape)
    close = np.abs(z - m.y) < 1e-4
    assert (
        np.all(close[shown])
        if kind == "pictures"
        else np.mean(np.abs(z - m.y)[shown]) < 0.5 * np.mean(np.abs(m.y)[shown])
    )


def test_pictures_are_completed_too(image_store, tmp_path):
    tiny_model.register()
    config = small_image_config(image_store)
    config.loss.name, config.model.name = "em", "tiny"
    config.em.update(steps=config.training.num_steps, batch_size=2, num_levels=2, augment=("mirror",))
    assert find_problems(config, "train") == []
    run_lib.train(config, str(tmp_path))
    assert np.isfinite(json.loads((tmp_path / "em/rounds.json").read_text())["rounds"][0]["held_out"])


def test_a_place_of_the_pool_is_one_completion_of_one_acquisition():
    images = np.arange(6, dtype=np.complex64).reshape(2, 3, 1, 1)
    pool = completion.Pool(images, np.arange(3).reshape(3, 1, 1) > 0)
    batch = pool.batch(np.array([0, 2, 3, 5]))
    assert batch.y.ravel().real.tolist() == [0, 2, 3, 5] and batch.example_id.tolist() == [0, 2, 3, 5]
    assert batch.maps.ravel().tolist() == [False, True, False, True] and batch.mask.all()
    once = completion.Pool(images[:1], None).batch(np.array([1, 4]))
    assert once.y.ravel().real.tolist() == [1, 1] and once.maps is None


def test_settings_that_do_not_fit_are_told(config):
    for changes, told in [
        ({"training.num_steps": 3}, "a whole number of rounds of em.steps (2), e.g. 4"),
        ({"em.start": "prior"}, "it needs em.checkpoint"),
        ({"em.augment": ("mirror",)}, "can only be changed by flip, shift, phase, warp, contrast"),
        ({"em.solver": "msn"}, "did you mean 'msm'"),
    ]:
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(changes)
        assert any(told in problem for problem in find_problems(changed, "train")), told


def test_completing_opens_no_reference(config):
    config.task.name = "cs_mri"  # evaluation's, which simulates from references
    changed = completion.on_acquisitions(config)
    assert changed.task.name == "acquired" and config.task.name == "cs_mri"
    assert next(datasets.measurement_batches(changed, "train", 4)).y.shape[0] == 4
