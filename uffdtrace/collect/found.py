"""What was there before the trace: descriptors, ranges, protected pages.

The kernel says which userfaultfd_ctx a descriptor is by running
userfaultfd_show_fdinfo() under our probe; ranges and pages come from smaps and
pagemap, as events of our own that stand in the stream at the time of reading.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left, bisect_right

import numpy as np

from uffdtrace.collect.program import Program
from uffdtrace.collect.ring import Stream
from uffdtrace.kernel import offers, proc
from uffdtrace.model.events import EVENT, Array, Ioctl, Memory, Mode, Type
from uffdtrace.model.report import Name

_MEMORY = {"anon": Memory.ANON, "shmem": Memory.SHMEM, "hugetlb": Memory.HUGETLB}


def _event(what: Type, **fields: int) -> Array:
    event = np.zeros(1, dtype=EVENT)
    # The clock of bpf_ktime_get_ns().
    event["time"] = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    event["type"] = what
    for name, value in fields.items():
        event[name] = value
    return event


def descriptors(program: Program, stream: Stream, pid: int) -> list[Array]:
    """Have every userfaultfd that `pid` holds, or that watches its memory, traced.

    Returns a USERFAULTFD event for each.
    """
    found: list[Array] = []
    for holder in proc.pids():
        for fd in proc.userfaultfds(holder):
            proc.touch_fdinfo(holder, fd)
            for event in stream.peek():
                ours = event["type"] == Type.USERFAULTFD and event["tgid"] == os.getpid()
                if ours and pid in (holder, int(event["aux"])):
                    program.trace_mm(int(event["start"]))
                    found.append(event)
    return found


def ranges(userfaultfds: list[Array]) -> tuple[list[Array], list[Name]]:
    """RANGE_FOUND and PAGES_FOUND events for the memory that USERFAULTFD events tell of, and its names.

    Which of several descriptors of one process a mapping belongs to smaps does
    not say; there the first fault tells.
    """
    by_owner: dict[tuple[int, int], list[int]] = {}
    for event in userfaultfds:
        contexts = by_owner.setdefault((int(event["aux"]), int(event["start"])), [])
        if int(event["ctx"]) not in contexts:
            contexts.append(int(event["ctx"]))
    own: list[Array] = []
    names: list[Name] = []
    tells = offers.pagemap_tells_protection()
    for (owner, _), contexts in by_owner.items():
        if not owner or len(contexts) != 1:
            continue
        for found in proc.registered(owner):
            place = {"ctx": contexts[0], "tgid": owner, "start": found.start, "end": found.end}
            flags = int(_MEMORY[found.memory])
            own.append(_event(Type.RANGE_FOUND, aux=found.modes, flags=flags, kind=int(tells), **place))
            if found.name:
                names.append(Name(int(own[-1]["time"][0]), contexts[0], found.start, found.end, found.name))
            if tells and found.modes & Mode.WP:
                for start, end in proc.protected_runs(owner, found.start, found.end):
                    own.append(_event(Type.PAGES_FOUND, ctx=contexts[0], tgid=owner, start=start, end=end))
    return own, names


class Backing:
    """Says what memory a fresh registration is, for events tell it only when something happens there, and its name."""

    def __init__(self) -> None:
        self._owners: dict[int, int] = {}

    @property
    def owners(self) -> set[int]:
        """The processes whose memory was registered."""
        return {owner for owner in self._owners.values() if owner}

    def of(self, events: Array) -> tuple[list[Array], list[Name]]:
        """MEMORY_FOUND events and names for the registrations among a batch."""
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
        own: list[Array] = []
        names: list[Name] = []
        for owner, ones in registered.items():
            areas = proc.areas(owner)
            starts, ends = [area.start for area in areas], [area.end for area in areas]
            for one in ones:
                ctx, start, end = int(one["ctx"]), int(one["start"]), int(one["end"])
                here = areas[bisect_right(ends, start) : bisect_left(starts, end)]
                kinds = {area.memory for area in here}
                if len(kinds) == 1:
                    flags = int(_MEMORY[kinds.pop()])
                    own.append(_event(Type.MEMORY_FOUND, ctx=ctx, tgid=owner, start=start, end=end, flags=flags))
                called = {area.name for area in here}
                if len(called) == 1 and called != {""}:
                    names.append(Name(int(one["time"]), ctx, start, end, called.pop()))
        return own, names


def asleep(owners: list[int]) -> list[Array]:
    """ASLEEP events for the threads of these processes that sleep in a fault now."""
    own = []
    for owner in owners:
        if proc.is_alive(owner):
            own.append(_event(Type.ASLEEP, tgid=owner))
            own += [_event(Type.ASLEEP, tid=tid, tgid=owner) for tid in proc.asleep_in_fault(owner)]
    return own
