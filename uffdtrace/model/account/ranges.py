"""Ranges as they come and go, and the states of their pages.

A `Range` is one row of the report. Its pages' states lie in a pool that all
ranges share, so that events on hundreds of small ranges are one array
operation. `Space` knows which addresses of one userfaultfd are registered now.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field, replace

import numpy as np

from uffdtrace.errors import UffdtraceError
from uffdtrace.model.account.circles import Circles
from uffdtrace.model.account.dropped import Dropped
from uffdtrace.model.account.facts import Fact
from uffdtrace.model.account.failures import Failures
from uffdtrace.model.account.latencies import Latencies
from uffdtrace.model.account.pages import COUNTS, EVER_ARMED, NOTIFIED, WIDTH, Cause, Op
from uffdtrace.model.account.pool import Pool, Runs, States
from uffdtrace.model.account.sleep import Killed, Waiting
from uffdtrace.model.account.states import CHANGES, having
from uffdtrace.model.records.counting import begins, counts
from uffdtrace.model.records.events import (
    HIGHEST,
    MEMORY_MASK,
    MEMORY_ORDER_SHIFT,
    MODES_SHIFT,
    MOST_ORDER,
    Array,
    Kind,
    Memory,
    Mode,
)

# Rows of CHANGES of which more is told than how many pages they befell.
NOTABLE = CHANGES[:, [COUNTS.index(name) for name in ("observed", "blind", "circled")]].any(axis=1)
# A table of all pieces costs as much as looking up one address for each so many of them.
_PLACES = {name: place for place, name in enumerate(COUNTS)}
_WORTH_A_TABLE = 8


class ModelError(UffdtraceError):
    """The trace says something no kernel can have said."""


@dataclass
class Range:
    """Counts of one range over the whole trace, in pages unless they say otherwise."""

    number: int
    start: int
    end: int
    modes: Mode
    # Bytes of a base page.
    page_size: int
    memory: Memory = Memory(0)
    # Base pages per page of this memory, as a power of two: 9 for hugetlb pages of 2 MiB in pages of 4 KiB.
    order: int = 0
    faults: list[int] = field(default_factory=lambda: [0] * len(Kind))
    messages: list[int] = field(default_factory=lambda: [0] * len(Kind))
    # None once an arming's result was not seen.
    holes: int | None = 0
    armings: int = 0
    changes: Array = field(default_factory=lambda: np.zeros(WIDTH, dtype=np.int64))
    latencies: Latencies = field(default_factory=Latencies)
    # None where a thread's end was not seen.
    pending: int | None = 0
    # Pages dropped while armed, by the call that dropped them.
    drops: dict[Dropped, int] = field(default_factory=dict)
    circles: Circles = field(default_factory=Circles)
    facts: dict[Fact, int] = field(default_factory=dict)
    # Names of the errors of WRITEPROTECT, and what calls that did a part of it protected.
    errors: set[tuple[Fact, str]] = field(default_factory=set)
    spans: dict[Fact, list[tuple[int, int]]] = field(default_factory=dict)
    waiting: list[Waiting] = field(default_factory=list)
    killed: list[Killed] = field(default_factory=list)
    failures: Failures = field(default_factory=Failures)
    # Pages that stood unprotected, not yet lost, at the end, by Cause.
    exposed: Array = field(default_factory=lambda: np.zeros(len(Cause), dtype=np.int64))
    # Time (ns) of the first registration; what a name belongs to.
    born: int = 0
    # Time (ns) from which nothing of it was registered any more, by UNREGISTER or close.
    withdrawn: int | None = None
    # Registered before the trace, and armed then, or nobody can tell: what was
    # armed and populated before is unknown.
    before: bool = False
    # The same, but nothing was protected then: armed while it was empty, or not at all.
    unseen: bool = False
    # Not all of its pages' states were kept (Pool.lacks()): nothing is said that rests on them.
    untracked: bool = False
    # Pages came armed from another range, whose holes count there.
    carried: bool = False
    # Pieces that are registered no more.
    retired: list[Piece] = field(default_factory=list)
    merged_into: Range | None = None

    @property
    def pages(self) -> int:
        return (self.end - self.start) // self.page_size

    def count(self, name: str) -> int:
        return int(self.changes.item(_PLACES[name]))

    @property
    def undecided(self) -> int:
        """Pages whose protection no order of events tells: once per arming."""
        return self.count("undecided")

    def cause(self, cause: Cause) -> int:
        return int(self.changes.item(len(COUNTS) + cause))

    def causes(self) -> dict[str, int]:
        """Lost pages by the label of each cause that there is."""
        by_cause = self.changes[len(COUNTS) :]
        return {Cause(cause).label: int(by_cause[cause]) for cause in np.flatnonzero(by_cause).tolist()}

    def fact(self, fact: Fact) -> int:
        return self.facts.get(fact, 0)

    def note(self, fact: Fact, count: int = 1) -> None:
        self.facts[fact] = self.fact(fact) + count

    def absorb(self, other: Range) -> None:
        """Become one with an adjacent range that the kernel merges with this one."""
        self.start, self.end = min(self.start, other.start), max(self.end, other.end)
        self.memory |= other.memory
        for kind in Kind:
            self.faults[kind] += other.faults[kind]
            self.messages[kind] += other.messages[kind]
        self.holes = None if self.holes is None or other.holes is None else self.holes + other.holes
        self.armings += other.armings
        for fact, count in other.facts.items():
            self.note(fact, count)
        self.errors |= other.errors
        for fact, spans in other.spans.items():
            self.spans[fact] = self.spans.get(fact, []) + spans
        self.waiting += other.waiting
        self.killed += other.killed
        self.failures.absorb(other.failures)
        self.circles.absorb(other.circles)
        self.exposed += other.exposed
        self.born = min(self.born, other.born)
        self.changes += other.changes
        self.latencies.absorb(other.latencies)
        self.pending = None if self.pending is None or other.pending is None else self.pending + other.pending
        for call, pages in other.drops.items():
            self.drops[call] = self.drops.get(call, 0) + pages
        self.before |= other.before
        self.unseen |= other.unseen
        self.carried |= other.carried
        self.untracked |= other.untracked
        self.retired += other.retired
        self.order = max(self.order, other.order)
        other.merged_into = self

    def forget_pages(self) -> None:
        """Some of its pages are not kept: what was counted of the others is no count of the range."""
        self.untracked = True
        self.holes = None
        self.changes[:] = 0
        self.exposed[:] = 0
        self.drops.clear()
        self.circles = Circles()

    def root(self) -> Range:
        found = self
        while found.merged_into is not None:
            found = found.merged_into
        return found


@dataclass
class Piece:
    """Addresses registered now: [start, end), whose states begin at `place` in the pool."""

    start: int
    end: int
    place: int
    range_number: int
    page_size: int

    @property
    def pages(self) -> int:
        return (self.end - self.start) // self.page_size

    def place_of(self, address: int) -> int:
        """Where the state of the page at an address of it lies in the pool."""
        return self.place + (address - self.start) // self.page_size

    def part(self, start: int, end: int) -> Piece:
        return Piece(start, end, self.place_of(start), self.range_number, self.page_size)


class Space:
    """One userfaultfd: its registered pieces, in order of address; no two of them overlap."""

    def __init__(self, ctx: int, page_size: int) -> None:
        self.ctx = ctx
        self._page_shift = np.uint64(page_size.bit_length() - 1)
        self.pieces: list[Piece] = []
        # Of each piece.
        self._starts: list[int] = []
        self._table: tuple[Array, Array, Array, Array] | None = None

    def add(self, piece: Piece) -> None:
        index = bisect_left(self._starts, piece.start)
        self._replace(index, index, [piece])

    def _replace(self, first: int, last: int, pieces: list[Piece]) -> None:
        self.pieces[first:last] = pieces
        self._starts[first:last] = [piece.start for piece in pieces]
        self._table = None

    def touched(self, start: int, end: int) -> int:
        """Number of the first range of which [start, end) names anything, or -1."""
        pieces = self.overlapping(start, end)
        return pieces[0].range_number if pieces else -1

    def numbers(self, addresses: Array) -> Array:
        """The range number of each address; -1 where it is not registered."""
        if len(self.pieces) == 1:
            piece = self.pieces[0]
            inside = (addresses >= piece.start) & (addresses < piece.end)
            return np.where(inside, piece.range_number, -1)
        return self.locate(addresses)[1]

    def locate(self, addresses: Array) -> tuple[Array, Array]:
        """(place in the pool, range number) of each address; -1 where it is not registered."""
        if len(self.pieces) == 1:
            numbers, piece = self.numbers(addresses), self.pieces[0]
            offset = ((addresses - np.uint64(piece.start)) >> self._page_shift).astype(np.int64)
            return np.where(numbers < 0, -1, piece.place + offset), numbers
        if self._table is None and len(addresses) * _WORTH_A_TABLE < len(self.pieces):
            return self._look_up(addresses.tolist())
        if not self.pieces:
            nowhere = np.full(len(addresses), -1, dtype=np.int64)
            return nowhere, nowhere
        if self._table is None:
            self._table = (
                np.array(self._starts, dtype=np.uint64),
                np.array([piece.end for piece in self.pieces], dtype=np.uint64),
                np.array([piece.place for piece in self.pieces], dtype=np.int64),
                np.array([piece.range_number for piece in self.pieces], dtype=np.int64),
            )
        starts, ends, places, numbers = self._table
        index = np.searchsorted(starts, addresses, side="right").astype(np.int64) - 1
        outside = (index < 0) | (addresses >= ends[index])
        offset = ((addresses - starts[index]) >> self._page_shift).astype(np.int64)
        return np.where(outside, -1, places[index] + offset), np.where(outside, -1, numbers[index])

    def _look_up(self, addresses: list[int]) -> tuple[Array, Array]:
        """The same, one by one: where ranges come and go, a table for all of them is made in vain."""
        found = [(-1, -1)] * len(addresses)
        for index, address in enumerate(addresses):
            for piece in self.overlapping(address, address + 1):
                found[index] = (piece.place_of(address), piece.range_number)
        places, numbers = np.array(found, dtype=np.int64).reshape(-1, 2).T
        return places, numbers

    def touching(self, start: int, end: int) -> list[Piece]:
        """The pieces that overlap [start, end), and those beside it."""
        return self.pieces[slice(*self._between(start, end, 0))]

    def overlapping(self, start: int, end: int) -> list[Piece]:
        return self.pieces[slice(*self._between(start, end, 1))]

    def _between(self, start: int, end: int, shared: int) -> tuple[int, int]:
        """The first and the one after the last of those that have `shared` bytes with [start, end), or more."""
        first = bisect_left(self._starts, start)
        # Of those that begin before it, only the last can reach to it.
        if first and self.pieces[first - 1].end >= start + shared:
            first -= 1
        return first, max(first, bisect_right(self._starts, end - shared))

    def parts(self, start: int, end: int) -> list[Piece]:
        """What overlaps [start, end), trimmed to it."""
        return [one.part(max(one.start, start), min(one.end, end)) for one in self.overlapping(start, end)]

    def cut(self, start: int, end: int) -> list[Piece]:
        """Take [start, end) out; the pieces taken, trimmed to it."""
        first, last = self._between(start, end, 1)
        hit = self.pieces[first:last]
        if hit:
            self._replace(first, last, [part for piece in hit for part in _outside(piece, start, end)])
        return [piece.part(max(piece.start, start), min(piece.end, end)) for piece in hit]


def _twice(pieces: list[tuple[Piece, States]], bit: int) -> int:
    """How often a page of these pieces has the bit in more than one: once less than it has it."""
    page_size = pieces[0][0].page_size
    changes: list[tuple[int, int]] = []
    for piece, states in pieces:
        ends = states.ends
        for end, size in zip(
            ends[having(states.states, bit)].tolist(), states.sizes[having(states.states, bit)].tolist()
        ):
            changes += [(piece.start + (end - size) * page_size, 1), (piece.start + end * page_size, -1)]
    changes.sort()
    depth = more = 0
    for (address, step), (following, _) in zip(changes, changes[1:]):
        depth += step
        more += max(0, depth - 1) * (following - address) // page_size
    return more


def _outside(piece: Piece, start: int, end: int) -> list[Piece]:
    return [piece.part(low, high) for low, high in _without((piece.start, piece.end), start, end)]


class Ranges:
    """All ranges of all userfaultfds."""

    def __init__(self, page_size: int) -> None:
        """`page_size` in bytes, a power of two: what the trace's machine has."""
        self.page_size = page_size
        self.pool = Pool()
        self.all: list[Range] = []
        self.spaces: dict[int, Space] = {}
        # What describe() was told last of each range, by number.
        self._told: Array = np.zeros(0, dtype=np.uint32)

    def space(self, ctx: int) -> Space:
        return self.spaces.setdefault(ctx, Space(ctx, self.page_size))

    def bounds(self, start: int, end: int) -> tuple[int, int]:
        """An interval as the kernel would accept it, or ModelError: a trace file is untrusted."""
        if not 0 <= start < end <= HIGHEST:
            raise ModelError(f"the trace names an impossible range {start:#x}-{end:#x}")
        return start & -self.page_size, (end + self.page_size - 1) & -self.page_size

    def register(self, ctx: int, start: int, end: int, modes: Mode) -> list[Piece]:
        """Register [start, end); pieces that had other modes before, already cut out."""
        start, end = self.bounds(start, end)
        space = self.space(ctx)
        replaced = []
        fresh = [(start, end)]
        for piece in space.overlapping(start, end):
            low, high = max(piece.start, start), min(piece.end, end)
            # An area that has all of these modes stays as it is (userfaultfd_register()).
            if self.all[piece.range_number].root().modes & modes == modes:
                fresh = [part for one in fresh for part in _without(one, low, high)]
            else:
                replaced += self.cut(space, low, high)
        for low, high in fresh:
            self._add(space, low, high, modes)
        return replaced

    def _add(self, space: Space, start: int, end: int, modes: Mode) -> None:
        number = self._number_for(space, start, end, modes)
        row = self.all[number].root()
        fresh = [(start, end)]
        for old in row.retired:
            low, high = max(start, old.start), min(end, old.end)
            if low < high:
                # Here before: pages that were armed or notified then count once.
                again = old.part(low, high)
                self.pool.do(again.place, again.pages, Op.REGISTERED_AGAIN, NOTABLE)
                space.add(replace(again, range_number=number))
                fresh = [part for one in fresh for part in _without(one, low, high)]
        row.retired = [part for old in row.retired for part in _outside(old, start, end)]
        for low, high in fresh:
            place = self.pool.take((high - low) // self.page_size)
            space.add(Piece(low, high, place, number, self.page_size))

    def cut(self, space: Space, start: int, end: int) -> list[Piece]:
        """Take [start, end) out of what is registered; the pieces taken."""
        taken = space.cut(start, end)
        for piece in taken:
            self.all[piece.range_number].root().retired.append(piece)
        return taken

    def end(self, space: Space, start: int, end: int) -> list[Piece]:
        """[start, end) is registered no more; the pieces that were."""
        taken = self.cut(space, start, end)
        for piece in taken:
            self.operate(piece, piece.start, piece.end, Op.ENDED)
        return taken

    def operate(self, piece: Piece, start: int, end: int, op: Op) -> tuple[Array, Runs]:
        """Do `op` to every page of [start, end) in a piece.

        How many pages each row of CHANGES befell, and the pages that a row of NOTABLE did.
        """
        befell, notable = self.pool.do(piece.place_of(start), (end - start) // self.page_size, op, NOTABLE)
        self.row_of(piece).changes += befell @ CHANGES
        return befell, notable

    def row_of(self, piece: Piece) -> Range:
        return self.all[piece.range_number].root()

    def pieces(self) -> list[tuple[Range, Piece]]:
        """Every piece that there ever was, with its range."""
        standing = [(self.row_of(piece), piece) for space in self.spaces.values() for piece in space.pieces]
        return standing + [(row, piece) for row in self.rows() for piece in row.retired]

    def places(self, row: Range) -> list[tuple[int, int]]:
        """Where the states of a range's pages lie in the pool, also of those registered no more: (first, pages)."""
        return [(piece.place, piece.pages) for owner, piece in self.pieces() if owner is row]

    def count_once(self) -> None:
        """Take back what pages count twice that left their range, were another's, and came back with it."""
        of_rows: dict[int, list[Piece]] = {}
        for row, piece in self.pieces():
            of_rows.setdefault(row.number, []).append(piece)
        for number, pieces in of_rows.items():
            pieces.sort(key=lambda piece: piece.start)
            if not any(before.end > piece.start for before, piece in zip(pieces, pieces[1:])):
                continue
            row = self.all[number]
            kept = [(piece, self.states(piece)) for piece in pieces]
            for name, bit in (("armed_pages", EVER_ARMED), ("notified_pages", NOTIFIED)):
                row.changes[COUNTS.index(name)] -= _twice(kept, bit)

    def states(self, piece: Piece) -> States:
        """The states of its pages: a copy."""
        return self.pool.states(piece.place, piece.pages)

    def lacks(self, piece: Piece) -> bool:
        """Whether the states of some of its pages were not kept."""
        return self.pool.lacks(piece.place, piece.pages)

    def count(self, piece: Piece) -> Array:
        """How many of its pages have each state."""
        return self.pool.count(piece.place, piece.pages)

    def _number_for(self, space: Space, start: int, end: int, modes: Mode) -> int:
        """The range that [start, end) belongs to: what it touches, or a new one."""
        touching = [
            piece.range_number
            for piece in space.touching(start, end)
            if self.all[piece.range_number].root().modes == modes
        ]
        if not touching:
            self.all.append(Range(len(self.all), start, end, modes, self.page_size))
            return len(self.all) - 1
        row = self.all[touching[0]].root()
        row.start, row.end = min(row.start, start), max(row.end, end)
        for other in touching[1:]:
            root = self.all[other].root()
            if root is not row:
                row.absorb(root)
        return touching[0]

    def describe(self, flags: Array, numbers: Array) -> None:
        """What memory ranges (by number) are, from the `flags` of events that saw their areas."""
        flags = flags & np.uint32((1 << MODES_SHIFT) - 1)
        if len(self._told) < len(self.all):
            self._told = np.concatenate([self._told, np.zeros(len(self.all), dtype=np.uint32)])
        fresh = ((flags != 0) & (self._told[numbers] != flags)).nonzero()[0]
        for number, kind in set(zip(numbers[fresh].tolist(), flags[fresh].tolist())):
            row, order = self.all[number].root(), kind >> MEMORY_ORDER_SHIFT & 31
            if order > MOST_ORDER:
                raise ModelError(f"the trace names an impossible huge page, of 2^{order} pages")
            row.memory |= Memory(kind & MEMORY_MASK)
            row.order = max(row.order, order)
            self._told[number] = kind

    def changes(self, numbers: Array, effects: Array) -> None:
        """Add the effects (rows of CHANGES) of operations to their ranges."""
        some = effects != 0
        if not some.any():
            return
        width = len(CHANGES)
        pairs, times = counts(numbers[some] * width + effects[some])
        changes = CHANGES[pairs % width] * times[:, None]
        of_range = pairs // width
        bounds = np.flatnonzero(begins(of_range))
        for number, change in zip(of_range[bounds].tolist(), np.add.reduceat(changes, bounds)):
            self.all[number].root().changes += change

    def rows(self) -> list[Range]:
        return [found for found in self.all if found.merged_into is None]


def _without(interval: tuple[int, int], low: int, high: int) -> list[tuple[int, int]]:
    start, end = interval
    parts = [(start, min(end, low)), (max(start, high), end)]
    return [(first, last) for first, last in parts if first < last]
