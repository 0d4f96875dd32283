"""Which raw files a store is made of, and how they are divided: patterns, subjects, tables, names."""

import logging
import os

import h5py
import numpy as np
import pytest

from msm.builders.raw import read_raw
from msm.builders.scans import subjects as scan_files
from msm.builders.scans.scan import Options
from msm.builders.scans.store import RawScans
from msm.builders.store import prepare_store
from tests.builders.test_prepare_mri import SIZE, source, write_full
from tests.helpers.checks import message_of
from tests.helpers.raw_files import raw_head, write_bart, write_fastmri, write_lines


def warnings(caplog):
    """What was told above the level of progress."""
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_division_by_patterns():
    subjects = {"train/a.h5": "p0", "train/b.h5": "p1", "val/c.h5": "p2", "val/d.h5": "p1"}
    apart = {**subjects, "val/d.h5": "p3"}
    assert scan_files.divide(apart, {"test": ["val/*"]}) == {
        "train/a.h5": "train", "train/b.h5": "train", "val/c.h5": "test", "val/d.h5": "test"
    }  # fmt: skip
    split = message_of(scan_files.divide, subjects, {"test": ["val/*"]})
    assert split.startswith("'train/b.h5' in train and 'val/d.h5' in test are of one subject: change the patterns")
    both = {"test": ["val/*"], "validation": ["*c.h5"]}
    assert "matched by --test and by --validation" in message_of(scan_files.divide, subjects, both)
    assert "--test 'other/*' matches no file" in message_of(scan_files.divide, subjects, {"test": ["other/*"]})


def test_what_no_pattern_names_is_unused_if_train_has_patterns():
    """The archive's test files are no training data, and their subjects may be those of others."""
    subjects = {"test/a": "p0", "train/b": "p1", "val/c": "p2", "val/d": "p2"}
    patterns = {"train": ["train/*"], "validation": ["val/*"]}
    assert scan_files.divide(subjects, patterns) == {"train/b": "train", "val/c": "validation", "val/d": "validation"}
    assert scan_files.divide({**subjects, "test/a": "p1"}, {"train": ["train/*"]}) == {"train/b": "train"}


def test_division_without_patterns():
    many = scan_files.divide({str(i): str(i) for i in range(40)}, {})
    assert [list(many.values()).count(split) for split in ("train", "validation", "test")] == [34, 2, 4]
    for count in (2, 3, 9):
        assert {"train", "test"} <= set(scan_files.divide({str(i): str(i) for i in range(count)}, {}).values())
    for only in ({"one": "p"}, {"one": "p", "two": "p"}):
        assert message_of(scan_files.divide, only, {}).startswith("'one' is of the only subject there is, so train")


def test_patterns_that_are_none(tmp_path):
    (tmp_path / "list").write_text("val/*\n\n train/a.h5 \n")
    assert scan_files.read_patterns(str(tmp_path / "list")) == ["val/*", "train/a.h5"]
    (tmp_path / "list").write_text("\n")
    for text in (" , ", str(tmp_path / "list")):
        assert "holds no pattern" in message_of(scan_files.read_patterns, text)


def test_patient_of_a_file_is_the_readers(tmp_path):
    head = raw_head(SIZE, 1, coils=2, acs=6)
    write_full(tmp_path / "own.h5", patient_id="patient 7")
    with h5py.File(tmp_path / "own.h5", "r+") as file:
        file.attrs["patient_id"] = np.bytes_("patient 8")
    write_fastmri(tmp_path / "a.h5", head, "p1")
    write_lines(tmp_path / "b.mrd", head)
    write_bart(tmp_path / "c", head)
    for name, expected in (("a.h5", "p1"), ("b.mrd", ""), ("c.cfl", "")):
        told = scan_files.patient_of(tmp_path, name)
        assert told == expected and told == read_raw(tmp_path / name).header.get("patient_id", "")
    with h5py.File(tmp_path / "b.mrd", "r+") as file:
        text = np.asarray(file["dataset/xml"]).ravel()[0]
        given = b"<subjectInformation><patientID>p2</patientID></subjectInformation><encoding>"
        file["dataset/xml"][0] = text.replace(b"<encoding>", given, 1)
    assert scan_files.patient_of(tmp_path, "b.mrd") == "p2" == read_raw(tmp_path / "b.mrd").header["patient_id"]
    assert scan_files.patient_of(tmp_path, "own.h5") == "patient 8"
    (tmp_path / "cut.h5").write_bytes((tmp_path / "a.h5").read_bytes()[:3000])
    assert scan_files.patient_of(tmp_path, "cut.h5") == scan_files.patient_of(tmp_path, "none.h5") == ""
    assert {"b.mrd", "c.cfl"} < set(scan_files.find_scans(tmp_path))


@pytest.mark.parametrize("patient", ["", " ", "ANONYMOUS", "Anon.", "n/a", "0000", "xxx", "--", "de-identified"])
def test_placeholders_are_no_subjects(patient):
    patients = {"a/1": "p1", "a/2": "p1", "b/3": patient, "b/4": patient}
    subjects, unknown = scan_files.get_subjects(patients, "id")
    assert unknown == ["b/3", "b/4"] and [subjects[name] for name in unknown] == unknown
    assert subjects["a/1"] == subjects["a/2"] and "p1" not in subjects["a/1"]


def test_rules_of_subjects():
    shared, unknown = scan_files.get_subjects(dict.fromkeys(["a", "b", "c"], "Study 5"), "id")
    assert shared == {"a": "a", "b": "b", "c": "c"} and unknown == ["a", "b", "c"]
    one, unknown = scan_files.get_subjects({"a": "Study 5"}, "id")
    assert len(one["a"]) == 16 and not unknown
    patients = {"p/day1/a": "x1", "p/b": "x2", "c": "x1", "患/e": "\udcff"}
    assert len(set(scan_files.get_subjects(patients, "id")[0].values())) == 3
    assert scan_files.get_subjects(patients, "folder") == (dict(zip(patients, ["p", "p", "c", "患"], strict=True)), [])
    assert scan_files.get_subjects(patients, "path") == ({name: name for name in patients}, [])


