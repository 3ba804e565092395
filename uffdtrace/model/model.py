"""From events to ranges: the one account of a trace, live and offline."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Callable

import numpy as np

from uffdtrace.model import join
from uffdtrace.model.events import (
    EVENT,
    MEMORY_ORDER_SHIFT,
    MODES_SHIFT,
    PAGE_SIZE,
    Array,
    Feature,
    Ioctl,
    Kind,
    Memory,
    Mode,
    Type,
)
from uffdtrace.model.pages import CHANGES, COUNTS, Op, apply, apply_range, carry
from uffdtrace.model.ranges import ModelError, Piece, Range, Ranges, page_bounds
from uffdtrace.model.sleep import Sleepers
from uffdtrace.model.work import EVIDENCE, EXPAND_PAGES, Work

# A call that does not return must not hold the account back for ever.
_MOST_WAITING = 1 << 21
_MOST_EXPANDED = 1 << 22
_NO_HOLES = Feature.WP_UNPOPULATED | Feature.WP_ASYNC
# UFFDIO_API was called (fs/userfaultfd.c, UFFD_FEATURE_INITIALIZED): no feature of the user's.
_INITIALIZED = 1 << 31
Locate = Callable[[Array], tuple[Array, Array]]
_MODE_OF = {Kind.MISSING: Mode.MISSING, Kind.WP: Mode.WP, Kind.MINOR: Mode.MINOR}


@dataclass
class Userfaultfd:
    """One descriptor; `mm` identifies the address space it watches."""

    number: int
    ctx: int
    mm: int = 0
    features: int | None = None
    owner: int | None = None
    readers: set[int] = field(default_factory=set)
    callers: set[int] = field(default_factory=set)

    def has(self, feature: Feature) -> bool:
        return bool((self.features or 0) & feature)


class Model:
    """Feed it events in the order of the ring, finish, then read `rows()`."""

    def __init__(self) -> None:
        self.ranges = Ranges()
        self.userfaultfds: list[Userfaultfd] = []
        self.events = 0
        self.lost_returns = 0
        self.unattributed_messages = 0
        self._home_of: list[Userfaultfd] = []
        self._current: dict[int, Userfaultfd] = {}
        self._waiting = np.empty(0, dtype=EVENT)
        self._sleepers = Sleepers()
        self._asleep: set[int] = set()
        self._looked_at: set[int] = set()

    def feed(self, events: Array) -> None:
        """Take the next batch (dtype EVENT)."""
        self._advance(np.concatenate([self._waiting, events]) if len(self._waiting) else events, final=False)

    def finish(self) -> None:
        """No more events: account for what was held back, and for who still sleeps."""
        self._advance(self._waiting, final=True)
        pending, unknown = self._sleepers.pending(self._asleep, self._looked_at)
        for number in pending[pending >= 0].tolist():
            row = self.ranges.all[number].root()
            row.pending = None if row.pending is None else row.pending + 1
        for number in unknown[unknown >= 0].tolist():
            self.ranges.all[number].root().pending = None

    def rows(self) -> list[Range]:
        """The ranges, by userfaultfd and address; earlier ones first."""
        return sorted(self.ranges.rows(), key=lambda row: (self.userfaultfd_of(row).number, row.start))

    def userfaultfd_of(self, row: Range) -> Userfaultfd:
        return self._home_of[row.number]

    # ---- batches -----------------------------------------------------------

    def _advance(self, events: Array, final: bool) -> None:
        ioctls = join.returns_of(events, Type.IOCTL, Type.IOCTL_RETURN)
        protects = join.returns_of(events, Type.PROTECT, Type.PROTECT_RETURN)
        ready = len(events)
        if not final and ready < _MOST_WAITING:
            for index, found in (ioctls, protects):
                waiting = index[found == join.OPEN]
                if waiting.size:
                    ready = min(ready, int(waiting[0]))
            ready = join.not_within(ready, *protects)
        self._waiting = events[ready:].copy()
        if not ready:
            return
        self.events += ready
        work = Work(events, ready, ioctls, protects)
        self.lost_returns += work.lost_returns
        numbers = np.full(ready, -1, dtype=np.int64)
        begin = 0
        for barrier in np.flatnonzero(work.barrier).tolist():
            self._run(work, begin, barrier, numbers)
            self._structural(work, barrier, numbers)
            begin = barrier + 1
        self._run(work, begin, ready, numbers)
        self._holes(work, numbers)
        self._sleep(work.events, numbers)

    def _sleep(self, events: Array, numbers: Array) -> None:
        seen = events[events["type"] == Type.ASLEEP]
        self._asleep.update(seen["tid"].tolist())
        self._looked_at.update(seen["tgid"].tolist())
        served, waits = self._sleepers.feed(events, numbers)
        for number in np.unique(served[served >= 0]):
            self.ranges.all[number].root().latencies.append(waits[served == number])

    def _holes(self, work: Work, numbers: Array) -> None:
        """change_protection() counts the pages it found; the rest were holes (kernel-semantics.md 4)."""
        for index, known, result in zip(work.arm_index.tolist(), work.arm_known.tolist(), work.arm_result.tolist()):
            if numbers[index] < 0:
                continue
            row = self.ranges.all[numbers[index]].root()
            row.armings += 1
            anonymous = int(work.events["flags"][index]) & Memory.ANON
            if anonymous and not (self.userfaultfd_of(row).features or 0) & _NO_HOLES:
                # Protected pages that are swapped out would look like holes.
                doubtful = not known or (row.armings > 1 and work.events["value"][index] != 0)
                holes = max(0, int(work.pages[index]) - result)
                row.holes = None if row.holes is None or doubtful else row.holes + holes

    # ---- runs of operations on pages ---------------------------------------

    def _run(self, work: Work, begin: int, end: int, numbers: Array) -> None:
        while begin < end:
            stop = self._first_unseen(work.events[begin:end])
            self._run_seen(work, begin, end if stop is None else begin + stop, numbers)
            if stop is None:
                return
            begin += stop
            self._adopt(work.events[begin])

    def _first_unseen(self, events: Array) -> int | None:
        """The first fault in a range whose registration was not seen."""
        faults = np.flatnonzero(events["type"] == Type.FAULT)
        contexts = events["ctx"][faults]
        unseen: list[int] = []
        for ctx in np.unique(contexts).tolist():
            mine = faults[contexts == ctx]
            _, numbers = self.ranges.space(ctx).locate(events["start"][mine])
            unseen += mine[numbers < 0][:1].tolist()
        return min(unseen) if unseen else None

    def _adopt(self, fault: Array) -> None:
        """Such a fault's area tells the range's bounds and modes."""
        start, end = int(fault["value"]), int(fault["end"])
        modes = Mode(int(fault["flags"]) >> MODES_SHIFT & 7) | _MODE_OF[Kind(int(fault["kind"]) % len(Kind))]
        if not start <= int(fault["start"]) < end:
            raise ModelError(f"the trace has a fault at {int(fault['start']):#x} outside of its area")
        self._register(int(fault["ctx"]), start, end, modes, Memory(0))
        self._before(int(fault["ctx"]), start, end)

    def _run_seen(self, work: Work, begin: int, end: int, numbers: Array) -> None:
        if begin == end:
            return
        contexts = work.events["ctx"][begin:end]
        different = np.unique(contexts).tolist()
        for ctx in different:
            # One userfaultfd is the rule, and a slice copies nothing.
            chosen = slice(begin, end) if len(different) == 1 else np.flatnonzero(contexts == ctx) + begin
            if ctx in self._current:
                self._run_one(work, chosen, self._current[ctx], numbers)

    def _run_one(self, work: Work, chosen: Array | slice, home: Userfaultfd, numbers: Array) -> None:
        space = self.ranges.space(home.ctx)
        events, types = work.events[chosen], work.events["type"][chosen]
        _, number = space.locate(work.start[chosen])
        numbers[chosen] = number
        known = number >= 0
        self._describe(events[known], number[known])
        messages = types == Type.MESSAGE
        self.unattributed_messages += int((messages & ~known).sum())
        self._tally("faults", number, events["kind"], (types == Type.FAULT) & (events["ret"] == 0) & known)
        self._tally("messages", number, events["kind"], messages & known)
        home.readers.update(np.unique(events["tgid"][messages]).tolist())
        home.callers.update(np.unique(events["tgid"][types == Type.IOCTL]).tolist())

        start, pages, ops = work.start[chosen], work.pages[chosen], work.op[chosen]
        self._whole_pages(start, pages, number, messages & known)
        undecided = work.undecided[chosen]
        for one in np.unique(number[undecided & known]).tolist():
            self.ranges.all[one].root().undecided += int((undecided & (number == one)).sum())
        dropped = undecided | (home.has(Feature.WP_ASYNC) & np.isin(types, EVIDENCE))
        active = np.flatnonzero((ops != Op.NOTHING) & ((pages <= EXPAND_PAGES) | messages) & ~dropped)
        # A trace may claim more than fits in memory at once.
        for part in np.split(active, np.flatnonzero(np.diff(np.cumsum(pages[active]) // _MOST_EXPANDED)) + 1):
            if part.size:
                self._expand(space.locate, events[part], start[part], pages[part], ops[part])

    def _whole_pages(self, start: Array, pages: Array, number: Array, messages: Array) -> None:
        """A message on hugetlb memory names all of its huge page."""
        if not messages.any():
            return
        orders = np.array([found.root().order for found in self.ranges.all], dtype=np.int64)[number[messages]]
        start[messages] &= ~((np.uint64(PAGE_SIZE) << orders.astype(np.uint64)) - np.uint64(1))
        pages[messages] = np.int64(1) << orders

    def _expand(self, locate: Locate, events: Array, start: Array, pages: Array, ops: Array) -> None:
        rows = np.repeat(np.arange(len(events)), pages)
        offsets = np.arange(len(rows)) - np.repeat(np.cumsum(pages) - pages, pages)
        addresses = start[rows] + offsets.astype(np.uint64) * np.uint64(PAGE_SIZE)
        ops = ops[rows]
        if (pages > 1).any():
            types = events["type"][rows]
            at_fault = addresses == events["aux"][rows]
            ops[(types == Type.HUGE_PAGE) & at_fault & (events["kind"][rows] == 1)] = Op.HUGE
            ops[(types == Type.HUGE_ZERO_WRITE) & at_fault] = Op.UNPROTECTED_ZERO_WRITE
            # The page that faulted is read on its own after the huge page fell through.
            ops[(types == Type.HUGE_FALLBACK) & at_fault] = Op.NOTHING
        places, owners = locate(addresses)
        inside = places >= 0
        effects = apply(self.ranges.pool.states, places[inside], ops[inside])
        self.ranges.changes(owners[inside], effects)

    def _tally(self, name: str, numbers: Array, kinds: Array, mask: Array) -> None:
        mask = mask & (kinds < len(Kind))
        if not mask.any():
            return
        pairs = np.bincount(numbers[mask] * len(Kind) + kinds[mask])
        for pair in np.flatnonzero(pairs).tolist():
            getattr(self.ranges.all[pair // len(Kind)].root(), name)[pair % len(Kind)] += int(pairs[pair])

    def _describe(self, events: Array, numbers: Array) -> None:
        """What memory a range is, from any event that saw its area."""
        told = events["flags"] != 0
        pairs = numbers[told].astype(np.uint64) << np.uint64(32) | events["flags"][told]
        for pair in np.unique(pairs).tolist():
            row = self.ranges.all[pair >> 32].root()
            row.memory |= Memory(pair & 7)
            row.order = (pair & 0xFFFFFFFF) >> MEMORY_ORDER_SHIFT & 31

    # ---- what changes ranges -----------------------------------------------

    def _structural(self, work: Work, index: int, numbers: Array) -> None:
        event = work.events[index]
        kind, ctx = int(event["type"]), int(event["ctx"])
        start, end = int(event["start"]), int(event["end"])
        first = int(work.start[index])
        last = first + int(work.pages[index]) * PAGE_SIZE
        if kind == Type.USERFAULTFD:
            self._seen(ctx, start, end, int(event["aux"]))
        elif kind == Type.EXIT:
            for home in [found for found in self._current.values() if found.mm == ctx]:
                self._forget(home.ctx)
        elif kind == Type.RELEASE:
            self._forget(ctx)
        elif kind == Type.UNMAP:
            for home in self._current.values():
                if home.mm == ctx and start < end:
                    self.ranges.cut(self.ranges.space(home.ctx), *page_bounds(start, end))
        elif kind == Type.RANGE_FOUND:
            self._found(
                ctx, start, end, Mode(int(event["aux"]) & 7), Memory(int(event["flags"]) & 7), bool(event["kind"])
            )
        elif kind == Type.MEMORY_FOUND:
            self._backed(ctx, start, end, Memory(int(event["flags"]) & 7))
        elif kind == Type.PAGES_FOUND:
            self._slice(ctx, start, end, Op.ARM)
            self._before(ctx, start, end)
        elif kind == Type.IOCTL and int(event["kind"]) == Ioctl.REGISTER:
            self._home(ctx).callers.add(int(event["tgid"]))
            self._register(ctx, first, last, Mode(int(work.mode[index]) & 7), Memory(0))
        elif kind == Type.IOCTL and int(event["kind"]) == Ioctl.UNREGISTER:
            self.ranges.cut(self.ranges.space(ctx), *page_bounds(first, last))
        else:
            _, number = self.ranges.space(ctx).locate(work.start[index : index + 1])
            numbers[index] = number[0]
            known = number >= 0
            self._describe(work.events[index : index + 1][known], number[known])
            evidence = kind in EVIDENCE
            asynchronous = ctx in self._current and self._current[ctx].has(Feature.WP_ASYNC)
            if evidence and (asynchronous or work.undecided[index]):
                return
            self._slice(ctx, first, last, Op(int(work.op[index])))
            if work.op[index] == Op.MOVE:
                source = int(event["value"])
                self._slice(ctx, source, source + last - first, Op.MOVED_AWAY)

    def _home(self, ctx: int) -> Userfaultfd:
        if ctx not in self._current:
            self._current[ctx] = Userfaultfd(len(self.userfaultfds), ctx)
            self.userfaultfds.append(self._current[ctx])
        return self._current[ctx]

    def _seen(self, ctx: int, mm: int, features: int, owner: int) -> None:
        home = self._home(ctx)
        home.mm = mm
        home.features = features & ~_INITIALIZED
        home.owner = owner or home.owner

    def _forget(self, ctx: int) -> None:
        """The descriptor or its memory is gone; the kernel may use the address again."""
        self.ranges.spaces.pop(ctx, None)
        self._current.pop(ctx, None)

    def _found(self, ctx: int, start: int, end: int, modes: Mode, memory: Memory, tells: bool) -> None:
        """A mapping that was registered before the trace."""
        self._register(ctx, start, end, modes, Memory(0))
        self._backed(ctx, start, end, memory)
        if not tells:
            self._before(ctx, start, end)

    def _before(self, ctx: int, start: int, end: int) -> None:
        for piece in self.ranges.space(ctx).overlapping(start, end):
            row = self.ranges.all[piece.range_number].root()
            row.before = row.before or bool(row.modes & Mode.WP)

    def _backed(self, ctx: int, start: int, end: int, memory: Memory) -> None:
        for piece in self.ranges.space(ctx).overlapping(start, end):
            self.ranges.all[piece.range_number].root().memory |= memory

    def _register(self, ctx: int, start: int, end: int, modes: Mode, memory: Memory) -> None:
        home = self._home(ctx)
        replaced = self.ranges.register(ctx, start, end, modes, memory)
        self._home_of += [home] * (len(self.ranges.all) - len(self._home_of))
        for piece in replaced:
            self._replace(ctx, piece, modes)

    def _replace(self, ctx: int, piece: Piece, modes: Mode) -> None:
        """Registered again with other modes: what was armed goes on in the new range."""
        pages = (piece.end - piece.start) // PAGE_SIZE
        old = self.ranges.pool.states[piece.place : piece.place + pages].copy()
        for new in self.ranges.space(ctx).overlapping(piece.start, piece.end):
            first = (max(new.start, piece.start) - new.start) // PAGE_SIZE + new.place
            skip = (max(new.start, piece.start) - piece.start) // PAGE_SIZE
            count = (min(new.end, piece.end) - max(new.start, piece.start)) // PAGE_SIZE
            states = self.ranges.pool.states[first : first + count]
            states[:], armed = carry(old[skip : skip + count], states)
            row = self.ranges.all[new.range_number].root()
            row.changes[COUNTS.index("armed_pages")] += armed
            if not modes & Mode.WP:
                self._count(new, apply_range(states, Op.MODE_REPLACED))

    def _slice(self, ctx: int, start: int, end: int, op: Op) -> None:
        for piece in self.ranges.space(ctx).overlapping(start, end):
            first = piece.place + (max(start, piece.start) - piece.start) // PAGE_SIZE
            last = piece.place + (min(end, piece.end) - piece.start + PAGE_SIZE - 1) // PAGE_SIZE
            self._count(piece, apply_range(self.ranges.pool.states[first:last], op))

    def _count(self, piece: Piece, times: Array) -> None:
        self.ranges.all[piece.range_number].root().changes += times @ CHANGES
