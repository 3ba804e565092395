"""A machine made by hand for the collector: processes, their descriptors and mappings, and the probes on them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from unit.events import MM, page, page_at

from uffdtrace.collect import found
from uffdtrace.collect.program import Program
from uffdtrace.collect.ring import Lanes, Ring, Stream
from uffdtrace.kernel import proc
from uffdtrace.model.records.events import EVENT, Array, Memory, Mode, Type

OWNER, MONITOR, STRANGER = 300, 400, 500
OWNERS_MM, STRANGERS_MM = MM, MM + 0x1000


def events(*ones: dict[str, int]) -> Array:
    made = np.zeros(len(ones), dtype=EVENT)
    for place, fields in enumerate(ones):
        for name, value in fields.items():
            made[place][name] = value
    return made


class Probe:
    """Where the kernel's side of a ring or of lanes puts its events."""

    blocked = False

    def __init__(self) -> None:
        self.waiting: list[Array] = []

    def drain(self) -> Array:
        events: Array = np.concatenate([np.empty(0, dtype=EVENT), *self.waiting])
        self.waiting.clear()
        return events


@dataclass
class Uffd:
    ctx: int
    mm: int
    owner: int
    unread: int = 0
    waiting: int = 0
    # Threads in its queues; the kernel tells of them where it shows the descriptor.
    queue: list[int] = field(default_factory=list)


@dataclass
class Mapping:
    """Pages from BASE, as smaps and maps tell of them."""

    at: int
    pages: int
    uffd: Uffd
    modes: Mode = Mode.WP
    name: str = ""
    # Runs of pages with the uffd-wp bit.
    protected: list[tuple[int, int]] = field(default_factory=list)


class Machine:
    """/proc as the collector reads it, with the events that reading it makes the kernel send."""

    def __init__(self) -> None:
        self.ring, self.lanes = Probe(), Probe()
        self.holds: dict[int, dict[int, Uffd]] = {}
        self.mappings: dict[int, list[Mapping]] = {}
        self.traced: list[tuple[int, int]] = []
        self.asked: list[tuple[str, int]] = []
        self.stream = Stream(cast(Ring, self.ring), cast(Lanes, self.lanes))
        self.look_back = found.LookBack(cast(Program, self), self.stream)

    def send(self, what: Type, **fields: int) -> None:
        self.ring.waiting.append(events({"time": found._now(), "type": what, **fields}))

    def use(self, uffd: Uffd, by: int, **fields: int) -> None:
        """The first time that a followed process uses one that came from elsewhere."""
        self.send(Type.USERFAULTFD, ctx=uffd.ctx, start=uffd.mm, aux=uffd.owner, tgid=by, kind=1, **fields)
        if (uffd.ctx, uffd.mm) not in self.traced:
            self.traced.append((uffd.ctx, uffd.mm))

    def close(self, holder: int, fd: int) -> None:
        self.send(Type.RELEASE, ctx=self.holds[holder].pop(fd).ctx, tgid=holder)

    # ---- the BPF program -----------------------------------------------------

    def trace(self, ctx: int, mm: int) -> None:
        self.traced.append((ctx, mm))

    # ---- kernel/proc.py ------------------------------------------------------

    def pids(self) -> list[int]:
        return sorted({*self.holds, *self.mappings})

    def userfaultfds(self, pid: int) -> list[int]:
        self.asked.append(("fd", pid))
        return sorted(self.holds.get(pid, {}))

    def fdinfo(self, pid: int, fd: int) -> proc.Fdinfo | None:
        uffd = self.holds.get(pid, {}).get(fd)
        if uffd is None:
            return None
        self.send(Type.USERFAULTFD, ctx=uffd.ctx, start=uffd.mm, aux=uffd.owner, tgid=os.getpid())
        for tid in uffd.queue:
            self.send(Type.FAULT_FOUND, ctx=uffd.ctx, tid=tid, tgid=uffd.owner)
        return proc.Fdinfo(0, uffd.unread, uffd.waiting, blocking=False)

    def _shown(self, pid: int) -> list[Mapping]:
        """smaps and maps both run show_map_vma()."""
        for one in self.mappings.get(pid, []):
            if any(mm == one.uffd.mm for _, mm in self.traced):
                span = {"start": page(one.at), "end": page(one.at + one.pages)}
                self.send(Type.AREA, ctx=one.uffd.ctx, flags=int(Memory.ANON), tgid=os.getpid(), **span)
        return self.mappings.get(pid, [])

    def registered(self, pid: int) -> list[proc.Registered]:
        self.asked.append(("smaps", pid))
        return [
            proc.Registered(page(one.at), page(one.at + one.pages), int(one.modes), "anon", one.name)
            for one in self._shown(pid)
        ]

    def areas(self, pid: int) -> list[proc.Area]:
        self.asked.append(("maps", pid))
        return [proc.Area(page(one.at), page(one.at + one.pages), one.name) for one in self._shown(pid)]

    def protected_runs(self, pid: int, start: int, end: int) -> Iterator[tuple[int, int]]:
        self.asked.append(("pagemap", pid))
        for one in self.mappings.get(pid, []):
            if page(one.at) == start:
                yield from ((page(low), page(high)) for low, high in one.protected)

    # ---- what came of it -----------------------------------------------------

    def told(self, *types: Type) -> Array:
        held = self.stream.held
        chosen: Array = held[np.isin(held["type"], types)]
        return chosen

    def ranges(self) -> list[tuple[int, int, int, int]]:
        """(ctx, owner, first page, pages) of every RANGE_FOUND."""
        return [(int(one["ctx"]), int(one["tgid"]), *span(one)) for one in self.told(Type.RANGE_FOUND)]

    def waiters(self) -> list[tuple[int, int, int]]:
        return [(int(one["ctx"]), int(one["aux"]), int(one["value"])) for one in self.told(Type.WAITERS_FOUND)]


def span(event: Array) -> tuple[int, int]:
    first = page_at(int(event["start"]))
    return first, page_at(int(event["end"])) - first
