"""--mode tune: what is hidden, that its prediction finds the optimum, and a study that a stop does not change."""

import csv
import dataclasses
import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.io import imread

from msm import datasets, run_lib
from msm.configs.default import get_config
from msm.evaluation import held_out
from msm.evaluation.calibration import COVERAGE_NAMES
from msm.evaluation.metrics import natural_range, psnr
from msm.experiment import build
from msm.infra import sharding
from msm.models.init import init_params
from msm.modes import opening, study, tuned
from msm.modes import tune as tuning
from msm.operators.acquisition import Acquisition
from msm.operators.measurement import EvalExample, Measurement
from msm.operators.pixel import Downsample
from msm.operators.transform import MultiCoilFourier
from msm.solvers import get_solver
from msm.solvers.registry import Range, Solver
from tests.helpers.checks import hashes, message_of
from tests.helpers.pictures import small_image_config
from tests.helpers.small_runs import Killed, small_config
from tests.helpers.toy_data import acquisition, column_masks, fourier, smooth_coils

TRIALS, ACS = 6, 6


def white_images(size=24, count=12, coils=4, noise_std=0.5):
    """Scans of images whose pixels are independent, of variance 1 per real scalar: the best ridge is noise_std^2."""
    rng = np.random.default_rng(0)
    images = (rng.normal(size=(count, size, size)) + 1j * rng.normal(size=(count, size, size))).astype(np.complex64)
    maps = np.broadcast_to(smooth_coils(size, coils), (count, coils, size, size))
    mask = column_masks(size, count, acs=ACS, keep=0.6)
    noise = rng.normal(size=maps.shape) + 1j * rng.normal(size=maps.shape)
    y = np.where(mask, fourier(maps * images[:, None]) + noise_std * noise, 0).astype(np.complex64)
    return Measurement(y, mask, np.array(maps), np.full(count, noise_std, np.float32), np.arange(count, dtype=np.int32))


def test_the_search_finds_the_best_ridge_without_references(tmp_path):
    """For white images (H^H H + lam)^-1 H^H y is the posterior mean at lam = noise_std^2, hence best for all of H x."""
    config = get_config()
    config.tune.hide = 0.3
    measurement, operator = white_images(), Acquisition(MultiCoilFourier())
    judged = held_out.get_objective(config, operator).judge(measurement)
    mesh = sharding.get_mesh(jax.devices()[:1])
    experiment = SimpleNamespace(config=config, mesh=mesh, operator=operator)
    solver = get_solver(config, experiment, "cg_sense")
    solve = tuning.get_solve_fn(experiment, solver, None, [judged])

    def evaluate(hyper):
        return tuning.score_of(solve(hyper))

    with study.Study(tmp_path / "study.db", "s", solver.search, solver.hyper, 0, True) as trials:
        tuning.run(trials, ["lam"], evaluate, 30)
        best = study.best_of(trials.trials, True)
    assert 0.25 / 2 < best.hyper["lam"] < 0.25 * 2
    assert judged.floor.mean() < best.value < 0.95 * evaluate(solver.hyper)
    assert best.value <= 1.001 * evaluate({"lam": 0.25})


# the study


def gain_solver(traces, limit=np.inf):
    """Scaled zero-filled images; not finite above `limit`. Every tracing of it adds to `traces`."""

    def get(config, experiment, name):
        del config, name

        def solve(key, params, measurement, hyper):
            del key, params
            traces.append(1)
            gain = jnp.where(hyper["gain"] > limit, jnp.nan, hyper["gain"])
            return gain * experiment.operator.adjoint(measurement.y, measurement.mask, measurement.maps)[None]

        return Solver(solve=solve, hyper={"gain": 1.0, "other": 2.0}, search={"gain": Range(0.1, 10.0, log=True)})

    return get


def gain_config(store, **changes):
    config = small_config(store)
    config.tune.solver, config.tune.trials, config.tune.max_examples = "zero_filled", TRIALS, 3
    config.tune.update(changes)
    return config


