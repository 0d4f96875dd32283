"""A study's file is the one that its path names, whatever signs that has; an empty or strange one is told."""

import sqlite3

import pytest

from msm.infra import study_file
from msm.modes.study import Study
from msm.solvers.registry import Range
from tests.helpers.checks import message_of

SEARCH = {"gain": Range(0.1, 10.0)}


def open_study(path):
    return Study(path, "s", SEARCH, {"gain": 1.0}, 0, True)


def test_signs_in_a_path_are_part_of_it(tmp_path):
    names = ["a?one", "a?two", "a#b", "50%25", "a%3Fb", "a b", "a?mode=memory&cache=shared", ":memory:", "file:x", "é"]
    for number, name in enumerate(names):
        with open_study(tmp_path / name / "study.db") as trials:
            assert trials.trials == []
            trials.record({"gain": 1.0}, float(number))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    for number, name in enumerate(names):
        assert [path.name for path in (tmp_path / name).iterdir()] == ["study.db"]
        with open_study(tmp_path / name / "study.db") as trials:
            assert [trial.value for trial in trials.trials] == [number]


def test_a_study_is_whole_when_it_gets_its_name(tmp_path, monkeypatch):
    seen = []
    replace = study_file.os.replace

    def watch(source, target):
        study_file.check(source)
        seen.append(target)
        assert not target.exists()
        replace(source, target)

    monkeypatch.setattr(study_file.os, "replace", watch)
    with open_study(tmp_path / "study.db"):
        assert seen == [tmp_path / "study.db"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", "is empty: what was in it is lost"), (b"no database" * 100, "is damaged"), (None, "holds no study")],
)
def test_a_file_that_is_no_study_is_told_and_kept(tmp_path, content, expected):
    path = tmp_path / "study.db"
    if content is None:
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE letters (text)")
        connection.commit()
        connection.close()
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    assert expected in message_of(open_study, path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("seed", range(2))
def test_changed_bytes_are_told_or_harmless(tmp_path, seed):
    import numpy as np

    path, random = tmp_path / "study.db", np.random.default_rng(seed)
    with open_study(path) as trials:
        trials.record({"gain": 1.0}, 2.0)
    whole = path.read_bytes()
    for size in (100, 5000, len(whole) // 2):
        path.write_bytes(whole[:size])
        assert "is damaged" in message_of(open_study, path)
    for _ in range(15):
        data = bytearray(whole)
        for place in random.integers(0, 100, 2):
            data[place] = random.integers(256)
        path.write_bytes(data)
        try:
            open_study(path).__exit__()
        except ValueError as error:
            assert str(path) in str(error)


def test_a_link_is_refused(tmp_path):
    (tmp_path / "study.db").symlink_to(tmp_path / "elsewhere.db")
    assert "is a link" in message_of(open_study, tmp_path / "study.db")
    assert not (tmp_path / "elsewhere.db").exists()
