"""tools/prepare_mri.py killed by SIGKILL: the same command goes on, and its store is that of one go, byte for byte."""

from pathlib import Path

import pytest

from tests.builders.test_prepare_mri import write_full
from tests.helpers.checks import hashes
from tests.helpers.processes import Process

pytestmark = pytest.mark.slow

FILES = 6


class Preparation:
    """One command of the tool, whose store and prepared scans lie in `folder`."""

    def __init__(self, raw: Path, folder: Path):
        self.folder, self.store, self.scans = folder, folder / "store", folder / ".store.scans"
        self.arguments = [f"--in={raw}", f"--out={self.store}", "--size=16", "--maps=lowres", "--acs_lines=6"]
        self.arguments += ["--workers=1", "--keep_full"]

    def start(self, name: str) -> Process:
        return Process("tools/prepare_mri.py", self.arguments, self.folder / "printed" / name)

    def prepared(self) -> dict[str, int]:
        """Scans that wait beside the store: when each was written."""
        return {path.name: path.stat().st_mtime_ns for path in self.scans.glob("*.npz")}


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("raw_to_kill")
    for number in range(FILES):
        write_full(folder / f"scan{number}.h5", seed=number)
    return folder


@pytest.fixture(scope="module")
def expected(raw, tmp_path_factory) -> dict[str, str]:
    straight = Preparation(raw, tmp_path_factory.mktemp("straight"))
    straight.start("once").finish()
    return hashes(straight.store)


def test_killed_between_scans_and_while_the_store_is_written(raw, expected, tmp_path):
    made = Preparation(raw, tmp_path)
    first = made.start("first")
    first.until(lambda: len(made.prepared()) >= 2)
    first.kill()
    before = made.prepared()
    assert 2 <= len(before) <= FILES and not made.store.exists()

    second = made.start("second")
    second.until(lambda: [*made.folder.glob(".store.tmp-*/store/acquisitions")])
    second.kill()
    assert len(made.prepared()) == FILES and not made.store.exists()
    assert before.items() <= made.prepared().items()  # none was prepared again

    assert len([*made.folder.glob(".store.tmp-*")]) == 1

    made.start("third").finish()
    assert hashes(made.store) == expected
    assert not made.scans.exists() and not [*made.folder.glob(".store.tmp-*")]
    assert "already complete" not in (tmp_path / "printed" / "third" / "stdout").read_text()
