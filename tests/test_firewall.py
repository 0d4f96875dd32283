"""Training never sees a clean image: it gives the same bits without any, and its code has no way to one."""

import ast
import dataclasses
import shutil

import numpy as np
import pytest

from msm import datasets, run_lib
from msm.operators.measurement import Measurement
from tests.helpers.checks import hashes, message_of
from tests.helpers.paths import ROOT
from tests.helpers.pictures import small_image_config
from tests.helpers.small_runs import assert_same_run, small_config

TRAINING_CODE = [
    *(ROOT / name for name in ("losses.py", "models/unrolled.py", "sampling.py", "sde_lib.py")),
    *(path for folder in ("models", "operators", "solvers") for path in sorted((ROOT / folder).glob("*.py"))),
]


def test_references_that_are_nan_change_no_bit_of_training(tiny_store, nan_reference_store, trained_run, tmp_path):
    config = small_config(nan_reference_store)
    assert "not finite" in message_of(datasets.open_references(config, "test").batch, [0])
    assert np.isfinite(datasets.open_references(small_config(tiny_store), "test")[0]).all()
    run_lib.train(config, str(tmp_path))
    assert_same_run(config, trained_run, tmp_path)
    pictures = [(folder / "samples" / "step_0000004.png").read_bytes() for folder in (trained_run, tmp_path)]
    assert pictures[0] == pictures[1]


def test_references_of_pictures_that_are_nan_change_no_bit_of_training(
    image_store, nan_image_store, trained_on_pictures, tmp_path
):
    assert hashes(nan_image_store / "acquisitions") == hashes(image_store / "acquisitions")
    config = small_image_config(nan_image_store)
    assert "not finite" in message_of(datasets.open_references(config, "test").batch, [0])
    assert np.isfinite(datasets.open_references(small_image_config(image_store), "test")[0]).all()
    run_lib.train(config, str(tmp_path))
    assert_same_run(config, trained_on_pictures, tmp_path)
    pictures = [(folder / "samples" / "step_0000002.png").read_bytes() for folder in (trained_on_pictures, tmp_path)]
    assert pictures[0] == pictures[1]


def test_training_needs_no_references_and_evaluation_says_that_it_does(tiny_store, trained_run, tmp_path):
    store, folder = tmp_path / "store", tmp_path / "run"
    shutil.copytree(tiny_store, store, ignore=shutil.ignore_patterns("references"))
    config = small_config(store)
    run_lib.train(config, str(folder))
    assert_same_run(config, trained_run, folder)
    message = message_of(run_lib.evaluate, config, str(folder))
    assert f"{store / 'references'}" in message and "is missing; make the store again" in message
    assert not (folder / "eval").exists()


def test_a_measurement_has_no_clean_image():
    fields = {field.name for field in dataclasses.fields(Measurement)}
    assert fields == {"y", "mask", "maps", "noise_std", "example_id"}


@pytest.mark.parametrize("path", TRAINING_CODE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_code_that_training_runs_has_no_way_to_a_reference(path):
    """No `.reference`, no `["reference"]`, none of the functions that open references, no module that uses them."""
    forbidden = {"reference", "EvalExample", "References", "open_references", "eval_batches", "datasets", "evaluation"}
    tree = ast.parse(path.read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            used |= {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
    if path.name == "measurement.py":  # where the type is defined, whose field is an annotation
        forbidden = forbidden - {"reference"}
        assert "reference" not in {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not forbidden & used
