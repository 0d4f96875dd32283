"""Checks that several test files share."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from msm.infra.errors import UserError


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by relative path."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def message_of(call: Callable, *args) -> str:
    """The one line of the UserError that a call raises."""
    with pytest.raises(UserError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)
