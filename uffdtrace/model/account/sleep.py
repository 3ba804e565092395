"""Who sleeps in a fault, and for how long."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from uffdtrace.model.records.acts import ago
from uffdtrace.model.records.batch import Batch
from uffdtrace.model.records.counting import among, begins, goes_on, one_of, ordered
from uffdtrace.model.records.events import EVENT, MODES_SHIFT, SINCE_RETURN_SHIFT, Array, Kind, Mode, Type

_TYPES = among((Type.FAULT, Type.FAULT_FOUND, Type.MESSAGE, Type.WAKE, Type.FAULT_RETURN))
_BEGINNINGS = among((Type.FAULT, Type.FAULT_FOUND))
# After one of these a thread's fault is known from its events: what a queue told of it is old.
_KNOWN = frozenset((Type.FAULT, Type.FAULT_FOUND, Type.WAKE))
_NEVER = np.iinfo(np.int64).max

# Columns of what a served fault waited, in ns; WAKEUP is NaN where the thread's return was not seen.
QUEUE, SERVICE, TOTAL, WAKEUP = range(4)

# A fault with all that followed it, in ns; a time is 0 where nobody saw that. One that began `before` the trace
# was found when that began.
_TIMES = ("began", "read", "woken", "returned", "died")
FAULT = np.dtype(
    [("tid", "<u4"), ("tgid", "<u4"), ("kind", "u1"), ("before", "?"), ("address", "<u8")]
    + [(name, "<i8") for name in _TIMES]
)


def _first(numbers: Array, times: Array, count: int) -> Array:
    """The first time in each of `count` segments, 0 for none, of events of these segments (by `numbers`) and times."""
    found = np.zeros(count, dtype=np.int64)
    if len(numbers):
        # Segments are numbered in the order of the events: equal numbers stand together.
        first = begins(numbers)
        found[numbers[first]] = times[first]
    return found


def _told_by_next(begun: Batch, returned: Array, superseded: Array) -> Array:
    """`returned`, and where it is not known what the thread's next fault says of it; `begun` are faults by thread."""
    told = np.flatnonzero(superseded & (returned == 0))
    since = begun["aux"][told + 1] >> np.uint64(SINCE_RETURN_SHIFT)
    says = (since != 0) & (begun["type"][told + 1] == Type.FAULT)
    told, since = told[says], since[says]
    returned[told] = ago(begun["time"][told + 1], since).astype(np.int64)
    return returned


def _new(events: Batch) -> Array:
    """Index of all events, by thread, but those that tell of a fault from before the trace what is known better."""
    found = events.of(Type.FAULT_FOUND)
    if not found.size:
        return np.arange(len(events))
    old = []
    for tid in np.unique(events["tid"][found]).tolist():
        mine = np.flatnonzero(events["tid"] == tid)
        known = False
        for index in mine.tolist():
            if known and events["type"][index] == Type.FAULT_FOUND:
                old.append(index)
            known |= int(events["type"][index]) in _KNOWN
    return np.delete(np.arange(len(events)), old)


@dataclass(frozen=True)
class Ending:
    """A registration that ended at `time` (ns) by UNREGISTER or, with closed, with its descriptor: [start, end)."""

    time: int
    ctx: int
    start: int
    end: int
    closed: bool


@dataclass(frozen=True)
class Waiting:
    """A fault that nobody resolved: `range_number` -1 where the range was not seen; times in ns.

    `since` is None where it began before the trace.
    """

    range_number: int
    address: int
    tid: int
    kind: Kind
    since: int | None
    read: bool
    # Nobody saw how it ended.
    unknown: bool


def longest_first(faults: Iterable[Waiting]) -> list[Waiting]:
    return sorted(faults, key=lambda fault: -1 if fault.since is None else fault.since)


@dataclass(frozen=True)
class Killed:
    """A fault whose thread was killed before anybody resolved it: it waited from `since` to `until` (ns)."""

    range_number: int
    address: int
    tid: int
    kind: Kind
    since: int
    until: int
    read: bool


@dataclass(frozen=True)
class Exit:
    """The memory that these userfaultfds watch went at `time` (ns), and the threads of its process before it."""

    time: int
    contexts: tuple[int, ...]
    owners: tuple[int, ...]


