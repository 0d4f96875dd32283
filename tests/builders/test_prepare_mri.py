"""Stores of raw scans: formats, splits, references, resuming, bad files; with coil maps that compile fastest."""

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from msm import datasets
from msm.benchmarks.preparation_time import write as write_timed
from msm.builders.demo.heads import SOURCE
from msm.builders.demo.simulate import ifft2c
from msm.builders.raw import read_raw
from msm.builders.scans import store as scans
from msm.builders.scans import subjects as scan_files
from msm.builders.scans.scan import Options
from msm.builders.store import prepare_store
from msm.configs.default import get_config
from msm.experiment import build
from msm.losses import get_loss_fn
from msm.models.init import param_shapes
from msm.operators.measurement import Measurement
from msm.operators.transform import get_transform
from tests.builders.test_raw_readers import header, random_kspace
from tests.helpers.checks import hashes, message_of
from tests.helpers.paths import ROOT
from tests.helpers.raw_files import RawHead, raw_head, write_bart, write_fastmri, write_lines, write_npz
from tests.helpers.toy_data import column_masks, fourier, phantom, smooth_coils

SIZE = 16


def source(
    folder: Path, out: Path, workers: int = 1, patterns=None, table=None, keep_full=False, subject="id", **changes
) -> scans.RawScans:
    """Preparation of a folder; plain arrays have axes schw."""

    def read(path):
        return read_raw(path, array={"axes": "schw"})

    options = Options(**{"size": SIZE, "maps": "lowres", "acs_lines": 6, **changes})
    return scans.RawScans(
        folder, options, read, out / ".scans", patterns or {}, table, keep_full, workers, subject=subject
    )


def prepare(folder: Path, out: Path, **settings) -> dict:
    made = source(folder, out, **settings)
    manifest, _ = prepare_store(out / "store", made)
    made.finish()
    assert not (out / ".scans").exists()
    return manifest


def config_of(out: Path, manifest: dict, **changes) -> ConfigDict:
    """The default config with the settings that `tools/prepare_mri.py` prints."""
    config = get_config()
    settings = manifest["settings"]
    config.data.update(dir=str(out / "store"), image_size=settings["image_size"], num_coils=settings["num_coils"])
    config.masks.update(name=settings["mask"], acceleration=settings["acceleration"], acs_lines=settings["acs_lines"])
    config.update(changes)
    return config


def write_full(path: Path, coils: int = 4, slices: int = 2, seed: int = 0, **attributes: str) -> np.ndarray:
    """A fully sampled fastMRI file without oversampling (rows of the header count double); returns its images."""
    images = phantom(SIZE, slices, seed)
    kspace = fourier(smooth_coils(SIZE, coils) * images[:, None])
    rng = np.random.default_rng(seed)
    kspace += 1e-3 * (rng.normal(size=kspace.shape) + 1j * rng.normal(size=kspace.shape))
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace.astype(np.complex64)
        text = header(SIZE, SIZE).replace(f"<x>{SIZE // 2}</x>", f"<x>{SIZE}</x>").replace("400", "200")
        file["ismrmrd_header"] = text
        file.attrs.update(attributes)
    return images


@pytest.fixture(scope="module")
def head() -> RawHead:
    return raw_head(SIZE, 3, coils=4, acs=6)


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> tuple[Path, Path, dict]:
    """(folder of raw files, folder of the store, manifest): six fully sampled scans of five patients."""
    folder, out = tmp_path_factory.mktemp("full"), tmp_path_factory.mktemp("full_out")
    for number in range(6):
        write_full(folder / f"scan{number}.h5", seed=number, patient_id=f"patient {min(number, 4)}")
    return folder, out, prepare(folder, out, keep_full=True)


