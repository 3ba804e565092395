"""From events to ranges: the one account of a trace, live and offline."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from uffdtrace.model.account import facts, join, open_faults, tally
from uffdtrace.model.account.dropped import DISCARDS
from uffdtrace.model.account.facts import Fact
from uffdtrace.model.account.operations import Operations
from uffdtrace.model.account.overlap import Overlaps
from uffdtrace.model.account.pages import COUNTS, Cause, Op
from uffdtrace.model.account.ranges import ModelError, Range
from uffdtrace.model.account.sleep import TOTAL, Sleepers
from uffdtrace.model.account.states import exposed
from uffdtrace.model.account.structure import Structure
from uffdtrace.model.account.timeline import Timeline
from uffdtrace.model.account.waits import Waits
from uffdtrace.model.account.watched import Userfaultfd, Watched
from uffdtrace.model.account.work import EVIDENCE, Work
from uffdtrace.model.records.acts import Acts, placed
from uffdtrace.model.records.batch import Batch, as_batch
from uffdtrace.model.records.counting import by_value, different, ranked
from uffdtrace.model.records.events import (
    EVENT,
    MEMORY_ORDER_SHIFT,
    MODES_SHIFT,
    MOST_ORDER,
    Array,
    Feature,
    Ioctl,
    Kind,
    Memory,
    Mode,
    Type,
)

# As many events as are best fed at once: a batch takes a millisecond however small it is, and arrays of many more
# events find no room in a CPU's caches.
BATCH = 1 << 15
_MOST_EXPANDED = 1 << 22
_NO_HOLES = Feature.WP_UNPOPULATED | Feature.WP_ASYNC
_MOST_SPANS = 64
# Served faults whose waits are kept, 3 MiB of them, before ranges are given theirs.
_MOST_UNDIVIDED = 1 << 17
# Pages of a range, and ranges, that are looked at together.
_MOST_TOGETHER = 1024
_MODE_OF = {Kind.MISSING: Mode.MISSING, Kind.WP: Mode.WP, Kind.MINOR: Mode.MINOR}


class Model:
    """Feed it events in the order of the ring, finish, then read `rows()`."""

    def __init__(
        self,
        page_size: int,
        arch: str,
        timeline: Timeline | None = None,
        faults: Callable[[Array], None] | None = None,
    ) -> None:
        """`page_size` (bytes, one of PAGE_SIZES) and `arch` (as uname(1) has it) are the traced machine's.

        `timeline` is told what happens when, and `faults` is given each fault (sleep.FAULT), if somebody asks.
        """
        self.page_size = page_size
        self.watched = Watched(page_size)
        self._timeline = timeline
        self.ranges = self.watched.ranges
        self.lost_returns = 0
        self.unattributed_messages = 0
        # PAGEMAP_SCAN is among what is traced.
        self.sees_page_scans = True
        # Time (ns) of the last event.
        self.last = 0
        self._held = join.Held()
        self._sleepers = Sleepers(page_size, faults)
        self._overlaps = Overlaps()
        self._asleep: set[int] = set()
        # Of served faults the range's number, and how long they waited; not yet given to their ranges.
        self._undivided: list[tuple[Array, Array]] = []
        self._undivided_count = 0
        self._waits = Waits()
        self._operations = Operations(self.watched, arch)
        self.losses = self._operations.losses
        self._structure = Structure(self.watched, self._operations, self._sleepers, self._waits)
        self._looked_at: set[int] = set()

    def feed(self, events: Array | Batch) -> None:
        """Take the next batch."""
        if self._held.add(as_batch(events)):
            self._advance(final=False)

    def unread(self) -> dict[int, int]:
        """How many faults wait now of which no message was read, by number of the range; of ranges that were seen."""
        found: dict[int, int] = {}
        for number, count in self._sleepers.unread().items():
            if number >= 0:
                root = self.ranges.all[number].root().number
                found[root] = found.get(root, 0) + count
        return found

    def finish(self) -> None:
        """No more events: account for what was held back, and for who still sleeps."""
        self._advance(final=True)
        nothing = Batch(np.empty(0, dtype=EVENT))
        self._served(*self._sleepers.feed(nothing, np.empty(0, dtype=np.int64), final=True))
        self.divide_waits()
        open_faults.settle(self.watched, self._sleepers, self._asleep, self._looked_at)
        self._waits.finish(self.watched, self._asleep)
        self.watched.forget_monitors_forks()
        self.watched.registered_late()
        self.ranges.count_once()
        self._no_more_holes_than_known()
        for row in {id(row): row for row, piece in self.ranges.pieces() if self.ranges.lacks(piece)}.values():
            row.forget_pages()
        self._expose()
        if self._timeline is not None:
            self._finish(self._timeline)

    def _finish(self, timeline: Timeline) -> None:
        """What is known at the end only: which losses were none after all, and who still waits."""
        times, pages = self.losses.times()
        timeline.add("lost", times, pages)
        since = [fault.since for row in self.ranges.rows() for fault in row.waiting if fault.since is not None]
        timeline.add("began", np.array(since, dtype=np.int64))

    def _expose(self) -> None:
        """What stands unprotected at the end, by why."""
        pieces = [(row, piece) for row, piece in self.ranges.pieces() if not row.untracked]
        large = [(row, piece) for row, piece in pieces if piece.pages > _MOST_TOGETHER]
        for row, piece in large:
            counts = self.ranges.count(piece)
            causes = exposed(np.arange(len(counts)))
            row.exposed += np.bincount(causes, weights=counts, minlength=len(Cause)).astype(np.int64)
        # Small ones by the thousand, some at once.
        small = [(row, piece) for row, piece in pieces if piece.pages <= _MOST_TOGETHER]
        for first in range(0, len(small), _MOST_TOGETHER):
            some = small[first : first + _MOST_TOGETHER]
            sizes = np.array([piece.pages for _, piece in some])
            begins = np.array([piece.place for _, piece in some]) - (np.cumsum(sizes) - sizes)
            causes = exposed(self.ranges.pool.read(np.repeat(begins, sizes) + np.arange(int(sizes.sum()))))
            found = np.repeat(np.arange(len(some)) * len(Cause), sizes) + causes
            counts = np.bincount(found, minlength=len(some) * len(Cause)).reshape(-1, len(Cause))
            for (row, _), of_piece in zip(some, counts):
                row.exposed += of_piece
        for row, _ in pieces:
            row.exposed[Cause.NONE] = 0

    def _no_more_holes_than_known(self) -> None:
        """Losses of holes beyond those that the armings counted have another cause, which nobody saw."""
        for row in self.ranges.rows():
            if row.holes is None or row.before or row.unseen or row.carried:
                continue
            surplus = min(
                row.cause(Cause.UNPOPULATED),
                row.cause(Cause.UNPOPULATED) + row.cause(Cause.HUGE_PAGE_OVER_HOLE) - row.holes,
            )
            if surplus > 0:
                self.losses.rename(self.ranges.places(row), Cause.UNPOPULATED, Cause.UNEXPLAINED, surplus)
                row.changes[len(COUNTS) + Cause.UNPOPULATED] -= surplus
                row.changes[len(COUNTS) + Cause.UNEXPLAINED] += surplus

    def rows(self) -> list[Range]:
        """The ranges, by userfaultfd and address; earlier ones first."""
        return sorted(self.ranges.rows(), key=lambda row: (self.uffd_of(row).number, row.start))

    @property
    def userfaultfds(self) -> list[Userfaultfd]:
        return self.watched.userfaultfds

    def uffd_of(self, row: Range) -> Userfaultfd:
        return self.watched.uffd_of(row)

    # ---- batches -----------------------------------------------------------

    def _advance(self, final: bool) -> None:
        events = self._held.take()
        # A fault in a range that was not seen has it begin there: that concerns all of its pages.
        seen = self._first_unseen(events) is None
        events, acts = placed(events, strict=not seen)
        ioctls = join.returns_of(events, Type.IOCTL, Type.IOCTL_RETURN)
        protects = join.protections_of(events)
        remaps = join.returns_of(events, Type.REMAP, Type.REMAP_RETURN)
        zaps = join.returns_of(events, Type.ZAP, Type.ZAP_RETURN)
        ready, blocker = len(events), 0
        if not final and ready < join.MOST_HELD:
            for index, found in (ioctls, protects, remaps, zaps):
                waiting = index[found == join.OPEN]
                if waiting.size and waiting[0] < ready:
                    ready, blocker = int(waiting[0]), int(events["tid"][waiting[0]])
            ready = join.not_within(ready, protects, remaps)
        self._held.keep(events[ready:], blocker)
        if not ready:
            return
        self.last = max(self.last, int(events["time"][:ready].max()))
        acts = acts.within(ready)
        work = Work(events, ready, self.page_size, ioctls, protects, remaps, zaps, acts, self._overlaps)
        self.lost_returns += work.lost_returns
        if work.unmaps and self._first_unseen(work.events) is None:
            work.pass_over(self.watched.registered())
        barriers = np.flatnonzero(work.barrier)
        # How many arming calls come before each, and up to it.
        earlier = np.searchsorted(work.arm_index, barriers).tolist()
        included = np.searchsorted(work.arm_index, barriers, side="right").tolist()
        begin = arm = 0
        for barrier, before, after in zip(barriers.tolist(), earlier, included):
            self._run(work, begin, barrier)
            self._holes(work, arm, before)
            self._structure.take(work, barrier)
            self._holes(work, before, after)
            begin, arm = barrier + 1, after
        # Where nothing ended a registration, each fault's range is seen still.
        self._run(work, begin, ready, seen and not barriers.size)
        self._holes(work, arm, len(work.arm_index))
        if self.watched.populated.late:
            self.watched.dropped(work.events[DISCARDS[work.types]].records)
        for call in facts.calls(events, self.page_size, work.returned):
            self._wrong(int(work.numbers[call.index]), call, int(work.uffds[call.index]))
        self._sleep(work.events, work.numbers, acts)

    def _sleep(self, events: Batch, numbers: Array, acts: Acts) -> None:
        if self._timeline is not None:
            self._timeline.feed(events)
        seen = events[events.of(Type.ASLEEP)]
        self._asleep.update(seen["tid"].tolist())
        self._waits.feed(events)
        self._looked_at.update(seen["tgid"].tolist())
        self._served(*self._sleepers.feed(acts.as_wakes(events), numbers))

    def _served(self, served: Array, waits: Array, began: Array) -> None:
        if self._timeline is not None:
            self._timeline.add("began", began)
            self._timeline.add("ended", began + waits[:, TOTAL].astype(np.int64))
        if len(served):
            self._undivided.append((served, waits))
            self._undivided_count += len(served)
        if self._undivided_count > _MOST_UNDIVIDED:
            self.divide_waits()

    def divide_waits(self) -> None:
        """Give each range the waits of its faults: of thousands of ranges each has a few in a batch.

        Until then `latencies` of ranges lack the latest; at the end none are lacking.
        """
        if not self._undivided:
            return
        served, waits = (np.concatenate(parts) for parts in zip(*self._undivided))
        self._undivided, self._undivided_count = [], 0
        for number, index in by_value(served):
            if number >= 0:
                self.ranges.all[number].root().latencies.add(waits[index])

    def _holes(self, work: Work, first: int, last: int) -> None:
        """What the arming calls from `first` up to `last` found.

        change_protection() counts the pages it found; the rest were holes (kernel-semantics.md 4).
        """
        for arm in range(first, last):
            index, known, result = int(work.arm_index[arm]), bool(work.arm_known[arm]), int(work.arm_result[arm])
            if work.numbers[index] < 0:
                continue
            row = self.ranges.all[work.numbers[index]].root()
            row.armings += 1
            anonymous = int(work.events["flags"][index]) & Memory.ANON
            if anonymous and not (self.uffd_of(row).features or 0) & _NO_HOLES:
                # Protected pages that are swapped out would look like holes.
                again = row.armings > 1 or row.count("rearmed") or row.before
                doubtful = not known or (again and work.events["value"][index] != 0)
                holes = max(0, int(work.pages[index]) - result)
                row.holes = None if row.holes is None or doubtful else row.holes + holes

    # ---- runs of operations on pages ---------------------------------------

    def _run(self, work: Work, begin: int, end: int, seen: bool = False) -> None:
        """Account for these events; `seen` where each fault is known to lie in a range."""
        while begin < end and work.busy[end] > work.busy[begin]:
            stop = None if seen else self._first_unseen(work.events[begin:end])
            self._run_seen(work, begin, end if stop is None else begin + stop)
            if stop is None:
                return
            begin += stop
            self._adopt(work.events[begin])

    def _first_unseen(self, events: Batch) -> int | None:
        """The first fault in a range whose registration was not seen."""
        faults = events.of(Type.FAULT)
        if not faults.size:
            return None
        unseen: list[int] = []
        for ctx, index in by_value(events["ctx"][faults]):
            mine = faults[index]
            _, numbers = self.ranges.space(ctx).locate(events["start"][mine])
            unseen += mine[numbers < 0][:1].tolist()
        return min(unseen) if unseen else None

    def _adopt(self, fault: Array) -> None:
        """Such a fault's area tells the range's bounds and modes."""
        start, end = int(fault["value"]), int(fault["end"])
        modes = Mode(int(fault["flags"]) >> MODES_SHIFT & 7) | _MODE_OF[Kind(int(fault["kind"]) % len(Kind))]
        if not start <= int(fault["start"]) < end:
            raise ModelError(f"the trace has a fault at {int(fault['start']):#x} outside of its area")
        self.watched.register(int(fault["ctx"]), start, end, modes, int(fault["time"]))
        self.watched.before(int(fault["ctx"]), start, end)
        self._place(self.watched.uffd(int(fault["ctx"])), start, end, fault)

    def _place(self, uffd: Userfaultfd, start: int, end: int, fault: Array) -> None:
        """Messages that were read before `fault` told of their range: a process may be gone before it is looked at."""
        # On hugetlb memory a message names all of a huge page.
        size = self.page_size << min(int(fault["flags"]) >> MEMORY_ORDER_SHIFT & 31, MOST_ORDER)
        for address, kind in uffd.take_unplaced(start, end):
            number = self.ranges.space(uffd.ctx).touched(address, address + 1)
            if kind < len(Kind):
                self.ranges.all[number].root().messages[kind] += 1
            self.unattributed_messages -= 1
            page = address & -size
            self._operations.interval(uffd.ctx, page, page + size, Op.NAMED_BEFORE, fault)

    def _run_seen(self, work: Work, begin: int, end: int) -> None:
        if begin == end:
            return
        parts = by_value(work.events["ctx"][begin:end])
        for ctx, index in parts:
            # One userfaultfd is the rule, and a slice copies nothing.
            chosen = slice(begin, end) if len(parts) == 1 else index + begin
            # The first call on a new one begins before any event tells of it, and may fail.
            if ctx in self.watched.current or work.opens(chosen):
                self._run_one(work, chosen, self.watched.uffd(ctx))

    def _run_one(self, work: Work, chosen: Array | slice, uffd: Userfaultfd) -> None:
        space = self.ranges.space(uffd.ctx)
        events = work.events[chosen]
        number = space.numbers(work.start[chosen])
        # Between thousands of registrations runs have an event or two: what they lack is not gone through.
        calls = events.of(Type.IOCTL)
        if calls.size:
            for lost in calls[number[calls] < 0].tolist():
                number[lost] = space.touched(int(events["start"][lost]), int(events["end"][lost]))
            uffd.callers.update(different(events["tgid"][calls]))
        work.numbers[chosen] = number
        work.uffds[chosen] = uffd.number
        described = ((events["flags"] != 0) & (number >= 0)).nonzero()[0]
        if described.size:
            self.ranges.describe(events["flags"][described], number[described])
        messages = events.of(Type.MESSAGE)
        if messages.size:
            messages = self._messages(uffd, events, messages, number)
        tally.faults(self.ranges, uffd, events, number)
        # On hugetlb memory, what was told before the trace was told of a whole huge page, too.
        found = events.of(Type.FAULT_FOUND)
        named = np.concatenate([messages, found[number[found] >= 0]]) if found.size else messages
        self._pages(work, chosen, uffd, number, named)

    def _messages(self, uffd: Userfaultfd, events: Batch, messages: Array, number: Array) -> Array:
        """Count those at these indices; the ones whose range is known."""
        uffd.read(events[messages])
        known = number[messages] >= 0
        if not known.all():
            self.unattributed_messages += len(messages) - int(known.sum())
            uffd.keep_unplaced(events[messages[~known]])
        messages = messages[known]
        tally.by_kind(self.ranges, "messages", number[messages], events["kind"][messages])
        return messages

    def _pages(self, work: Work, chosen: Array | slice, uffd: Userfaultfd, number: Array, named: Array) -> None:
        """What these events did to pages; `named` are messages, which name all of a huge page."""
        events, start, pages, ops = work.events[chosen], work.start[chosen], work.pages[chosen], work.op[chosen]
        self._whole_pages(events, start, pages, number, named)
        active = ((ops != Op.NOTHING) & work.short[chosen]).nonzero()[0]
        if uffd.has(Feature.WP_ASYNC):
            # The kernel notes writes by itself.
            active = active[~EVIDENCE[events["type"][active]]]
        if not active.size:
            return
        # A trace may claim more than fits in memory at once.
        expanded = np.cumsum(pages[active])
        parts = [active]
        if expanded[-1] > _MOST_EXPANDED:
            parts = np.split(active, np.flatnonzero(np.diff(expanded // _MOST_EXPANDED)) + 1)
        for part in parts:
            if part.size:
                self._operations.page_by_page(uffd, events[part], start[part], pages[part], ops[part])

    def _wrong(self, number: int, call: facts.Call, uffd: int) -> None:
        """A call that did not do what it was asked for; `uffd` is -1 where its userfaultfd was not seen."""
        if number < 0 or (call.failed and call.failed[0] is Ioctl.API):
            # It names no range: it is told with its userfaultfd.
            if call.failed and uffd >= 0:
                self.userfaultfds[uffd].failures.add(*call.failed)
            return
        row = self.ranges.all[number].root()
        if call.failed and call.fact is Fact.FAILED:
            row.failures.add(*call.failed)
            return
        row.note(call.fact, call.count)
        if call.error:
            row.errors.add((call.fact, call.error))
        spans = row.spans.setdefault(call.fact, [])
        if len(spans) < _MOST_SPANS:
            spans += call.spans

    def _whole_pages(self, events: Batch, start: Array, pages: Array, number: Array, messages: Array) -> None:
        """A message on hugetlb memory names all of its huge page."""
        if not messages.size:
            return
        flags = events["flags"][messages]
        # Memory of more than one kind may lie in a range; that of a fault before the trace is not known.
        orders = (flags >> MEMORY_ORDER_SHIFT & 31).astype(np.int64)
        untold = flags == 0
        if not untold.any() and not orders.any():
            return
        if untold.any():
            ranges, of_each = ranked(number[messages][untold])
            orders[untold] = np.array([self.ranges.all[one].root().order for one in ranges.tolist()])[of_each]
        start[messages] &= ~((np.uint64(self.page_size) << orders.astype(np.uint64)) - np.uint64(1))
        pages[messages] = np.int64(1) << orders
