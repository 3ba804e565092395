"""Shared memory that is also mapped where nothing watches it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from uffdtrace.model.account.ranges import Range
from uffdtrace.model.account.watched import Userfaultfd
from uffdtrace.model.records.events import Memory, Mode


@dataclass(frozen=True)
class Elsewhere:
    """At `time` (ns) bytes [start, end) of `pid` mapped what registered bytes [of_start, of_end) of `owner` did."""

    time: int
    owner: int
    of_start: int
    of_end: int
    pid: int
    comm: str
    start: int
    end: int


@dataclass(frozen=True)
class Look:
    """What a pass over all processes found, and how many of them it could not look at."""

    unreadable: int
    elsewhere: tuple[Elsewhere, ...]


def concerns(row: Range) -> bool:
    """Whether a write through another mapping defeats what a range is registered for.

    With MINOR that is how its pages are filled; anonymous memory has no other mapping.
    """
    return bool(row.modes & Mode.WP or (row.modes & Mode.MISSING and not row.modes & Mode.MINOR)) and (
        row.memory != Memory.ANON
    )


def of_range(row: Range, uffd: Userfaultfd, looks: Sequence[Look]) -> list[Elsewhere]:
    """Each other mapping of a range's memory once, as it was seen last."""
    if not concerns(row):
        return []
    seen: dict[tuple[int, int, int], Elsewhere] = {}
    ends = [time for time in (uffd.gone, row.withdrawn) if time is not None]
    for look in looks:
        for other in look.elsewhere:
            # An address may be another range's before and after.
            there = row.born <= other.time and all(other.time <= end for end in ends)
            if other.owner == uffd.owner and there and other.of_start < row.end and row.start < other.of_end:
                seen[other.pid, other.start, other.end] = other
    return list(seen.values())


def pages(row: Range, others: Sequence[Elsewhere]) -> int:
    """Pages of a range that are mapped elsewhere, however often."""
    covered, last = 0, row.start
    for start, end in sorted((max(other.of_start, row.start), min(other.of_end, row.end)) for other in others):
        covered += max(0, end - max(start, last))
        last = max(last, end)
    return covered // row.page_size
