"""The states of registered pages, in memory that grows with the pages to which something happened.

Most pages of a large range only share its fate: they are registered and armed with
all others. So states are kept at three levels. A region of REGION pages has one state as
long as its pages are alike; else it has blocks of BLOCK pages, of which each has one state
as long as its pages are alike; else the block has a row of cells, one for each page.

How much is registered and touched is the target's choice, what we keep of it is not: what
exceeds MOST_REGIONS or MOST_BYTES shares places that say nothing (`lacks()`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from uffdtrace.model.account.pages import Op
from uffdtrace.model.account.states import BITS, CHANGES, EFFECT, NEXT, apply, apply_range
from uffdtrace.model.records.events import Array

# As many pages as a huge page covers.
BLOCK = 512
_SHIFT = 9
# Pages of a region, 32 GiB of them, and its blocks, which take 96 KiB.
_REGION_SHIFT = 23
REGION = 1 << _REGION_SHIFT
_IN_REGION = 1 << (_REGION_SHIFT - _SHIFT)
# A region takes 18 bytes until its pages differ.
MOST_REGIONS = 1 << 22
# Of blocks and cells: a quarter of this machine's memory, and 256 MiB at least.
MOST_BYTES = max(256 << 20, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4)
_BLOCKS_BYTES, _CELLS_BYTES = 6 * _IN_REGION, 2 * BLOCK
# Blocks with cells whose pages are looked at in one go.
_AT_ONCE = 1024
# Where a region has no blocks of its own; the blocks of all that is not kept; the cells of their pages.
_ALIKE, _NOWHERE, _NOBODYS = -1, 0, 1
# The place of what is not kept: beyond all others.
_BEYOND = 1 << 60


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


@dataclass(frozen=True)
class States:
    """The states of pages in a row: `sizes` says how many have each of `states`, one after the other."""

    sizes: Array
    states: Array

    @property
    def ends(self) -> Array:
        """Of each stretch the page behind it, counted from the first page."""
        return np.cumsum(self.sizes)

    def every(self) -> Array:
        """The state of each page: two bytes for each."""
        return np.repeat(self.states, self.sizes)

    def pages(self, chosen: Array) -> int:
        """How many pages the stretches have that `chosen` (bool) names."""
        return int(self.sizes[chosen].sum())

    def part(self, first: int, pages: int) -> States:
        """Those of some of the pages, counted from the first."""
        ends = self.ends
        low = np.clip(ends - self.sizes, first, first + pages)
        sizes = np.clip(ends, first, first + pages) - low
        kept = sizes > 0
        return States(sizes[kept], self.states[kept])

    def beside(self, other: States) -> tuple[Array, Array, Array]:
        """Of the same pages, cut where either changes: (sizes, states here, states of the other)."""
        ends = np.union1d(self.ends, other.ends)
        sizes = np.diff(ends, prepend=0)
        own = self.states[np.searchsorted(self.ends, ends)]
        return sizes, own, other.states[np.searchsorted(other.ends, ends)]


class Pool:
    """Page states by their places, which are numbers in a row: a piece has as many as it has pages."""

    def __init__(self) -> None:
        # Per region: the first of its blocks, or _ALIKE; the state of all its pages then; how many of them are in use.
        self._base: Array = np.full(4, _ALIKE, dtype=np.int64)
        self._fate: Array = np.zeros(4, dtype=np.uint16)
        self._in_use: Array = np.zeros(4, dtype=np.int64)
        # Per block: the state of all its pages where it has no cells, and its row of cells, or 0.
        self._alike: Array = np.zeros(_IN_REGION, dtype=np.uint16)
        self._row: Array = np.full(_IN_REGION, _NOBODYS, dtype=np.int32)
        self._blocks = _IN_REGION
        self._cells: Array = np.zeros((4, BLOCK), dtype=np.uint16)
        self._rows = _NOBODYS + 1
        self._used = 0
        # Something is not kept.
        self._full = False

    def take(self, pages: int) -> int:
        """The first of so many new places."""
        large = pages >= REGION
        # What is large shares no region: else its pages would differ from others' there.
        place = -(-self._used >> _REGION_SHIFT) << _REGION_SHIFT if large else self._used
        # A place between: runs of pages must not go on from one piece into another.
        used = place + pages + 1
        if large:
            used = -(-used >> _REGION_SHIFT) << _REGION_SHIFT
        # The table has a region more than are used: what is not kept is looked up there.
        regions = (used >> _REGION_SHIFT) + 2
        if regions > MOST_REGIONS:
            self._full = True
            return _BEYOND
        if regions > len(self._base):
            size = max(regions, 2 * len(self._base))
            self._base = _longer(self._base, size, _ALIKE)
            self._fate = _longer(self._fate, size, 0)
            self._in_use = _longer(self._in_use, size, 0)
        first, last = place >> _REGION_SHIFT, (used - 1) >> _REGION_SHIFT
        self._in_use[first : last + 1] = REGION
        if large:
            self._in_use[last] = place + pages - (last << _REGION_SHIFT)
        self._used = used
        return place

    def lacks(self, first: int, pages: int) -> bool:
        """Whether some of these pages in a row are not kept: what is said of them is nothing."""
        if not self._full:
            return False
        if first >= _BEYOND:
            return True
        regions = np.arange(first >> _REGION_SHIFT, ((first + pages - 1) >> _REGION_SHIFT) + 1)
        base = self._base[regions]
        if (base == _NOWHERE).any():
            return True
        for region in regions[base != _ALIKE].tolist():
            begin, end = self._within(region, first, pages)
            blocks = self._own_blocks(region, begin, end)
            if (self._row[blocks] == _NOBODYS).any():
                return True
        return False

    def apply(self, places: Array, ops: Array) -> Array:
        """Apply ops[i] to the page at places[i], in order; the row of CHANGES of each."""
        # First: it may move the cells.
        cells = self._cells_of(places)
        return apply(self._cells.reshape(-1), cells, ops)

    def read(self, places: Array) -> Array:
        """The states at these places: a copy."""
        regions = self._regions(places)
        base = self._base_of(regions)
        alike = base == _ALIKE
        blocks = np.maximum(base, 0) + (places >> _SHIFT & (_IN_REGION - 1))
        rows = self._row[blocks]
        found = np.where(rows, self._cells[rows, places & (BLOCK - 1)], self._alike[blocks])
        if alike.any():
            found[alike] = self._fate[regions[alike]]
        return found

    def states(self, first: int, pages: int) -> States:
        """The states of pages in a row: a copy."""
        if first >= _BEYOND:
            return States(np.array([pages]), np.zeros(1, dtype=np.uint16))
        sizes, states = [], []
        for regions, begin, end in self._stretches(first, pages):
            if regions is not None:
                sizes.append(self._covered(regions, first, pages))
                states.append(self._fate[regions])
            else:
                for some, same in self._of_blocks(begin, end):
                    sizes.append(some)
                    states.append(same)
        whole, every = np.concatenate(sizes), np.concatenate(states)
        change = np.flatnonzero(every[1:] != every[:-1]) + 1
        firsts = np.concatenate([[0], change])
        return States(np.add.reduceat(whole, firsts), every[firsts])

    def write(self, first: int, states: States) -> None:
        """Give pages in a row these states."""
        if first >= _BEYOND:
            return
        pages = int(states.sizes.sum())
        ends = states.ends
        for region in range(first >> _REGION_SHIFT, ((first + pages - 1) >> _REGION_SHIFT) + 1):
            begin, end = self._within(region, first, pages)
            low, high = np.searchsorted(ends, (begin - first, end - first - 1), side="right")
            if low == high and end - begin == self._in_use[region] and self._base[region] == _ALIKE:
                self._fate[region] = states.states[low]
                continue
            self._give_blocks(np.array([region]))
            self._write_blocks(region, begin, end, ends + first, states.states)

    def _write_blocks(self, region: int, begin: int, end: int, ends: Array, states: Array) -> None:
        """Give the pages begin..end of a region with blocks the states of the stretches that end at `ends`."""
        blocks = np.arange(begin >> _SHIFT, ((end - 1) >> _SHIFT) + 1)
        own = self._own_blocks(region, begin, end)
        low = np.searchsorted(ends, blocks << _SHIFT, side="right")
        high = np.searchsorted(ends, (blocks << _SHIFT) + BLOCK - 1, side="right")
        whole = (low == high) & (blocks << _SHIFT >= begin) & ((blocks + 1) << _SHIFT <= end)
        whole &= self._row[own] != _NOBODYS
        self._alike[own[whole]] = states[low[whole]]
        # Their rows of cells are nobody's from here on; that is seldom, and they are not many.
        self._row[own[whole]] = 0
        for at in range(0, len(blocks), _AT_ONCE):
            some = blocks[at : at + _AT_ONCE][~whole[at : at + _AT_ONCE]]
            places = ((some << _SHIFT)[:, None] + np.arange(BLOCK)).reshape(-1)
            places = places[slice(*np.searchsorted(places, (begin, end)))]
            if places.size:
                # First: it may move the cells.
                cells = self._cells_of(places)
                self._cells.reshape(-1)[cells] = states[np.searchsorted(ends, places, side="right")]

    def count(self, first: int, pages: int) -> Array:
        """How many of these pages have each state, by the states' numbers."""
        counts = np.zeros(len(BITS), dtype=np.int64)
        if first >= _BEYOND:
            return counts
        for regions, begin, end in self._stretches(first, pages):
            if regions is not None:
                covered = self._covered(regions, first, pages)
                counts += np.bincount(self._fate[regions], covered, len(BITS)).astype(np.int64)
                continue
            _, own, sizes = self._alike_of(begin, end)
            counts += np.bincount(self._alike[own], sizes, len(BITS)).astype(np.int64)
            for places in self._places(begin, end):
                counts += np.bincount(self._cells.reshape(-1)[self._cell(places)], minlength=len(BITS))
        return counts

    def do(self, first: int, pages: int, op: Op, wanted: Array) -> tuple[Array, Runs]:
        """Apply one operation to pages in a row.

        How many of them each row of CHANGES befell, and which of them those rows that
        `wanted` (bool) has.
        """
        befell = np.zeros(len(CHANGES), dtype=np.int64)
        found = [(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint8))]
        if first >= _BEYOND or not pages:
            return befell, Runs(*found[0])
        cells = self._cells_within(first, pages)
        if cells is not None:
            effects = apply_range(cells, op)
            hit = wanted[effects].nonzero()[0]
            befell += np.bincount(effects, minlength=len(CHANGES))
            return befell, Runs(first + hit, np.ones(len(hit), dtype=np.int64), effects[hit])
        # A region or block of which a part alone is meant has pages that differ from then on.
        self._cut(first, pages)
        for regions, begin, end in self._stretches(first, pages):
            if regions is None:
                self._do_blocks(begin, end, op, wanted, befell, found)
                continue
            sizes, met = self._covered(regions, first, pages), self._fate[regions]
            self._fate[regions] = NEXT[op][met]
            effects = EFFECT[op][met]
            befell += np.bincount(effects, sizes, len(CHANGES)).astype(np.int64)
            hit = wanted[effects]
            found.append((np.maximum(regions[hit] << _REGION_SHIFT, first), sizes[hit], effects[hit]))
        return befell, Runs(*(np.concatenate(column) for column in zip(*found)))

    def _cells_within(self, first: int, pages: int) -> Array | None:
        """The cells of pages in a row (a view).

        None where they are of several blocks, their block has no cells, or some page of any is not kept.
        """
        block = first >> _SHIFT
        base = int(self._base[first >> _REGION_SHIFT]) if not self._full else _NOWHERE
        if base in (_ALIKE, _NOWHERE) or (first + pages - 1) >> _SHIFT != block:
            return None
        row, at = int(self._row[base + (block & (_IN_REGION - 1))]), first & (BLOCK - 1)
        return self._cells[row, at : at + pages] if row > _NOBODYS else None

    def _do_blocks(
        self, begin: int, end: int, op: Op, wanted: Array, befell: Array, found: list[tuple[Array, Array, Array]]
    ) -> None:
        """The same, of pages of one region that has blocks; adds to `befell` and `found`."""
        firsts, own, sizes = self._alike_of(begin, end)
        met = self._alike[own]
        self._alike[own] = NEXT[op][met]
        effects = EFFECT[op][met]
        befell += np.bincount(effects, sizes, len(CHANGES)).astype(np.int64)
        hit = wanted[effects]
        found.append((firsts[hit], sizes[hit], effects[hit]))
        flat = self._cells.reshape(-1)
        for places in self._places(begin, end):
            cells = self._cell(places)
            met = flat[cells]
            flat[cells] = NEXT[op][met]
            effects = EFFECT[op][met]
            befell += np.bincount(effects, minlength=len(CHANGES))
            hit = wanted[effects]
            found.append((places[hit], np.ones(int(hit.sum()), dtype=np.int64), effects[hit]))

    # ---- regions -----------------------------------------------------------------

    def _regions(self, places: Array) -> Array:
        """The regions of pages; the last, which nobody has, for those that are not kept."""
        found: Array = (
            np.minimum(places >> _REGION_SHIFT, len(self._base) - 1) if self._full else places >> _REGION_SHIFT
        )
        return found

    def _base_of(self, regions: Array) -> Array:
        """The first block of each region, or _ALIKE."""
        base = self._base[regions]
        if self._full:
            base[regions == len(self._base) - 1] = _NOWHERE
        return base

    def _within(self, region: int, first: int, pages: int) -> tuple[int, int]:
        """Which pages in a row, from..to, are of a region."""
        return max(first, region << _REGION_SHIFT), min(first + pages, (region + 1) << _REGION_SHIFT)

    def _covered(self, regions: Array, first: int, pages: int) -> Array:
        """How many of pages in a row are of each region."""
        low, high = (
            np.maximum(regions << _REGION_SHIFT, first),
            np.minimum((regions + 1) << _REGION_SHIFT, first + pages),
        )
        covered: Array = high - low
        return covered

    def _stretches(self, first: int, pages: int) -> Iterator[tuple[Array | None, int, int]]:
        """Of pages in a row: some regions whose pages are alike, or which pages are of one with blocks; in order."""
        begin, end = first >> _REGION_SHIFT, ((first + pages - 1) >> _REGION_SHIFT) + 1
        for region in [*(np.flatnonzero(self._base[begin:end] != _ALIKE) + begin).tolist(), end]:
            if region > begin:
                yield np.arange(begin, region), 0, 0
            if region < end:
                yield None, *self._within(region, first, pages)
            begin = region + 1

    def _cut(self, first: int, pages: int) -> None:
        """Give blocks and cells where pages in a row end within a region or block."""
        regions = np.unique([first >> _REGION_SHIFT, (first + pages - 1) >> _REGION_SHIFT])
        self._give_blocks(regions[self._covered(regions, first, pages) < self._in_use[regions]])
        cut = np.unique([place >> _SHIFT for place in (first, first + pages) if place & (BLOCK - 1)]).astype(np.int64)
        base = self._base[cut >> (_REGION_SHIFT - _SHIFT)]
        self._give_cells((base + (cut & (_IN_REGION - 1)))[base != _ALIKE])

    def _give_blocks(self, regions: Array) -> None:
        for region in regions[self._base[regions] == _ALIKE].tolist():
            if self._no_room(_BLOCKS_BYTES):
                self._base[region] = _NOWHERE
                continue
            first = self._blocks
            self._blocks += _IN_REGION
            if self._blocks > len(self._alike):
                self._alike = _longer(self._alike, 2 * self._blocks, 0)
                self._row = _longer(self._row, 2 * self._blocks, 0)
            self._alike[first : self._blocks] = self._fate[region]
            self._base[region] = first

    def _no_room(self, size: int) -> bool:
        kept = self._blocks // _IN_REGION * _BLOCKS_BYTES + self._rows * _CELLS_BYTES
        self._full |= kept + size > MOST_BYTES
        return kept + size > MOST_BYTES

    # ---- blocks ------------------------------------------------------------------

    def _own_blocks(self, region: int, begin: int, end: int) -> Array:
        """The blocks of pages begin..end of a region that has blocks."""
        first = int(self._base[region]) - region * _IN_REGION
        return np.arange((begin >> _SHIFT) + first, ((end - 1) >> _SHIFT) + 1 + first)

    def _alike_of(self, begin: int, end: int) -> tuple[Array, Array, Array]:
        """Of pages of one region: where blocks without cells begin, these, and how many pages of each are meant."""
        own = self._own_blocks(begin >> _REGION_SHIFT, begin, end)
        kept = np.flatnonzero(self._row[own] == 0)
        low = np.maximum((kept + (begin >> _SHIFT)) << _SHIFT, begin)
        return low, own[kept], np.minimum((low >> _SHIFT << _SHIFT) + BLOCK, end) - low

    def _places(self, begin: int, end: int) -> Iterator[Array]:
        """Of pages of one region those that have cells of their own, some blocks at a time."""
        rows = self._row[self._own_blocks(begin >> _REGION_SHIFT, begin, end)]
        blocks = np.flatnonzero(rows > _NOBODYS) + (begin >> _SHIFT)
        for at in range(0, len(blocks), _AT_ONCE):
            places = ((blocks[at : at + _AT_ONCE] << _SHIFT)[:, None] + np.arange(BLOCK)).reshape(-1)
            low, high = np.searchsorted(places, (begin, end))
            yield places[low:high]

    def _of_blocks(self, begin: int, end: int) -> Iterator[tuple[Array, Array]]:
        """The states of pages of one region that has blocks, in order: (sizes, states)."""
        own = self._own_blocks(begin >> _REGION_SHIFT, begin, end)
        rows = self._row[own]
        blocks = np.arange(begin >> _SHIFT, ((end - 1) >> _SHIFT) + 1)
        low = np.maximum(blocks << _SHIFT, begin)
        sizes = np.minimum((blocks + 1) << _SHIFT, end) - low
        at = 0
        for with_cells in [*np.flatnonzero(rows > _NOBODYS).tolist(), len(blocks)]:
            if with_cells > at:
                yield sizes[at:with_cells], self._alike[own[at:with_cells]]
            if with_cells < len(blocks):
                first = int(low[with_cells]) & (BLOCK - 1)
                states = self._cells[rows[with_cells], first : first + int(sizes[with_cells])]
                yield np.ones(len(states), dtype=np.int64), states.copy()
            at = with_cells + 1

    # ---- cells -------------------------------------------------------------------

    def _block_of(self, places: Array) -> Array:
        """The blocks of pages whose regions have blocks."""
        block: Array = self._base_of(self._regions(places)) + (places >> _SHIFT & (_IN_REGION - 1))
        return block

    def _cell(self, places: Array) -> Array:
        cells: Array = self._row[self._block_of(places)].astype(np.int64) * BLOCK + (places & (BLOCK - 1))
        return cells

    def _cells_of(self, places: Array) -> Array:
        """The cells of pages, whose blocks get some where they had none."""
        regions = self._regions(places)
        without = regions[self._base_of(regions) == _ALIKE]
        if without.size:
            self._give_blocks(np.unique(without))
        blocks = self._block_of(places)
        rows = self._row[blocks]
        if not rows.all():
            self._give_cells(np.unique(blocks[rows == 0]))
            rows = self._row[blocks]
        cells: Array = rows.astype(np.int64) * BLOCK + (places & (BLOCK - 1))
        return cells

    def _give_cells(self, blocks: Array) -> None:
        blocks = blocks[self._row[blocks] == 0]
        if not blocks.size:
            return
        if self._no_room(len(blocks) * _CELLS_BYTES):
            self._row[blocks] = _NOBODYS
            return
        first = self._rows
        self._rows += len(blocks)
        if self._rows > len(self._cells):
            larger = np.zeros((max(self._rows, 2 * len(self._cells)), BLOCK), dtype=np.uint16)
            larger[:first] = self._cells[:first]
            self._cells = larger
        self._cells[first : self._rows] = self._alike[blocks][:, None]
        self._row[blocks] = np.arange(first, self._rows)


def _longer(values: Array, size: int, rest: int) -> Array:
    longer = np.full(size, rest, dtype=values.dtype) if rest else np.zeros(size, dtype=values.dtype)
    longer[: len(values)] = values
    return longer
