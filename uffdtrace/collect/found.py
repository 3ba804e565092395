"""What was there before the trace: descriptors, ranges, protected pages.

The kernel says which userfaultfd_ctx a descriptor is by running
userfaultfd_show_fdinfo() under our probe, and whose a mapping is by running
show_map_vma(); modes and pages come from smaps and pagemap, as events of our own
that stand in the stream at the time of reading.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from uffdtrace.collect.program import Program
from uffdtrace.collect.ring import Stream
from uffdtrace.kernel import offers, proc
from uffdtrace.model.account.watched import Userfaultfd
from uffdtrace.model.account.work import EVIDENCE
from uffdtrace.model.diagnosis.document import ProcessDict
from uffdtrace.model.diagnosis.report import Name
from uffdtrace.model.records.batch import Batch, as_batch
from uffdtrace.model.records.counting import different, one_of
from uffdtrace.model.records.events import EVENT, Array, Ioctl, Mode, Type, UffdEvent, name_in

# Threads whose names are kept.
MOST_THREADS = 10_000
# Who waits in the queues of a userfaultfd that is looked at.
_QUEUED = (Type.FAULT_FOUND, Type.EVENT_FOUND)
# Events whose tgid acts on a userfaultfd, or is its memory's.
_ACTORS = (Type.IOCTL, Type.MESSAGE, Type.PROCESS, Type.RANGE_FOUND)


def _event(what: Type, **fields: int) -> Array:
    event = np.zeros(1, dtype=EVENT)
    event["time"] = _now()
    event["type"] = what
    for name, value in fields.items():
        event[name] = value
    return event


def _now() -> int:
    # The clock of bpf_ktime_get_ns().
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


@dataclass(frozen=True)
class _Look:
    """When (ns) a userfaultfd was looked at, and its memory; the kernel uses both addresses again."""

    mm: int
    time: int


def _told(events: Array) -> Array:
    """Which are userfaultfd_show_fdinfo()'s, that ran for us."""
    told: Array = (events["type"] == Type.USERFAULTFD) & (events["tgid"] == os.getpid())
    return told


