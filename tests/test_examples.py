"""The notebooks of examples/: stored without output, and every cell runs, offline, in a folder of its own."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def code_of(path: Path) -> str:
    """The cells of a notebook as one program."""
    cells = json.loads(path.read_text())["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def test_there_is_a_notebook_for_each_question_and_the_readme_lists_them():
    listed = (ROOT / "examples/README.md").read_text()
    assert len(NOTEBOOKS) >= 5
    assert [path.name for path in NOTEBOOKS if f"]({path.name})" not in listed] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_without_output(path):
    notebook = json.loads(path.read_text())
    assert notebook["nbformat"] == 4 and notebook["cells"][0]["cell_type"] == "markdown"
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            compile("".join(cell["source"]), path.name, "exec")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path):
    """As a user runs it: from examples/ of a checkout whose stores and workdirs are its own, without a network."""
    for entry in ROOT.iterdir():
        if entry.name not in {"store", "workdir", "examples", ".venv", ".venv-docs", ".git", "build"}:
            (tmp_path / entry.name).symlink_to(entry)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "examples" / "cells.py").write_text(code_of(path))
    environment = {**os.environ, "MPLBACKEND": "agg", "JAX_PLATFORMS": "cpu", "http_proxy": "http://127.0.0.1:9"}
    environment |= {"https_proxy": "http://127.0.0.1:9"}
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "cells.py"], cwd=tmp_path / "examples", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    print(f"{path.name}: {time.monotonic() - begin:.0f} s")
