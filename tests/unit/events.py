"""Streams of events as a kernel would send them, made by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from uffdtrace.model.account.losses import lost_pages
from uffdtrace.model.account.model import Model
from uffdtrace.model.account.pages import COUNTS, Cause
from uffdtrace.model.account.ranges import Range
from uffdtrace.model.account.states import protected
from uffdtrace.model.account.watched import Userfaultfd
from uffdtrace.model.diagnosis.case import Case
from uffdtrace.model.records.events import (
    CONTINUE_MODE_WP,
    COPY_MODE_WP,
    EVENT,
    MODES_SHIFT,
    MOVE_MODE_ALLOW_SRC_HOLES,
    PAGE_SIZES,
    WRITEPROTECT_MODE_WP,
    Array,
    Ioctl,
    Kind,
    Memory,
    MessageFlag,
    Mode,
    Type,
    UffdEvent,
)

CTX = 0xFFFF888000001000
MM = 0xFFFF888000002000
MONITOR = 100
THREAD = 200
BASE = 0x7F0000000000
STEP_NS = 1000


# Of the machine that all events are of, until pages_of() says another.
_page_size = [PAGE_SIZES[0]]


@contextmanager
def pages_of(size: int) -> Iterator[None]:
    """Events, and what is told of them, of a machine with pages of so many bytes."""
    _page_size.append(size)
    try:
        yield
    finally:
        _page_size.pop()


def page_size() -> int:
    return _page_size[-1]


def bytes_of(pages: int) -> int:
    """Bytes of so many pages."""
    return pages * page_size()


def page(number: int) -> int:
    """The address of a page, counted from BASE."""
    return BASE + bytes_of(number)


def page_at(address: int) -> int:
    """The page that an address is in, counted from BASE."""
    return (address - BASE) // page_size()


class Events:
    """Appends events of one userfaultfd, each `STEP_NS` after the one before.

    Places are page numbers from BASE; `pages` says how many. A call and its
    return are two methods' worth where something happens in between: `arm`
    takes what happens during change_protection as a function.
    """

    def __init__(self, ctx: int = CTX, mm: int = MM, features: int = 0, monitor: int = MONITOR) -> None:
        self.ctx, self.mm, self.features, self.monitor = ctx, mm, features, monitor
        self.memory = Memory.ANON
        self.order = 0
        # The process whose memory it is, and who of it takes the faults.
        self.owner = THREAD
        self.thread = THREAD
        self._records: list[Array] = []

    def array(self) -> Array:
        return np.concatenate(self._records) if self._records else np.empty(0, dtype=EVENT)

    def __len__(self) -> int:
        return len(self._records)

    def add(self, type_: Type | int, **fields: int) -> None:
        """One event, as it is."""
        record = np.zeros(1, dtype=EVENT)
        record["time"] = (len(self._records) + 1) * STEP_NS
        record["ctx"] = self.ctx
        record["type"] = type_
        for name, value in fields.items():
            record[name] = value
        self._records.append(record)

    def using(self, ctx: int, monitor: int | None = None, mm: int | None = None, owner: int | None = None) -> Events:
        """The same stream, from now on for another userfaultfd; `owner` is the process, and its thread, of `mm`."""
        self.ctx = ctx
        self.monitor = self.monitor if monitor is None else monitor
        self.mm = self.mm if mm is None else mm
        if owner is not None:
            self.owner = self.thread = owner
        return self

    def _flags(self) -> int:
        return int(self.memory) | self.order << 8

    def _span(self, at: int, pages: int) -> dict[str, int]:
        return {"start": page(at), "end": page(at + pages)}

    # ---- the descriptor ------------------------------------------------------

    def userfaultfd(self) -> None:
        self.add(Type.USERFAULTFD, start=self.mm, end=self.features, aux=self.owner)

    def release_descriptor(self, dying: bool = False) -> None:
        """Closed, or with `dying` because the process whose memory it is ends."""
        self.add(Type.RELEASE, kind=int(dying), tgid=self.owner if dying else self.monitor)

    # ---- the monitor's calls -------------------------------------------------

    def call(self, kind: Ioctl, at: int, pages: int, mode: int = 0, source: int = 0, tid: int | None = None) -> None:
        tid = self.monitor if tid is None else tid
        self.add(Type.IOCTL, **self._span(at, pages), aux=mode, value=source, kind=kind, tid=tid, tgid=self.monitor)

    def returned(
        self, kind: Ioctl, at: int, pages: int, mode: int = 0, value: int = 0, ret: int = 0, tid: int | None = None
    ) -> None:
        tid = self.monitor if tid is None else tid
        span = self._span(at, pages)
        self.add(Type.IOCTL_RETURN, **span, aux=mode, value=value, kind=kind, ret=ret, tid=tid, tgid=self.monitor)

    def ioctl(
        self,
        kind: Ioctl,
        at: int,
        pages: int,
        mode: int = 0,
        *,
        value: int = 0,
        ret: int = 0,
        source: int = 0,
        tid: int | None = None,
    ) -> None:
        self.call(kind, at, pages, mode, source, tid)
        self.returned(kind, at, pages, mode, value, ret, tid)

    def register(self, at: int, pages: int, modes: int = Mode.WP, ret: int = 0) -> None:
        self.ioctl(Ioctl.REGISTER, at, pages, int(modes), ret=ret)

    def unregister(self, at: int, pages: int, ret: int = 0) -> None:
        self.ioctl(Ioctl.UNREGISTER, at, pages, ret=ret)

    def protect(self, at: int, pages: int, tid: int | None = None, on: bool = True, in_swap: bool = False) -> None:
        """`in_swap` where swap is in use, by whomever."""
        own = {"kind": int(on), "value": int(in_swap), "flags": self._flags()}
        tid = self.monitor if tid is None else tid
        self.add(Type.PROTECT, **self._span(at, pages), **own, tid=tid, tgid=self.monitor)

    def protect_return(self, changed: int, tid: int | None = None) -> None:
        self.add(Type.PROTECT_RETURN, value=changed, tid=self.monitor if tid is None else tid, tgid=self.monitor)

    def arm(self, at: int, pages: int, present: int | None = None, tid: int | None = None) -> None:
        """UFFDIO_WRITEPROTECT with MODE_WP that found `present` pages, all of them if not told."""
        self._write_protect(at, pages, pages if present is None else present, True, tid)

    def release(self, at: int, pages: int, tid: int | None = None) -> None:
        """UFFDIO_WRITEPROTECT without MODE_WP."""
        self._write_protect(at, pages, pages, False, tid)

    def _write_protect(self, at: int, pages: int, changed: int, on: bool, tid: int | None) -> None:
        mode = WRITEPROTECT_MODE_WP if on else 0
        self.call(Ioctl.WRITEPROTECT, at, pages, mode, tid=tid)
        self.protect(at, pages, tid, on)
        if on:
            self.protect_return(changed, tid)
        self.returned(Ioctl.WRITEPROTECT, at, pages, mode, tid=tid)

    def arm_part(self, at: int, pages: int, spans: list[tuple[int, int]], ret: int = 0) -> None:
        """UFFDIO_WRITEPROTECT with MODE_WP that protected no more than `spans` (page, pages)."""
        self.call(Ioctl.WRITEPROTECT, at, pages, WRITEPROTECT_MODE_WP)
        for low, length in spans:
            self.protect(low, length)
            self.protect_return(length)
        self.returned(Ioctl.WRITEPROTECT, at, pages, WRITEPROTECT_MODE_WP, ret=ret)

    def copy(self, at: int, pages: int = 1, wp: bool = False, done: int | None = None, ret: int = 0) -> None:
        done = pages if done is None else done
        self.ioctl(Ioctl.COPY, at, pages, COPY_MODE_WP if wp else 0, value=bytes_of(done), ret=ret)

    def zeropage(self, at: int, pages: int = 1) -> None:
        self.ioctl(Ioctl.ZEROPAGE, at, pages, value=bytes_of(pages))

    def continue_(self, at: int, pages: int = 1, wp: bool = False) -> None:
        self.ioctl(Ioctl.CONTINUE, at, pages, CONTINUE_MODE_WP if wp else 0, value=bytes_of(pages))

    def move(self, at: int, source: int, pages: int = 1, holes: bool = False, tid: int | None = None) -> None:
        """`holes` where it may pass over some of the source."""
        mode = MOVE_MODE_ALLOW_SRC_HOLES if holes else 0
        self.ioctl(Ioctl.MOVE, at, pages, mode, value=bytes_of(pages), source=page(source), tid=tid)

    # ---- faults --------------------------------------------------------------

    def fault(
        self,
        at: int,
        kind: Kind = Kind.WP,
        tid: int = THREAD,
        area: tuple[int, int] | None = None,
        ret: int = 0,
        modes: int = 0,
        flags: int = 0,
    ) -> None:
        """`modes` are the area's, `flags` the fault's."""
        low, high = area or (at, at + 1)
        self.add(
            Type.FAULT, start=page(at), value=page(low), end=page(high), kind=kind, tid=tid, tgid=self.owner, ret=ret,
            flags=self._flags() | int(modes) << MODES_SHIFT, aux=flags,
        )  # fmt: skip

    def message(
        self,
        at: int,
        kind: Kind = Kind.WP,
        tid: int = THREAD,
        write: bool = True,
        reader: int | None = None,
        start_of_area: int | None = None,
    ) -> None:
        aux = int(MessageFlag.WRITE if write else 0) | {Kind.MISSING: 0, Kind.WP: 2, Kind.MINOR: 4}[kind]
        reader = self.monitor if reader is None else reader
        end = 0 if start_of_area is None else page(start_of_area)
        told = {"tgid": self.monitor, "value": reader, "flags": self._flags(), "end": end}
        self.add(Type.MESSAGE, start=page(at), aux=aux, kind=kind, tid=tid, **told)

    def fault_found(
        self, at: int, tid: int = THREAD, read: bool = True, kind: Kind = Kind.WP, write: bool = True
    ) -> None:
        """In a queue of the userfaultfd when the trace began."""
        aux = int(MessageFlag.WRITE if write else 0) | {Kind.MISSING: 0, Kind.WP: 2, Kind.MINOR: 4}[kind]
        self.add(Type.FAULT_FOUND, start=page(at), aux=aux, kind=kind, value=int(read), tid=tid, tgid=self.owner)

    def wake(self, at: int, tid: int = THREAD, by: int = 0) -> None:
        """`by` the thread that wakes it; 0 for one that is in none of these events."""
        self.add(Type.WAKE, start=page(at), tid=tid, tgid=self.owner, value=by)

    def fault_return(self, tid: int = THREAD, died: bool = False) -> None:
        self.add(Type.FAULT_RETURN, tid=tid, tgid=self.owner, kind=int(died))

    def served(self, at: int, kind: Kind = Kind.WP, tid: int = THREAD) -> None:
        """A fault, its message, its wake-up."""
        self.fault(at, kind, tid)
        self.message(at, kind, tid)
        self.wake(at, tid)
        self.fault_return(tid)

    def asleep(self, tid: int, tgid: int | None = None) -> None:
        self.add(Type.ASLEEP, tid=tid, tgid=self.owner if tgid is None else tgid)

    # ---- what the fault paths do ---------------------------------------------

    def _page_event(self, type_: Type, at: int, pages: int = 1, **fields: int) -> None:
        self.add(type_, **self._span(at, pages), flags=self._flags(), tid=self.thread, tgid=self.owner, **fields)

    def fresh(self, at: int) -> None:
        self._page_event(Type.FRESH_PAGE, at, aux=page(at))

    def huge(self, at: int, pages: int = 512, fault: int | None = None, write: bool = True) -> None:
        self._page_event(Type.HUGE_PAGE, at, pages, aux=page(at if fault is None else fault), kind=int(write))

    def huge_zero_write(self, at: int, pages: int = 512, fault: int | None = None) -> None:
        self._page_event(Type.HUGE_ZERO_WRITE, at, pages, aux=page(at if fault is None else fault))

    def zero(self, at: int) -> None:
        self._page_event(Type.ZERO_PAGE, at)

    def huge_zero(self, at: int, pages: int = 512) -> None:
        self._page_event(Type.HUGE_ZERO_PAGE, at, pages)

    def huge_fallback(self, at: int, pages: int = 512, fault: int | None = None) -> None:
        self._page_event(Type.HUGE_FALLBACK, at, pages, aux=page(at if fault is None else fault))

    def file(self, at: int, pages: int = 1, write: bool = True) -> None:
        self._page_event(Type.FILE_PAGE, at, pages, kind=int(write))

    def unprotected_write(self, at: int, zero_page: bool = False) -> None:
        self._page_event(Type.UNPROTECTED_WRITE, at, kind=int(zero_page))

    # ---- memory --------------------------------------------------------------

    def discard(self, at: int, pages: int = 1, told: bool = False, call: int = 28, advice: int = 4) -> None:
        """By madvise(MADV_DONTNEED), unless it says another call."""
        self._page_event(Type.DISCARD, at, pages, kind=int(told), aux=call, value=advice)

    def zap(self, at: int, pages: int = 1, call: int = 285, advice: int = 0, tid: int | None = None) -> None:
        """By fallocate(), unless it says another call."""
        self.zap_call(at, pages, call, advice, tid)
        self.zap_return(tid)

    def zap_call(self, at: int, pages: int = 1, call: int = 285, advice: int = 0, tid: int | None = None) -> None:
        tid = self.thread if tid is None else tid
        self.add(
            Type.ZAP, **self._span(at, pages), flags=self._flags(), tid=tid, tgid=self.owner, aux=call, value=advice
        )

    def zap_return(self, tid: int | None = None) -> None:
        self.add(Type.ZAP_RETURN, tid=self.thread if tid is None else tid, tgid=self.owner)

    def unmerged(self, at: int) -> None:
        self._page_event(Type.UNMERGED, at)

    def huge_write(self, at: int, pages: int = 512, fault: int | None = None) -> None:
        self._page_event(Type.HUGE_WRITE, at, pages, aux=page(at if fault is None else fault))

    def unmap(self, at: int, pages: int = 1, tid: int = 0) -> None:
        self.add(Type.UNMAP, **{**self._span(at, pages), "ctx": self.mm, "tid": tid})

    def exit(self) -> None:
        self.add(Type.EXIT, ctx=self.mm)

    def remap_call(self, at: int, pages: int, new: int, tid: int = THREAD, flags: int = 0) -> None:
        self.add(Type.REMAP, **{**self._span(at, pages), "ctx": self.mm}, aux=bytes_of(new), flags=flags, tid=tid)

    def remap_return(self, to: int | None, tid: int = THREAD) -> None:
        """`to` is None where it failed."""
        self.add(Type.REMAP_RETURN, ctx=self.mm, value=-12 if to is None else page(to), tid=tid)

    def remap(self, at: int, pages: int, to: int | None, new: int | None = None, tid: int = THREAD) -> None:
        """A mremap; one that moves unmaps what it leaves."""
        self.remap_call(at, pages, pages if new is None else new, tid)
        if to not in (None, at):
            self.unmap(at, pages, tid)
        self.remap_return(to, tid)

    def fork(self, at: int, pages: int, watched: bool = False, tid: int = THREAD, wiped: bool = False) -> None:
        """A fork copies an area."""
        self.add(Type.FORK, **self._span(at, pages), kind=int(watched), aux=int(wiped), tid=tid, tgid=self.owner)

    def child(self, tgid: int, tid: int = THREAD) -> None:
        """A fork made that process."""
        self.add(Type.CHILD, ctx=self.mm, value=tgid, tid=tid, tgid=self.owner)

    def forked(self, ctx: int, mm: int, tid: int = THREAD) -> None:
        """The kernel makes a child's userfaultfd, once all areas are copied."""
        self.event(UffdEvent.FORK)
        self.add(Type.FORKED, ctx=ctx, start=mm, end=self.features, aux=self.ctx, tid=tid, tgid=self.owner)

    def process(self, tgid: int, mm: int) -> None:
        self.add(Type.PROCESS, ctx=mm, tid=tgid, tgid=tgid)

    def merged(self, at: int, pages: int = 1) -> None:
        self.add(Type.MERGED, **{**self._span(at, pages), "ctx": self.mm})

    def swapped_back(self, at: int) -> None:
        self.add(Type.SWAPPED_BACK, **self._span(at, 1))

    def event(self, what: UffdEvent | int) -> None:
        self.add(Type.EVENT, kind=int(what))

    # ---- from the collector --------------------------------------------------

    def range_found(self, at: int, pages: int, modes: int = Mode.WP, tells: bool = False) -> None:
        """`tells` where pagemap shows what is protected."""
        self.add(Type.RANGE_FOUND, **self._span(at, pages), aux=int(modes), flags=int(self.memory), kind=int(tells))

    def pages_found(self, at: int, pages: int) -> None:
        self.add(Type.PAGES_FOUND, **self._span(at, pages))


