"""Follows the recipes of docs/extend to the letter: its code blocks are run, and what they register must work."""

import json
import re
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds

from msm.builders.demo import heads as brain
from msm.builders.demo import simulate
from msm.configs.default import get_config
from msm.configs.rules.check import find_problems
from msm.datasets import get_train_iterator, load_measurements
from msm.models.init import init_params
from msm.models.registry import MODELS, get_model
from msm.operators import transform as transforms
from msm.operators.acquisition import Acquisition
from msm.operators.transform import TRANSFORMS
from msm.solvers.registry import SOLVERS
from tests.helpers import raw_files
from tests.helpers.paths import ROOT
from tests.helpers.toy_data import acquisition


def recipe(name: str) -> str:
    """Returns the code block of docs/extend for the file `name`."""
    texts = [path.read_text() for path in sorted((ROOT / "docs/extend").glob("*.md"))]
    blocks = [block for text in texts for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
    return next(block for block in blocks if block.startswith(f"# {name}\n"))


@pytest.fixture
def fresh_registries(monkeypatch):
    """Lets a test register things that other tests do not see."""
    assert find_problems(get_config()) == []  # imports everything that registers itself, once and for all tests
    for registry in (SOLVERS, MODELS, TRANSFORMS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))


@pytest.mark.usefixtures("fresh_registries")
def test_solver_recipe():
    exec(recipe("solvers/my_solver.py"), {})
    config = get_config()
    config.eval.solvers = ("zero_filled", "my_solver")
    assert find_problems(config) == []
    transform = transforms.get_transform(config)
    solver = SOLVERS["my_solver"](config, types.SimpleNamespace(operator=Acquisition(transform)))
    measurement, _ = acquisition()
    samples = jax.jit(solver.solve)(None, None, measurement, {**solver.hyper, "gain": 2.0})
    expected = 2 * transform.adjoint(measurement.y, measurement.maps)
    np.testing.assert_allclose(samples, expected[None], rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("fresh_registries")
def test_operator_recipe():
    exec(recipe("operators/transform.py"), vars(transforms) | {"__name__": "recipe"})
    config = get_config()
    with config.unlocked():
        config.transform.name = "blur"
        config.data.num_coils, config.data.augment = 0, ("mirror",)
        config.masks.name, config.masks.grid, config.masks.drop = "random_boxes", 4, 6
    assert find_problems(config) == []
    blur = transforms.get_transform(config)
    x, z = jax.random.normal(jax.random.key(0), (2, 1, 8, 8, 3))
    left, right = jnp.vdot(z, blur.forward(x, None)), jnp.vdot(blur.adjoint(z, None), x)
    np.testing.assert_allclose(left, right, rtol=1e-5)
    assert not np.allclose(blur.forward(x, None), x)


@pytest.mark.usefixtures("fresh_registries")
def test_model_recipe():
    exec(recipe("models/my_model.py"), {"__name__": "recipe"})
    config = get_config()
    config.model.name = "my_model"
    assert find_problems(config) == []
    model = get_model(config, in_channels=2)
    params = init_params(model, seed=0, image_shape=(16, 16, 2))
    x = jax.random.normal(jax.random.key(0), (3, 16, 16, 2))
    out = jax.jit(model.apply)({"params": params}, x, jnp.array([1.0, 500.0, 999.0]))
    assert out.shape == x.shape
    assert np.all(np.isfinite(out)) and np.std(out) > 0


class ToyAcquisitions(brain.BrainAcquisitions, skip_registration=True):
    """Acquisitions of noise, with the features that the recipe asks for."""

    name = "toy_acquisitions"

    def _generate_examples(self, split):
        for example_id in {"train": range(5), "validation": [5], "test": [6]}[split]:
            rng = np.random.default_rng(example_id)
            mask = np.arange(16) % 2 == example_id % 2
            y = rng.standard_normal((2, 16, mask.sum())).astype(np.complex64)
            maps = np.full((2, 16, 16), 0.5**0.5, np.complex64)
            yield example_id, {
                "example_id": example_id, "volume": "toy", "slice": 0, "scale": 1.0,
                "y": y, "mask": mask, "maps": maps, "noise_std": 0.0,
            }  # fmt: skip


def write_toy_store(store: Path) -> None:
    """Writes a store of `ToyAcquisitions` without references, as docs/reference/store.md describes one."""
    settings = simulate.Settings(image_size=16, num_coils=2, acs_lines=0, acceleration=2.0)
    variant = brain.BrainConfig(name="undersampled", description="Toy.", settings=settings)
    builder = ToyAcquisitions(data_dir=str(store / "acquisitions"), config=variant, file_format="array_record")
    builder.download_and_prepare(
        file_format="array_record", download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    folder = Path(builder.data_dir)
    sources = {split: builder.as_data_source(split) for split in ("train", "validation", "test")}
    part = {
        "path": str(folder.relative_to(store)),
        "files": {str(f.relative_to(store)): f.stat().st_size for f in folder.iterdir()},
        "ids": {split: [int(record["example_id"]) for record in source] for split, source in sources.items()},
    }
    manifest = {
        "settings": {
            "image_size": 16, "num_coils": 2, "mask": "cartesian_random", "acceleration": 2.0, "acs_lines": 0,
            "noise_std": 0.0,
        },
        "sigma_data": 1.0,
        "counts": {split: len(ids) for split, ids in part["ids"].items()},
        "acquisitions": {"undersampled": part},
        "references": {"path": "references", "files": {}, "ids": {}},
    }  # fmt: skip
    (store / "manifest.json").write_text(json.dumps(manifest))


def test_dataset_recipe(tmp_path):
    write_toy_store(tmp_path)
    config = get_config()
    config.data.dir, config.data.image_size, config.data.num_coils = str(tmp_path), 16, 2
    config.masks.acceleration, config.masks.acs_lines = 2.0, 0
    config.training.batch_size = 4
    batch = next(get_train_iterator(config, process_index=0, process_count=1))
    assert batch.y.shape == (4, 2, 16, 16) and batch.mask.shape == (4, 1, 1, 16)
    assert not np.any(np.where(batch.mask, 0, batch.y))
    test = load_measurements(config, "test")
    expected = np.random.default_rng(6).standard_normal((2, 16, 8)).astype(np.complex64)
    np.testing.assert_array_equal(test.y[0][..., test.mask[0, 0, 0]], expected)


@pytest.mark.slow
def test_the_readmes_python_runs_as_it_stands(tmp_path, monkeypatch):
    """Of a file of the user's beside the shipped checkpoint; images are in the units of the k-space."""
    head = raw_files.raw_head(64, 1, coils=4)
    np.save(tmp_path / "kspace.npy", head.kspace[0])
    raw_files.write_fastmri(tmp_path / "scan.h5", head)
    (tmp_path / "pretrained").symlink_to(ROOT / "pretrained")
    monkeypatch.chdir(tmp_path)
    [block] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len([line for line in block.splitlines() if line.strip()]) <= 10
    made: dict = {}
    exec(block, made)
    truth = np.abs(head.images[0])
    error = np.abs(made["result"].mean) - truth
    assert np.sqrt(np.mean(error**2)) < 0.08 * truth.max()
    assert made["volume"].shape == (1, 64, 64) and made["drawn"].shape == (2, 64, 64)