def test_every_format_gives_the_same_examples(head, tmp_path):
    """To float tolerance: readout oversampling and its removal round."""
    folder = tmp_path / "raw"
    folder.mkdir()
    write_fastmri(folder / "a.h5", head)
    write_lines(folder / "b.h5", head)
    write_bart(folder / "c", head)
    write_npz(folder / "d.npz", head)
    with h5py.File(folder / "e.h5", "w") as file:
        file["kspace"] = head.kspace
    manifest = prepare(folder, tmp_path, patterns={"test": ["*"]})
    test = datasets.load_measurements(config_of(tmp_path, manifest), "test")
    assert test.y.shape == (15, 4, SIZE, SIZE) and set(manifest["counts"]) == {"test"}
    np.testing.assert_array_equal(test.mask, np.broadcast_to(head.mask, (15, 1, 1, SIZE)))
    volumes = datasets.open_acquisitions(config_of(tmp_path, manifest), "test").places(range(15))["volume"]
    first = test.y[volumes == "a.h5"]
    for name in ("b.h5", "c.cfl", "d.npz", "e.h5"):
        assert np.abs(test.y[volumes == name] - first).max() < 1e-5 * np.abs(first).max()
        assert np.abs(test.maps[volumes == name] - test.maps[volumes == "a.h5"]).max() < 1e-4


def test_references_are_the_images_of_fully_sampled_scans(full):
    _, out, manifest = full
    config = config_of(out, manifest)
    assert manifest["counts"] == {"train": 6, "validation": 2, "test": 4}  # one patient of the test split has two scans
    for split in ("validation", "test"):
        measurement = datasets.load_measurements(config, split)
        references = datasets.open_references(config, split).batch(range(manifest["counts"][split]))
        config.data.acquisition = "full"
        whole = datasets.load_measurements(config, split)
        config.data.acquisition = "undersampled"
        assert whole.mask.all() and not measurement.mask.all()
        np.testing.assert_array_equal(measurement.y, np.where(measurement.mask, whole.y, 0))
        combined = np.asarray(get_transform(config).adjoint(whole.y, measurement.maps))
        assert np.corrcoef(np.abs(references).ravel(), np.abs(combined).ravel())[0, 1] > 0.98
        zero_filled = np.abs(get_transform(config).adjoint(measurement.y, measurement.maps))
        volumes = datasets.open_references(config, split).places(range(len(references)))["volume"]
        for volume in set(volumes):
            assert np.percentile(zero_filled[volumes == volume], 99) == pytest.approx(1, abs=1e-4)
    assert "has no references of split 'train'" in message_of(datasets.open_references, config, "train")


def test_manifest_says_what_was_done_and_to_what(full):
    folder, _, manifest = full
    volume = manifest["volumes"]["scan0.h5"]
    assert volume["sha256"] == scan_files.digest([folder / "scan0.h5"])
    assert "patient 0" not in json.dumps(manifest) and volume["pixel_mm"] == [12.5, 12.5, 5.0]
    assert volume["steps"][1:-1] == [
        "16 x 16 kept", "cartesian_random mask, R 4, 6 ACS lines, per slice", "maps by lowres"
    ]  # fmt: skip
    assert manifest["settings"]["acceleration"] == 4 and manifest["settings"]["acs_lines"] == 6
    power = [np.mean(np.abs(phantom(SIZE, 2, seed)) ** 2) for seed in range(6)]
    scales = [manifest["volumes"][f"scan{seed}.h5"]["scale"] for seed in range(6)]
    expected = np.sqrt(np.mean([p / s**2 for p, s in zip(power, scales, strict=True)]) / 2)
    assert manifest["sigma_data"] == pytest.approx(expected, rel=0.15)  # of a third of the lines


def test_no_subject_is_in_two_splits(full):
    _, _, manifest = full
    by_subject = {}
    for volume in manifest["volumes"].values():
        by_subject.setdefault(volume["subject"], set()).add(volume["split"])
    assert len(by_subject) == 5 and all(len(splits) == 1 for splits in by_subject.values())


def test_same_files_give_the_same_bytes_whatever_the_workers(full, tmp_path):
    folder, out, _ = full
    prepare(folder, tmp_path, keep_full=True, workers=3)
    assert hashes(tmp_path / "store") == hashes(out / "store")