def new_model(arch: str = "x86_64") -> Model:
    return Model(page_size(), arch)


def fed(events: Array, cuts: list[int] | None = None, finish: bool = True) -> Model:
    """A model that took the events in batches that end at `cuts`."""
    model = new_model()
    begin = 0
    for cut in [*sorted(set(cuts or [])), len(events)]:
        model.feed(events[begin:cut])
        begin = cut
    if finish:
        model.finish()
    return model


def lost_runs(model: Model) -> dict[int, list[dict[str, Any]]]:
    """Number of each range to its lost pages; `first_s` counts from 0."""
    return {number: runs for number, (runs, _) in lost_pages(model.losses.runs(), model.ranges, 0).items()}


def beliefs(model: Model, row: Range) -> dict[int, int]:
    """What protected() says of each page of a range that is registered still."""
    space = model.ranges.space(model.uffd_of(row).ctx)
    return {
        page_at(piece.start) + offset: int(belief)
        for piece in space.pieces
        if model.ranges.row_of(piece) is row
        for offset, belief in enumerate(protected(model.ranges.states(piece).every()))
    }


def parent_of(home: Userfaultfd) -> int | None:
    return None if home.parent is None else home.parent.ctx


def counts(model: Model) -> list[dict[str, Any]]:
    """What the report says of every range, without texts: comparable."""
    lost = lost_runs(model)
    return [
        {
            "userfaultfd": model.uffd_of(row).ctx,
            "owner": model.uffd_of(row).owner,
            "parent": parent_of(model.uffd_of(row)),
            "events": {int(event): count for event, count in sorted(model.uffd_of(row).events.items())},
            "start": page_at(row.start),
            "end": page_at(row.end),
            "modes": int(row.modes),
            "messages": list(row.messages),
            "faults": list(row.faults),
            "holes": row.holes,
            "pending": row.pending,
            "waiting": sorted(
                (page_at(fault.address), fault.tid, int(fault.kind), fault.since, fault.read) for fault in row.waiting
            ),
            "killed": sorted((page_at(fault.address), fault.tid, fault.read) for fault in row.killed),
            **{name: row.count(name) for name in COUNTS if name != "unarmed"},
            "causes": {cause.label: row.cause(cause) for cause in Cause if row.cause(cause)},
            "exposed": {cause.label: int(row.exposed[cause]) for cause in Cause if row.exposed[cause]},
            "unwritten_holes": Case(row, model.uffd_of(row)).unwritten_holes,
            "facts": {fact.name: count for fact, count in sorted(row.facts.items(), key=str) if count},
            "belief": beliefs(model, row),
            "lost": [tuple(run.values()) for run in lost.get(row.number, [])],
            "waits": sorted(
                [tuple(None if np.isnan(part) else int(part) for part in wait) for wait in row.latencies.exact()],
                key=repr,
            ),
        }
        for row in model.rows()
    ]


def told(events: Events) -> list[dict[str, Any]]:
    """The counts; the same all at once, one by one, and cut anywhere."""
    array = events.array()
    whole = counts(fed(array))
    assert counts(fed(array, list(range(len(array))))) == whole
    for cut in range(len(array)):
        assert counts(fed(array, [cut])) == whole, f"cut at {cut}"
    return whole
