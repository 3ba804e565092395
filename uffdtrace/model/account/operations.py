"""What operations do to the pages of ranges: page by page, or all pages of an interval at once."""

from __future__ import annotations

import numpy as np

from uffdtrace.model.account import circles
from uffdtrace.model.account.dropped import DISCARDS, at_once, by_call
from uffdtrace.model.account.losses import CODES, Losses
from uffdtrace.model.account.pages import COUNTS, TOLD, UNPROTECTED_FILLS, Op
from uffdtrace.model.account.states import CHANGES, apply, having
from uffdtrace.model.account.watched import Userfaultfd, Watched
from uffdtrace.model.account.work import with_sources
from uffdtrace.model.records.batch import Batch
from uffdtrace.model.records.counting import among, one_of, ranked
from uffdtrace.model.records.events import Array, Type

# Per row of CHANGES: whether it counts a page as dropped.
_DROPPED = CHANGES[:, COUNTS.index("dropped")] != 0
_UNPROTECTED_FILLS = among(UNPROTECTED_FILLS)


class Operations:
    """Carries them out on the page states of `watched`, and notes what was lost."""

    def __init__(self, watched: Watched, arch: str) -> None:
        """`arch` is the trace's: system calls have other numbers on each."""
        self.losses = Losses()
        self._arch = arch
        self._watched = watched
        self._ranges = watched.ranges

    def page_by_page(self, uffd: Userfaultfd, events: Batch, start: Array, pages: Array, ops: Array) -> None:
        """The operation of each event on its pages, in the order of the events."""
        events, start, pages, ops = with_sources(events, self._ranges.page_size, start, pages, ops)
        rows, addresses = np.arange(len(events)), start
        several = bool((pages > 1).any())
        if several:
            rows = np.repeat(rows, pages)
            offsets = np.arange(len(rows)) - np.repeat(np.cumsum(pages) - pages, pages)
            addresses = start[rows] + offsets.astype(np.uint64) * np.uint64(self._ranges.page_size)
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
        places, owners = self._ranges.space(uffd.ctx).locate(addresses)
        inside = places >= 0
        if not inside.all():
            places, owners, ops, rows = places[inside], owners[inside], ops[inside], rows[inside]
            addresses = addresses[inside]
        if several and fills[inside].any():
            self._answers(places, ops, rows, fills[inside])
        effects = self._ranges.pool.apply(places, ops)
        self._ranges.changes(owners, effects)
        if not effects.any():
            return
        lossy = CODES[effects].nonzero()[0]
        if lossy.size:
            times, tids = events["time"][rows[lossy]], events["tid"][rows[lossy]]
            self.losses.add(places[lossy], effects[lossy], times, tids)
        for call, index in circles.answers(effects, ops).items():
            for number in np.unique(owners[index]).tolist():
                mine = index[owners[index] == number]
                self._ranges.all[number].root().circles.add(call, addresses[mine])
        dropped = _DROPPED[effects].nonzero()[0]
        if dropped.size:
            dropped = dropped[DISCARDS[events["type"][rows[dropped]]]]
        if dropped.size:
            self._drop(uffd, events[rows[dropped]].records, owners[dropped], np.ones(len(dropped), dtype=np.int64))

    def _answers(self, places: Array, ops: Array, rows: Array, fills: Array) -> None:
        """A call that fills several pages and answers a write to one of them answers for all: changes `ops`."""
        touched, inverse = ranked(places)
        before = np.empty(len(places), dtype=np.uint16)
        # The states that each page has when its call comes: tried on a copy.
        apply(self._ranges.pool.read(touched), inverse, ops, before)
        answers = np.zeros(int(rows.max()) + 1, dtype=bool)
        answers[rows[fills & having(before, TOLD)]] = True
        ops[fills & answers[rows]] = Op.ANSWER_REST

    def interval(self, ctx: int, start: int, end: int, op: Op, event: Array) -> None:
        """One operation on all pages of [start, end), by `event`."""
        for piece in self._ranges.space(ctx).overlapping(start, end):
            # Pieces are whole pages; an event may end within one.
            low, high = max(start, piece.start), min(end, piece.end)
            high += (low - high) % self._ranges.page_size
            befell, notable = self._ranges.operate(piece, low, high, op)
            self.losses.add(notable.firsts, notable.effects, int(event["time"]), int(event["tid"]), notable.pages)
            effects = np.repeat(notable.effects, notable.pages)
            for call, index in circles.answers(effects, np.full(len(effects), int(op), dtype=np.uint8)).items():
                addresses = piece.start + (notable.places()[index] - piece.place) * piece.page_size
                self._ranges.all[piece.range_number].root().circles.add(call, addresses)
            dropped = np.array([int(befell[_DROPPED].sum())])
            if DISCARDS[event["type"]] and dropped[0]:
                numbers = np.array([piece.range_number])
                self._drop(self._watched.uffd(ctx), event[None], numbers, dropped)

    def _drop(self, uffd: Userfaultfd, events: Array, numbers: Array, pages: Array) -> None:
        """Armed pages whose content a DISCARD or ZAP dropped; a thread that reads the messages drops its own."""
        others = ~one_of(events["tid"], list(uffd.threads)) & at_once(events, self._arch)
        events, numbers, pages = events[others], numbers[others], pages[others]
        for number in np.unique(numbers).tolist():
            row, mine = self._ranges.all[number].root(), numbers == number
            for call, count in by_call(events[mine], pages[mine], self._arch).items():
                row.drops[call] = row.drops.get(call, 0) + count

    def told(self, ctx: int, start: int, end: int) -> bool:
        """Whether the monitor has read of a write to any of these pages in its arming."""
        parts = self._ranges.space(ctx).parts(start, end)
        return any(bool(having(np.flatnonzero(self._ranges.count(part)), TOLD).any()) for part in parts)
