"""From events to ranges: the one account of a trace, live and offline."""

from __future__ import annotations

import numpy as np

from uffdtrace.model import circles, facts, join, open_faults, scans, tally
from uffdtrace.model.batch import Batch
from uffdtrace.model.counting import among, by_value, different
from uffdtrace.model.dropped import DISCARDS, at_once, by_call
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
    UffdEvent,
)
from uffdtrace.model.facts import Fact
from uffdtrace.model.losses import CODES, Losses
from uffdtrace.model.overlap import Overlaps
from uffdtrace.model.pages import COUNTS, TOLD, UNPROTECTED_FILLS, Cause, Op
from uffdtrace.model.ranges import ModelError, Range, page_bounds
from uffdtrace.model.sleep import Ending, Exit, Sleepers
from uffdtrace.model.states import CHANGES, apply, exposed, having
from uffdtrace.model.waits import Waits
from uffdtrace.model.watched import EVERYWHERE, Userfaultfd, Watched
from uffdtrace.model.work import EVIDENCE, EXPAND_PAGES, MOVES, Work, with_sources

_MOST_EXPANDED = 1 << 22
_NO_HOLES = Feature.WP_UNPOPULATED | Feature.WP_ASYNC
_MOST_SPANS = 64
# Per row of CHANGES: whether it counts a page as dropped.
_DROPPED = CHANGES[:, COUNTS.index("dropped")] != 0
_UNPROTECTED_FILLS = among(UNPROTECTED_FILLS)
_MODE_OF = {Kind.MISSING: Mode.MISSING, Kind.WP: Mode.WP, Kind.MINOR: Mode.MINOR}


