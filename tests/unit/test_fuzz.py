"""Damaged and forged files: no traceback, no hang, no memory that such a file chose, nothing that steers a terminal.

`python -m unit.fuzz NUMBER` in this folder reads as many as one likes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from unit import fuzz


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory, where there is such a place: to write a file on a disk takes longer than to read it."""
    if not Path("/dev/shm").is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as made:
        yield Path(made)


@pytest.mark.parametrize("first", range(0, 100_000, 1000))
def test_files_by_number(first: int, folder: Path) -> None:
    counts = fuzz.check(range(first, first + 1000), folder)
    # What is refused at once tries little.
    assert counts["reported"] > 200


def test_the_same_number_is_the_same_file() -> None:
    assert fuzz.file(4711) == fuzz.file(4711) != fuzz.file(4712)
