"""The states of registered pages, in memory that grows with the pages to which something happened.

Most pages of a large range only share its fate: they are registered and armed with
all others. So states are kept by blocks of BLOCK pages: one number for a block whose
pages are all alike, and a row of cells for one in which a page went its own way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from uffdtrace.model.events import Array
from uffdtrace.model.pages import Op
from uffdtrace.model.states import BITS, CHANGES, EFFECT, NEXT, apply

# As many as a huge page covers.
BLOCK = 512
_SHIFT = 9
# Blocks with cells whose pages are looked at in one go.
_AT_ONCE = 1024
# Pages that are looked at in one go, for memory must not grow with how many a target registers: 128 GiB of them.
_STRETCH = 1 << 25


class PoolError(Exception):
    """More pages than this machine can hold."""


@dataclass(frozen=True)
class Runs:
    """Pages in rows: the place of the first of each row, how many there are, and what befell them (row of CHANGES)."""

    firsts: Array
    pages: Array
    effects: Array

    @property
    def columns(self) -> tuple[Array, Array, Array]:
        return self.firsts, self.pages, self.effects

    def places(self) -> Array:
        """Each page."""
        before = np.cumsum(self.pages) - self.pages
        every: Array = np.repeat(self.firsts - before, self.pages) + np.arange(int(self.pages.sum()))
        return every


def _stretches(first: int, pages: int) -> Iterator[tuple[int, int]]:
    """Pages in a row as rows of fewer, one at least: (first, pages), cut between blocks."""
    end = first + pages
    while True:
        until = min(end, (first // _STRETCH + 1) * _STRETCH)
        yield first, until - first
        first = until
        if first == end:
            return


class Pool:
    """Page states by their places, which are numbers in a row: a piece has as many as it has pages."""

    def __init__(self) -> None:
        # Per block: the state of all its pages where it has no cells, and its row of cells, or 0.
        self._alike: Array = np.zeros(8, dtype=np.uint16)
        self._row: Array = np.zeros(8, dtype=np.int32)
        self._cells: Array = np.zeros((4, BLOCK), dtype=np.uint16)
        self._rows = 1
        self._used = 0

    def take(self, pages: int) -> int:
        """The first of so many new places."""
        place = self._used
        # A place between: runs of pages must not go on from one piece into another.
        self._used += pages + 1
        blocks = (self._used >> _SHIFT) + 1
        if blocks > len(self._alike):
            # zeros(): what nobody touches costs no memory.
            try:
                alike, row = (np.zeros(max(blocks, 2 * len(self._alike)), dtype=kind) for kind in (np.uint16, np.int32))
            except (MemoryError, ValueError):
                raise PoolError(f"{self._used:,} pages") from None
            known = (place >> _SHIFT) + 1
            alike[:known], row[:known] = self._alike[:known], self._row[:known]
            self._alike, self._row = alike, row
        return place

    def apply(self, places: Array, ops: Array) -> Array:
        """Apply ops[i] to the page at places[i], in order; the row of CHANGES of each."""
        # First: it may move the cells.
        cells = self._cells_of(places)
        return apply(self._cells.reshape(-1), cells, ops)

    def read(self, places: Array) -> Array:
        """The states at these places: a copy."""
        blocks = places >> _SHIFT
        rows = self._row[blocks]
        return np.where(rows, self._cells[rows, places & (BLOCK - 1)], self._alike[blocks])

    def states(self, first: int, pages: int) -> Array:
        """The states of pages in a row: a copy, of two bytes for each."""
        return self.read(np.arange(first, first + pages))

    def write(self, first: int, states: Array) -> None:
        """Give pages in a row these states."""
        places = np.arange(first, first + len(states))
        # Whole blocks whose pages are alike need no cells.
        begin, end = -(-first >> _SHIFT), (first + len(states)) >> _SHIFT
        if end > begin:
            skipped = (begin << _SHIFT) - first
            whole = states[skipped : skipped + (end - begin) * BLOCK].reshape(-1, BLOCK)
            alike = (whole == whole[:, :1]).all(axis=1)
            blocks = np.flatnonzero(alike) + begin
            self._alike[blocks], self._row[blocks] = whole[alike, 0], 0
            rest = np.ones(len(states), dtype=bool)
            rest[skipped : skipped + (end - begin) * BLOCK] = ~np.repeat(alike, BLOCK)
            places, states = places[rest], states[rest]
        # First: it may move the cells.
        cells = self._cells_of(places)
        self._cells.reshape(-1)[cells] = states

    def count(self, first: int, pages: int) -> Array:
        """How many of these pages have each state, by the states' numbers."""
        counts = np.zeros(len(BITS), dtype=np.int64)
        for begin, size in _stretches(first, pages):
            blocks, sizes = self._alike_of(begin, size)
            counts += np.bincount(self._alike[blocks], weights=sizes, minlength=len(BITS)).astype(np.int64)
            for places in self._places(begin, size):
                counts += np.bincount(self._cells.reshape(-1)[self._cell(places)], minlength=len(BITS))
        return counts

    def do(self, first: int, pages: int, op: Op, wanted: Array) -> tuple[Array, Runs]:
        """Apply one operation to pages in a row.

        How many of them each row of CHANGES befell, and which of them those rows that
        `wanted` (bool) has.
        """
        # A block of which a part alone is meant has pages that differ from then on.
        cut = [place >> _SHIFT for place in (first, first + pages) if place & (BLOCK - 1)]
        self._give_cells(np.unique(np.array(cut, dtype=np.int64)))
        befell = np.zeros(len(CHANGES), dtype=np.int64)
        parts = []
        for begin, size in _stretches(first, pages):
            counts, runs = self._do(begin, size, op, wanted)
            befell += counts
            parts.append(runs)
        if len(parts) == 1:
            return befell, parts[0]
        return befell, Runs(*(np.concatenate(column) for column in zip(*(run.columns for run in parts))))

    def _do(self, first: int, pages: int, op: Op, wanted: Array) -> tuple[Array, Runs]:
        """The same, of pages that are not too many at once and share no block with others."""
        blocks, sizes = self._alike_of(first, pages)
        met = self._alike[blocks]
        self._alike[blocks] = NEXT[op][met]
        effects = EFFECT[op][met]
        befell = np.bincount(effects, weights=sizes, minlength=len(CHANGES)).astype(np.int64)
        found = [(np.maximum(blocks << _SHIFT, first), sizes, effects, wanted[effects])]
        flat = self._cells.reshape(-1)
        for places in self._places(first, pages):
            cells = self._cell(places)
            met = flat[cells]
            flat[cells] = NEXT[op][met]
            effects = EFFECT[op][met]
            befell += np.bincount(effects, minlength=len(CHANGES))
            found.append((places, np.ones(len(places), dtype=np.int64), effects, wanted[effects]))
        firsts, sizes, effects = (np.concatenate([one[column][one[3]] for one in found]) for column in range(3))
        return befell, Runs(firsts, sizes, effects)

    def _alike_of(self, first: int, pages: int) -> tuple[Array, Array]:
        """Of pages in a row: the blocks without cells, and how many of their pages are meant."""
        begin, end = first >> _SHIFT, ((first + pages - 1) >> _SHIFT) + 1
        blocks = np.flatnonzero(self._row[begin:end] == 0) + begin
        return blocks, np.minimum((blocks + 1) << _SHIFT, first + pages) - np.maximum(blocks << _SHIFT, first)

    def _places(self, first: int, pages: int) -> Iterator[Array]:
        """Of pages in a row those that have cells, some blocks at a time."""
        begin, end = first >> _SHIFT, ((first + pages - 1) >> _SHIFT) + 1
        blocks = np.flatnonzero(self._row[begin:end]) + begin
        for at in range(0, len(blocks), _AT_ONCE):
            places = ((blocks[at : at + _AT_ONCE] << _SHIFT)[:, None] + np.arange(BLOCK)).reshape(-1)
            low, high = np.searchsorted(places, (first, first + pages))
            yield places[low:high]

    def _cell(self, places: Array) -> Array:
        cells: Array = self._row[places >> _SHIFT].astype(np.int64) * BLOCK + (places & (BLOCK - 1))
        return cells

    def _cells_of(self, places: Array) -> Array:
        """The cells of pages, whose blocks get some where they had none."""
        blocks = places >> _SHIFT
        without = blocks[self._row[blocks] == 0]
        if without.size:
            self._give_cells(np.unique(without))
        return self._cell(places)

    def _give_cells(self, blocks: Array) -> None:
        blocks = blocks[self._row[blocks] == 0]
        if not blocks.size:
            return
        first = self._rows
        self._rows += len(blocks)
        if self._rows > len(self._cells):
            larger = np.zeros((max(self._rows, 2 * len(self._cells)), BLOCK), dtype=np.uint16)
            larger[:first] = self._cells[:first]
            self._cells = larger
        self._cells[first : self._rows] = self._alike[blocks][:, None]
        self._row[blocks] = np.arange(first, self._rows)
