"""A batch of events as operations on pages, before anybody knows which ranges they fall in."""

from __future__ import annotations

import errno
from dataclasses import dataclass

import numpy as np

from uffdtrace.model.account import join
from uffdtrace.model.account.dropped import DISCARDS
from uffdtrace.model.account.overlap import ACT, NEVER, Effect, Overlaps
from uffdtrace.model.account.pages import Op
from uffdtrace.model.records.acts import Acts
from uffdtrace.model.records.batch import Batch
from uffdtrace.model.records.counting import among
from uffdtrace.model.records.events import (
    CONTINUE_MODE_WP,
    COPY_MODE_WP,
    HIGHEST,
    MOVE_MODE_ALLOW_SRC_HOLES,
    MREMAP_DONTUNMAP,
    Act,
    Array,
    Ioctl,
    Kind,
    Memory,
    MessageFlag,
    Type,
    joined,
)


def expand_pages(page_size: int) -> int:
    """Longer intervals are applied as slices; shorter ones page by page, with what happened around them.

    They must be: of a huge page that a fault made, the page that was written is another loss than the rest. One is as
    many pages as a table has entries, of 8 bytes each.
    """
    return 2 * page_size // 8


_PAGE_OPS = {
    Type.FRESH_PAGE: Op.FRESH,
    Type.HUGE_PAGE: Op.HUGE_REST,
    Type.HUGE_ZERO_WRITE: Op.HUGE_REPLACED,
    Type.ZERO_PAGE: Op.ZERO,
    Type.HUGE_ZERO_PAGE: Op.ZERO,
    Type.HUGE_FALLBACK: Op.ZERO_CANCELLED,
    Type.FILE_PAGE: Op.FILE_READ,
    Type.UNPROTECTED_WRITE: Op.UNPROTECTED_WRITE,
    Type.HUGE_WRITE: Op.OPENED,
    Type.UNMERGED: Op.OPENED,
}
EVIDENCE = among(_PAGE_OPS)
_OP_OF_TYPE = np.zeros(256, dtype=np.uint8)
_OP_OF_TYPE[list(_PAGE_OPS)] = list(_PAGE_OPS.values())
_OP_OF_TYPE[Type.SWAPPED_BACK] = Op.SWAPPED_BACK
_OF_PAGES = EVIDENCE | DISCARDS
_STRUCTURAL = among(
    (
        Type.USERFAULTFD,
        Type.UNMAP,
        Type.EXIT,
        Type.RELEASE,
        Type.FORK,
        Type.FORKED,
        Type.PROCESS,
        Type.POLL,
        Type.CHILD,
        Type.PAGE_SCAN,
        Type.PAGE_SCAN_RETURN,
        Type.PRESENT,
        Type.REMAP,
        Type.MERGED,
        Type.EVENT,
        Type.RANGE_FOUND,
        Type.PAGES_FOUND,
        Type.WAITERS_FOUND,
        Type.SLEEPER_FOUND,
        Type.EVENT_FOUND,
    )
)
# After these more may be registered than before.
_REGISTERING = among((Type.USERFAULTFD, Type.FORKED, Type.REMAP, Type.RANGE_FOUND))
_RESULTS = among(
    (Type.IOCTL_RETURN, Type.PROTECT_RETURN, Type.REMAP_RETURN, Type.ZAP_RETURN, Type.WAKE, Type.FAULT_RETURN)
)
# Calls that put pages into a range, and what they do where their mode does not protect.
_FILLS = (
    (Ioctl.COPY, Op.COPY, COPY_MODE_WP),
    (Ioctl.CONTINUE, Op.CONTINUE, CONTINUE_MODE_WP),
    (Ioctl.ZEROPAGE, Op.ZEROPAGE, 0),
    (Ioctl.MOVE, Op.MOVE, 0),
)
# What a move leaves where its pages come from.
MOVES = {Op.MOVE: Op.MOVED_AWAY, Op.MOVE_MAYBE: Op.MOVED_AWAY_MAYBE}
_IS_MOVE = among(MOVES)