class Sleepers:
    """Matches each fault with its message, its wake-up and its return, thread by thread.

    A thread sleeps in one fault at a time, so what follows a fault up to the
    thread's next one belongs to it.
    """

    def __init__(self, page_size: int, told: Callable[[Array], None] | None = None) -> None:
        """`told` is given all faults, as FAULT: each when it is over, and at the end those that are not."""
        self._page_size = page_size
        self._told = told
        self._open = Batch(np.empty(0, dtype=EVENT))
        self._open_ranges = np.empty(0, dtype=np.int64)
        # Of the batch that is fed next.
        self.endings: list[Ending] = []
        self.exits: list[Exit] = []
        # Faults of threads that were killed in them.
        self.killed: list[Killed] = []
        # Range number of each fault that was asleep when its registration ended.
        self.left: list[tuple[int, Ending]] = []
        # Range number of each fault from before the trace that was served in it.
        self.served_later: list[int] = []

    def feed(self, events: Batch, ranges: Array, final: bool = False) -> tuple[Array, Array, Array]:
        """Take a batch; (range number, [queue, service, total, wake-up] in ns, time of begin) of each fault served.

        `ranges` has the range number of every event of the batch.
        """
        wanted = np.flatnonzero(_TYPES[events["type"]] & ~((events["type"] == Type.FAULT) & (events["ret"] != 0)))
        events = Batch.joined([self._open, events[wanted]])
        numbers = np.concatenate([self._open_ranges, ranges[wanted]])
        order = ordered(events["tid"])
        if order is not None:
            events, numbers = events[order], numbers[order]
        new = _new(events)
        if len(new) < len(events):
            events, numbers = events[new], numbers[new]
        faults = _BEGINNINGS[events["type"]]
        # Before a thread's first fault: of faults older than the trace.
        segments = np.cumsum(faults) - 1
        first_of_thread = np.flatnonzero(begins(events["tid"]))
        if not faults[first_of_thread].all():
            # Where each event's thread begins; an orphan's thread begins behind the fault before it.
            started = np.repeat(first_of_thread, np.diff(first_of_thread, append=len(events)))
            heads = np.flatnonzero(faults)
            kept = np.zeros(len(events), dtype=bool)
            kept[heads[0] if heads.size else len(events) :] = True
            kept[kept] = heads[segments[kept]] >= started[kept]
            events, numbers = events[kept], numbers[kept]
            segments, faults = segments[kept], faults[kept]
        times = events["time"].astype(np.int64)
        begun, in_ranges = events[faults], numbers[faults]
        count, began = len(begun), times[faults]
        before = begun["type"] == Type.FAULT_FOUND
        read, woken = (
            _first(segments[index], times[index], count) for index in (events.of(Type.MESSAGE), events.of(Type.WAKE))
        )
        if before.any():
            read = np.where(before & (begun["value"] == 1), began, read)
        returns = events.of(Type.FAULT_RETURN)
        kinds = events["kind"][returns]
        went_on, dead = returns[kinds == 0], returns[kinds == 1]
        ended = ago(events["time"][went_on], events["aux"][went_on]).astype(np.int64)
        returned = _first(segments[went_on], ended, count)
        died = _first(segments[dead], times[dead], count)
        superseded = goes_on(begun["tid"])
        returned = _told_by_next(begun, returned, superseded)
        died = self._exited(begun, died, (returned != 0) | (woken != 0) | superseded)
        # A function that ran before the trace returns unseen.
        over = (returned != 0) | superseded | (died != 0) | (before & (woken != 0))
        # Who is dead is woken no more: what says so is another thread of that number's.
        woken, returned = (np.where((died != 0) & (end > died), 0, end) for end in (woken, returned))
        self._note_killed(begun, in_ranges, died, read, (woken != 0) | (returned != 0))
        # The return of one that was woken may still come.
        done = over | (woken != 0) if final else over
        keep = ~done[segments] if count else np.zeros(len(events), bool)
        self._open, self._open_ranges = events[keep].settled(), numbers[keep]
        if self._told is not None and (final or done.any()):
            self._tell(begun, before, (began, read, woken, returned, died), np.ones(count, bool) if final else done)
        if self.endings:
            next_one = np.where(superseded, np.append(began[1:], 0)[:count], 0)
            until = next_one
            for end in (died, returned, woken):
                until = np.where(end != 0, end, until)
            self._compare(begun, in_ranges, until, before)
        # Where the message was read only after the wake-up, nobody waited for it.
        served = done & (read > 0) & (read >= began) & (woken >= read) & ~before
        self.served_later += in_ranges[before & done & (woken != 0)].tolist()
        wakeup = np.where((returned >= woken) & (woken > 0), returned - woken, np.nan)
        waits = np.stack([read - began, woken - read, woken - began, wakeup], axis=1)[served].astype(np.float32)
        return in_ranges[served], waits, began[served]

    def _tell(self, faults: Batch, before: Array, times: tuple[Array, ...], wanted: Array) -> None:
        assert self._told is not None
        found = np.zeros(len(faults), dtype=FAULT)
        for name in ("tid", "tgid", "kind"):
            found[name] = faults[name]
        found["before"] = before
        found["address"] = faults["start"] & ~np.uint64(self._page_size - 1)
        for name, column in zip(_TIMES, times):
            found[name] = column
        self._told(found[wanted])

    def _compare(self, faults: Batch, numbers: Array, until: Array, before: Array) -> None:
        """Which of the faults slept when a registration of theirs ended: of those all events before that are here.

        The modes under which a fault began are not known of those from `before` the trace.
        """
        until = np.where(until == 0, _NEVER, until)
        for ending in self.endings:
            hit = (
                (faults["ctx"] == ending.ctx)
                & (faults["start"] >= ending.start)
                & (faults["start"] < ending.end)
                & (faults["time"].astype(np.int64) < ending.time)
                & (until > ending.time)
            )
            if not ending.closed:
                # UNREGISTER wakes an area's waiters only if it was registered for MISSING (kernel-semantics.md 7).
                missing = faults["flags"] >> np.uint32(MODES_SHIFT) & np.uint32(Mode.MISSING) != 0
                hit &= (faults["kind"] == Kind.WP) & ~missing & ~before
            self.left += [(number, ending) for number in numbers[hit].tolist()]
        self.endings = []

    def _exited(self, faults: Batch, died: Array, over: Array) -> Array:
        """When each thread died in its fault, 0 for none: seen, or because its process's memory went."""
        for end in self.exits:
            hit = one_of(faults["ctx"], end.contexts) & one_of(faults["tgid"], end.owners)
            hit &= ~over & (died == 0) & (faults["time"] < end.time)
            died = np.where(hit, end.time, died)
        self.exits = []
        return died

    def _note_killed(self, faults: Batch, numbers: Array, died: Array, read: Array, served: Array) -> None:
        for index in np.flatnonzero((died != 0) & ~served).tolist():
            fault = faults[index]
            self.killed.append(
                Killed(
                    int(numbers[index]),
                    int(fault["start"]) & -self._page_size,
                    int(fault["tid"]),
                    Kind(int(fault["kind"]) % len(Kind)),
                    int(fault["time"]),
                    int(died[index]),
                    bool(read[index]),
                )
            )

    def unread(self) -> dict[int, int]:
        """How many faults wait of which no message was read yet, by range number."""
        beginnings = _BEGINNINGS[self._open["type"]]
        told = (self._open["type"] == Type.FAULT_FOUND) & (self._open["value"] == 1)
        read = one_of(self._open["tid"], self._open["tid"][self._open["type"] == Type.MESSAGE].tolist())
        numbers, counts = np.unique(self._open_ranges[beginnings & ~told & ~read], return_counts=True)
        return dict(zip(numbers.tolist(), counts.tolist()))

    def pending(self, asleep: set[int], looked_at: set[int]) -> list[Waiting]:
        """The faults that nobody resolved, after the last batch was fed as `final`.

        `looked_at` are the tgids that still lived at the end, `asleep` their
        threads that were seen in handle_userfault().
        """
        read = set(self._open["tid"][self._open["type"] == Type.MESSAGE].tolist())
        found = []
        for index in np.flatnonzero(_BEGINNINGS[self._open["type"]]).tolist():
            fault = self._open[index]
            before = fault["type"] == Type.FAULT_FOUND
            tid, alive = int(fault["tid"]), int(fault["tgid"]) in looked_at
            if alive and tid not in asleep:
                continue
            found.append(
                Waiting(
                    int(self._open_ranges[index]),
                    int(fault["start"]) & -self._page_size,
                    tid,
                    Kind(int(fault["kind"]) % len(Kind)),
                    None if before else int(fault["time"]),
                    tid in read or bool(before and fault["value"] == 1),
                    unknown=not alive,
                )
            )
        return found