def rows_of(folder):
    with open(folder / "tune" / "trials.csv") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def straight(tiny_store, tmp_path_factory):
    """(workdir, entry of best.json, number of tracings) of a study that was never interrupted."""
    folder, traces = tmp_path_factory.mktemp("straight_tune"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "get_solver", gain_solver(traces))
        entry = run_lib.tune(gain_config(tiny_store), str(folder), "python main.py --mode=tune")
    return folder, entry, len(traces)


@pytest.fixture
def traces(monkeypatch):
    """Puts the gain solver in the place of all; returns the list that grows with every tracing."""
    found = []
    monkeypatch.setattr(tuning, "get_solver", gain_solver(found))
    return found


def test_everything_is_written_and_all_trials_share_one_compilation(straight):
    folder, entry, tracings = straight
    rows = rows_of(folder)
    assert tracings == 1 and [row["trial"] for row in rows] == [str(n) for n in range(TRIALS)]
    assert float(rows[0]["gain"]) == 1.0 and len({row["gain"] for row in rows}) == TRIALS
    values = [float(row["value"]) for row in rows]
    assert entry["value"] == min(values) and entry["hyper"]["gain"] == float(rows[np.argmin(values)]["gain"])
    assert entry["defaults"] == {"hyper": {"gain": 1.0}, "value": values[0]}
    assert entry["trials"] == TRIALS and entry["failed"] == 0 and entry["examples"] == 3
    assert 0 < entry["noise_floor"] < entry["value"] and "No reference" in entry["definition"]
    stored = json.loads((folder / "tune" / "best.json").read_text())["zero_filled"]
    assert stored == json.loads(json.dumps(entry)) and stored["run"]["packages"]["jax"] == jax.__version__
    for name in ("history", "slices"):
        assert imread(folder / "tune" / f"{name}.png").std() > 0
    config = json.loads((folder / "config.json").read_text())
    assert config["eval"]["num_samples"] == 2  # what tuning itself takes is not written over it


def test_a_study_that_was_killed_goes_on_as_if_it_had_not_been(tiny_store, straight, traces, tmp_path, monkeypatch):
    """The process dies in trial 3: its suggestion is made again, and none of trials 0 to 2 is computed again."""
    evaluated, run = [], study.Study.record

    def die_at_the_fourth(self, hyper, value):
        evaluated.append(value)
        if len(evaluated) == 4:
            raise Killed
        run(self, hyper, value)

    monkeypatch.setattr(study.Study, "record", die_at_the_fourth)
    with pytest.raises(Killed):
        run_lib.tune(gain_config(tiny_store), str(tmp_path))
    assert not (tmp_path / "tune" / "best.json").exists()
    entry = run_lib.tune(gain_config(tiny_store), str(tmp_path))
    assert len(evaluated) == 4 + TRIALS - 3
    assert rows_of(tmp_path) == rows_of(straight[0]) and entry["value"] == straight[1]["value"]
    run_lib.tune(gain_config(tiny_store), str(tmp_path))
    assert len(evaluated) == 4 + TRIALS - 3  # a finished study is left alone


def test_trials_of_other_settings_are_not_mixed(tiny_store, straight, traces, tmp_path):
    shutil.copytree(straight[0], tmp_path / "run")
    entry = run_lib.tune(gain_config(tiny_store, hide=0.5, trials=1), str(tmp_path / "run"))
    assert entry["trials"] == 1 and entry["value"] != straight[1]["defaults"]["value"]


def test_a_trial_that_is_not_finite_is_failed_and_never_best(tiny_store, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "get_solver", gain_solver([], limit=0.99))
    entry = run_lib.tune(gain_config(tiny_store), str(tmp_path))
    rows = rows_of(tmp_path)
    failed = [float(row["gain"]) > 0.99 for row in rows]
    assert failed[0] and 0 < sum(failed) < TRIALS and entry["failed"] == sum(failed)
    assert [row["value"] == "failed" for row in rows] == failed
    assert entry["hyper"]["gain"] <= 0.99 and entry["defaults"]["value"] is None
    assert "trial 0 failed: its value is nan with gain 1" in (tmp_path / "tune.log").read_text()
    monkeypatch.setattr(tuning, "get_solver", gain_solver([], limit=0.0))
    message = message_of(run_lib.tune, gain_config(tiny_store, hide=0.3, trials=1), str(tmp_path))
    assert message.startswith("all 1 trials failed")


