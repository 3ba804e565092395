"""Who watches what: userfaultfds, and how their registrations come, change and go."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

from uffdtrace.model.account.facts import Fact
from uffdtrace.model.account.failures import Failures
from uffdtrace.model.account.pages import ARMED, COUNTS, DOUBT, Op
from uffdtrace.model.account.pool import States
from uffdtrace.model.account.populated import Populated
from uffdtrace.model.account.ranges import Piece, Range, Ranges
from uffdtrace.model.account.states import apply_range, carry, having, inherit
from uffdtrace.model.account.work import Remap
from uffdtrace.model.records.batch import Batch
from uffdtrace.model.records.counting import by_value, different
from uffdtrace.model.records.events import MEMORY_MASK, Array, Feature, Memory, Mode, UffdEvent

# UFFDIO_API was called (fs/userfaultfd.c, UFFD_FEATURE_INITIALIZED): no feature of the user's.
_INITIALIZED = 1 << 31
# Forks that are remembered until it is known whether the monitor had a part in them. More than
# that would let a target that forks and forks fill our memory.
MOST_FORKS = 4096
# Messages of a userfaultfd that are kept until a fault tells of their range. They are those of threads that slept when
# it turned up: of more threads, the rest stays in no range, which is said.
MOST_UNPLACED = 4096
# Above every address.
EVERYWHERE = (1 << 63) - 1


@dataclass(frozen=True)
class Copied:
    """A part of a range when a fork copied its area."""

    start: int
    end: int
    row: Range
    states: States
    # The range had none then.
    no_holes: bool


@dataclass(frozen=True)
class EventWait:
    """A thread that slept until `event` is read when the trace ended.

    `event` is None where it is not known, `since` (ns) where it is before the
    trace; `reads` where the thread itself reads the userfaultfd.
    """

    tid: int
    event: UffdEvent | None
    since: int | None
    reads: bool


@dataclass
class Reader:
    """A thread of process `tgid` that read messages, from `first` to `last` (ns)."""

    tgid: int
    first: int
    last: int


@dataclass(frozen=True)
class EndedReader:
    """A thread of process `tgid` that read messages, the last one at `last`, and ended after `after` and by `by` (ns).

    `process` where all of its process had ended by then.
    """

    tid: int
    tgid: int
    last: int
    after: int
    by: int
    process: bool


@dataclass(frozen=True)
class Holder:
    """Process `pid`, called `comm`, had the userfaultfd open as descriptor `fd` when the trace ended."""

    pid: int
    comm: str
    fd: int


@dataclass
class UnwatchedFork:
    """A fork by thread `tid` that copied these ranges (a number for each area) unwatched; `child` is the process."""

    tid: int
    child: int | None = None
    range_numbers: list[int] = field(default_factory=list)


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
    # Threads that read messages.
    threads: dict[int, Reader] = field(default_factory=dict)
    # Time (ns) when it, or the memory, went; the kernel uses the address again.
    gone: int | None = None
    # Messages not read and threads not woken when the trace began, of faults that are in no count.
    before: tuple[int, int] | None = None
    # Threads of its process that slept in a fault then, whichever userfaultfd was to be told.
    slept: list[int] = field(default_factory=list)
    # Faults of that time that were answered in the trace.
    served_later: int = 0
    # Threads in faults of that time that are among the waiting ones of a range.
    listed: list[int] = field(default_factory=list)
    # Those that slept when the trace began and when it ended, in which fault nobody saw.
    still_asleep: list[int] = field(default_factory=list)
    # Some message had been read when the trace began.
    read_before: bool = False
    event_waits: list[EventWait] = field(default_factory=list)
    # Every thread that was seen reading, where all of them had ended when the trace ended, the last to read first.
    ended_readers: list[EndedReader] = field(default_factory=list)
    # None where nobody looked, which is where nobody waited.
    holders: list[Holder] | None = None
    # What the kernel had the monitor read, by UffdEvent.
    events: dict[UffdEvent, int] = field(default_factory=dict)
    # The one that its memory was forked from.
    parent: Userfaultfd | None = None
    # It was polled without O_NONBLOCK.
    blocking_poll: bool = False
    # Calls that failed and named no range.
    failures: Failures = field(default_factory=Failures)
    # The thread that forks, while it may wait for the monitor to read of it.
    forker: int | None = None
    # Address and Kind of messages that name no range known so far.
    unplaced: list[tuple[int, int]] = field(default_factory=list)
    unwatched_forks: deque[UnwatchedFork] = field(default_factory=deque)

    def has(self, feature: Feature) -> bool:
        return bool((self.features or 0) & feature)

    def read(self, messages: Batch) -> None:
        """MESSAGE events: who read them, and when."""
        for tid, index in by_value(messages["value"]):
            first, last = int(messages["time"][index[0]]), int(messages["time"][index[-1]])
            if tid:
                reader = self.threads.setdefault(tid, Reader(int(messages["tgid"][index[0]]), first, first))
                reader.tgid, reader.last = int(messages["tgid"][index[-1]]), max(reader.last, last)
        self.readers.update(different(messages["tgid"]))

    def keep_unplaced(self, messages: Batch) -> None:
        """MESSAGE events in no range known so far: a fault may tell of their range later."""
        room = MOST_UNPLACED - len(self.unplaced)
        self.unplaced += list(zip(messages["start"][:room].tolist(), messages["kind"][:room].tolist()))

    def take_unplaced(self, start: int, end: int) -> list[tuple[int, int]]:
        """Those in [start, end), which are kept no longer."""
        taken = [one for one in self.unplaced if start <= one[0] < end]
        if taken:
            self.unplaced = [one for one in self.unplaced if not start <= one[0] < end]
        return taken


class Watched:
    """The userfaultfds and ranges of a trace; `current` are those there are now, by their address in the kernel."""

    def __init__(self, page_size: int) -> None:
        self.ranges = Ranges(page_size)
        self.userfaultfds: list[Userfaultfd] = []
        self.current: dict[int, Userfaultfd] = {}
        self.populated = Populated(page_size)
        self._home_of: list[Userfaultfd] = []
        # By forking thread and userfaultfd: all areas are copied before the child's userfaultfd is told of.
        self._copied: dict[tuple[int, int], list[Copied]] = {}

    def uffd_of(self, row: Range) -> Userfaultfd:
        return self._home_of[row.number]

    def uffd(self, ctx: int) -> Userfaultfd:
        if ctx not in self.current:
            self.current[ctx] = Userfaultfd(len(self.userfaultfds), ctx)
            self.userfaultfds.append(self.current[ctx])
        return self.current[ctx]

    def seen(self, ctx: int, mm: int, features: int, owner: int) -> None:
        uffd = self.uffd(ctx)
        uffd.mm = mm
        uffd.features = features & ~_INITIALIZED
        uffd.owner = owner or uffd.owner

    def of_memory(self, mm: int) -> list[Userfaultfd]:
        return [uffd for uffd in self.current.values() if uffd.mm == mm]

    def orphaned(self, ctx: int, time: int) -> None:
        """A userfaultfd is closed: forks that still wait for its monitor to be told go on without theirs."""
        parent = self.current.get(ctx)
        if parent is None:
            return
        # Who uses it was told of it.
        waiting = [one for one in self.current.values() if one.forker is not None and not one.callers | one.readers]
        for uffd in [one for one in waiting if one.parent is parent]:
            self.ranges.end(self.ranges.space(uffd.ctx), 0, EVERYWHERE)
            for row in self.ranges.rows():
                if self.uffd_of(row) is uffd:
                    row.changes[:] = 0
                    row.holes = 0
            for piece in self.ranges.space(ctx).pieces:
                self.ranges.row_of(piece).facts.setdefault(Fact.FORK, 1)
            self.forget(uffd.ctx, time)

    def forget(self, ctx: int, time: int) -> None:
        """The descriptor or its memory is gone."""
        self.ranges.cut(self.ranges.space(ctx), 0, EVERYWHERE)
        self.ranges.spaces.pop(ctx, None)
        if ctx in self.current:
            self.current.pop(ctx).gone = time

    def registered(self) -> list[tuple[int, int, int]]:
        """(mm, start, end) of all that is registered now."""
        return [
            (uffd.mm, piece.start, piece.end)
            for uffd in self.current.values()
            for piece in self.ranges.space(uffd.ctx).pieces
        ]

    def forked(self, ctx: int, tid: int, start: int, end: int) -> None:
        """A fork by this thread copies a range area by area: that of its first page counts for it."""
        forks = self.uffd(ctx).unwatched_forks
        if not forks or forks[-1].tid != tid or forks[-1].child is not None:
            if len(forks) == MOST_FORKS:
                self._judge(self.uffd(ctx), forks.popleft())
            forks.append(UnwatchedFork(tid))
        seen: set[int] = set()
        for piece in self.ranges.space(ctx).pieces:
            row = self.ranges.row_of(piece)
            if row.number not in seen and start <= piece.start < end:
                forks[-1].range_numbers.append(row.number)
                row.note(Fact.FORK)
            seen.add(row.number)

    def made_child(self, mm: int, tid: int, child: int) -> None:
        """CHILD: a fork by this thread made that process."""
        for uffd in self.of_memory(mm):
            for fork in reversed(uffd.unwatched_forks):
                if fork.tid == tid:
                    # The forks of a thread that are older are settled.
                    if fork.child is not None:
                        break
                    fork.child = child

    def forget_monitors_forks(self) -> None:
        """Take back the forks that the monitor made, or that made the monitor, now that it is known who that is.

        Nobody expects their private copies to be watched. To memory that is shared
        a monitor's child may write as well as any other: those forks stay.
        """
        for uffd in self.userfaultfds:
            while uffd.unwatched_forks:
                self._judge(uffd, uffd.unwatched_forks.popleft())

    def _judge(self, uffd: Userfaultfd, fork: UnwatchedFork) -> None:
        """Take a fork back that is the monitor's, as far as is known by now."""
        monitors = fork.tid in uffd.threads or fork.child in uffd.readers
        for number in fork.range_numbers:
            row = self.ranges.all[number].root()
            if monitors and not row.memory & ~Memory.ANON:
                row.note(Fact.FORK, -1)

    def copied(self, tid: int, ctx: int, start: int, end: int, wiped: bool) -> None:
        """A fork copies an area, or `wiped` only where it lies, to a child whose userfaultfd will be told of."""
        parts, space = self._copied.setdefault((tid, ctx), []), self.ranges.space(ctx)
        # Areas are copied in order of address, and stay registered meanwhile: else an earlier fork failed.
        if parts and start < parts[-1].end:
            parts.clear()
        while parts and not space.overlapping(parts[-1].start, parts[-1].end):
            parts.pop()
        for piece in space.overlapping(start, end):
            copied = piece.part(max(piece.start, start), min(piece.end, end))
            found = self.ranges.states(copied)
            states = States(found.sizes, inherit(found.states))
            row = self.ranges.row_of(piece)
            if wiped:
                apply_range(states.states, Op.DISCARD)
            parts.append(Copied(copied.start, copied.end, row, states, row.holes == 0))

    def adopted(self, event: Array) -> None:
        """FORKED: the child's userfaultfd, with what the fork copied."""
        ctx, parent, time = int(event["ctx"]), int(event["aux"]), int(event["time"])
        # It may have been closed while it forked, and the child's may lie where it was.
        forked_from = next((one for one in reversed(self.userfaultfds) if one.ctx == parent), None)
        if ctx in self.current:
            self.forget(ctx, time)
        self.seen(ctx, int(event["start"]), int(event["end"]), 0)
        uffd = self.uffd(ctx)
        # It waits for one after the other.
        for one in self.current.values():
            one.forker = None if one.forker == event["tid"] else one.forker
        uffd.forker = int(event["tid"])
        uffd.parent = forked_from
        for part in self._copied.pop((int(event["tid"]), parent), []):
            self.register(ctx, part.start, part.end, part.row.modes, time)
            for piece in self.ranges.space(ctx).overlapping(part.start, part.end):
                row = self.ranges.row_of(piece)
                self.ranges.pool.write(piece.place_of(part.start), part.states)
                armed = part.states.pages(having(part.states.states, ARMED | DOUBT))
                row.changes[COUNTS.index("armed_pages")] += armed
                row.carried |= armed > 0
                row.armings += armed > 0
                row.memory |= part.row.memory
                row.order = max(row.order, part.row.order)
                row.before |= part.row.before
                row.unseen |= part.row.unseen
                # Which single pages were holes no event told.
                row.holes = row.holes if part.no_holes else None

    def unmapped(self, mm: int) -> None:
        """An address space is gone: its address will be another's."""
        for uffd in self.userfaultfds:
            if uffd.mm == mm:
                uffd.mm = 0

    def slept(self, tgid: int, tid: int) -> None:
        """A thread slept in a fault when the trace began."""
        for uffd in self.current.values():
            if uffd.owner == tgid and uffd.before is not None:
                uffd.slept.append(tid)

    def process(self, mm: int, tgid: int) -> None:
        # The monitor may have closed the child's already, or used it while its task had the parent's number.
        for uffd in self.userfaultfds:
            if uffd.mm == mm and (uffd.owner is None or self.current.get(uffd.ctx) is uffd):
                uffd.owner = tgid
                uffd.forker = None

    def unmap(self, uffd: Userfaultfd, start: int, end: int) -> None:
        for piece in self.ranges.end(self.ranges.space(uffd.ctx), start, end):
            if not uffd.has(Feature.EVENT_UNMAP):
                self.ranges.row_of(piece).note(Fact.UNMAPPED, piece.pages)

    def remap(self, uffd: Userfaultfd, remap: Remap, time: int) -> None:
        """Moved memory stays registered only where the monitor asked for EVENT_REMAP; what grows stays."""
        space = self.ranges.space(uffd.ctx)
        if remap.to != remap.start:
            old = self.ranges.bounds(remap.start, remap.end)
            # MREMAP_FIXED unmaps what was there.
            to_end = max(remap.to_end, remap.to + self.ranges.page_size)
            self.unmap(uffd, *self.ranges.bounds(remap.to, to_end))
            # What was told of the memory that was there is not told of this.
            uffd.take_unplaced(remap.to, remap.to_end)
            for piece in space.parts(*old) if remap.kept else self.ranges.cut(space, *old):
                if uffd.has(Feature.EVENT_REMAP):
                    self._move(uffd, piece, piece.start - remap.start + remap.to, time)
                else:
                    self.ranges.row_of(piece).note(Fact.MOVED_AWAY, piece.pages)
                self.ranges.operate(piece, piece.start, piece.end, Op.DISCARD if remap.kept else Op.ENDED)
        grown = remap.to + (remap.end - remap.start), remap.to_end
        before = [piece for piece in space.pieces if piece.end == grown[0]]
        if before and grown[0] < grown[1]:
            row = self.ranges.row_of(before[0])
            self.register(uffd.ctx, *self.ranges.bounds(*grown), row.modes, time)
            row.root().note(Fact.GROWN, (grown[1] - grown[0]) // self.ranges.page_size)

    def _move(self, uffd: Userfaultfd, piece: Piece, to: int, time: int) -> None:
        """Pages go to another address with their states; what is there is another range."""
        row = self.ranges.row_of(piece)
        old = self.ranges.states(piece)
        end = to + piece.end - piece.start
        self.register(uffd.ctx, to, end, row.modes, time)
        self._carry(uffd.ctx, replace(piece, start=to, end=end), old)

    def found(self, event: Array) -> None:
        """A mapping that was registered before the trace."""
        ctx, start, end = int(event["ctx"]), int(event["start"]), int(event["end"])
        modes = Mode(int(event["aux"]) & 7)
        self.register(ctx, start, end, modes, int(event["time"]))
        if modes & Mode.MISSING:
            self.populated.remember(self.uffd(ctx).mm, start, end)
        self.backed(ctx, start, end, Memory(int(event["flags"]) & MEMORY_MASK))
        markers = int(event["flags"]) & (Memory.SHMEM | Memory.HUGETLB) or self.uffd(ctx).has(Feature.WP_UNPOPULATED)
        if not event["kind"]:
            self.before(ctx, start, end)
        elif not markers:
            # What was empty when it was armed looks as if it had not been.
            for piece in self.ranges.space(ctx).overlapping(start, end):
                row = self.ranges.row_of(piece)
                row.unseen = row.unseen or bool(row.modes & Mode.WP)

    def before(self, ctx: int, start: int, end: int) -> None:
        for piece in self.ranges.space(ctx).overlapping(start, end):
            row = self.ranges.all[piece.range_number].root()
            row.before = row.before or bool(row.modes & Mode.WP)

    def backed(self, ctx: int, start: int, end: int, memory: Memory) -> None:
        for piece in self.ranges.space(ctx).overlapping(start, end):
            self.ranges.all[piece.range_number].root().memory |= memory

    def register(self, ctx: int, start: int, end: int, modes: Mode, time: int) -> None:
        uffd = self.uffd(ctx)
        replaced = self.ranges.register(ctx, start, end, modes)
        for row in self.ranges.all[len(self._home_of) :]:
            row.born = time
        self._home_of += [uffd] * (len(self.ranges.all) - len(self._home_of))
        for piece in replaced:
            self._replace(ctx, piece, modes)

    def present(self, event: Array) -> None:
        """PRESENT: what is there already of that which a thread is about to register."""
        ctx = int(event["ctx"])
        standing = self.ranges.space(ctx).overlapping(int(event["start"]), int(event["end"]))
        self.populated.present(event, self.uffd(ctx).mm, bool(standing))

    def called(self, event: Array, start: int, end: int, modes: Mode) -> None:
        """A REGISTER has succeeded, and what it registered is a range."""
        ctx = int(event["ctx"])
        # Messages there were of an earlier registration.
        self.uffd(ctx).take_unplaced(start, end)
        late = self.populated.registered(event)
        if late is not None:
            late.range_number = self.ranges.space(ctx).overlapping(start, end)[0].range_number
        if modes & Mode.MISSING:
            self.populated.remember(self.uffd(ctx).mm, start, end)

    def dropped(self, events: Array) -> None:
        """Pages that are dropped (DISCARD, ZAP) are populated no more, and what comes after is told."""
        for late in self.populated.late:
            row = self.ranges.all[late.range_number].root()
            # The kernel uses the userfaultfd's address again, and a program its addresses.
            ends = [time for time in (self.uffd_of(row).gone, row.withdrawn) if time is not None]
            mine = (events["ctx"] == late.ctx) & (events["time"] > late.time)
            for event in events[mine & (events["time"] <= min(ends, default=EVERYWHERE))]:
                late.drop(int(event["start"]), int(event["end"]))

    def registered_late(self) -> None:
        """Pages that were populated when MISSING was registered over them, and have not been dropped since."""
        for late in self.populated.late:
            if late.pages and late.range_number >= 0:
                row = self.ranges.all[late.range_number].root()
                row.note(Fact.REGISTERED_LATE if late.again else Fact.POPULATED_BEFORE, late.pages)
                row.note(Fact.MORE_POPULATED, int(late.at_least))

    def _replace(self, ctx: int, piece: Piece, modes: Mode) -> None:
        """Registered again with other modes: what was armed goes on in the new range."""
        old = self.ranges.states(piece)
        self.ranges.operate(piece, piece.start, piece.end, Op.ENDED)
        for new, start, end in self._carry(ctx, piece, old):
            if not modes & Mode.WP:
                self.ranges.operate(new, start, end, Op.MODE_REPLACED)

    def _carry(self, ctx: int, place: Piece, old: States) -> list[tuple[Piece, int, int]]:
        """Give the pages of `place` their old states; the pieces and parts that they are in now."""
        parts = []
        for new in self.ranges.space(ctx).overlapping(place.start, place.end):
            start, end = max(new.start, place.start), min(new.end, place.end)
            part, skip = new.part(start, end), place.place_of(start) - place.place
            sizes, before, kept = old.part(skip, part.pages).beside(self.ranges.states(part))
            after, newly = carry(before, kept)
            states = States(sizes, after)
            self.ranges.pool.write(part.place, states)
            row, source = self.ranges.row_of(new), self.ranges.row_of(place)
            row.changes[COUNTS.index("armed_pages")] += int((sizes * newly).sum())
            row.carried |= bool(having(after, ARMED | DOUBT).any())
            row.memory |= source.memory
            row.order = max(row.order, source.order)
            row.before |= source.before
            row.unseen |= source.unseen
            parts.append((new, start, end))
        return parts

    def end(self, ctx: int, start: int, end: int, time: int) -> bool:
        """UNREGISTER or close; whether anything was registered there."""
        space = self.ranges.space(ctx)
        if ctx in self.current:
            self.current[ctx].take_unplaced(start, end)
        rows = {row.number: row for row in map(self.ranges.row_of, self.ranges.end(space, start, end))}
        for row in rows.values():
            # All pieces of a range lie within it.
            if not any(self.ranges.row_of(piece) is row for piece in space.overlapping(row.start, row.end)):
                row.withdrawn = time
        return bool(rows)