class LookBack:
    """Finds what was there before its events were recorded: at the start, and when a userfaultfd turns up late."""

    def __init__(self, program: Program, stream: Stream) -> None:
        self._program = program
        self._stream = stream
        self._looked: dict[int, _Look] = {}
        # Who waited when the trace began: FAULT_FOUND and EVENT_FOUND.
        self._queued: list[Array] = []

    def start(self, pids: Sequence[int]) -> list[Name]:
        """Have every userfaultfd that one of `pids` holds, or that watches its memory, traced; all if there are none.

        Puts events into the stream; what they cannot carry, the names of mappings, is returned.
        """
        found: list[Array] = []
        for holder in proc.pids():
            if holder == os.getpid():
                continue
            for fd in proc.userfaultfds(holder):
                proc.fdinfo(holder, fd)
                new = [event for event in self._shown() if self._wanted(event, pids, holder)]
                for event in new[:1]:
                    self._program.trace(int(event["ctx"]), int(event["start"]))
                    found += self._look(holder, fd, event)
        # What the first looks told is told again by those that count, and of other people's nothing is kept.
        held = self._stream.held
        counted = _told(held) & ~one_of(held["time"], [int(one["time"]) for one in found])
        self._stream.held = held[~(counted | np.isin(held["type"], _QUEUED))]
        self._stream.push(self._queued)
        for owner in sorted({int(event["aux"]) for event in found if event["aux"]}):
            sleepers = proc.asleep_in_fault(owner)
            self._stream.push([_event(Type.SLEEPER_FOUND, tid=tid, tgid=owner) for tid in sleepers])
        return self._ranges(found)

    def _wanted(self, event: Array, pids: Sequence[int], holder: int) -> bool:
        """Whether what a descriptor of `holder` told of is to be traced, and not yet."""
        return int(event["ctx"]) not in self._looked and (not pids or holder in pids or int(event["aux"]) in pids)

    def _look(self, holder: int, fd: int, first: Array) -> list[Array]:
        """Its USERFAULTFD event, from when on its events are recorded; who waits in its queues then is kept."""
        ctx = int(first["ctx"])
        said = proc.fdinfo(holder, fd)
        events = self._stream.peek()
        events = events[events["ctx"] == ctx]
        told = events[_told(events)]
        event = told[-1] if len(told) else first
        self._looked[ctx] = _Look(int(event["start"]), int(event["time"]))
        # The kernel shows all of it again where its buffer was too small.
        self._queued.append(events[np.isin(events["type"], _QUEUED) & (events["time"] >= event["time"])])
        if said:
            self._stream.push([_event(Type.WAITERS_FOUND, ctx=ctx, aux=said.unread, value=said.waiting)])
        return [event]

    def late(self) -> list[Name]:
        """The same for userfaultfds that came from processes that are not followed."""
        held = self._stream.held
        found = []
        late = (held["type"] == Type.USERFAULTFD) & (held["kind"] == 1)
        gone = np.isin(held["type"], (Type.RELEASE, Type.EXIT))
        for event in np.sort(held[late | gone], order="time"):
            ctx, now = int(event["ctx"]), int(event["time"])
            if event["type"] in (Type.RELEASE, Type.EXIT):
                # Closed, or its memory is gone: no two things have one address.
                self._looked = {
                    key: one for key, one in self._looked.items() if one.time >= now or ctx not in (key, one.mm)
                }
            elif ctx not in self._looked:
                # Two threads that use it at once both tell of it.
                self._looked[ctx] = _Look(int(event["start"]), now)
                found.append(event)
        return self._ranges(found) if found else []

    def _shown(self) -> Array:
        """What it told since the last look."""
        events = self._stream.peek()
        return events[_told(events)]

    def _ranges(self, userfaultfds: list[Array]) -> list[Name]:
        """RANGE_FOUND and PAGES_FOUND events for the memory that USERFAULTFD events tell of, and its names."""
        own: list[Array] = []
        names: list[Name] = []
        tells = offers.pagemap_tells_protection()
        watched = {int(event["ctx"]): int(event["time"]) for event in userfaultfds}
        for owner in sorted({int(event["aux"]) for event in userfaultfds if event["aux"]}):
            modes = {found.start: found for found in proc.registered(owner)}
            self._stream.peek()
            proc.areas(owner)
            areas = self._stream.peek()
            # The kernel shows one twice where its buffer ended.
            for area in np.unique(areas[areas["type"] == Type.AREA][["ctx", "start", "end", "flags"]]):
                ctx, start, end = int(area["ctx"]), int(area["start"]), int(area["end"])
                registered = modes.get(start)
                if ctx not in watched or registered is None or registered.end != end:
                    continue
                place = {"ctx": ctx, "tgid": owner, "start": start, "end": end}
                # As of the moment from which its events are recorded.
                place["time"] = watched[ctx]
                said = {"aux": registered.modes, "flags": int(area["flags"]), "kind": tells}
                own.append(_event(Type.RANGE_FOUND, **said, **place))
                if registered.name:
                    names.append(Name(watched[ctx], ctx, start, end, registered.name))
                if tells and registered.modes & Mode.WP:
                    own += _protected(self._stream, ctx, owner, start, end, watched[ctx])
        self._stream.push(own)
        return names


def _protected(stream: Stream, ctx: int, owner: int, start: int, end: int, since: int) -> list[Array]:
    """PAGES_FOUND events for what was protected at the time `since` (ns), from which its events are recorded.

    What was armed between then and the look has events of its own: those pages are
    left out. What was not was protected all the time, so it comes before what
    happened meanwhile: a message that was read, say.
    """
    runs = list(proc.protected_runs(owner, start, end))
    stream.peek()
    events = stream.held[stream.held["time"] >= since]
    armed = (events["type"] == Type.PROTECT) & (events["kind"] == 1)
    armed |= (events["type"] == Type.IOCTL) & np.isin(events["kind"], (Ioctl.COPY, Ioctl.CONTINUE))
    for event in events[armed & (events["ctx"] == ctx)]:
        low, high = int(event["start"]), int(event["end"])
        runs = [part for one in runs for part in ((one[0], min(one[1], low)), (max(one[0], high), one[1]))]
        runs = [one for one in runs if one[0] < one[1]]
    return [_event(Type.PAGES_FOUND, time=since, ctx=ctx, tgid=owner, start=low, end=high) for low, high in runs]