def test_a_store_is_told_from_another_by_contents_and_options(full):
    folder, out, manifest = full
    assert prepare_store(out / "store", source(folder, out, keep_full=True)) == (manifest, False)
    other = source(folder, out, keep_full=True, acceleration=3.0)
    assert "acceleration 4.0 instead of 3.0" in message_of(prepare_store, out / "store", other)
    config = config_of(out, manifest)
    config.masks.acs_lines = 8
    assert "acs_lines 6 (config: 8)" in message_of(datasets.dataset_info, config)


def test_a_killed_preparation_goes_on(full, tmp_path, monkeypatch):
    folder, out, _ = full
    kept, save = [], scans.save_scan

    def save_three(path, scan):
        if len(kept) == 3:
            raise KeyboardInterrupt  # stands for the end of the process
        kept.append(path)
        save(path, scan)

    monkeypatch.setattr(scans, "save_scan", save_three)
    with pytest.raises(KeyboardInterrupt):
        prepare_store(tmp_path / "store", source(folder, tmp_path, keep_full=True))
    kept[1].write_bytes(kept[1].read_bytes()[:5000])  # one of them is damaged
    read, made = [], source(folder, tmp_path, keep_full=True)
    monkeypatch.setattr(scans, "save_scan", save)
    reader, made._read = made._read, lambda path: read.append(path) or reader(path)
    prepare_store(tmp_path / "store", made)
    made.finish()
    assert len(read) == 4  # of 6
    assert hashes(tmp_path / "store") == hashes(out / "store")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_scans_that_are_known_to_be_for_training_get_no_references(full, tmp_path):
    """Their maps from the whole centre would take as long as those from the acquired lines, for nothing."""
    folder, _, _ = full
    for patterns, expected in (({"test": ["*5.h5", "*4.h5"]}, 2), ({}, 6)):
        made = source(folder, tmp_path, patterns=patterns)
        made.load(tmp_path)
        every = [(split, scans.load_scan(scan.path)) for split, chosen in made._scans.items() for scan in chosen]
        assert all(scan.facts["full"] for _, scan in every)
        assert sum(scan.images is not None for _, scan in every) == expected
        assert all(scan.images is not None for split, scan in every if split != "train")
        made.finish()


def test_files_of_the_timing_are_fully_sampled_scans(tmp_path):
    write_timed(tmp_path / "head.h5", size=128, coils=2, slices=2)
    raw = read_raw(tmp_path / "head.h5")
    assert raw.kspace.shape == (2, 2, 128, 128) and raw.mask.all() and raw.noise is None
    with np.load(SOURCE, allow_pickle=False) as heads:
        expected = heads["brain2"][4:6].astype(np.float64)
    combined = np.sqrt(np.sum(np.abs(ifft2c(raw.kspace)) ** 2, axis=1))
    assert np.abs(combined - expected).max() < 0.03 * expected.max()  # noise of 0.005 per scalar, 33,000 pixels


