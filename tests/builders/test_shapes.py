"""A store of scans of several rows and columns: each keeps its own, batches are of one shape, R is the scan's."""

import json

import numpy as np
import pytest

from msm import datasets
from msm.builders.store import prepare_store
from msm.tools.store_flags import lines_of
from tests.builders.test_prepare_mri import config_of, source
from tests.helpers.checks import message_of
from tests.helpers.toy_data import fourier, phantom, smooth_coils

SHAPES = {"a": (24, 20), "b": (17, 26), "c": (24, 20)}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Undersampled by 2-D masks (a), fully sampled (b, c: test and train)."""
    folder, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("store")
    rng = np.random.default_rng(0)
    for number, (name, (rows, columns)) in enumerate(SHAPES.items()):
        images, maps = phantom(32, 2, number)[:, :rows, :columns], smooth_coils(32, 3)[:, :rows, :columns]
        kspace = fourier(maps * images[:, None])
        kspace += 1e-3 * (rng.normal(size=kspace.shape) + 1j * rng.normal(size=kspace.shape))
        mask = rng.random((rows, columns)) < (0.4 if name == "a" else 2)
        mask[rows // 2 - 4 : rows // 2 + 4, columns // 2 - 4 : columns // 2 + 4] = True
        np.savez(folder / f"{name}.npz", kspace=(mask * kspace).astype(np.complex64), mask=mask)
    made = source(folder, out, patterns={"train": ["a.npz", "c.npz"], "test": ["b.npz"]}, size=0, subject="path")
    prepare_store(out / "store", made)
    made.finish()
    return out, json.loads((out / "store" / "manifest.json").read_text()), folder


def test_every_scan_keeps_its_rows_and_columns(store):
    out, manifest, folder = store
    config = config_of(out, manifest)
    assert manifest["settings"]["image_size"] == [24, 26] and config.data.image_size == [24, 26]
    for split, name in (("train", "a"), ("train", "c"), ("test", "b")):
        acquisitions = datasets.open_acquisitions(config, split)
        for index in range(len(acquisitions)):
            told = acquisitions.places([index])
            if told["volume"][0] != f"{name}.npz":
                continue
            example = acquisitions[index]
            assert example["y"].shape == example["maps"].shape == (3, *SHAPES[name])
            assert not example["y"][:, ~example["mask"][0]].any() and example["mask"].shape == (1, *SHAPES[name])
            with np.load(folder / f"{name}.npz") as raw:
                expected = raw["kspace"][told["slice"][0]] / manifest["volumes"][f"{name}.npz"]["scale"]
                np.testing.assert_allclose(example["y"], np.where(example["mask"], expected, 0), atol=1e-6)
                if name == "a":
                    np.testing.assert_array_equal(example["mask"][0], raw["mask"])
    reference = datasets.open_references(config, "test")[0]
    assert reference.shape == SHAPES["b"]


def test_a_training_batch_is_of_one_shape(store):
    out, manifest, _ = store
    config = config_of(out, manifest)
    with config.data.ignore_type():
        config.data.image_size = (24, 26)
    config.training.batch_size = 2
    stream = datasets.get_train_iterator(config)
    assert [next(stream).y.shape for _ in range(3)] == [(2, 3, 24, 20)] * 3  # of both scans, which are alike


def test_padding_in_the_store_does_not_count_as_missing(store):
    _, manifest, folder = store
    with np.load(folder / "a.npz") as raw:
        share = raw["mask"].mean()
    assert manifest["volumes"]["a.npz"]["kept"] == pytest.approx(share)
    kept_c = manifest["volumes"]["c.npz"]["kept"]
    assert manifest["acceleration"]["effective"]["train"] == pytest.approx(2 / (share + kept_c), rel=1e-3)


def test_the_flags_of_the_store_name_its_shape_and_masks_of_entries(store):
    out, manifest, _ = store
    assert manifest["settings"]["mask"] == "cartesian_poisson_disc"
    flags, training, example = lines_of(out / "store", manifest)
    assert "--config.data.image_size=24,26" in flags and "cartesian_poisson_disc" in flags
    assert "sigma_data" not in flags and "sigma_data" in training and "sigma_data" not in example


def test_a_manifest_with_other_shapes_than_examples_is_refused(store):
    out, manifest, _ = store
    changed = json.loads(json.dumps(manifest))
    changed["acquisitions"]["undersampled"]["matrix"]["train"] = [[24, 20]]
    path = out / "store" / "manifest.json"
    original = path.read_text()
    try:
        path.write_text(json.dumps(changed))
        problem = message_of(datasets.open_acquisitions, config_of(out, manifest), "train")
    finally:
        path.write_text(original)
    assert "matrix" in problem
