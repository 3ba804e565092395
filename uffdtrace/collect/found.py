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

import numpy as np

from uffdtrace.collect.program import Program
from uffdtrace.collect.ring import Stream
from uffdtrace.kernel import offers, proc
from uffdtrace.model.events import EVENT, Array, Ioctl, Mode, Type
from uffdtrace.model.report import Name


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


def descriptors(program: Program, stream: Stream, pid: int) -> list[Array]:
    """Have every userfaultfd that `pid` holds, or that watches its memory, traced.

    Returns a USERFAULTFD event for each, once however many processes hold it.
    """
    found: dict[int, Array] = {}
    for holder in proc.pids():
        for fd in proc.userfaultfds(holder):
            said = proc.fdinfo(holder, fd)
            for event in stream.peek():
                ours = event["type"] == Type.USERFAULTFD and event["tgid"] == os.getpid()
                if ours and pid in (holder, int(event["aux"])) and int(event["ctx"]) not in found:
                    program.trace_mm(int(event["start"]))
                    found[int(event["ctx"])] = event
                    if said:
                        waiting = {"aux": said.unread, "value": said.waiting}
                        stream.push([_event(Type.WAITERS_FOUND, ctx=int(event["ctx"]), **waiting)])
    return list(found.values())


def ranges(stream: Stream, userfaultfds: list[Array]) -> tuple[list[Array], list[Name]]:
    """RANGE_FOUND and PAGES_FOUND events for the memory that USERFAULTFD events tell of, and its names."""
    own: list[Array] = []
    names: list[Name] = []
    tells = offers.pagemap_tells_protection()
    watched = {int(event["ctx"]): int(event["time"]) for event in userfaultfds}
    for owner in sorted({int(event["aux"]) for event in userfaultfds if event["aux"]}):
        modes = {found.start: found for found in proc.registered(owner)}
        proc.areas(owner)
        areas = stream.peek()
        # The kernel shows one twice where its buffer ended.
        for area in np.unique(areas[areas["type"] == Type.AREA][["ctx", "start", "end", "flags"]]):
            ctx, start, end = int(area["ctx"]), int(area["start"]), int(area["end"])
            registered = modes.get(start)
            if ctx not in watched or registered is None or registered.end != end:
                continue
            place = {"ctx": ctx, "tgid": owner, "start": start, "end": end}
            # As of the moment from which its events are recorded.
            place["time"] = watched[ctx]
            own.append(_event(Type.RANGE_FOUND, aux=registered.modes, flags=int(area["flags"]), kind=tells, **place))
            if registered.name:
                names.append(Name(watched[ctx], ctx, start, end, registered.name))
            if tells and registered.modes & Mode.WP:
                own += _protected(stream, ctx, owner, start, end)
    return own, names


def _protected(stream: Stream, ctx: int, owner: int, start: int, end: int) -> list[Array]:
    """PAGES_FOUND events with the time before the look, so that what happens during it comes after.

    What is armed during it has events of its own: those pages are left out, for
    they were not armed at that time.
    """
    before = _now()
    runs = list(proc.protected_runs(owner, start, end))
    events = stream.peek()
    armed = (events["type"] == Type.PROTECT) & (events["kind"] == 1)
    armed |= (events["type"] == Type.IOCTL) & np.isin(events["kind"], (Ioctl.COPY, Ioctl.CONTINUE))
    for event in events[armed & (events["ctx"] == ctx)]:
        low, high = int(event["start"]), int(event["end"])
        runs = [part for one in runs for part in ((one[0], min(one[1], low)), (max(one[0], high), one[1]))]
        runs = [one for one in runs if one[0] < one[1]]
    return [_event(Type.PAGES_FOUND, time=before, ctx=ctx, tgid=owner, start=low, end=high) for low, high in runs]


class Registrations:
    """Looks at the memory of fresh registrations: otherwise events tell of it only when something happens there."""

    def __init__(self) -> None:
        self._owners: dict[int, int] = {}

    @property
    def owners(self) -> set[int]:
        """The processes whose memory was registered."""
        return {owner for owner in self._owners.values() if owner}

    def names(self, events: Array) -> list[Name]:
        """What the registrations among a batch are called; looking has the kernel tell what memory they are (AREA)."""
        types = events["type"]
        seen = types == Type.USERFAULTFD
        done = (types == Type.IOCTL_RETURN) & (events["kind"] == Ioctl.REGISTER) & (events["ret"] == 0)
        registered: dict[int, list[Array]] = {}
        # In their order: the kernel soon uses a userfaultfd's address again.
        for one in events[seen | done]:
            if one["type"] == Type.USERFAULTFD:
                self._owners[int(one["ctx"])] = int(one["aux"])
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


def asleep(owners: list[int]) -> list[Array]:
    """ASLEEP events for the threads of these processes that sleep in a fault now."""
    own = []
    for owner in owners:
        if proc.is_alive(owner):
            own.append(_event(Type.ASLEEP, tgid=owner))
            own += [_event(Type.ASLEEP, tid=tid, tgid=owner) for tid in proc.asleep_in_fault(owner)]
    return own