def test_no_reference_is_read(nan_reference_store, tiny_store, straight, traces, tmp_path):
    """Neither references that are NaN nor none at all change a number; with 'psnr' both are noticed."""
    bare = tmp_path / "store"
    shutil.copytree(tiny_store, bare, ignore=shutil.ignore_patterns("references"))
    for store, folder in ((nan_reference_store, tmp_path / "nan"), (bare, tmp_path / "none")):
        run_lib.tune(gain_config(store, trials=2), str(folder))
        assert rows_of(folder) == rows_of(straight[0])[:2]
    assert "references" in message_of(run_lib.tune, gain_config(bare, objective="psnr"), str(tmp_path / "psnr"))
    config = gain_config(nan_reference_store, objective="psnr", trials=1)
    assert "not finite (image)" in message_of(run_lib.tune, config, str(tmp_path / "psnr"))


def test_pictures_are_tuned_by_hidden_squares(image_store, traces, tmp_path):
    config = small_image_config(image_store)
    config.tune.solver, config.tune.trials = "zero_filled", 2
    entry = run_lib.tune(config, str(tmp_path))
    assert "8 x 8 squares" in entry["definition"]
    assert entry["value"] == pytest.approx(1, rel=1e-6)  # zero-filling predicts 0 where nothing was acquired


def test_processes_without_the_study_try_what_process_0_tries(tmp_path, monkeypatch):
    told, seen = [], {0: [], 1: []}
    search = {"a": Range(0.0, 1.0), "b": Range(1.0, 2.0)}

    def evaluate_on(process):
        return lambda hyper: seen[process].append({k: float(v) for k, v in hyper.items()}) or sum(hyper.values())

    monkeypatch.setattr(tuning.sharding, "from_first", lambda value: told.append(value) or value)
    with study.Study(tmp_path / "study.db", "s", search, {"a": 0.5, "b": 9.0}, 0, True) as trials:
        trials.record({"a": 0.5, "b": 2.0}, 2.5)
        tuning.run(trials, ["a", "b"], evaluate_on(0), 4)
        assert trials.trials[0].hyper == {"a": 0.5, "b": 2.0} and len(trials.trials) == 4
    monkeypatch.setattr(tuning.sharding, "from_first", lambda value: told.pop(0))
    tuning.run(None, ["a", "b"], evaluate_on(1), 4)
    assert seen[0] == seen[1] and len(seen[0]) == 3 and not told


def test_a_damaged_study_is_one_line(tmp_path):
    (tmp_path / "study.db").write_text("this is no database, and was never one" * 100)
    message = message_of(study.Study, tmp_path / "study.db", "s", {}, {}, 0, True)
    assert "study.db is damaged" in message and "delete it" in message


def untrained(experiment, folder):
    """Stands for `run_lib.load_params`."""
    del folder
    params = sharding.replicate(init_params(experiment.model, 0, experiment.image_shape), experiment.mesh)
    return params, {"checkpoint": "this workdir", "training step": 7}


def test_msm_is_tuned_with_one_compilation(tiny_store, tmp_path, monkeypatch):
    config = small_config(tiny_store)
    config.tune.trials, config.solver.num_levels = 3, 2

    monkeypatch.setattr(opening, "load_params", untrained)
    monkeypatch.setattr(opening.checkpoints, "kept_steps", lambda _: [7])
    solvers, traces = tuning.get_solver, []

    def counted(config, experiment, name):
        solver = solvers(config, experiment, name)
        return dataclasses.replace(solver, solve=lambda *args: traces.append(1) or solver.solve(*args))

    monkeypatch.setattr(tuning, "get_solver", counted)
    entry = run_lib.tune(config, str(tmp_path))
    assert (
        len(traces) == 1 and set(entry["hyper"]) == {"gamma", "damping", "eta", "temperature"} and entry["failed"] == 0
    )
    assert entry["training step"] == 7 and entry["samples per example"] == 2
    assert len({row["value"] for row in rows_of(tmp_path)}) == 3


