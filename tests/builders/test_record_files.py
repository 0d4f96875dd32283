"""Records are read by our own declarations: equal to what TFDS reads, and a store can neither run code nor crash us."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from msm import datasets
from msm.builders.manifest import find_problem
from msm.builders.record_files import DAMAGE, RecordFiles, read_fields
from msm.infra.errors import UserError
from tests.helpers.checks import message_of

PAYLOAD = """
import pathlib
pathlib.Path(__file__).with_name("ran").write_text("code of the store ran")
class Feature:
    @classmethod
    def from_config(cls, *args, **kwargs):
        return cls()
    from_json_content = from_config
"""


def part_of(store: Path, name: str = "undersampled") -> dict:
    manifest = json.loads((store / "manifest.json").read_text())
    return manifest["references"] if name == "references" else manifest["acquisitions"][name]


@pytest.mark.parametrize("name", ["undersampled", "full", "references"])
@pytest.mark.parametrize("kind", ["tiny_store", "image_store"])
def test_reads_what_tfds_reads(kind, name, request):
    store = request.getfixturevalue(kind)
    part = part_of(store, name)
    builder = tfds.builder_from_directory(str(store / part["path"]))
    theirs, ours = builder.as_data_source(split="test"), RecordFiles(store, part, "test")
    assert len(ours) == len(theirs) == len(part["ids"]["test"]) > 0
    for place in range(len(theirs)):
        expected, found = theirs[place], ours[place]
        assert sorted(found) == sorted(expected)
        for field, value in expected.items():
            assert np.asarray(found[field]).shape == np.asarray(value).shape
            np.testing.assert_array_equal(found[field], value)
            if isinstance(value, np.ndarray):
                assert found[field].dtype == value.dtype


def test_several_unknown_lengths_have_their_shape_beside_them(tmp_path):
    class Shapes(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name, VERSION = "shapes", tfds.core.Version("1.0.0")

        def _info(self):
            tensors = {
                kind: tfds.features.Tensor(shape=(2, None, None), dtype=np.float32, encoding=kind)
                for kind in ("bytes", "zlib")
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(tensors))

        def _split_generators(self, dl_manager):
            return {"test": self._generate_examples()}

        def _generate_examples(self):
            for i in range(3):
                array = np.arange(2 * (i + 1) * 5, dtype=np.float32).reshape(2, i + 1, 5)
                yield i, {"bytes": array, "zlib": -array}

    builder = Shapes(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare(file_format="array_record")
    folder = Path(builder.data_dir)
    part = {
        "path": str(folder.relative_to(tmp_path)),
        "files": [str(f.relative_to(tmp_path)) for f in folder.iterdir()],
    }
    records = RecordFiles(tmp_path, part, "test")
    assert sorted(record["bytes"].shape for record in records) == [(2, 1, 5), (2, 2, 5), (2, 3, 5)]
    for record in records:
        np.testing.assert_array_equal(record["bytes"].ravel(), np.arange(record["bytes"].size))
        np.testing.assert_array_equal(record["zlib"], -record["bytes"])


def test_a_class_that_a_store_names_is_never_imported(store_copy, tiny_config, monkeypatch):
    expected = datasets.load_measurements(tiny_config, "train")
    (store_copy / "payload.py").write_text(PAYLOAD)
    monkeypatch.syspath_prepend(str(store_copy))
    monkeypatch.chdir(store_copy)
    sizes = {}
    for path in store_copy.rglob("features.json"):
        told = json.loads(path.read_text())
        told["pythonClassName"] = "payload.Feature"
        for field in told["featuresDict"]["features"].values():
            field["pythonClassName"] = "payload.Feature"
        told["featuresDict"]["features"]["more"] = {"pythonClassName": "payload.Feature", "jsonFeature": {"json": "{}"}}
        path.write_text(json.dumps(told))
        sizes[str(path.relative_to(store_copy))] = path.stat().st_size
    for path in store_copy.rglob("dataset_info.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "moduleName": "payload"}))
        sizes[str(path.relative_to(store_copy))] = path.stat().st_size
    manifest = json.loads((store_copy / "manifest.json").read_text())
    for part in (*manifest["acquisitions"].values(), manifest["references"]):
        part["files"] |= {name: size for name, size in sizes.items() if name in part["files"]}
    (store_copy / "manifest.json").write_text(json.dumps(manifest))
    found = datasets.load_measurements(tiny_config, "train")
    np.testing.assert_array_equal(found.y, expected.y)
    assert len(datasets.open_references(tiny_config, "test")[0]) == 32
    assert "payload" not in sys.modules and not (store_copy / "ran").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"dtype": "object"}, "type 'object'"),
        ({"dtype": "string"}, "type 'string'"),
        ({"encoding": "pickle"}, "encoded as 'pickle'"),
        ({"shape": {"dimensions": ["-7"]}}, "shape [-7]"),
        ({"shape": {"dimensions": [str(10**30)]}}, "shape ["),
        ({"shape": {"dimensions": "x"}}, "invalid literal"),
        ({"shape": 5}, "AttributeError"),
        ({"dtype": ["float32"]}, "does not describe records"),
    ],
)
def test_fields_of_other_kinds_are_refused(tmp_path, change, expected):
    tensor = {"dtype": "float32", "shape": {}, "encoding": "none", **change}
    told = {"featuresDict": {"features": {"y": {"tensor": tensor}}}}
    path = tmp_path / "features.json"
    path.write_text(json.dumps(told))
    assert expected in message_of(read_fields, path)


def test_descriptions_that_are_none_are_refused(tmp_path):
    path = tmp_path / "features.json"
    assert "cannot be read" in message_of(read_fields, path)
    for text in ("", "[]", "{}", "3", '{"featuresDict": 1}', '{"featuresDict": {"features": {"y": 4}}}', "[" * 100_000):
        path.write_text(text)
        assert "does not describe records" in message_of(read_fields, path)
    path.write_bytes(b" " * 2**21)
    assert "has 2097152 bytes" in message_of(read_fields, path)


def test_a_packed_mask_unfolds_to_its_shape_and_no_further(tmp_path, image_store):
    """A shape that asks for more or less than the values have is damage, not memory."""
    store = tmp_path / "store"
    shutil.copytree(image_store, store)
    part = part_of(store)
    path = store / part["path"] / "features.json"
    for size in ("31", "100000000"):
        told = json.loads((image_store / part["path"] / "features.json").read_text())
        told["featuresDict"]["features"]["mask"]["tensor"]["shape"]["dimensions"] = [size, size]
        path.write_text(json.dumps(told))
        with pytest.raises(ValueError, match="do not unfold to"):
            RecordFiles(store, part, "test")[0]


@pytest.mark.parametrize("seed", range(3))
def test_changed_records_are_damage(store_copy, seed):
    """Seeded changes of features.json and of the records: a value or one of the kinds of damage, nothing else."""
    random, part = np.random.default_rng(seed), part_of(store_copy)
    files = [store_copy / name for name in part["files"] if "test.array_record" in name or "features" in name]
    whole, refused = {path: path.read_bytes() for path in files}, 0
    for _ in range(60):
        path = files[random.integers(len(files))]
        data = bytearray(whole[path])
        for place in random.integers(0, len(data), random.integers(1, 6)):
            data[place] = random.integers(256)
        path.write_bytes(data)
        try:
            records = RecordFiles(store_copy, part, "test")
            for place in range(min(2, len(records))):
                records[place]
        except (UserError, *DAMAGE):
            refused += 1
        path.write_bytes(whole[path])
    assert refused > 0


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda m: m["acquisitions"]["full"].update(path="../other"), "lies outside the store"),
        (lambda m: m["references"]["files"].update({"/etc/passwd": 3}), "'/etc/passwd', which lies outside"),
        (lambda m: m["references"]["files"].update({"a\0b": 3}), "lies outside the store"),
        (lambda m: m["references"].update(path=["x"]), "references must have a path"),
        (lambda m: m["references"]["files"].update(x="3"), "references.files must be sizes"),
        (lambda m: m["acquisitions"]["full"]["ids"].update(test=[2**31]), "ids.test must be whole numbers"),
        (lambda m: m["acquisitions"]["full"]["ids"].update(test=["1"]), "ids.test must be whole numbers"),
        (lambda m: m.update(sigma_data="0.3"), "sigma_data is '0.3'"),
        (lambda m: m.update(sigma_data=10**400), "sigma_data is 1000"),
        (lambda m: m["settings"].update(noise_std=[0]), "noise_std is [0]"),
        (lambda m: m.update(counts=[]), "counts and acquisitions must be tables"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_told(store_copy, tiny_config, change, expected):
    manifest = json.loads((store_copy / "manifest.json").read_text())
    assert find_problem(store_copy, manifest) == ""
    change(manifest)
    (store_copy / "manifest.json").write_text(json.dumps(manifest))
    message = message_of(datasets.dataset_info, tiny_config)
    assert expected in message and message.startswith(f"{store_copy / 'manifest.json'} cannot be used")


def test_a_link_out_of_the_store_is_outside(store_copy, tiny_config, tmp_path):
    [shard] = [store_copy / name for name in part_of(store_copy)["files"] if "-train.array_record" in name]
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    assert "lies outside the store" in message_of(datasets.dataset_info, tiny_config)


def test_deep_brackets_in_a_manifest_are_told(store_copy, tiny_config):
    (store_copy / "manifest.json").write_text("[" * 200_000)
    assert "manifest.json is damaged" in message_of(datasets.dataset_info, tiny_config)