def test_coil_counts_that_differ_are_padded_with_empty_coils(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    write_full(folder / "three.h5", coils=3)
    write_full(folder / "five.h5", coils=5)
    manifest = prepare(folder, tmp_path, coils=4, patterns={"test": ["*"]})
    config = config_of(tmp_path, manifest)
    assert manifest["settings"]["num_coils"] == 4
    assert manifest["volumes"]["five.h5"]["steps"][3] == "5 to 4 coils"
    test = datasets.load_measurements(config, "test")
    few = datasets.open_acquisitions(config, "test").places(range(4))["volume"] == "three.h5"
    assert not test.y[few][:, 3].any() and not test.maps[few][:, 3].any()
    assert test.y[~few][:, 3].any() and few.sum() == 2


def test_a_store_with_another_mask_than_lines_holds_entries(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    mask = np.random.default_rng(0).random((SIZE, SIZE)) < 0.4
    mask[5:11, 5:11] = True
    kspace = fourier(smooth_coils(SIZE, 4) * phantom(SIZE, 2)[:, None])
    np.savez(folder / "entries.npz", kspace=np.where(mask, kspace, 0), mask=mask)
    lines = column_masks(SIZE, 1, acs=6)[0, 0, 0]
    np.savez(folder / "lines.npz", kspace=np.where(lines, kspace, 0), mask=lines)
    manifest = prepare(folder, tmp_path, patterns={"test": ["*"]})
    config = config_of(tmp_path, manifest)
    test = datasets.load_measurements(config, "test")
    volumes = datasets.open_acquisitions(config, "test").places(range(4))["volume"]
    for name, expected in (("entries.npz", mask), ("lines.npz", np.broadcast_to(lines, mask.shape))):
        chosen, scale = volumes == name, manifest["volumes"][name]["scale"]
        np.testing.assert_array_equal(test.mask[chosen], np.broadcast_to(expected, (2, 1, SIZE, SIZE)))
        np.testing.assert_allclose(test.y[chosen] * scale, np.where(expected, kspace, 0), atol=1e-5)
    assert loss_shape(config, test) == (4,)  # and such masks can be trained on


def loss_shape(config: ConfigDict, batch: Measurement) -> tuple[int, ...]:
    """Shape of the training loss of a batch, by tracing alone."""
    config.model.update(num_channels=8, channel_mult=(1,), attention_resolutions=(), num_heads=1)
    experiment = build(config)
    loss = get_loss_fn(config, experiment.schedule, experiment.transform, experiment.masks, experiment.denoise)
    return jax.eval_shape(loss, param_shapes(experiment.model, experiment.image_shape), batch, jax.random.key(0)).shape


def test_the_same_kspace_is_in_one_split_only(tmp_path):
    """Whatever the name, the format and the header: of train and test, test keeps it."""
    folder = tmp_path / "raw"
    for name, seed in (("train/a.h5", 0), ("train/b.h5", 1), ("test/a (1).h5", 0), ("test/a.h5", 0)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_full(folder / name, seed=seed, patient_id=name)
    with h5py.File(folder / "train/a.h5") as file:
        np.save(folder / "train/c.npy", np.asarray(file["kspace"]))
    manifest = prepare(folder, tmp_path, patterns={"train": ["train/*"], "test": ["test/*"]})
    assert manifest["left_out"] == dict.fromkeys(("train/a.h5", "train/c.npy"), "has the same k-space as test/a (1).h5")
    assert manifest["counts"] == {"train": 2, "test": 4}
    (tmp_path / "other").mkdir()
    manifest = prepare(folder, tmp_path / "other")
    assert set(manifest["volumes"]) == {"test/a (1).h5", "train/b.h5"}


def test_slices_without_content_are_counted_in_the_manifest(tmp_path):
    (tmp_path / "raw").mkdir()
    for name in ("a.npy", "b.npy"):
        kspace = fourier(smooth_coils(SIZE, 4) * phantom(SIZE, 4, len(name))[:, None])
        kspace[1] = 0
        np.save(tmp_path / "raw" / name, kspace * (1 + (name == "b.npy")))
    manifest = prepare(tmp_path / "raw", tmp_path, patterns={"test": ["b*"]})
    assert [v["empty"] for v in manifest["volumes"].values()] == [[1], [1]]
    assert manifest["counts"] == {"train": 3, "test": 3} and "2 slices without content are left out" in str(
        manifest["notes"]
    )


def test_published_layout_with_its_table(tmp_path):
    folder = tmp_path / "data"
    images, maps = phantom(20, 4), np.broadcast_to(smooth_coils(20, 3), (4, 3, 20, 20))
    for name in ("one", "two", "three"):
        for place, array in (("x_hat", images), ("smps_hat", maps)):
            (folder / place).mkdir(parents=True, exist_ok=True)
            with h5py.File(folder / place / f"{name}.h5", "w") as file:
                file[place] = array
    (tmp_path / "table.csv").write_text(
        "INDEX,FILE,DROP,SLICE_START,SLICE_END\n0,one,0,1.0,3.0\n1,two,1,,\n2,three,0,0,\n"
    )
    table = scan_files.read_table(tmp_path / "table.csv")
    manifest = prepare(folder, tmp_path, table=table, slices=":-2", crop="fov", patterns={"test": ["*"]})
    slices = {name: volume["slices"] for name, volume in manifest["volumes"].items()}
    assert slices == {"x_hat/one.h5": [1, 2], "x_hat/three.h5": [0, 1]}
    config = config_of(tmp_path, manifest)
    references, test = datasets.open_references(config, "test"), datasets.load_measurements(config, "test")
    volumes, scale = references.places(range(4))["volume"], manifest["volumes"]["x_hat/three.h5"]["scale"]
    index = np.flatnonzero(volumes == "x_hat/three.h5")[0]
    np.testing.assert_allclose(references[index] * scale, images[0, 2:18, 2:18], atol=1e-5)
    np.testing.assert_allclose(test.maps[index], maps[0, :, 2:18, 2:18], atol=1e-5)
    whole = np.asarray(get_transform(config).forward(references[index][None], test.maps[index][None]))
    np.testing.assert_allclose(test.y[index], np.where(test.mask[index], whole[0], 0), atol=1e-5)


def test_bad_files_are_told_at_the_end_and_the_rest_is_done(tmp_path):
    folder = tmp_path / "raw"
    (folder / "sub").mkdir(parents=True)
    write_full(folder / "good.h5")
    (folder / "sub" / "text.h5").write_text("no data")
    whole = (folder / "good.h5").read_bytes()
    (folder / "sub" / "cut.h5").write_bytes(whole[: len(whole) // 2])
    np.save(folder / "real.npy", np.ones((2, 3, 8, 8)))
    np.savez(folder / "cut.npz", kspace=random_kspace(1, 2, SIZE, SIZE))
    (folder / "cut.npz").write_bytes((folder / "cut.npz").read_bytes()[:2000])
    np.savez(folder / "no_centre.npz", kspace=np.pad(random_kspace(1, 2, SIZE, 4), [(0, 0)] * 3 + [(0, 12)]))
    command = [sys.executable, str(ROOT / "tools" / "prepare_mri.py"), f"--in={folder}", f"--out={tmp_path / 'store'}"]
    (folder / os.fsdecode(b"caf\xe9.npy")).touch()
    command += ["--size=16", "--axes=schw", "--maps=lowres", "--test=*"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 3, done.stderr
    told = done.stdout.split("files left out:\n")[1].splitlines()
    assert [line.strip().split(":")[0] for line in told] == [
        r"caf\xe9.npy", "cut.npz", "no_centre.npz", "real.npy", "sub/cut.h5", "sub/text.h5"
    ]  # fmt: skip
    assert "k-space does not fall off along its rows" in told[2] and str(tmp_path) not in "".join(told)
    assert "test 2 slices of 1 scans" in done.stdout and "--config.masks.acceleration=4.0" in done.stdout
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    assert set(manifest["command"].split(" --")) == {
        "python tools/prepare_mri.py", "in FOLDER", "size 16", "axes schw", "maps lowres", "test *"
    }  # fmt: skip
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 3 and "already complete" in again.stdout and told[0] in again.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "store"}


def test_nothing_to_prepare(tmp_path):
    assert "not a folder" in message_of(source, tmp_path / "absent", tmp_path)
    (tmp_path / "raw").mkdir()
    assert "give another --in" in message_of(source, tmp_path / "raw", tmp_path)
    (tmp_path / "raw" / "a.h5").write_text("x")
    made = source(tmp_path / "raw", tmp_path, patterns={"test": ["*"]})
    assert "none of the 1 files can be used; the first, a.h5" in message_of(prepare_store, tmp_path / "store", made)