def test_temperature_is_found_without_solving_twice(tiny_store, tmp_path, monkeypatch):
    config = small_config(tiny_store)
    config.tune.update(objective="crps", trials=4, num_samples=3)
    config.solver.num_levels = 2

    monkeypatch.setattr(opening, "load_params", untrained)
    monkeypatch.setattr(opening.checkpoints, "kept_steps", lambda _: [7])
    local_rows, solved = sharding.local_rows, []
    monkeypatch.setattr(sharding, "local_rows", lambda *a, **k: solved.append(1) or local_rows(*a, **k))
    entry = run_lib.tune(config, str(tmp_path))
    assert len(solved) == len(list(datasets.measurement_batches(config, "validation", 8, 16)))
    assert list(entry["search"]) == ["temperature"] and entry["failed"] == 0
    assert {row["temperature"] for row in rows_of(tmp_path)} > {"1.0"}
    covered = entry["coverage of hidden entries"]
    assert set(covered) == {"defaults", "tuned"} and set(covered["tuned"]) == set(COVERAGE_NAMES)
    promised = entry["conformal levels of the defaults"]
    assert set(promised) == {*COVERAGE_NAMES, "guarantee"} and promised["coverage_95"] is None  # too few scans
    assert 0 < promised["coverage_50"] <= 1
    assert (tmp_path / "tune" / "reliability.png").read_bytes().startswith(b"\x89PNG")
    config.eval.tuned = str(tmp_path / "tune" / "best.json")  # tuning goes on from what was tuned
    config.tune.update(objective="held_out", trials=1)
    assert run_lib.tune(config, str(tmp_path))["hyper"]["temperature"] == entry["hyper"]["temperature"]


# objectives and what is refused


def test_references_are_compared_where_that_is_asked_for():
    config = get_config()
    config.tune.objective = "psnr"
    measurement, images = acquisition(count=3)
    measurement = dataclasses.replace(measurement, example_id=np.array([4, 5, -1], np.int32))
    objective = held_out.get_objective(config, Acquisition(MultiCoilFourier()))
    judged = objective.judge(EvalExample(measurement, images))
    assert not objective.minimise and objective.needs_references and judged.counts.tolist() == [True, True, False]
    expected = [psnr(image, 0.9 * image, natural_range(image)) for image in images]
    np.testing.assert_allclose(judged.score(np.stack([0.8 * images, images])), expected)
    assert judged.measurement is measurement  # nothing is hidden
    trials = [study.Trial(0, {}, None), study.Trial(1, {}, 20.0), study.Trial(2, {}, 30.0), study.Trial(3, {}, 30.0)]
    assert (study.best_of(trials, False).number, study.best_of(trials, True).number) == (2, 1)
    assert study.best_of(trials[:1], True) is None


def test_tasks_that_measure_no_entries_are_told_to_use_references():
    config = get_config()
    config.task.name = "sr"
    message = message_of(held_out.get_objective, config, Downsample(4))
    assert "task.name 'sr' measures no entries that could be hidden; set tune.objective to psnr" in message


def test_a_solver_without_a_search_is_refused_before_anything_is_written(tiny_store, tmp_path):
    message = message_of(run_lib.tune, gain_config(tiny_store), str(tmp_path / "run"))
    assert "tune.solver is 'zero_filled': it declares no hyper-parameter to search" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["msm", "cg_sense", "tikhonov", "l1_wavelet", "tv"])
def test_searches_hold_the_defaults(name):
    config = get_config()
    solver = get_solver(config, build(config), name)
    assert solver.search.keys() <= solver.hyper.keys()
    for key, found in solver.search.items():
        assert found.low < found.high and (found.low > 0 or not found.log)
        assert found.nearest(solver.hyper[key]) == solver.hyper[key]
        assert (found.nearest(-1e9), found.nearest(1e9)) == (found.low, found.high)


def test_damping_is_searched_only_where_it_has_an_effect():
    config = get_config()
    config.solver.consistency = "entries"
    assert set(get_solver(config, build(config), "msm").search) == {"gamma", "eta"}


