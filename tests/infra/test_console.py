"""A console that goes away ends nothing, and the log of the run goes on in its file."""

import os
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT

PROGRAM = """
import logging, sys
from msm.infra import console, writers
from msm.infra.progress import Progress
console.outlive()
writers.setup_logging(sys.argv[1], "train")
with Progress(200, 0, "train", bar=True) as progress:
    for step in range(1, 201):
        logging.info("line %d", step)
        print("printed", step, flush=True)
        progress.update(step)
print("x" * 100_000)
"""


def start(tmp_path, **pipes) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=ROOT, **pipes)


@pytest.mark.parametrize("read", ["nothing", "a line"])
def test_a_run_goes_on_without_its_console(tmp_path, read):
    """As `2>&1 | head -1` does, and a reader that is killed before the first line."""
    process = start(tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    if read == "a line":
        assert process.stdout.readline()
    process.stdout.close()
    assert process.wait(120) == 0
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert [line.split(" ", 3)[-1] for line in lines] == [f"line {step}" for step in range(1, 201)]


def test_a_console_that_lasts_gets_every_line(tmp_path):
    process = start(tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and out.count("printed") == 200 and out.rstrip().endswith("x" * 100_000)
    assert all(f"line {step}\n" in err for step in (1, 100, 200))


def test_a_name_that_the_console_cannot_show_is_shown_escaped():
    program = "from msm.infra import console; console.outlive(); print('caf\\u00e9 \\udce9')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, check=True)
    assert done.stdout == b"caf\\xe9 \\udce9\n"


def test_flags_that_are_wrong_end_with_status_2_without_a_console():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "tools/prepare_mri.py", "--nosuchflag"]
    assert subprocess.run(command, cwd=ROOT, stdout=write, stderr=write, check=False).returncode == 2
    os.close(write)