def test_subjects_are_told_before_any_scan_is_read(tmp_path, caplog):
    (tmp_path / "raw").mkdir()
    for number, patient in enumerate(["p1", "p1", "p2"]):
        write_full(tmp_path / "raw" / f"f{number}.h5", slices=1, seed=number, patient_id=patient)
    message = message_of(lambda: source(tmp_path / "raw", tmp_path, patterns={"test": ["f1*"]}))
    assert message.startswith("'f0.h5' in train and 'f1.h5' in test are of one subject") and not warnings(caplog)
    stated = source(tmp_path / "raw", tmp_path, patterns={"test": ["f1*"]}, subject="path")
    patterns = {"test": ["f2*"]}
    by_id, by_path = (source(tmp_path / "raw", tmp_path, patterns=patterns, subject=s) for s in ("id", "path"))
    assert by_id.identity() != by_path.identity() and not warnings(caplog) and stated.names == by_id.names
    for number in range(3):
        with h5py.File(tmp_path / "raw" / f"f{number}.h5", "r+") as file:
            file.attrs["patient_id"] = "ANONYMOUS"
    made = source(tmp_path / "raw", tmp_path)
    (record,) = warnings(caplog)
    assert record.getMessage().startswith("3 files, 'f0.h5' first, have no patient id that tells subjects apart: each")
    manifest, _ = prepare_store(tmp_path / "store", made)
    assert sorted(v["split"] for v in manifest["volumes"].values()) == ["test", "train", "validation"]
    assert [v["subject"] for v in manifest["volumes"].values()] == [*manifest["volumes"]]
    assert manifest["notes"][-1].endswith("two scans of one person may be in two splits")


def test_a_split_without_a_usable_file_is_an_error(tmp_path):
    (tmp_path / "raw").mkdir()
    write_full(tmp_path / "raw" / "good.h5", slices=1)
    (tmp_path / "raw" / "text.h5").write_text("no data")
    alone = message_of(prepare_store, tmp_path / "store", source(tmp_path / "raw", tmp_path))
    assert alone.startswith("'good.h5' is of the only subject") and "left out the first, text.h5: " in alone
    made = source(tmp_path / "raw", tmp_path, patterns={"test": ["t*"]})
    assert message_of(prepare_store, tmp_path / "store", made).startswith("no file of the test split can be used; the")
    assert not (tmp_path / "store").exists()


def test_unused_files_are_in_the_manifest(tmp_path):
    for name in ("train", "val", "test"):
        (tmp_path / "raw" / name).mkdir(parents=True)
        write_full(tmp_path / "raw" / name / "a.h5", slices=1, seed=len(name), patient_id=name)
    patterns = {"train": ["train/*"], "test": ["val/*"]}
    manifest, _ = prepare_store(tmp_path / "store", source(tmp_path / "raw", tmp_path, patterns=patterns))
    assert manifest["unused"] == ["test/a.h5"] and manifest["counts"] == {"train": 1, "test": 1}


def test_names_that_are_no_utf8_are_left_out(tmp_path):
    (tmp_path / "é.npy").touch()
    for name in (b"caf\xe9.npy", b"caf\xc3\xa9.npy"):
        (tmp_path / os.fsdecode(name)).touch()
    names, problems = scan_files.choose(tmp_path, None)
    assert names == ["café.npy", "é.npy"] and problems == {r"caf\xe9.npy": "its name is not UTF-8; rename it"}
    for name in names:
        (tmp_path / name).unlink()
    assert r"rename them; the first is caf\xe9.npy" in message_of(scan_files.choose, tmp_path, None)


def test_rows_of_a_table_that_name_no_file_are_told(tmp_path, caplog):
    for name in ("a.npy", "b.npy", "c.npy"):
        (tmp_path / name).touch()
    (tmp_path / "t.csv").write_text("FILE,DROP,SLICE_START,SLICE_END\na,0,,\nb,1,,\nd.npy,0,,\ne,1,,\n")
    assert scan_files.choose(tmp_path, scan_files.read_table(tmp_path / "t.csv")) == (["a.npy"], {})
    (record,) = warnings(caplog)
    assert record.getMessage().startswith("2 of the table's 4 rows name no file, the first is 'd.npy': FILE has names")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("FILE,DROP\n", "has no column SLICE_END, SLICE_START"),
        ("FILE,DROP,SLICE_START,SLICE_END\na,,,\n", "line 2: FILE 'a' must be new and DROP '' 0 or 1"),
        ("FILE,DROP,SLICE_START,SLICE_END\na,0,,\na,0,,\n", "line 3"),
        ("FILE,DROP,SLICE_START,SLICE_END\na,0,x,\n", "a slice is no number"),
    ],
)
def test_table_mistakes(tmp_path, text, expected):
    (tmp_path / "table.csv").write_text(text)
    assert expected in message_of(scan_files.read_table, tmp_path / "table.csv")


def test_a_folder_of_prepared_scans_that_is_a_link_is_refused(tmp_path):
    """Scans would be written where it leads."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.npy").touch()
    (tmp_path / "elsewhere").mkdir()
    partial = tmp_path / "partial"
    partial.symlink_to(tmp_path / "elsewhere")
    arguments = (tmp_path / "raw", Options(size=16, acs_lines=8), read_raw, partial, {"test": ["*"]})
    assert "is a link, and a run writes through none" in message_of(RawScans, *arguments)
