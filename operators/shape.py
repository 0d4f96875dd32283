"""Rows and columns of an image: a setting that is one whole number for squares, else the pair (rows, columns)."""

from collections.abc import Sequence
from typing import Any

from msm.infra.errors import UserError

Size = int | Sequence[int]


def rows_and_columns(size: Size) -> tuple[int, int]:
    """(H,W) of 64 or of (230, 180)."""
    if isinstance(size, Sequence):
        rows, columns = size
        return int(rows), int(columns)
    return int(size), int(size)


def image_size(config: Any) -> tuple[int, int]:
    """(H,W), the rows and columns of the images of a config, `config.data.image_size`."""
    return rows_and_columns(config.data.image_size)


def as_setting(size: Size) -> int | tuple[int, int]:
    """A size as a config has it: one number where rows and columns are equal."""
    rows, columns = rows_and_columns(size)
    return rows if rows == columns else (rows, columns)


def as_stored(size: Size) -> int | list[int]:
    """A size as a manifest has it: one number where rows and columns are equal, else both."""
    size = as_setting(size)
    return size if isinstance(size, int) else list(size)


def told(size: Size) -> str:
    """A size as a flag takes it: '64' or '230x180'."""
    rows, columns = rows_and_columns(size)
    return str(rows) if rows == columns else f"{rows}x{columns}"


def parse_size(text: str, flag: str = "--size") -> int | tuple[int, int]:
    """A size from a flag: '64', '230x180' or '230,180'; UserError for anything else."""
    parts = text.lower().replace(",", "x").split("x")
    if len(parts) > 2 or not all(part.strip().isdecimal() for part in parts):
        raise UserError(f"{flag} is {text!r}: give one number for squares, or rows x columns as in 230x180")
    return as_setting([int(part) for part in (parts * 2)[:2]])
