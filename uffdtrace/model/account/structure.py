"""What changes ranges and userfaultfds, or many pages at once: one event after the other, for their order matters."""

from __future__ import annotations

from typing import Callable

from uffdtrace.model.account import scans
from uffdtrace.model.account.operations import Operations
from uffdtrace.model.account.pages import UNPROTECTED_FILLS, Op
from uffdtrace.model.account.sleep import Ending, Exit, Sleepers
from uffdtrace.model.account.waits import Waits
from uffdtrace.model.account.watched import EVERYWHERE, Watched
from uffdtrace.model.account.work import EVIDENCE, MOVES, Work
from uffdtrace.model.records.events import Array, Feature, Ioctl, Mode, Type, UffdEvent


class Structure:
    """Takes the events of a batch that are barriers (Work.barrier), each when all before it are accounted for."""

    def __init__(self, watched: Watched, operations: Operations, sleepers: Sleepers, waits: Waits) -> None:
        self._watched = watched
        self._ranges = watched.ranges
        self._operations = operations
        self._sleepers = sleepers
        self._waits = waits

    def take(self, work: Work, index: int) -> None:
        event = work.events[index]
        handler = _HANDLERS.get(int(event["type"]), Structure._operation)
        handler(self, work, index, event)

    # ---- userfaultfds and their memory -----------------------------------------

    def _userfaultfd(self, work: Work, index: int, event: Array) -> None:
        self._watched.seen(int(event["ctx"]), int(event["start"]), int(event["end"]), int(event["aux"]))

    def _exit(self, work: Work, index: int, event: Array) -> None:
        mm, time = int(event["ctx"]), int(event["time"])
        uffds = self._watched.of_memory(mm)
        owners = tuple({uffd.owner for uffd in uffds if uffd.owner})
        self._sleepers.exits.append(Exit(time, tuple(uffd.ctx for uffd in uffds), owners))
        for uffd in uffds:
            self._watched.forget(uffd.ctx, time)
        self._watched.unmapped(mm)
        self._watched.populated.gone(mm)

    def _release(self, work: Work, index: int, event: Array) -> None:
        ctx, time = int(event["ctx"]), int(event["time"])
        closed = self._watched.current.get(ctx)
        self._watched.orphaned(ctx, time)
        # With the process whose memory it is its threads go too: they wait for nobody.
        if not (closed and event["kind"] and event["tgid"] == closed.owner):
            self._ended(ctx, 0, EVERYWHERE, time, closed=True)
        self._watched.forget(ctx, time)

    def _poll(self, work: Work, index: int, event: Array) -> None:
        self._watched.uffd(int(event["ctx"])).blocking_poll = True

    def _event(self, work: Work, index: int, event: Array) -> None:
        uffd, what = self._watched.current.get(int(event["ctx"])), int(event["kind"])
        if uffd is not None and what in list(UffdEvent):
            uffd.events[UffdEvent(what)] = uffd.events.get(UffdEvent(what), 0) + 1
            self._waits.began(uffd, event)

    # ---- forks ---------------------------------------------------------------

    def _fork(self, work: Work, index: int, event: Array) -> None:
        ctx, start, end = int(event["ctx"]), int(event["start"]), int(event["end"])
        self._describe(work, index, self._ranges.space(ctx).numbers(work.start[index : index + 1]))
        if event["kind"]:
            self._watched.copied(int(event["tid"]), ctx, *self._ranges.bounds(start, end), bool(event["aux"]))
        else:
            self._watched.forked(ctx, int(event["tid"]), start, end)

    def _forked(self, work: Work, index: int, event: Array) -> None:
        self._watched.adopted(event)

    def _process(self, work: Work, index: int, event: Array) -> None:
        self._watched.process(int(event["ctx"]), int(event["tgid"]))

    def _child(self, work: Work, index: int, event: Array) -> None:
        self._watched.made_child(int(event["ctx"]), int(event["tid"]), int(event["value"]))

    # ---- mappings ------------------------------------------------------------

    def _remap(self, work: Work, index: int, event: Array) -> None:
        """A mremap that moves memory takes effect with its munmap of the old addresses."""
        if index in work.remaps:
            for uffd in self._watched.of_memory(int(event["ctx"])):
                self._watched.remap(uffd, work.remaps[index], int(event["time"]))

    def _unmap(self, work: Work, index: int, event: Array) -> None:
        if index in work.remaps:
            self._remap(work, index, event)
            return
        start, end = int(event["start"]), int(event["end"])
        for uffd in self._watched.of_memory(int(event["ctx"])):
            if start < end:
                self._watched.unmap(uffd, *self._ranges.bounds(start, end))

    def _merged(self, work: Work, index: int, event: Array) -> None:
        for uffd in self._watched.of_memory(int(event["ctx"])):
            bounds = self._ranges.bounds(int(event["start"]), int(event["end"]))
            self._operations.interval(uffd.ctx, *bounds, Op.MERGED, event)

    # ---- what was there before the trace ---------------------------------------

    def _waiters_found(self, work: Work, index: int, event: Array) -> None:
        unread, waiting = int(event["aux"]), int(event["value"])
        uffd = self._watched.uffd(int(event["ctx"]))
        uffd.before, uffd.read_before = (unread, waiting), waiting > unread

    def _event_found(self, work: Work, index: int, event: Array) -> None:
        uffd = self._watched.current.get(int(event["ctx"]))
        if uffd is not None and int(event["kind"]) in list(UffdEvent):
            self._waits.began_before(uffd, event)

    def _sleeper_found(self, work: Work, index: int, event: Array) -> None:
        self._watched.slept(int(event["tgid"]), int(event["tid"]))

    def _range_found(self, work: Work, index: int, event: Array) -> None:
        self._watched.found(event)

    def _pages_found(self, work: Work, index: int, event: Array) -> None:
        ctx, start, end = int(event["ctx"]), int(event["start"]), int(event["end"])
        # A page or a marker bears the protection that was found: it is no hole.
        self._operations.interval(ctx, start, end, Op.ARM_FULL, event)
        self._watched.before(ctx, start, end)

    # ---- calls ---------------------------------------------------------------

    def _present(self, work: Work, index: int, event: Array) -> None:
        self._watched.present(event)

    def _page_scan(self, work: Work, index: int, event: Array) -> None:
        for armed in scans.armed(self._watched, event):
            self._operations.interval(*armed, Op.ARM_FULL, event)

    def _ioctl(self, work: Work, index: int, event: Array) -> None:
        ctx, call, time = int(event["ctx"]), int(event["kind"]), int(event["time"])
        first = int(work.start[index])
        last = first + int(work.pages[index]) * self._ranges.page_size
        uffd = self._watched.uffd(ctx)
        uffd.callers.add(int(event["tgid"]))
        if index in work.refused:
            uffd.failures.add(Ioctl.REGISTER, work.refused[index], 0, int(event["start"]), int(event["end"]))
        elif call == Ioctl.REGISTER:
            modes = Mode(int(work.mode[index]) & 7)
            # A REGISTER that had failed there was tried again.
            uffd.failures.forgive(Ioctl.REGISTER, first, last)
            self._watched.register(ctx, first, last, modes, time)
            self._watched.called(event, first, last, modes)
        elif call == Ioctl.UNREGISTER:
            self._ended(ctx, *self._ranges.bounds(first, last), time, closed=False)
        else:
            self._operation(work, index, event)

    def _ended(self, ctx: int, start: int, end: int, time: int, closed: bool) -> None:
        if self._watched.end(ctx, start, end, time) or closed:
            self._sleepers.endings.append(Ending(time, ctx, start, end, closed))

    # ---- whatever happens to many pages at once, or to pages of which it is not known what comes last -------------

    def _operation(self, work: Work, index: int, event: Array) -> None:
        ctx, op = int(event["ctx"]), Op(int(work.op[index]))
        start = int(work.start[index])
        end = start + int(work.pages[index]) * self._ranges.page_size
        number = self._ranges.space(ctx).numbers(work.start[index : index + 1])
        if number[0] < 0 and event["type"] == Type.IOCTL:
            number[0] = self._ranges.space(ctx).touched(int(event["start"]), int(event["end"]))
        work.numbers[index] = number[0]
        self._describe(work, index, number)
        if (
            EVIDENCE[event["type"]]
            and ctx in self._watched.current
            and self._watched.current[ctx].has(Feature.WP_ASYNC)
        ):
            # The kernel notes writes by itself.
            return
        if op in UNPROTECTED_FILLS and work.pages[index] > 1 and self._operations.told(ctx, start, end):
            op = Op.ANSWER_REST
        self._operations.interval(ctx, start, end, op, event)
        if op in MOVES:
            source = int(event["value"])
            self._operations.interval(ctx, source, source + end - start, MOVES[op], event)
        for low, high in work.doubts.get(index, ()):
            self._operations.interval(ctx, low, high, Op.DOUBT, event)

    def _describe(self, work: Work, index: int, number: Array) -> None:
        self._ranges.describe(work.events["flags"][index : index + 1][number >= 0], number[number >= 0])


# What is not here is an operation on pages.
_HANDLERS: dict[int, Callable[[Structure, Work, int, Array], None]] = {
    Type.USERFAULTFD: Structure._userfaultfd,
    Type.EXIT: Structure._exit,
    Type.RELEASE: Structure._release,
    Type.POLL: Structure._poll,
    Type.EVENT: Structure._event,
    Type.FORK: Structure._fork,
    Type.FORKED: Structure._forked,
    Type.PROCESS: Structure._process,
    Type.CHILD: Structure._child,
    Type.REMAP: Structure._remap,
    Type.UNMAP: Structure._unmap,
    Type.MERGED: Structure._merged,
    Type.WAITERS_FOUND: Structure._waiters_found,
    Type.EVENT_FOUND: Structure._event_found,
    Type.SLEEPER_FOUND: Structure._sleeper_found,
    Type.RANGE_FOUND: Structure._range_found,
    Type.PAGES_FOUND: Structure._pages_found,
    Type.PRESENT: Structure._present,
    Type.PAGE_SCAN: Structure._page_scan,
    Type.PAGE_SCAN_RETURN: Structure._page_scan,
    Type.IOCTL: Structure._ioctl,
}
