"""A solver with settings is one file: what it declares is in the config, in --help, checked, evaluated and tuned."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.helpers.imports import program_files
from tests.helpers.paths import ROOT

FILE = '''
"""x = gain H^H y, a solver that somebody added."""

from msm.infra.values import Section, Setting, number
from msm.solvers.registry import SECTIONS, SOLVERS, Range, Solver

SECTIONS.register("scaled")(Section("Of the solver scaled", {"gain": Setting(2.0, number(0, 9), "of the image")}))


@SOLVERS.register("scaled")
def get_scaled_solver(config, experiment) -> Solver:
    def solve(key, params, measurement, hyper):
        operator = experiment.operator
        return hyper["gain"] * operator.adjoint(measurement.y, measurement.mask, measurement.maps)[None]

    return Solver(solve=solve, hyper={"gain": config.scaled.gain}, search={"gain": Range(0.5, 4.0)})
'''


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the program with one more file; what it needs of the store's settings is in `flags`."""
    root = tmp_path_factory.mktemp("site") / "msm"
    for path in program_files():
        place = root / path.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    shutil.copytree(ROOT / "reports" / "templates", root / "reports" / "templates")
    (root / "solvers" / "scaled.py").write_text(FILE)
    return root


def run(tree, *flags):
    environment = {**os.environ, "PYTHONPATH": str(tree.parent), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "msm.main", f"--config={tree}/configs/brain64_msm.py:smoke", "--cache=", *flags]
    return subprocess.run(command, cwd=tree.parent, env=environment, capture_output=True, text=True, timeout=300)


def test_it_is_evaluated_tuned_checked_and_told(tree, tiny_store, tmp_path):
    flags = (
        f"--workdir={tmp_path}", f"--config.data.dir={tiny_store}", "--config.data.image_size=32",
        "--config.masks.acs_lines=4", "--config.eval.solvers=('scaled',)", "--config.tune.solver=scaled",
        "--config.tune.trials=2", "--config.training.picture_solver=scaled",
    )  # fmt: skip
    done = run(tree, *flags, "--mode=eval", "--config.scaled.gain=1.5")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "eval/summary.json").read_text())["run"]["hyper-parameters"] == {
        "scaled": {"gain": 1.5}
    }
    done = run(tree, *flags, "--mode=tune")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "tune/best.json").read_text())["scaled"]["defaults"]["hyper"] == {"gain": 2.0}
    done = run(tree, *flags, "--mode=eval", "--config.scaled.gain=10.0")
    assert (
        done.returncode == 2 and "scaled.gain is 10.0: it must be a number of at least 0 and at most 9" in done.stderr
    )
    done = run(tree, "--help_settings=scaled")
    assert "scaled.gain" in done.stdout and "of the image" in done.stdout