class Model:
    """Feed it events in the order of the ring, finish, then read `rows()`."""

    def __init__(self) -> None:
        self.watched = Watched()
        self.ranges = self.watched.ranges
        self.lost_returns = 0
        self.unattributed_messages = 0
        # PAGEMAP_SCAN is among what is traced.
        self.sees_page_scans = True
        self.losses = Losses()
        # Time (ns) of the last event.
        self.last = 0
        self._held = join.Held()
        self._sleepers = Sleepers()
        self._overlaps = Overlaps()
        self._asleep: set[int] = set()
        self._waits = Waits()
        self._looked_at: set[int] = set()

    def feed(self, events: Array) -> None:
        """Take the next batch (dtype EVENT)."""
        if self._held.add(events):
            self._advance(final=False)

    def finish(self) -> None:
        """No more events: account for what was held back, and for who still sleeps."""
        self._advance(final=True)
        nothing = Batch(np.empty(0, dtype=EVENT))
        self._served(*self._sleepers.feed(nothing, np.empty(0, dtype=np.int64), final=True))
        open_faults.settle(self.watched, self._sleepers, self._asleep, self._looked_at)
        self._waits.finish(self.watched, self._asleep)
        self.watched.forget_monitors_forks()
        self.watched.registered_late()
        self.ranges.count_once()
        self._no_more_holes_than_known()
        for row, piece in self.ranges.pieces():
            counts = self.ranges.count(piece)
            causes = exposed(np.arange(len(counts)))
            row.exposed += np.bincount(causes, weights=counts, minlength=len(Cause)).astype(np.int64)
            row.exposed[Cause.NONE] = 0

    def _no_more_holes_than_known(self) -> None:
        """Losses of holes beyond those that the armings counted have another cause, which nobody saw."""
        for row in self.ranges.rows():
            if row.holes is None or row.before or row.unseen or row.carried:
                continue
            surplus = min(row.cause(Cause.HOLE), row.cause(Cause.HOLE) + row.cause(Cause.HUGE_PAGE) - row.holes)
            if surplus > 0:
                self.losses.rename(self.ranges.places(row), Cause.HOLE, Cause.UNKNOWN, surplus)
                row.changes[len(COUNTS) + Cause.HOLE] -= surplus
                row.changes[len(COUNTS) + Cause.UNKNOWN] += surplus

    def rows(self) -> list[Range]:
        """The ranges, by userfaultfd and address; earlier ones first."""
        return sorted(self.ranges.rows(), key=lambda row: (self.userfaultfd_of(row).number, row.start))

    @property
    def userfaultfds(self) -> list[Userfaultfd]:
        return self.watched.userfaultfds

    def userfaultfd_of(self, row: Range) -> Userfaultfd:
        return self.watched.home_of(row)

    # ---- batches -----------------------------------------------------------

    def _advance(self, final: bool) -> None:
        events = Batch(self._held.take())
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
        self._held.keep(events.records[ready:], blocker)
        if not ready:
            return
        self.last = max(self.last, int(events["time"][:ready].max()))
        work = Work(events, ready, ioctls, protects, remaps, zaps, self._overlaps)
        self.lost_returns += work.lost_returns
        if work.unmaps and self._first_unseen(work.events) is None:
            work.pass_over(self.watched.registered())
        numbers = np.full(ready, -1, dtype=np.int64)
        begin = 0
        for barrier in np.flatnonzero(work.barrier).tolist():
            self._run(work, begin, barrier, numbers)
            self._holes(work, begin, barrier, numbers)
            self._structural(work, barrier, numbers)
            self._holes(work, barrier, barrier + 1, numbers)
            begin = barrier + 1
        self._run(work, begin, ready, numbers)
        self._holes(work, begin, ready, numbers)
        if self.watched.populated.late:
            self.watched.dropped(work.events[DISCARDS[work.types]].records)
        for call in facts.calls(events, ready, *ioctls):
            self._wrong(int(numbers[call.index]), call, int(work.homes[call.index]))
        self._sleep(work.events, numbers)

    def _sleep(self, events: Batch, numbers: Array) -> None:
        seen = events[events["type"] == Type.ASLEEP]
        self._asleep.update(seen["tid"].tolist())
        self._waits.feed(events)
        self._looked_at.update(seen["tgid"].tolist())
        self._served(*self._sleepers.feed(events, numbers))

    def _served(self, served: Array, waits: Array) -> None:
        for number, index in by_value(served):
            if number >= 0:
                self.ranges.all[number].root().latencies.append(waits[index])

    def _holes(self, work: Work, begin: int, end: int, numbers: Array) -> None:
        """change_protection() counts the pages it found; the rest were holes (kernel-semantics.md 4)."""
        first, last = np.searchsorted(work.arm_index, (begin, end))
        for arm in range(int(first), int(last)):
            index, known, result = int(work.arm_index[arm]), bool(work.arm_known[arm]), int(work.arm_result[arm])
            if numbers[index] < 0:
                continue
            row = self.ranges.all[numbers[index]].root()
            row.armings += 1
            anonymous = int(work.events["flags"][index]) & Memory.ANON
            if anonymous and not (self.userfaultfd_of(row).features or 0) & _NO_HOLES:
                # Protected pages that are swapped out would look like holes.
                again = row.armings > 1 or row.count("rearmed") or row.before
                doubtful = not known or (again and work.events["value"][index] != 0)
                holes = max(0, int(work.pages[index]) - result)
                row.holes = None if row.holes is None or doubtful else row.holes + holes

    # ---- runs of operations on pages ---------------------------------------

    def _run(self, work: Work, begin: int, end: int, numbers: Array) -> None:
        while begin < end and work.busy[end] > work.busy[begin]:
            stop = self._first_unseen(work.events[begin:end])
            self._run_seen(work, begin, end if stop is None else begin + stop, numbers)
            if stop is None:
                return
            begin += stop
            self._adopt(work.events[begin])

    def _first_unseen(self, events: Batch) -> int | None:
        """The first fault in a range whose registration was not seen."""
        faults = np.flatnonzero(events["type"] == Type.FAULT)
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

    def _run_seen(self, work: Work, begin: int, end: int, numbers: Array) -> None:
        if begin == end:
            return
        parts = by_value(work.events["ctx"][begin:end])
        for ctx, index in parts:
            # One userfaultfd is the rule, and a slice copies nothing.
            chosen = slice(begin, end) if len(parts) == 1 else index + begin
            # The first call on a new one begins before any event tells of it, and may fail.
            if ctx in self.watched.current or work.opens(chosen):
                self._run_one(work, chosen, self.watched.home(ctx), numbers)

    def _run_one(self, work: Work, chosen: Array | slice, home: Userfaultfd, numbers: Array) -> None:
        space = self.ranges.space(home.ctx)
        events = work.events[chosen]
        types = events["type"]
        number = space.numbers(work.start[chosen])
        calls = np.flatnonzero(types == Type.IOCTL)
        for lost in calls[number[calls] < 0].tolist():
            number[lost] = self._touched(home.ctx, events[lost])
        numbers[chosen] = number
        work.homes[chosen] = home.number
        home.callers.update(different(events["tgid"][calls]))
        described = np.flatnonzero(events["flags"])
        described = described[number[described] >= 0]
        self.ranges.describe(events["flags"][described], number[described])
        messages = np.flatnonzero(types == Type.MESSAGE)
        home.read(events[messages])
        known = number[messages] >= 0
        self.unattributed_messages += len(messages) - int(known.sum())
        messages = messages[known]
        tally.kinds(self.ranges, "messages", number[messages], events["kind"][messages])
        tally.faults(self.ranges, home, events, number)

        start, pages, ops = work.start[chosen], work.pages[chosen], work.op[chosen]
        # On hugetlb memory, what was told before the trace was told of a whole huge page, too.
        found = np.flatnonzero(types == Type.FAULT_FOUND)
        named = np.concatenate([messages, found[number[found] >= 0]])
        self._whole_pages(events, start, pages, number, named)
        small = pages <= EXPAND_PAGES
        small[named] = True
        active = np.flatnonzero((ops != Op.NOTHING) & small)
        if home.has(Feature.WP_ASYNC):
            # The kernel notes writes by itself.
            active = active[~EVIDENCE[types[active]]]
        # A trace may claim more than fits in memory at once.
        for part in np.split(active, np.flatnonzero(np.diff(np.cumsum(pages[active]) // _MOST_EXPANDED)) + 1):
            if part.size:
                self._expand(home, events[part], start[part], pages[part], ops[part])

    def _touched(self, ctx: int, event: Array) -> int:
        """Number of the first range that a call names anything of, or -1."""
        pieces = self.ranges.space(ctx).overlapping(int(event["start"]), int(event["end"]))
        return pieces[0].range_number if pieces else -1

    def _wrong(self, number: int, call: facts.Call, home: int) -> None:
        """A call that did not do what it was asked for; `home` is -1 where its userfaultfd was not seen."""
        if number < 0 or (call.failed and call.failed[0] is Ioctl.API):
            # It names no range: it is told with its userfaultfd.
            if call.failed and home >= 0:
                self.userfaultfds[home].failures.add(*call.failed)
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
            ranges, of_each = np.unique(number[messages][untold], return_inverse=True)
            orders[untold] = np.array([self.ranges.all[one].root().order for one in ranges.tolist()])[of_each]
        start[messages] &= ~((np.uint64(PAGE_SIZE) << orders.astype(np.uint64)) - np.uint64(1))
        pages[messages] = np.int64(1) << orders

    def _expand(self, home: Userfaultfd, events: Batch, start: Array, pages: Array, ops: Array) -> None:
        events, start, pages, ops = with_sources(events, start, pages, ops)
        rows, addresses = np.arange(len(events)), start
        several = bool((pages > 1).any())
        if several:
            rows = np.repeat(rows, pages)
            offsets = np.arange(len(rows)) - np.repeat(np.cumsum(pages) - pages, pages)
            addresses = start[rows] + offsets.astype(np.uint64) * np.uint64(PAGE_SIZE)
            ops = ops[rows]
            fills = _UNPROTECTED_FILLS[ops] & (pages > 1)[rows]
            types = events["type"][rows]
            at_fault = addresses == events["aux"][rows]
            decided = ops != Op.UNDECIDED
            ops[(types == Type.HUGE_PAGE) & at_fault & (events["kind"][rows] == 1) & decided] = Op.HUGE
            ops[(types == Type.HUGE_ZERO_WRITE) & at_fault & decided] = Op.UNPROTECTED_ZERO_WRITE
            ops[(types == Type.HUGE_WRITE) & at_fault & (ops == Op.OPENED)] = Op.UNPROTECTED_WRITE
            # The page that faulted is read on its own after the huge page fell through.
            ops[(types == Type.HUGE_FALLBACK) & at_fault] = Op.NOTHING
        places, owners = self.ranges.space(home.ctx).locate(addresses)
        inside = places >= 0
        if not inside.all():
            places, owners, ops, rows = places[inside], owners[inside], ops[inside], rows[inside]
            addresses = addresses[inside]
        if several and fills[inside].any():
            self._answers(places, ops, rows, fills[inside])
        effects = self.ranges.pool.apply(places, ops)
        self.ranges.changes(owners, effects)
        lossy = np.flatnonzero(CODES[effects])
        if lossy.size:
            times, tids = events["time"][rows[lossy]], events["tid"][rows[lossy]]
            self.losses.add(places[lossy], effects[lossy], times, tids)
        for call, index in circles.answers(effects, ops).items():
            for number in np.unique(owners[index]).tolist():
                mine = index[owners[index] == number]
                self.ranges.all[number].root().circles.add(call, addresses[mine])
        dropped = np.flatnonzero(_DROPPED[effects])
        dropped = dropped[DISCARDS[events["type"][rows[dropped]]]]
        if dropped.size:
            self._dropped(home, events[rows[dropped]].records, owners[dropped], np.ones(len(dropped), dtype=np.int64))

    def _answers(self, places: Array, ops: Array, rows: Array, fills: Array) -> None:
        """A call that fills several pages and answers a write to one of them answers for all: changes `ops`."""
        touched, inverse = np.unique(places, return_inverse=True)
        before = np.empty(len(places), dtype=np.uint16)
        # The states that each page has when its call comes: tried on a copy.
        apply(self.ranges.pool.read(touched), inverse, ops, before)
        answers = np.zeros(int(rows.max()) + 1, dtype=bool)
        answers[rows[fills & having(before, TOLD)]] = True
        ops[fills & answers[rows]] = Op.ANSWER_REST

    def _dropped(self, home: Userfaultfd, events: Array, numbers: Array, pages: Array) -> None:
        """Armed pages whose content a DISCARD or ZAP dropped; a thread that reads the messages drops its own."""
        others = ~np.isin(events["tid"], list(home.threads)) & at_once(events)
        events, numbers, pages = events[others], numbers[others], pages[others]
        for number in np.unique(numbers).tolist():
            row, mine = self.ranges.all[number].root(), numbers == number
            for call, count in by_call(events[mine], pages[mine]).items():
                row.drops[call] = row.drops.get(call, 0) + count

    # ---- what changes ranges -----------------------------------------------

    def _structural(self, work: Work, index: int, numbers: Array) -> None:
        event = work.events[index]
        kind, ctx = int(event["type"]), int(event["ctx"])
        start, end = int(event["start"]), int(event["end"])
        first = int(work.start[index])
        last = first + int(work.pages[index]) * PAGE_SIZE
        if kind == Type.IOCTL:
            self.watched.home(ctx).callers.add(int(event["tgid"]))
        if kind == Type.USERFAULTFD:
            self.watched.seen(ctx, start, end, int(event["aux"]))
        elif kind == Type.EXIT:
            homes = self.watched.of_memory(ctx)
            owners = tuple({home.owner for home in homes if home.owner})
            self._sleepers.exits.append(Exit(int(event["time"]), tuple(home.ctx for home in homes), owners))
            for home in homes:
                self.watched.forget(home.ctx, int(event["time"]))
            self.watched.unmapped(ctx)
            self.watched.populated.gone(ctx)
        elif kind == Type.RELEASE:
            closed = self.watched.current.get(ctx)
            self.watched.orphaned(ctx, int(event["time"]))
            # With the process whose memory it is its threads go too: they wait for nobody.
            if not (closed and event["kind"] and event["tgid"] == closed.owner):
                self._ended(ctx, 0, EVERYWHERE, int(event["time"]), closed=True)
            self.watched.forget(ctx, int(event["time"]))
        elif index in work.remaps:
            for home in self.watched.of_memory(ctx):
                self.watched.remap(home, work.remaps[index], int(event["time"]))
        elif kind == Type.UNMAP:
            for home in self.watched.of_memory(ctx):
                if start < end:
                    self.watched.unmap(home, *page_bounds(start, end))
        elif kind == Type.MERGED:
            for home in self.watched.of_memory(ctx):
                self._slice(home.ctx, *page_bounds(start, end), Op.MERGED, event)
        elif kind == Type.FORK:
            _, number = self.ranges.space(ctx).locate(work.start[index : index + 1])
            self.ranges.describe(work.events["flags"][index : index + 1][number >= 0], number[number >= 0])
            if event["kind"]:
                self.watched.copied(int(event["tid"]), ctx, *page_bounds(start, end), bool(event["aux"]))
            else:
                self.watched.forked(ctx, int(event["tid"]), start, end)
        elif kind == Type.FORKED:
            self.watched.adopted(event)
        elif kind == Type.PROCESS:
            self.watched.process(ctx, int(event["tgid"]))
        elif kind == Type.POLL:
            self.watched.home(ctx).blocking_poll = True
        elif kind == Type.CHILD:
            self.watched.made_child(ctx, int(event["tid"]), int(event["value"]))
        elif kind in (Type.PAGE_SCAN, Type.PAGE_SCAN_RETURN):
            for armed in scans.armed(self.watched, event):
                self._slice(*armed, Op.ARM_FULL, event)
        elif kind == Type.EVENT:
            what = int(event["kind"])
            if ctx in self.watched.current and what in list(UffdEvent):
                seen = self.watched.current[ctx].events
                seen[UffdEvent(what)] = seen.get(UffdEvent(what), 0) + 1
                self._waits.began(self.watched.current[ctx], event)
        elif kind == Type.WAITERS_FOUND:
            unread, waiting = int(event["aux"]), int(event["value"])
            self.watched.home(ctx).before = (unread, waiting)
            self.watched.home(ctx).read_before = waiting > unread
        elif kind == Type.EVENT_FOUND:
            if ctx in self.watched.current and int(event["kind"]) in list(UffdEvent):
                self._waits.began_before(self.watched.current[ctx], event)
        elif kind == Type.SLEEPER_FOUND:
            self.watched.slept(int(event["tgid"]), int(event["tid"]))
        elif kind == Type.REMAP:
            pass
        elif kind == Type.PRESENT:
            self.watched.present(event)
        elif kind == Type.RANGE_FOUND:
            self.watched.found(event)
        elif kind == Type.PAGES_FOUND:
            # A page or a marker bears the protection that was found: it is no hole.
            self._slice(ctx, start, end, Op.ARM_FULL, event)
            self.watched.before(ctx, start, end)
        elif index in work.refused:
            self.watched.home(ctx).failures.add(Ioctl.REGISTER, work.refused[index], 0, start, end)
        elif kind == Type.IOCTL and int(event["kind"]) == Ioctl.REGISTER:
            modes = Mode(int(work.mode[index]) & 7)
            # A REGISTER that had failed there was tried again.
            self.watched.home(ctx).failures.forgive(Ioctl.REGISTER, first, last)
            self.watched.register(ctx, first, last, modes, int(event["time"]))
            self.watched.called(event, first, last, modes)
        elif kind == Type.IOCTL and int(event["kind"]) == Ioctl.UNREGISTER:
            self._ended(ctx, *page_bounds(first, last), int(event["time"]), closed=False)
        else:
            _, number = self.ranges.space(ctx).locate(work.start[index : index + 1])
            if number[0] < 0 and kind == Type.IOCTL:
                number[0] = self._touched(ctx, event)
            numbers[index] = number[0]
            known = number >= 0
            self.ranges.describe(work.events["flags"][index : index + 1][known], number[known])
            asynchronous = ctx in self.watched.current and self.watched.current[ctx].has(Feature.WP_ASYNC)
            if EVIDENCE[kind] and asynchronous:
                return
            op = Op(int(work.op[index]))
            if op in UNPROTECTED_FILLS and last - first > PAGE_SIZE and self._told(ctx, first, last):
                op = Op.ANSWER_REST
            self._slice(ctx, first, last, op, event)
            if op in MOVES:
                source = int(event["value"])
                self._slice(ctx, source, source + last - first, MOVES[op], event)
            for low, high in work.doubts.get(index, ()):
                self._slice(ctx, low, high, Op.DOUBT, event)

    def _told(self, ctx: int, start: int, end: int) -> bool:
        """Whether the monitor has read of a write to any of these pages in its arming."""
        parts = self.ranges.space(ctx).parts(start, end)
        return any(bool(having(np.flatnonzero(self.ranges.count(part)), TOLD).any()) for part in parts)

    def _ended(self, ctx: int, start: int, end: int, time: int, closed: bool) -> None:
        if self.watched.end(ctx, start, end, time) or closed:
            self._sleepers.endings.append(Ending(time, ctx, start, end, closed))

    def _slice(self, ctx: int, start: int, end: int, op: Op, event: Array) -> None:
        for piece in self.ranges.space(ctx).overlapping(start, end):
            low = max(start, piece.start)
            high = low + -(-(min(end, piece.end) - low) // PAGE_SIZE) * PAGE_SIZE
            befell, notable = self.ranges.operate(piece, low, high, op)
            self.losses.add(notable.firsts, notable.effects, int(event["time"]), int(event["tid"]), notable.pages)
            effects = np.repeat(notable.effects, notable.pages)
            for call, index in circles.answers(effects, np.full(len(effects), int(op), dtype=np.uint8)).items():
                addresses = piece.start + (notable.places()[index] - piece.place) * PAGE_SIZE
                self.ranges.all[piece.range_number].root().circles.add(call, addresses)
            dropped = np.array([int(befell[_DROPPED].sum())])
            if DISCARDS[event["type"]] and dropped[0]:
                numbers = np.array([piece.range_number])
                self._dropped(self.watched.home(ctx), event[None], numbers, dropped)
