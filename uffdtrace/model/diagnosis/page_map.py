"""A range as a row of cells, each for as many pages, for a picture of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from uffdtrace.model.account.model import Model
from uffdtrace.model.account.pages import ARMED, BLIND, DOUBT, EVER_ARMED, NOTIFIED, OBSERVED, UNDECIDED
from uffdtrace.model.account.ranges import Piece, Range
from uffdtrace.model.account.states import BITS
from uffdtrace.model.diagnosis.document import RangeDict
from uffdtrace.model.records.events import Array

# What a page can be, a cell shows the last of these that any of its pages is; of the first four what most are.
KINDS = ("untouched", "protected", "told", "released", "undecided", "blind", "lost")
_FIRST_ALARM = KINDS.index("undecided")


def _kinds() -> Array:
    """Of each state of a page."""
    found = np.zeros(len(BITS), dtype=np.uint8)
    # Later ones hold where several do.
    for name, bits in (
        ("released", EVER_ARMED),
        ("protected", ARMED),
        ("told", NOTIFIED),
        ("undecided", UNDECIDED | DOUBT),
        ("blind", BLIND),
        ("lost", OBSERVED),
    ):
        found[BITS & bits != 0] = KINDS.index(name)
    return found


_KIND = _kinds()


@dataclass(frozen=True)
class PageMap:
    """`pages` in each cell but the last; `runs` of alike cells: (how many, index of KINDS)."""

    pages: int
    runs: list[tuple[int, int]]


def page_maps(model: Model, ranges: Sequence[RangeDict], most: int) -> list[PageMap]:
    """Of each range of a report in its order, in `most` cells or fewer."""
    pieces: dict[int, list[Piece]] = {}
    for row, piece in model.ranges.pieces():
        pieces.setdefault(row.number, []).append(piece)
    return [_page_map(model, row, pieces.get(row.number, []), found, most) for row, found in zip(model.rows(), ranges)]


def _page_map(model: Model, row: Range, pieces: Sequence[Piece], found: RangeDict, most: int) -> PageMap:
    size = max(1, -(-row.pages // most))
    cells = -(-row.pages // size)
    counts = np.zeros((cells, len(KINDS)), dtype=np.int64)
    for piece in [] if row.untracked else pieces:
        states = model.ranges.states(piece)
        first = (piece.start - row.start) // row.page_size
        _spread(counts, size, first + states.ends - states.sizes, states.sizes, _KIND[states.states])
    for run in found["lost"]["runs"] or []:
        # Also those of an earlier arming, which the page's state does not tell any more.
        begin = (int(run["start"], 16) - row.start) // row.page_size
        kind = KINDS.index("lost" if run["how"] == "observed" else "blind")
        _spread(counts, size, np.array([begin]), np.array([run["pages"]]), np.array([kind]))
    kinds = counts[:, :_FIRST_ALARM].argmax(axis=1)
    for alarm in range(_FIRST_ALARM, len(KINDS)):
        kinds[counts[:, alarm] > 0] = alarm
    if found["armed_pages"] is None:
        # Armed before the trace, or not: or more than can be kept.
        kinds[kinds == KINDS.index("untouched")] = _FIRST_ALARM
    changes = np.flatnonzero(np.diff(kinds)) + 1
    bounds = [0, *changes.tolist(), cells]
    return PageMap(size, [(last - first, int(kinds[first])) for first, last in zip(bounds[:-1], bounds[1:])])


def _spread(counts: Array, size: int, firsts: Array, pages: Array, kinds: Array) -> None:
    """Add stretches of pages to the cells that they lie in."""
    inside = (firsts >= 0) & (firsts < len(counts) * size) & (pages > 0)
    firsts, pages, kinds = firsts[inside], pages[inside], kinds[inside]
    lasts = np.minimum(firsts + pages, len(counts) * size)
    begin, end = firsts // size, (lasts - 1) // size
    # What lies within one cell, and the two ends of what does not.
    np.add.at(counts, (begin, kinds), np.where(begin == end, lasts - firsts, (begin + 1) * size - firsts))
    long = begin < end
    np.add.at(counts, (end[long], kinds[long]), lasts[long] - end[long] * size)
    # Between them whole cells: the differences of a sum over the cells.
    whole = np.zeros((len(counts) + 1, counts.shape[1]), dtype=np.int64)
    np.add.at(whole, (begin[long] + 1, kinds[long]), size)
    np.add.at(whole, (end[long], kinds[long]), -size)
    counts += np.cumsum(whole, axis=0)[:-1]
