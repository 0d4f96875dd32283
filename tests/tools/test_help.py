"""--help of the tools that make stores and images shows every flag of the tool, also those of shared modules."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("tool", "flags"),
    [
        ("prepare_images", ("--folder", "--size", "--drop", "--test_list", "--validation_count")),
        ("prepare_ct", ("--lungs", "--out", "--grid", "--seed")),
        ("reconstruct", ("--raw", "--size", "--pixel_mm", "--fov_mm", "--patient")),
    ],
)
def test_help_shows_all_flags_of_the_tool(tool, flags):
    command = [sys.executable, str(ROOT / "tools" / f"{tool}.py"), "--help"]
    told = subprocess.run(command, capture_output=True, text=True).stdout
    assert not [flag for flag in flags if flag not in told.replace("--[no]", "--")]
