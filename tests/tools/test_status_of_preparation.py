"""One bad file, and one whose name is not UTF-8, in each tool that prepares data: status 3, both named, others used."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.builders.test_damaged_files import kspace, write_nii
from tests.helpers.paths import ROOT
from tests.helpers.pictures import write_pictures

BAD = {"mri": b"\x93NUMPY\x01\x00v\x00{'descr': '<c8', ", "images": b"\x89PNG\r\n\x1a\n", "ct": b"no volume"}


def fill(kind: str, folder: Path) -> tuple[str, list[str]]:
    """Writes good files; returns their suffix and the flags of the tool."""
    folder.mkdir()
    if kind == "images":
        write_pictures(folder)
        return ".png", ["--folder", str(folder), "--size", "16"]
    if kind == "ct":
        for added, name in enumerate(("one", "two", "three")):
            write_nii(folder / f"{name}.nii", added)
        return ".nii", ["--folder", str(folder), "--size", "16"]
    centred = np.exp(-((np.arange(16) - 8) ** 2) / 8)
    for number in range(2):
        np.save(folder / f"good{number}.npy", kspace() * (centred * centred[:, None] * (1 + number)).astype(np.float32))
    return ".npy", ["--in", str(folder), "--axes", "schw", "--size", "16", "--acs_lines", "8"]


@pytest.mark.parametrize("kind", ["mri", "images", "ct"])
def test_a_bad_file_is_told_and_the_rest_is_done(tmp_path, kind):
    suffix, flags = fill(kind, tmp_path / "files")
    (tmp_path / "files" / f"bad{suffix}").write_bytes(BAD[kind])
    (tmp_path / "files" / "notes.txt").write_text("x")
    (tmp_path / "files" / os.fsdecode(b"caf\xe9" + suffix.encode())).write_bytes(BAD[kind])
    command = [sys.executable, f"tools/prepare_{kind}.py", *flags, "--out", str(tmp_path / "store")]
    for again in (False, True):  # a complete store tells it again
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 3, done.stdout + done.stderr
        assert f"  bad{suffix}: " in done.stdout and f"  caf\\xe9{suffix}: its name is not UTF-8" in done.stdout
        assert ("already complete" in done.stdout) == again
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    assert {f"bad{suffix}", f"caf\\xe9{suffix}"} <= set(manifest["left_out"]) and "notes.txt" in manifest["ignored"]
    assert sum(manifest["counts"].values()) >= 2