def _effects() -> Array:
    """Effect of each Op that a call has on pages, 0 for what is no call's."""
    effects = np.zeros(len(Op), dtype=np.uint8)
    for effect, ops in (
        (Effect.ARMED, (Op.ARM, Op.ARM_FULL, Op.COPY_WP)),
        (Effect.RELEASED, (Op.RELEASE,)),
        (Effect.FILLED, (Op.COPY, Op.CONTINUE, Op.ZEROPAGE, Op.MOVE, Op.MOVE_MAYBE)),
        (Effect.EMPTIED, (Op.DISCARD,)),
    ):
        effects[list(ops)] = effect
    return effects


_EFFECT = _effects()


def with_sources(
    events: Batch, page_size: int, start: Array, pages: Array, ops: Array
) -> tuple[Batch, Array, Array, Array]:
    """The same operations, each that moves pages followed by what it does where they come from."""
    moves = np.flatnonzero(_IS_MOVE[ops])
    if not moves.size:
        return events, start, pages, ops
    index = np.r_[np.arange(len(ops)), moves]
    sources = np.arange(len(index)) >= len(ops)
    order = np.argsort(index, kind="stable")
    index, sources = index[order], sources[order]
    start, ops = start[index], ops[index]
    start[sources] = events["value"][moves].astype(np.uint64) & ~np.uint64(page_size - 1)
    ops[sources] = [MOVES[Op(op)] for op in ops[sources].tolist()]
    return events[index], start, pages[index], ops


@dataclass(frozen=True)
class Remap:
    """A mremap: from [start, end) to [to, to_end)."""

    start: int
    end: int
    to: int
    to_end: int
    # MREMAP_DONTUNMAP: the old addresses stay registered, and empty.
    kept: bool