class Registrations:
    """Looks at the memory of fresh registrations: otherwise events tell of it only when something happens there."""

    def __init__(self) -> None:
        self._owners: dict[int, int] = {}
        # Memory of forked children, by its mm: the userfaultfds that watch it.
        self._forked: dict[int, set[int]] = {}

    def watching(self, owners: set[int]) -> set[int]:
        """The userfaultfds of the memory of these processes."""
        return {ctx for ctx, owner in self._owners.items() if owner in owners}

    @property
    def owners(self) -> set[int]:
        """The processes whose memory was registered."""
        return {owner for owner in self._owners.values() if owner}

    def names(self, events: Array | Batch) -> list[Name]:
        """What the registrations among a batch are called; looking has the kernel tell what memory they are (AREA)."""
        events = as_batch(events)
        returns = events.of(Type.IOCTL_RETURN)
        done = returns[(events["kind"][returns] == Ioctl.REGISTER) & (events["ret"][returns] == 0)]
        told = [events.of(kind) for kind in (Type.USERFAULTFD, Type.FORKED, Type.PROCESS)]
        registered: dict[int, list[Array]] = {}
        # In their order: the kernel soon uses a userfaultfd's address again.
        for one in events[np.sort(np.concatenate([*told, done]))].records:
            if one["type"] == Type.USERFAULTFD:
                self._owners[int(one["ctx"])] = int(one["aux"])
            elif one["type"] == Type.FORKED:
                self._forked.setdefault(int(one["start"]), set()).add(int(one["ctx"]))
            elif one["type"] == Type.PROCESS:
                self._owners.update(dict.fromkeys(self._forked.pop(int(one["ctx"]), ()), int(one["tgid"])))
            elif self._owners.get(int(one["ctx"])):
                registered.setdefault(self._owners[int(one["ctx"])], []).append(one)
        names: list[Name] = []
        for owner, ones in registered.items():
            areas = proc.areas(owner)
            starts, ends = [area.start for area in areas], [area.end for area in areas]
            for one in ones:
                start, end = int(one["start"]), int(one["end"])
                called = {area.name for area in areas[bisect_right(ends, start) : bisect_left(starts, end)]}
                if len(called) == 1 and called != {""}:
                    names.append(Name(int(one["time"]), int(one["ctx"]), start, end, called.pop()))
        return names


def described(process: proc.Process) -> ProcessDict:
    """A process as the report has it."""
    return {"pid": process.pid, "comm": process.comm, "cmdline": process.cmdline}


class Processes:
    """Who the processes are that own or watch memory: `pid`, `comm`, `cmdline` of each, asked once."""

    def __init__(self) -> None:
        self._seen: set[int] = {0}
        # Of those that were gone before they could be asked nothing but the name may be known.
        self._unknown: set[int] = set()
        self._called: dict[int, str] = {}

    def new(self, events: Array | Batch) -> list[ProcessDict]:
        """Those that a batch names first; one that is gone already has the name that the kernel told, or none."""
        events = as_batch(events)
        for event in events[events.of(Type.PROCESS_NAME)].records:
            self._called[int(event["tgid"])] = name_in(event)
        pids = set(different(events["aux"][events.of(Type.USERFAULTFD)]))
        for kind in _ACTORS:
            pids.update(different(events["tgid"][events.of(kind)]))
        fresh = sorted(pids - self._seen)
        self._seen.update(fresh)
        processes: list[ProcessDict] = []
        for pid in fresh:
            try:
                processes.append(described(proc.process(pid)))
            except proc.NoProcess:
                self._unknown.add(pid)
        named = self._unknown & self._called.keys()
        self._unknown -= named
        processes += [{"pid": pid, "comm": self._called[pid], "cmdline": None} for pid in sorted(named)]
        return processes


