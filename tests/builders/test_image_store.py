"""What a store of pictures holds, how it is made, and how it is read."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from msm import datasets
from msm.builders import examples, store
from msm.builders.demo import photos
from msm.builders.pictures.store import Settings, acquire, draw_masks, unit_range
from msm.infra.errors import UserError
from msm.operators.masks import get_masks
from tests.helpers.checks import hashes, message_of
from tests.helpers.paths import ROOT
from tests.helpers.pictures import COUNTS, NOISE_STD, make_store, source

TOOL = str(ROOT / "tools" / "prepare_images.py")


def clean_pictures(pictures: Path, tmp_path: Path) -> dict[int, np.ndarray]:
    """Every picture of the folder by id, uint8."""
    splits = source(pictures).pictures.read(32, tmp_path)
    return {
        p.example_id: np.array(p.pixels) for split in splits.values() for p in (split[i] for i in range(len(split)))
    }


def test_another_process_writes_the_same_bytes(pictures, image_store, tmp_path):
    counts = [flag for split, count in COUNTS.items() for flag in (f"--{split}_count", str(count))]
    command = [sys.executable, TOOL, "--folder", pictures, "--size=32", f"--noise_std={NOISE_STD}", *counts]
    done = subprocess.run([*command, "--out", tmp_path / "again"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "again: train 6, validation 2, test 3 images; 62.5% of the pixels acquired; noise 0.1;" in done.stdout
    assert "pictures 11/11" in done.stderr
    assert hashes(tmp_path / "again") == hashes(image_store)
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_only_acquired_pixels_are_stored(image_store, image_config, split):
    manifest = datasets.dataset_info(image_config)
    records = examples.Records(image_store, manifest["acquisitions"]["undersampled"], split)
    assert len(records) == manifest["counts"][split] == {"train": 6, "validation": 2, "test": 3}[split]
    for record in (records[i] for i in range(len(records))):
        assert set(record) == {"example_id", "name", "y", "mask", "noise_std"}
        assert record["mask"].shape == (32, 32) and record["mask"].dtype == np.bool_
        assert record["y"].shape == (640, 3) and record["y"].dtype == np.float32  # 10 of 16 blocks of 64 pixels
        assert record["noise_std"] == np.float32(NOISE_STD)


def test_measurements_are_masked_and_noisy_pictures(pictures, image_config, tmp_path):
    clean, settings = clean_pictures(pictures, tmp_path), Settings(image_size=32, noise_std=NOISE_STD)
    masks = get_masks(image_config)
    for split in ("train", "validation", "test"):
        measurement = datasets.load_measurements(image_config, split)
        assert measurement.maps is None and measurement.y.dtype == np.float32
        assert measurement.y.shape[1:] == (32, 32, 3) and measurement.mask.shape[1:] == (32, 32, 1)
        for index, example_id in enumerate(measurement.example_id):
            mask, y = measurement.mask[index], measurement.y[index]
            np.testing.assert_array_equal(mask, masks.sample(jax.random.fold_in(jax.random.key(0), int(example_id))))
            assert np.all(y[~mask[..., 0]] == 0)
            expected = acquire(clean[example_id], mask[..., 0], settings, example_id)
            np.testing.assert_array_equal(y[mask[..., 0]], expected)
    noise = np.concatenate(
        [acquire(x, np.ones((32, 32), bool), settings, i) - unit_range(x).reshape(-1, 3) for i, x in clean.items()]
    )
    assert abs(noise.mean()) < 4.5 * NOISE_STD / np.sqrt(noise.size)
    assert abs(noise.std() / NOISE_STD - 1) < 4.5 / np.sqrt(2 * noise.size)
    assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 4.5 / np.sqrt(len(noise))


def test_mask_and_noise_belong_to_the_id_alone():
    settings = Settings(image_size=32, noise_std=NOISE_STD)
    together, alone = draw_masks(settings, [3, 7, 2_000_000]), draw_masks(settings, [7])
    np.testing.assert_array_equal(together[1], alone[0])
    assert len({mask.tobytes() for mask in draw_masks(settings, range(100))}) > 95
    other = Settings(image_size=32, noise_std=NOISE_STD, seed=1)
    assert not np.array_equal(draw_masks(other, [7])[0], alone[0])
    flat, everywhere = np.full((32, 32, 3), 100, np.uint8), np.ones((32, 32), bool)
    drawn = [acquire(flat, everywhere, s, i) for s, i in ((settings, 7), (settings, 7), (settings, 8), (other, 7))]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.all(np.abs(drawn[0] - drawn[2]).max(axis=0) > 0.1) and not np.array_equal(drawn[0], drawn[3])


def test_noiseless_pixels_are_exact(pictures, image_config, tmp_path):
    manifest = make_store(pictures, tmp_path / "noiseless", noise_std=0.0)
    clean = clean_pictures(pictures, tmp_path)
    image_config.data.dir = str(tmp_path / "noiseless")
    records = examples.Records(tmp_path / "noiseless", manifest["acquisitions"]["undersampled"], "train")
    assert records[0]["y"].dtype == np.uint8
    for split in ("validation", "test"):
        some = datasets.load_measurements(image_config, split)
        image_config.data.acquisition = "full"
        full = datasets.load_measurements(image_config, split)
        image_config.data.acquisition = "undersampled"
        references = datasets.open_references(image_config, split).batch(range(len(some.y)))
        expected = np.stack([clean[i] / np.float32(127.5) - np.float32(1) for i in full.example_id])
        assert full.mask.all() and np.all(full.noise_std == 0) and expected.min() >= -1 and expected.max() <= 1
        for found in (full.y, references):
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(some.y, np.where(some.mask, expected, 0))
        np.testing.assert_array_equal(np.rint((full.y + 1) * 127.5).astype(np.uint8)[0], clean[full.example_id[0]])


def test_noisy_stores_have_the_masks_and_references_of_noiseless_ones(pictures, image_store, image_config, tmp_path):
    make_store(pictures, tmp_path / "noiseless", noise_std=0.0)
    noisy = datasets.load_measurements(image_config, "test")
    image_config.data.dir = str(tmp_path / "noiseless")
    noiseless = datasets.load_measurements(image_config, "test")
    np.testing.assert_array_equal(noisy.mask, noiseless.mask)
    assert hashes(image_store / "references") == hashes(tmp_path / "noiseless" / "references")
    difference = (noisy.y - noiseless.y)[np.broadcast_to(noisy.mask, noisy.y.shape)]
    assert difference.std() == pytest.approx(NOISE_STD, rel=0.05)


def test_manifest_statistics(pictures, image_config, tmp_path):
    manifest = datasets.dataset_info(image_config)
    assert manifest["kind"] == "images" and manifest["settings"]["drop"] == 6
    assert manifest["keep_fraction"] == {
        "nominal": 0.625,
        "effective": dict.fromkeys(("train", "validation", "test"), 0.625),
    }
    assert manifest["acceleration"]["nominal"] == manifest["acceleration"]["effective"]["test"] == 1.6
    ids = manifest["acquisitions"]["undersampled"]["ids"]["train"]
    clean = clean_pictures(pictures, tmp_path)
    exact = np.sqrt(np.mean([unit_range(clean[i]) ** 2 for i in ids]))
    assert manifest["sigma_data"] == pytest.approx(exact, rel=0.1)  # six pictures, 10 of 16 blocks each
    assert manifest["sigma_data_definition"] and manifest["licences"] and len(manifest["source_sha256"]) == 64


# --- making a store


def test_complete_store_is_left_alone_and_a_damaged_one_made_again(pictures, image_store, tmp_path):
    out = tmp_path / "store"
    assert store.prepare_store(out, source(pictures))[1] is True
    assert store.prepare_store(out, source(pictures))[1] is False
    [record] = out.rglob("full/**/*train.array_record*")
    record.unlink()
    assert store.prepare_store(out, source(pictures))[1] is True
    assert hashes(out) == hashes(image_store)
    assert "noise_std 0.1 instead of 0.0" in message_of(store.prepare_store, out, source(pictures, noise_std=0.0))


def test_another_file_makes_another_store(pictures, image_store, tmp_path):
    shutil.copytree(pictures, tmp_path / "more")
    shutil.copy(pictures / "00.jpg", tmp_path / "more" / "zz.jpg")
    message = message_of(store.prepare_store, image_store, source(tmp_path / "more"))
    assert "pictures 11 files" in message and "instead of 12 files" in message


def test_a_changed_picture_of_equal_size_makes_another_store(pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "copy")
    before = source(pictures).identity()
    assert source(tmp_path / "copy").identity() == before
    path = tmp_path / "copy" / "04.png"
    content, times = path.read_bytes(), path.stat()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert source(tmp_path / "copy").identity() != before


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"grid": 5}, "--grid is 5: it must be a divisor of size 32"),
        ({"drop": 16}, "--drop is 16: it must be from 0 to 15"),
        ({"noise_std": -0.1}, "noise_std"),
        ({"seed": -1}, "seed"),
        ({"image_size": 4}, "--size is 4"),
    ],
)
def test_impossible_settings_are_refused(change, expected):
    with pytest.raises(UserError, match=expected):
        Settings(**{"image_size": 32, **change})


def test_command_line_ends_in_one_line(tmp_path):
    command = [sys.executable, TOOL, f"--out={tmp_path / 'store'}", "--photos", "--test_count=3"]
    failed = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr == "error: give either --folder, with lists or counts if you like, or --photos alone\n"
    assert list(tmp_path.iterdir()) == []


# --- reading a store


def test_training_batches_have_the_documented_form(image_config):
    batch = next(datasets.get_train_iterator(image_config))
    assert batch.maps is None
    forms = {n: (getattr(batch, n).shape, getattr(batch, n).dtype) for n in ("y", "mask", "noise_std", "example_id")}
    assert forms == {
        "y": ((4, 32, 32, 3), np.float32),
        "mask": ((4, 32, 32, 1), np.bool_),
        "noise_std": ((4,), np.float32),
        "example_id": ((4,), np.int32),
    }


def test_evaluation_batches_hold_the_references(image_config):
    batches = list(datasets.eval_batches(image_config, "test", 2))
    assert [batch.measurement.example_id.tolist()[1] == -1 for batch in batches] == [False, True]
    for batch in batches:
        assert batch.reference.shape == (2, 32, 32, 3) and batch.reference.dtype == np.float32
        mask = np.broadcast_to(batch.measurement.mask, batch.reference.shape)
        assert np.std((batch.measurement.y - batch.reference)[mask]) == pytest.approx(NOISE_STD, rel=0.1)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"data.image_size": 64}, "image_size 32 (config: 64)"),
        ({"masks.grid": 8}, "grid 4 (config: 8)"),
        ({"masks.drop": 5}, "drop 6 (config: 5)"),
    ],
)
def test_a_store_of_other_settings_is_refused(image_config, change, expected):
    image_config.update_from_flattened_dict(change)
    message = message_of(datasets.dataset_info, image_config)
    assert expected in message and "python tools/prepare_images.py --photos --size" in message


def test_a_store_of_another_kind_is_refused(image_config, tiny_config, image_store, tiny_store):
    image_config.data.dir, tiny_config.data.dir = str(tiny_store), str(image_store)
    assert "holds multi-coil k-space, but transform.name 'identity'" in message_of(datasets.dataset_info, image_config)
    assert "holds pictures, but transform.name 'multicoil_fourier'" in message_of(datasets.dataset_info, tiny_config)


def test_missing_and_damaged_stores_name_the_command(image_config, pictures, tmp_path):
    image_config.data.dir = str(tmp_path / "none")
    message = message_of(datasets.dataset_info, image_config)
    assert f"python tools/prepare_images.py --folder YOURS --out {tmp_path}/none" in message
    image_config.data.dir = "store/none"  # where the demos' stores are
    message = message_of(datasets.dataset_info, image_config)
    command = "tools/prepare_images.py --photos --size 32 --mask random_boxes --grid 4 --drop 6 --out store/none"
    assert command in message and "--folder DIR" in message
    make_store(pictures, tmp_path / "store")
    [record] = (tmp_path / "store").rglob("undersampled/**/*test.array_record*")
    record.unlink()
    image_config.data.dir = str(tmp_path / "store")
    expected = (
        "prepare_images.py --folder FOLDER --test_count 3 --validation_count 2 --size 32 --mask random_boxes --grid 4 "
        f"--drop 6 --noise_std 0.1 --seed 0 --out {tmp_path}/store"
    )
    assert expected in message_of(datasets.dataset_info, image_config)


# --- the demo's photographs


def test_photographs_do_not_cross_splits(tmp_path):
    found = photos.Photos().read(64, tmp_path)
    assert {split: len(chosen) for split, chosen in found.items()} == {"train": 2304, "validation": 45, "test": 240}
    ids = [picture.example_id for chosen in found.values() for picture in chosen]
    assert ids == list(range(len(ids)))
    assert all(p.pixels.shape == (64, 64, 3) and p.pixels.dtype == np.uint8 for p in found["validation"])
    names = {split: {p.name.split()[0] for p in chosen} for split, chosen in found.items()}
    assert names["test"] == {"astronaut", "coffee"} and names["validation"] == set(photos.VALIDATION)
    assert not names["test"] & names["train"] and names["train"] == set(photos.TRAIN)


def test_validation_shares_no_pixel_with_training():
    regions = photos.regions()
    train = dict(regions["train"])
    for name, part in regions["validation"]:
        whole = photos.read_photo(*photos.TRAIN[name])
        assert part.shape[1] == 128 and train[name].shape[1] + 128 == whole.shape[1]
        np.testing.assert_array_equal(np.concatenate([train[name], part], axis=1), whole)


def test_patches_reach_every_edge():
    corners = photos.patches(np.zeros((100, 200, 3)), 64, (3, 4))
    assert len(corners) == len(set(corners)) == 12
    assert corners[0] == (0, 0) and corners[-1] == (36, 136)


def test_every_photograph_has_its_licence_on_record():
    text = (ROOT / "data" / "README.md").read_text()
    for name in photos.TRAIN | photos.TEST:
        assert any(line.startswith(f"| `{name}`") for line in text.splitlines()), name
    listed = json.dumps(photos.LICENCES)
    assert all(name in listed for name in photos.TRAIN | photos.TEST)