class Work:
    """Per event of the batch: `op` on `pages` pages from `start`, and `barrier` where order matters.

    `events` may be longer than the batch: returns beyond it tell results of
    calls within it. Arrays have one entry for each of the first `size` events.
    """

    def __init__(
        self,
        events: Batch,
        size: int,
        page_size: int,
        ioctls: tuple[Array, Array],
        protects: tuple[Array, Array],
        remaps: tuple[Array, Array],
        zaps: tuple[Array, Array],
        acts: Acts,
        overlaps: Overlaps,
    ) -> None:
        self._page_size = page_size
        self._page_mask = ~np.uint64(page_size - 1)
        self.events = events[:size]
        self._all = events
        types = self.types = self.events["type"]
        self.op = np.zeros(size, dtype=np.uint8)
        self.start = self.events["start"] & self._page_mask
        self.pages = np.ones(size, dtype=np.int64)
        # The number of each event's userfaultfd, once the model has come to it: its address is soon another's.
        self.uffds = np.full(size, -1, dtype=np.int64)
        # The number of the range that it names, -1 for none, once the model has come to it.
        self.numbers = np.full(size, -1, dtype=np.int64)
        self.lost_returns = 0
        self._own_pages(types)
        self._protections(*protects)
        self._registered = self._calls(*ioctls)
        self._releases(acts.released)
        self.remaps = self._remaps(*remaps)
        self.lost_returns += int((zaps[1][zaps[0] < size] == join.LOST).sum())
        # By index of the later of two calls that overlapped: the spans [start, end) where they did.
        self.doubts: dict[int, list[tuple[int, int]]] = {}
        for part in self._overlapping(overlaps, acts, ioctls, protects, zaps):
            self.doubts.setdefault(int(part["index"]), []).append((int(part["start"]), int(part["end"])))
        doubtful = np.zeros(size, dtype=bool)
        doubtful[[*self.doubts, *self.refused]] = True
        # The others are applied as slices.
        self.short = self.pages <= expand_pages(page_size)
        self.barrier = doubtful | _STRUCTURAL[types] | self._registered | ((self.op != Op.NOTHING) & ~self.short)
        self.busy = self._busy()

    @property
    def unmaps(self) -> bool:
        return bool(self.events.of(Type.UNMAP).size)

    def opens(self, chosen: Array | slice) -> bool:
        """Whether a userfaultfd's first call, UFFDIO_API, is among these events."""
        events = self.events[chosen]
        return bool((events["kind"][events.of(Type.IOCTL)] == Ioctl.API).any())

    def pass_over(self, registered: list[tuple[int, int, int]]) -> None:
        """No barrier where a munmap() hits nothing that is `registered`, (mm, start, end): 6.1 tells of each."""
        events = self.events
        if self._registered.any() or events.has(_REGISTERING):
            return
        # What is impossible is an error, whose ever it is.
        index = events.of(Type.UNMAP)
        index = index[(events["start"][index] < events["end"][index]) & (events["end"][index] <= HIGHEST)]
        unmaps, alone = events[index], np.ones(len(index), dtype=bool)
        for mm, start, end in registered:
            alone &= (unmaps["ctx"] != mm) | (unmaps["start"] >= end) | (unmaps["end"] <= start)
        missed = np.zeros(len(events), dtype=bool)
        missed[index[alone]] = True
        self.barrier &= ~missed
        self.busy = self._busy(~missed)

    def _busy(self, wanted: Array | bool = True) -> Array:
        """What must be looked at between barriers: hundreds of registrations leave as many gaps of returns only."""
        counts = np.zeros(len(self.op) + 1, dtype=np.int64)
        np.cumsum(((self.op != Op.NOTHING) | ~_RESULTS[self.types]) & wanted, out=counts[1:])
        return counts

    def _own_pages(self, types: Array) -> None:
        """Faults, messages and what the fault paths did."""
        events, kinds = self.events, self.events["kind"]
        self.op[:] = _OP_OF_TYPE[types]
        faults, messages = events.of(Type.FAULT), events.of(Type.MESSAGE)
        self.op[faults[(kinds[faults] == Kind.WP) & (events["ret"][faults] == 0)]] = Op.WP_FAULT
        write = (events["aux"][messages] & np.uint64(MessageFlag.WRITE)) != 0
        self.op[messages] = np.where(write, np.uint8(Op.WRITE_MESSAGE), np.uint8(Op.MESSAGE))
        self.op[messages[kinds[messages] == Kind.WP]] = Op.WP_MESSAGE
        told = events.of(Type.FAULT_FOUND)
        told = told[events["value"][told] == 1]
        write = (events["aux"][told] & np.uint64(MessageFlag.WRITE)) != 0
        self.op[told[write | (kinds[told] == Kind.WP)]] = Op.TOLD_BEFORE
        if events.has(_OF_PAGES):
            whole = np.flatnonzero(_OF_PAGES[types])
            self._faults(whole, types[whole], kinds[whole])

    def _faults(self, index: Array, types: Array, kinds: Array) -> None:
        """What fault paths did to whole pages, and what dropped them."""
        events, ops = self.events, self.op[index]
        ops[(types == Type.FILE_PAGE) & (kinds == 1)] = Op.FILE_WRITE
        ops[(types == Type.UNPROTECTED_WRITE) & (kinds == 1)] = Op.UNPROTECTED_ZERO_WRITE
        # Markers keep shmem and hugetlb protected through a discard (kernel-semantics.md section 2).
        anonymous, discards = (events["flags"][index] & np.uint32(Memory.ANON)) != 0, DISCARDS[types]
        ops[discards] = np.where(anonymous[discards], np.uint8(Op.DISCARD), np.uint8(Op.DROPPED))
        self.op[index] = ops
        self._take(index, events["start"][index], events["end"][index])

    def _take(self, index: Array, start: Array, end: Array) -> None:
        """Set the pages of some events; what ends before it starts becomes nothing."""
        valid = end > start
        self.op[index[~valid]] = Op.NOTHING
        index, start, end = index[valid], start[valid], end[valid]
        self.start[index] = start & self._page_mask
        size = np.uint64(self._page_size)
        last = (end + size - np.uint64(1)) & self._page_mask
        self.pages[index] = ((last - self.start[index]) // size).astype(np.int64)

    def _protections(self, index: Array, found: Array) -> None:
        """change_protection(): arms and releases, and what the arms found."""
        inside = index < len(self.events)
        index, found = index[inside], found[inside]
        arms = self.events["kind"][index] == 1
        self.op[index] = np.where(arms, int(Op.ARM), int(Op.RELEASE))
        self._take(index, self.events["start"][index], self.events["end"][index])
        full = arms & (found >= 0)
        full[full] = self._all["value"][found[full]] >= self.pages[index[full]]
        self.op[index[full]] = np.where(self.op[index[full]] == Op.ARM, int(Op.ARM_FULL), int(Op.NOTHING))
        self.arm_index, arm_found = index[arms], found[arms]
        self.arm_known = arm_found >= 0
        self.arm_result = np.where(self.arm_known, self._all["value"][np.maximum(arm_found, 0)], 0)
        self.lost_returns += int((arm_found == join.LOST).sum())
        # Populated while the call ran: before it came by or after, nobody can tell.
        for begin, end in zip(self.arm_index.tolist(), arm_found.tolist()):
            if end > begin + 1:
                call, window = self.events[begin], self.events[begin + 1 : end]
                hit = (
                    EVIDENCE[window["type"]]
                    & (window["ctx"] == call["ctx"])
                    & (window["end"] > call["start"])
                    & (window["start"] < call["end"])
                )
                self.op[begin + 1 : begin + 1 + len(window)][hit] = Op.UNDECIDED

    def _releases(self, index: Array) -> None:
        """Releases that stand in their calls' returns."""
        self.op[index] = Op.RELEASE
        self._take(index, self.events["start"][index], self.events["end"][index])

    def _calls(self, index: Array, found: Array) -> Array:
        """The ioctls that change pages or ranges; which are registrations."""
        inside = index < len(self.events)
        index, found = index[inside], found[inside]
        self.lost_returns += int((found == join.LOST).sum())
        index, found = index[found >= 0], found[found >= 0]
        results = self._all[found]
        self.returned = join.Returned(index, found, results)
        kinds = results["kind"]
        registered = np.zeros(len(self.events), dtype=bool)
        registration = ((kinds == Ioctl.REGISTER) | (kinds == Ioctl.UNREGISTER)) & (results["ret"] == 0)
        if registration.any():
            registered[index[registration]] = True
            self._take(index[registration], results["start"][registration], results["end"][registration])
        # The return read the arguments again: they may not have been in memory when the call began.
        self.mode = np.zeros(len(self.events), dtype=np.uint64)
        self.mode[index] = np.where(results["flags"] != 0, results["aux"] & np.uint64(Act.MODE), results["aux"])

        # A REGISTER that failed, by its index, with its errno.
        refused = (kinds == Ioctl.REGISTER) & (results["ret"] < 0) & (results["ret"] != -errno.EAGAIN)
        errors = -results["ret"][refused].astype(np.int64)
        self.refused = dict(zip(index[refused].tolist(), errors.tolist()))

        done = results["value"]
        for kind, op, armed_by in _FILLS:
            # The result member has the bytes done, also where the call failed half-way.
            some = (kinds == kind) & (done > 0)
            if not some.any():
                continue
            arms = (results["aux"][some] & np.uint64(armed_by)) != 0
            self.op[index[some]] = np.where(arms, int(Op.COPY_WP), int(op))
            self._take(index[some], results["start"][some], results["start"][some] + done[some].astype(np.uint64))
            if kind == Ioctl.MOVE:
                # The result counts the holes that it passed over, too (mm/userfaultfd.c, move_pages()).
                holes = (results["aux"][some] & np.uint64(MOVE_MODE_ALLOW_SRC_HOLES)) != 0
                self.op[index[some][holes & (self.op[index[some]] == Op.MOVE)]] = Op.MOVE_MAYBE
        return registered

    def _overlapping(self, overlaps: Overlaps, acts: Acts, *calls: tuple[Array, Array]) -> Array:
        """The parts of acts on pages that overlap an earlier one (dtype overlap.ACT)."""
        size, times = len(self.events), self.events["time"]
        index = np.flatnonzero(_EFFECT[self.op])
        began, returned = times.copy(), times.copy()
        began[acts.released], returned[acts.released] = acts.released_at, acts.released_until
        for begins, found in calls:
            inside = begins < size
            begins, found = begins[inside], found[inside]
            seen = found >= 0
            returned[begins[seen]] = self._all["time"][found[seen]]
            returned[begins[found == join.OPEN]] = NEVER
        until = int(times.max())
        index = index[overlaps.matters(began[index], returned[index], until)]
        return overlaps.feed(self._acts(index, began[index], returned[index]), until)

    def _acts(self, index: Array, began: Array, returned: Array) -> Array:
        """What the events at `index` do to pages from when they `began` until they `returned` (dtype overlap.ACT)."""
        acts = np.zeros(len(index), dtype=ACT)
        acts["index"], acts["effect"] = index, _EFFECT[self.op[index]]
        acts["began"], acts["returned"] = began, returned
        acts["ctx"], acts["tid"] = self.events["ctx"][index], self.events["tid"][index]
        acts["start"] = self.start[index]
        length = self.pages[index].astype(np.uint64) * np.uint64(self._page_size)
        acts["end"] = acts["start"] + length
        moves = _IS_MOVE[self.op[index]]
        sources = acts[moves]
        sources["start"] = self.events["value"][index[moves]].astype(np.uint64)
        sources["end"] = sources["start"] + length[moves]
        sources["effect"] = Effect.EMPTIED
        return joined([acts, sources])

    def _page_up(self, size: int) -> int:
        return (size + self._page_size - 1) & -self._page_size

    def _remaps(self, index: Array, found: Array) -> dict[int, Remap]:
        """By the event where it took effect: for a move its munmap of the old addresses."""
        known = (index < len(self.events)) & (found >= 0)
        self.lost_returns += int(((index < len(self.events)) & (found == join.LOST)).sum())
        remaps: dict[int, Remap] = {}
        for begin, end in zip(index[known].tolist(), found[known].tolist()):
            call, address = self.events[begin], int(self._all["value"][end])
            start, end_of_old = int(call["start"]), self._page_up(int(call["end"]))
            length = self._page_up(int(call["aux"]))
            # An old length of 0 maps shared memory a second time, and changes nothing where it was.
            if address <= 0 or (address | start) % self._page_size or end_of_old <= start:
                continue
            window = self.events[begin:end]
            own = (window["type"] == Type.UNMAP) & (window["tid"] == call["tid"])
            # Not what a shrinking one unmaps first; 6.17 moves area by area.
            unmapped = own & (window["start"] >= start) & (window["start"] < min(end_of_old, start + length))
            # MREMAP_DONTUNMAP leaves only what MREMAP_FIXED unmaps first.
            replaced = own & (window["start"] < address + length) & (window["end"] > address)
            where = np.flatnonzero(unmapped)[:1] if unmapped.any() else np.flatnonzero(replaced)[-1:]
            place = begin + int(where[0]) if address != start and where.size else begin
            kept = bool(call["flags"] & MREMAP_DONTUNMAP)
            remaps[place] = Remap(start, end_of_old, address, address + length, kept)
        return remaps