def writers(events: Array | Batch) -> list[int]:
    """The threads that populated pages, or wrote where nothing protected them."""
    events = as_batch(events)
    return different(events["tid"][EVIDENCE[events["type"]]]) if events.has(EVIDENCE) else []


class Threads:
    """What threads are called that wrote or wait: `tid` and `comm` of each, asked once while it lives."""

    def __init__(self) -> None:
        self._asked: set[int] = set()

    def named(self, tids: Iterable[int]) -> list[dict[str, Any]]:
        """Those that are asked for the first time, and live; how many threads there are is the target's choice."""
        fresh = [tid for tid in dict.fromkeys(tids) if tid and tid not in self._asked]
        fresh = fresh[: max(0, MOST_THREADS - len(self._asked))]
        self._asked.update(fresh)
        return [{"tid": tid, "comm": comm} for tid in fresh if (comm := proc.comm(tid))]


def asleep(owners: list[int]) -> list[Array]:
    """ASLEEP events for the threads of these processes that sleep in a fault now, EVENT_ASLEEP for an event."""
    own = []
    for owner in owners:
        if proc.is_alive(owner):
            own.append(_event(Type.ASLEEP, tgid=owner))
            own += [_event(Type.ASLEEP, tid=tid, tgid=owner) for tid in proc.asleep_in_fault(owner)]
            for sleeper in proc.asleep_in_event(owner):
                kind = UffdEvent[sleeper.event.upper()] if sleeper.event else 0
                own.append(_event(Type.EVENT_ASLEEP, tid=sleeper.tid, tgid=owner, kind=kind))
    return own


class Readers:
    """Watches the threads that read messages, for when they end: a trace may go on for long after that."""

    def __init__(self) -> None:
        # When each was seen alive for the last time (ns).
        self._alive: dict[int, int] = {}
        # When those that had ended were seen to have (ns).
        self._ended: dict[int, int] = {}

    def look(self, uffds: Iterable[Userfaultfd]) -> list[Array]:
        """READER_GONE events for those that read from these and have ended since the last look."""
        gone = []
        for tid, reader in sorted({tid: reader for uffd in uffds for tid, reader in uffd.threads.items()}.items()):
            now = _now()
            # Another thread may have its number now, and read.
            if self._ended.get(tid, 0) > reader.last:
                continue
            if proc.has_ended(tid):
                process = not proc.is_alive(reader.tgid)
                gone.append(_event(Type.READER_GONE, tid=tid, value=self._alive.pop(tid, 0), kind=process))
                self._ended[tid] = int(gone[-1]["time"][0])
            else:
                self._alive[tid] = now
        return gone


def holders(stream: Stream, wanted: set[int]) -> list[Array]:
    """HOLDER_FOUND events: who has these userfaultfds (by their address in the kernel) open now."""
    own = [_event(Type.HOLDER_FOUND, ctx=ctx) for ctx in sorted(wanted)]
    began = _now()
    for pid in proc.pids() if wanted else ():
        for fd in proc.userfaultfds(pid) if pid != os.getpid() else ():
            proc.fdinfo(pid, fd)
            events = stream.peek()
            contexts = events["ctx"][_told(events)]
            if contexts.size and int(contexts[-1]) in wanted:
                name = proc.comm(pid).encode()[:16].ljust(16, b"\0")
                start, end = (int.from_bytes(half, "little") for half in (name[:8], name[8:]))
                own.append(_event(Type.HOLDER_FOUND, ctx=int(contexts[-1]), tgid=pid, value=fd, start=start, end=end))
    # What our looks had the kernel tell is known.
    held = stream.held
    ours = np.isin(held["type"], _QUEUED) | _told(held)
    stream.held = held[~(ours & (held["time"] >= began))]
    return own
