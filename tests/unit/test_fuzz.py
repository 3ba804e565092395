"""Damaged and forged files: no traceback, no hang, no memory that such a file chose, nothing that steers a terminal.

A share of them; `python -m unit.fuzz 100000` in this folder reads as many as one likes.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from unit import fuzz


@pytest.mark.parametrize("first", range(0, 10_000, 500))
def test_files_by_number(first: int, tmp_path: Path) -> None:
    counts = fuzz.check(range(first, first + 500), tmp_path)
    # What is refused at once tries little.
    assert counts["reported"] > 100


def test_the_same_number_is_the_same_file() -> None:
    assert fuzz.file(4711) == fuzz.file(4711) != fuzz.file(4712)