# what evaluation makes of it


@pytest.fixture
def solvers():
    nothing = lambda *_: None  # noqa: E731
    return {
        "cg_sense": Solver(nothing, {"lam": 0.001}),
        "msm": Solver(nothing, {"gamma": 1.0, "eta": 1.0}, num_samples=3),
    }


def test_tuned_hyper_parameters_replace_those_of_their_solver_alone(solvers, tmp_path):
    path = tmp_path / "best.json"
    tuned.add(path, "msm", {"hyper": {"eta": 0.5}, "value": 1.0})
    tuned.add(path, "l1_wavelet", {"hyper": {"lam": 0.5}})
    tuned.add(path, "msm", {"hyper": {"eta": 0.25}, "value": 0.9})
    changed = tuned.apply(str(path), solvers)
    assert changed["msm"].hyper == {"gamma": 1.0, "eta": 0.25} and changed["msm"].num_samples == 3
    assert changed["cg_sense"] is solvers["cg_sense"]
    assert set(json.loads(path.read_text())) == {"msm", "l1_wavelet"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "cannot be read"),
        ("{", "is damaged"),
        ("[1]", "is no best.json"),
        ('{"hyper": {"eta": 1}, "value": 2}', "is no best.json"),
        ('{"mms": {"hyper": {}}}', "unknown solver 'mms'; did you mean 'msm'?"),
        ('{"tv": {"hyper": {"lam": 1}}}', "is of tv, eval.solvers are cg_sense, msm"),
        ('{"msm": {"hyper": {"etta": 1}}}', "has no hyper-parameter 'etta'; did you mean 'eta'? (known: gamma, eta)"),
        ('{"msm": {"hyper": {"eta": NaN}}}', "must be finite numbers"),
        (f'{{"msm": {{"hyper": {{"eta": {10**400}}}}}}}', "must be finite numbers"),
        ('{"msm": {"hyper": {"eta": 1e300}}}', "must be finite numbers"),
        ('{"msm": {"hyper": {"eta": true}}}', "must be finite numbers"),
        ('{"msm": {"hyper": {"eta": "1"}}}', "must be finite numbers"),
        ("9" * 10_000, "is damaged"),
        ("[" * 100_000, "is damaged"),
        ('{"msm":' * 100_000, "is damaged"),
        ("\ud800", "is damaged"),
    ],
)
def test_a_wrong_file_is_one_line(solvers, tmp_path, text, told):
    path = tmp_path / "best.json"
    if text is not None:
        path.write_bytes(text.encode(errors="surrogatepass"))
    message = message_of(tuned.apply, str(path), solvers)
    assert str(path) in message and told in message


def test_evaluation_uses_what_was_tuned_and_computes_its_rounds_again(tiny_store, tmp_path, monkeypatch):
    config = small_config(tiny_store)
    config.eval.solvers, config.eval.max_examples = ("cg_sense",), 4
    monkeypatch.setattr(opening, "load_params", lambda experiment, folder: (None, {}))
    before = run_lib.evaluate(config, str(tmp_path))
    tuned.add(tmp_path / "tune" / "best.json", "cg_sense", {"hyper": {"lam": 0.3}})
    config.eval.tuned = str(tmp_path / "tune" / "best.json")
    after = run_lib.evaluate(config, str(tmp_path))
    assert [s["run"]["hyper-parameters"]["cg_sense"]["lam"] for s in (before, after)] == [0.001, 0.3]
    assert after["run"]["tuned by"] == config.eval.tuned
    assert before["solvers"]["cg_sense"]["psnr"]["mean"] != after["solvers"]["cg_sense"]["psnr"]["mean"]
    rounds = hashes(tmp_path / "eval" / "rounds")
    shutil.copy(config.eval.tuned, tmp_path / "copy.json")
    config.eval.tuned = str(tmp_path / "copy.json")  # the numbers count, not where they lie
    run_lib.evaluate(config, str(tmp_path))
    assert hashes(tmp_path / "eval" / "rounds") == rounds
