"""Shared memory that is also mapped where nothing watches it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from uffdtrace.intervals import Intervals
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


class Others:
    """What all looks found, for what is asked of one range after the other."""

    def __init__(self, looks: Iterable[Look]) -> None:
        by_owner: dict[int, list[Elsewhere]] = {}
        for look in looks:
            for other in look.elsewhere:
                by_owner.setdefault(other.owner, []).append(other)
        self._by_owner = {
            owner: Intervals((other.of_start, other.of_end, other) for other in others)
            for owner, others in by_owner.items()
        }

    def of_range(self, row: Range, uffd: Userfaultfd) -> list[Elsewhere]:
        """Each other mapping of a range's memory once, as it was seen last."""
        if not concerns(row) or uffd.owner not in self._by_owner:
            return []
        seen: dict[tuple[int, int, int], Elsewhere] = {}
        ends = [time for time in (uffd.gone, row.withdrawn) if time is not None]
        found = [other for _, _, other in self._by_owner[uffd.owner].overlapping(row.start, row.end)]
        for other in sorted(found, key=lambda one: one.time):
            # An address may be another range's before and after.
            if row.born <= other.time and all(other.time <= end for end in ends):
                seen[other.pid, other.start, other.end] = other
        return list(seen.values())


def pages(row: Range, others: Sequence[Elsewhere]) -> int:
    """Pages of a range that are mapped elsewhere, however often."""
    covered, last = 0, row.start
    for start, end in sorted((max(other.of_start, row.start), min(other.of_end, row.end)) for other in others):
        covered += max(0, end - max(start, last))
        last = max(last, end)
    return covered // row.page_size
