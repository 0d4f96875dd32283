"""What tools/reconstruct.py says of mistakes names its own flags, not the settings behind them."""

import subprocess
import sys

import h5py
import numpy as np
import pytest

from tests.helpers.paths import ROOT


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    path = tmp_path_factory.mktemp("raw") / "mine.h5"
    with h5py.File(path, "w") as file:
        file["kspace"] = np.ones((1, 2, 16, 16), np.complex64)
    return path


@pytest.mark.parametrize(
    "given, expected",
    [
        ("", "state their axes, e.g. --axes schw (slice, coil, row, column; in Python array={'axes': 'schw'})"),
        ("--axes=schw --solvers=mms", "--solvers"),
        ("--axes=schw --coils=-1", "--coils is -1; it must be at least 0 (all)"),
    ],
)
def test_flags_are_named(given, expected, raw, tmp_path):
    command = [sys.executable, "tools/reconstruct.py", f"--raw={raw}", "--checkpoint=pretrained/brain64_msm"]
    command += [f"--out={tmp_path / 'out'}", *given.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stdout == ""
    assert expected in done.stderr and "eval." not in done.stderr
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_settings_are_said_in_the_tools_words():
    """In a process of its own: tools define flags of the same names."""
    said = "eval.batch_size is 4: it must be a multiple of the 8 devices; set --config.eval.num_samples=2"
    code = f"from msm.tools.reconstruct import in_own_words; print(in_own_words({said!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    expected = "--batch_size is 4: it must be a multiple of the 8 devices; set --samples=2"
    assert done.stdout.strip() == expected, done.stderr
