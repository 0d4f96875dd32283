"""modes/tune.py: which trials belong together, how a search goes on, failed trials and what mattered in the end."""

import json

import jax
import numpy as np
import pytest

from msm import run_lib
from msm.modes import study, tuned
from msm.modes import tune as tuning
from msm.solvers.registry import Range, Solver
from tests.modes.test_tune import TRIALS, gain_config, gain_solver, rows_of


@pytest.fixture
def traces(monkeypatch):
    """Puts the gain solver in the place of all; returns the list that grows with every tracing."""
    found = []
    monkeypatch.setattr(tuning, "get_solver", gain_solver(found))
    return found


@pytest.mark.parametrize(("section", "setting", "value"), [("msm_fast", "start_sigma", 5.0), ("ssdu", "sigma", 0.1)])
def test_trials_of_other_solver_settings_are_not_mixed(tiny_store, section, setting, value):
    solver = Solver(solve=lambda *_: None, hyper={"gain": 1.0}, search={"gain": Range(0.1, 10.0)})
    config = gain_config(tiny_store)
    before = tuning.name_of(config, solver, None, {})
    assert tuning.name_of(config, solver, None, {}) == before
    config[section][setting] = value
    assert tuning.name_of(config, solver, None, {}) != before


def test_a_search_that_begins_from_its_own_result_goes_on(tiny_store, traces, tmp_path):
    """Trial 0 and the study are those of the config's value, not of the one that the search itself wrote."""
    run_lib.tune(gain_config(tiny_store, trials=2), str(tmp_path))
    config = gain_config(tiny_store, trials=3)
    config.eval.tuned = str(tmp_path / "tune" / "best.json")
    entry = run_lib.tune(config, str(tmp_path))
    assert entry["defaults"]["hyper"] == {"gain": 1.0} and entry["trials"] == 3
    assert len(traces) == 2 and run_lib.tune(config, str(tmp_path))["value"] == entry["value"]
    best = json.loads((tmp_path / "tune" / "best.json").read_text())["zero_filled"]
    best["hyper"]["other"] = 5.0  # what is not searched comes from the file
    tuned.add(tmp_path / "other.json", "zero_filled", best)
    config.eval.tuned = str(tmp_path / "other.json")
    entry = run_lib.tune(config, str(tmp_path))
    assert entry["hyper"]["other"] == 5.0 and entry["trials"] == 3


def test_a_trial_that_raises_is_failed_but_not_the_first(tiny_store, traces, tmp_path, monkeypatch):
    score, count = tuning.score_of, []

    def raise_at(*numbers):
        def raising(solved):
            count.append(1)
            if len(count) - 1 in numbers:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")
            return score(solved)

        monkeypatch.setattr(tuning, "score_of", raising)

    raise_at(2)
    entry = run_lib.tune(gain_config(tiny_store), str(tmp_path))
    values = [row["value"] for row in rows_of(tmp_path)]
    assert entry["failed"] == 1 and [value == "failed" for value in values] == [n == 2 for n in range(TRIALS)]
    count.clear()
    raise_at(0)  # nothing worked: no fault of what is tried
    with pytest.raises(jax.errors.JaxRuntimeError):
        run_lib.tune(gain_config(tiny_store, hide=0.3), str(tmp_path))


def test_importance_is_that_of_what_the_value_depends_on(tmp_path):
    search = {"deciding": Range(0.0, 1.0), "idle": Range(0.0, 1.0)}
    with study.Study(tmp_path / "study.db", "s", search, {"deciding": 0.5, "idle": 0.5}, 0, True) as trials:
        rng = np.random.default_rng(0)
        for number in range(40):
            assert bool(trials.importance) == (number >= study.RANDOM_TRIALS)
            deciding, idle = rng.uniform(size=2)
            trials.record({"deciding": deciding, "idle": idle}, (deciding - 0.3) ** 2 + 1e-3 * idle)
        importance = trials.importance
    assert list(importance) == ["deciding", "idle"] and sum(importance.values()) == pytest.approx(1)
    assert importance["deciding"] > 0.8
    with study.Study(tmp_path / "study.db", "one", {"deciding": Range(0.0, 1.0)}, {"deciding": 0.5}, 0, True) as one:
        for number in range(12):
            one.record({"deciding": number / 12}, number)
        assert one.importance == {}
