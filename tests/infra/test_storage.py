"""Workdirs and stores in object storage: what a start fetches, what goes up when, kills, locks, errors.

The store is fsspec's own in memory; `tests/e2e/test_bucket.py` has one on the loopback address.
"""

import json
import os
import sqlite3
from pathlib import Path

import fsspec
import pytest

from msm.infra import at_hand, mirror, storage
from msm.infra.errors import UserError
from msm.infra.mirror import Lease, Mirror, Remote
from tests.helpers.checks import message_of

URL = "memory://bucket/run"


@pytest.fixture(autouse=True)
def memory():
    """An empty store."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


def write(folder, **contents: str) -> None:
    for name, text in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def checkpoint(step: int, tier: str = "checkpoints-meta", sealed: bool = True) -> dict[str, str]:
    files = {f"{tier}/{step}/state/values": f"state {step}", f"{tier}/{step}/meta/metadata": str(step)}
    return {**files, **({f"{tier}/{step}/meta/checksums.json": "{}"} if sealed else {})}


def names() -> set[str]:
    return set(storage.Bucket(URL).names())


def fetched(tmp_path) -> dict[str, str]:
    """What another machine has after a fetch."""
    folder = tmp_path / "other"
    Mirror(storage.Bucket(URL), folder).fetch()
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_all_that_a_run_writes_comes_back(tmp_path):
    here = tmp_path / "here"
    files = {"metrics.jsonl": '{"step": 1}\n', "tensorboard/events.1": "e", "eval/rounds/round_0000.npz": "r"}
    write(here, **files, **checkpoint(5))
    write(
        here,
        **{".lock-train": "7", "eval/.report.html.tmp-3": "half", "checkpoints/6.orbax-checkpoint-tmp-1/a": "half"},
    )
    Mirror(storage.Bucket(URL), here).push()
    assert fetched(tmp_path) == {**files, **checkpoint(5)}


def test_only_what_has_changed_goes_up_and_what_is_gone_goes(tmp_path, monkeypatch):
    here = tmp_path / "here"
    write(here, a="1", b="1")
    copies = Mirror(storage.Bucket(URL), here)
    copies.push()
    sent = []
    put = storage.Bucket.put
    monkeypatch.setattr(storage.Bucket, "put", lambda self, path, name: (sent.append(name), put(self, path, name)))
    write(here, a="2")
    (here / "b").unlink()
    copies.push()
    copies.push()
    assert sent == ["a"] and names() == {"a"}


def test_a_start_fetches_the_newest_checkpoints_and_leaves_the_others_alone(tmp_path):
    here = tmp_path / "here"
    for step in (100, 200, 300):
        write(here, **checkpoint(step, "checkpoints"))
    Mirror(storage.Bucket(URL), here).push()
    again = tmp_path / "again"
    copies = Mirror(storage.Bucket(URL), again)
    copies.fetch()
    assert sorted(path.name for path in (again / "checkpoints").iterdir()) == ["200", "300"]
    copies.push()
    assert "checkpoints/100/state/values" in names()


@pytest.mark.parametrize("kill", range(1, 9))
def test_an_upload_cut_at_any_object_leaves_a_run_that_resumes(tmp_path, monkeypatch, kill):
    """Checkpoint 10 takes the place of 5; whichever object is the last to arrive, one of them is whole."""
    here = tmp_path / "here"
    record = "checkpoints.json"
    write(here, **checkpoint(5), **{"metrics.jsonl": "5", record: "5"})
    copies = Mirror(storage.Bucket(URL), here)
    copies.push()
    for name in checkpoint(5):
        (here / name).unlink()
    write(here, **checkpoint(10), **{"metrics.jsonl": "10", record: "10"})
    count = []

    def cut(method):
        def done(self, *arguments):
            count.append(1)
            if len(count) == kill:
                raise KeyboardInterrupt
            return method(self, *arguments)

        return done

    for name in ("put", "delete"):
        monkeypatch.setattr(storage.Bucket, name, cut(getattr(storage.Bucket, name)))
    with pytest.raises(KeyboardInterrupt):
        copies.push()
    found = fetched(tmp_path)
    whole = [step for step in (5, 10) if checkpoint(step).items() <= found.items()]
    assert whole and int(found["metrics.jsonl"]) >= whole[-1] and int(found[record]) in whole
    monkeypatch.undo()
    Mirror(storage.Bucket(URL), here).push()
    assert checkpoint(10).items() <= fetched(tmp_path / "again").items()


def test_a_database_in_use_goes_up_whole(tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    open_ = sqlite3.connect(here / "study.db")
    open_.execute("create table trials (number)")
    open_.execute("insert into trials values (7)")
    open_.commit()
    open_.execute("insert into trials values (8)")  # under way
    Mirror(storage.Bucket(URL), here).push()
    open_.close()
    copy = tmp_path / "copy.db"
    storage.Bucket(URL).get("study.db", copy)
    read = sqlite3.connect(copy)
    assert read.execute("select number from trials").fetchall() == [(7,)]
    read.close()


class Time:
    """A clock that only sleeping moves; `during` is called while somebody sleeps."""

    def __init__(self, during=lambda: None):
        self.now, self.during = 1000.0, during

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.during()


def test_a_live_owner_is_told_by_name(monkeypatch):
    monkeypatch.setattr(mirror, "_is_dead", lambda content: False)  # the test is both processes
    time = Time()
    owner = Lease(storage.Bucket(URL), "train", time, time.sleep)
    owner.take()
    time.during = owner.check
    message = message_of(Lease(storage.Bucket(URL), "train", time, time.sleep).take)
    assert f"another process (pid {os.getpid()} on " in message and "runs --mode train in this workdir; wait" in message
    Lease(storage.Bucket(URL), "eval", time, time.sleep).take()  # another mode may


def test_a_dead_owner_is_waited_for_and_told_if_it_comes_back(memory):
    time = Time()
    owner = Lease(storage.Bucket(URL), "train", time, time.sleep)
    owner.take()
    content = json.loads(memory.cat("/bucket/run/.lock-train")) | {"host": "elsewhere"}
    memory.pipe("/bucket/run/.lock-train", json.dumps(content).encode())
    heir = Lease(storage.Bucket(URL), "train", time, time.sleep)
    heir.take()
    assert mirror.LEASE_S <= time.now - 1000 <= mirror.LEASE_S + 10
    heir.check()
    assert "has taken this workdir over; this one ends" in message_of(owner.check)


def test_an_owner_of_this_machine_that_is_gone_is_not_waited_for(memory):
    time = Time()
    Lease(storage.Bucket(URL), "train", time, time.sleep).take()
    content = json.loads(memory.cat("/bucket/run/.lock-train")) | {"pid": 2**22 + 5}
    memory.pipe("/bucket/run/.lock-train", json.dumps(content).encode())
    Lease(storage.Bucket(URL), "train", time, time.sleep).take()
    assert time.now - 1000 < 5


def test_a_run_works_in_a_folder_and_leaves_everything_in_the_store(tmp_path, monkeypatch):
    monkeypatch.setattr(at_hand.tempfile, "gettempdir", lambda: str(tmp_path))
    for text in ("one", "two"):
        with pytest.raises(ZeroDivisionError), at_hand.workdir(URL, "train") as folder:
            (tmp_path / "seen").write_text(folder)
            with open(os.path.join(folder, "metrics.jsonl"), "a") as file:
                file.write(text + "\n")
            raise ZeroDivisionError  # whatever ends it
    assert fetched(tmp_path) == {"metrics.jsonl": "one\ntwo\n"}
    assert not os.path.exists((tmp_path / "seen").read_text()) and ".lock-train" not in names()


def test_files_go_up_while_the_run_works(tmp_path, monkeypatch):
    monkeypatch.setattr(mirror, "PERIOD_S", 0.02)
    remote = Remote(URL, "train", tmp_path / "work")
    write(remote.folder, a="1")
    import time

    limit = time.monotonic() + 20
    while "a" not in names():
        assert time.monotonic() < limit
        time.sleep(0.02)
    remote.close()


def test_a_local_folder_is_itself():
    with at_hand.workdir("some/folder", "train") as folder:
        assert folder == "some/folder"
    assert at_hand.store("store/brain64", "") == "store/brain64"


def test_a_store_is_copied_once(tmp_path, memory, monkeypatch):
    memory.pipe("/bucket/run/manifest.json", b"{}")
    memory.pipe("/bucket/run/acquisitions/a", b"123")
    folder = at_hand.store(URL, str(tmp_path))
    monkeypatch.setattr(storage.Bucket, "get", lambda *_: pytest.fail("copied again"))
    assert at_hand.store(URL, str(tmp_path)) == folder
    assert (Path(folder) / "acquisitions" / "a").read_text() == "123"


@pytest.mark.parametrize("error", [PermissionError("Forbidden: no right"), OSError("Not Found: no such bucket")])
def test_a_store_that_refuses_is_told_in_one_line(tmp_path, monkeypatch, error):
    write(tmp_path, a="1")

    def refuse(*_, **__):
        raise error

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.put_file", refuse)
    message = message_of(Mirror(storage.Bucket(URL), tmp_path).push)
    assert message.startswith(
        f"cannot write {URL} ({type(error).__name__}: {error}): see that the bucket exists, that "
    )


def test_an_unknown_scheme_names_those_that_are_known():
    message = message_of(storage.Bucket, "gcloud://bucket/run")
    assert "gcloud:// is no storage that is known (gs://, gcs://, s3://, abfs://), or a folder" in message
    assert isinstance(UserError(message), ValueError)
