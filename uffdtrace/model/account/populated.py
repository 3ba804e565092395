"""Pages that were there when MISSING alone was registered over them: they never send a message."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field

from uffdtrace.model.records.events import HIGHEST, Array


@dataclass
class Late:
    """A registration over populated memory of bytes [start, end): `populated` pages, at least."""

    ctx: int
    start: int
    end: int
    populated: int
    page_size: int
    # There may be more: swapped out, or behind the part of the page table that was read.
    more: bool
    # MISSING had been registered there before, and was withdrawn meanwhile: a tracker's reset.
    again: bool
    # The range, once REGISTER has succeeded, and the time (ns) of that call.
    range_number: int = -1
    time: int = 0
    # What was not dropped since, as bytes [start, end).
    kept: list[tuple[int, int]] = field(default_factory=list)

    @property
    def pages(self) -> int:
        """Those that were there, less what was dropped, each of which may have been one of them."""
        kept = sum(end - start for start, end in self.kept)
        return max(0, self.populated - (self.end - self.start - kept) // self.page_size)

    @property
    def at_least(self) -> bool:
        return self.more or self.pages < self.populated

    def drop(self, start: int, end: int) -> None:
        parts = [part for low, high in self.kept for part in ((low, min(high, start)), (max(low, end), high))]
        self.kept = [(low, high) for low, high in parts if low < high]


@dataclass
class Populated:
    """What PRESENT events tell, each of the REGISTER that its thread calls next."""

    page_size: int
    late: list[Late] = field(default_factory=list)
    _asked: dict[int, Late] = field(default_factory=dict)
    # By address space: where MISSING was ever registered, as disjoint intervals in their order.
    _registered: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    def present(self, event: Array, mm: int, standing: bool) -> None:
        """PRESENT: `standing` where something is registered there: its pages may have sent messages, or will."""
        start, end = int(event["start"]), int(event["end"])
        self._asked.pop(int(event["tid"]), None)
        pages = min(int(event["value"]), (end - start) // self.page_size)
        if pages > 0 and not standing:
            again = self._was_registered(mm, start, end)
            kept = [(start, end)]
            late = Late(int(event["ctx"]), start, end, pages, self.page_size, bool(event["kind"]), again, kept=kept)
            self._asked[int(event["tid"])] = late

    def registered(self, event: Array) -> Late | None:
        """What was there of a REGISTER that succeeded, if anything; its range is still to be entered."""
        late = self._asked.pop(int(event["tid"]), None)
        # The call after may be another one, where this one's record was dropped.
        if late is None or late.ctx != event["ctx"] or late.start != event["start"] or late.end != event["end"]:
            return None
        late.time = int(event["time"])
        self.late.append(late)
        return late

    def remember(self, mm: int, start: int, end: int) -> None:
        intervals = self._registered.setdefault(mm, [])
        # Disjoint and in order: whatever begins before the last that begins before us ends before it.
        first = bisect_left(intervals, (start, 0))
        first -= bool(first) and intervals[first - 1][1] >= start
        last = bisect_right(intervals, (end, HIGHEST))
        if first < last:
            start, end = min(start, intervals[first][0]), max(end, intervals[last - 1][1])
        intervals[first:last] = [(start, end)]

    def gone(self, mm: int) -> None:
        """The address space is gone; its address will be another's."""
        self._registered.pop(mm, None)

    def _was_registered(self, mm: int, start: int, end: int) -> bool:
        intervals = self._registered.get(mm, [])
        place = bisect_left(intervals, (end, 0)) - 1
        return place >= 0 and intervals[place][1] > start
