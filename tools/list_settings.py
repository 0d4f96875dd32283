"""Writes docs/reference/settings.md from the declarations of the settings; a test holds the page to them.

python tools/list_settings.py
"""

from pathlib import Path

from msm.configs.rules.described import page
from msm.infra import command_line
from msm.infra.atomic import atomic_write_text

PAGE = Path(__file__).resolve().parents[1] / "docs/reference/settings.md"


def main(_: list[str]) -> None:
    atomic_write_text(PAGE, page())


if __name__ == "__main__":
    command_line.start(main)
