"""Which pages were lost, how, when and by whom: runs of pages, kept small while they are added."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from uffdtrace.model.account.pages import COUNTS, Cause
from uffdtrace.model.account.ranges import Ranges
from uffdtrace.model.account.states import CHANGES
from uffdtrace.model.records.counting import begins, by_value
from uffdtrace.model.records.events import Array, picked

HOW = ("observed", "blind")
# A loss is a code: 1 + 2 * cause + how; with CANCEL it says that it was none after all.
CANCEL = 128
_RECORD = np.dtype([("place", "<i8"), ("pages", "<i8"), ("time", "<u8"), ("tid", "<u4"), ("code", "u1")])


def _codes() -> Array:
    """Per row of CHANGES: the loss that it adds or takes back, 0 for none."""
    codes = np.zeros(len(CHANGES), dtype=np.uint8)
    for row, change in enumerate(CHANGES):
        for how, name in enumerate(HOW):
            by = int(change[COUNTS.index(name)])
            if by:
                cause = int(np.flatnonzero(change[len(COUNTS) :])[0])
                codes[row] = 1 + 2 * cause + how | (CANCEL if by < 0 else 0)
    return codes


CODES = _codes()


def how_of(code: int) -> str:
    return HOW[(code - 1) & 1]


def cause_of(code: int) -> Cause:
    return Cause((code - 1) >> 1)


def _ranks() -> Array:
    """Per code: where it stands among the others of one page, by how and cause."""
    codes = sorted(range(1, 1 + 2 * len(Cause)), key=lambda code: (how_of(code), cause_of(code).label))
    ranks = np.zeros(CANCEL, dtype=np.uint8)
    ranks[codes] = np.arange(len(codes))
    return ranks


_RANKS = _ranks()


def _between(starts: Array, end: int) -> Iterator[tuple[int, int]]:
    """From each of `starts` to the next one, and from the last to `end`."""
    bounds = [*starts.tolist(), end]
    return zip(bounds[:-1], bounds[1:])


def _sorted(runs: Array) -> Array:
    """Runs by code, place and time; mostly they are so already."""
    columns = [np.ascontiguousarray(runs[name]) for name in ("time", "place", "code")]
    ordered = np.ones(len(runs) - 1, dtype=bool)
    for column in columns:
        ordered = (column[1:] > column[:-1]) | ((column[1:] == column[:-1]) & ordered)
    return runs if ordered.all() else picked(runs, np.lexsort(columns))


def merged(runs: Array) -> Array:
    """The same runs (dtype _RECORD) with those that touch or overlap made one, by code and place.

    A merged run has the time and thread of its earliest part.
    """
    if not len(runs):
        return runs
    runs = _sorted(runs)
    place, time = np.ascontiguousarray(runs["place"]), np.ascontiguousarray(runs["time"])
    ends = place + runs["pages"]
    fresh = begins(runs["code"])
    # Of each code: a run is a new one where it begins behind all ends so far.
    for first, last in _between(np.flatnonzero(fresh), len(runs)):
        furthest = np.maximum.accumulate(ends[first:last])
        fresh[first + 1 : last] = place[first + 1 : last] > furthest[:-1]
    starts = np.flatnonzero(fresh)
    result = picked(runs, starts)
    result["pages"] = np.maximum.reduceat(ends, starts) - result["place"]
    groups = np.cumsum(fresh) - 1
    earliest = np.flatnonzero(time == np.minimum.reduceat(time, starts)[groups])
    firsts = earliest[begins(groups[earliest])]
    result["time"], result["tid"] = time[firsts], runs["tid"][firsts]
    return result


class Losses:
    """Losses by place in the pool of page states, and what was taken back."""

    def __init__(self) -> None:
        self._records: list[Array] = []

    def add(self, places: Array, effects: Array, times: Array | int, tids: Array | int, pages: Array | int = 1) -> None:
        """Note the losses among the effects (rows of CHANGES) of operations, in their order.

        `pages` follow one another at each place.
        """
        codes = CODES[effects]
        lossy = codes != 0
        if not lossy.any():
            return
        records = np.empty(int(lossy.sum()), dtype=_RECORD)
        records["place"], records["code"] = places[lossy], codes[lossy]
        records["pages"] = pages if isinstance(pages, int) else pages[lossy]
        records["time"] = times if isinstance(times, int) else times[lossy]
        records["tid"] = tids if isinstance(tids, int) else tids[lossy]
        # Neighbours of one event are one record: a huge page is 512 of them.
        fresh = records["place"][1:] != records["place"][:-1] + records["pages"][:-1]
        for name in ("time", "tid", "code"):
            fresh |= records[name][1:] != records[name][:-1]
        starts = np.flatnonzero(np.r_[True, fresh])
        kept = picked(records, starts)
        kept["pages"] = np.add.reduceat(records["pages"], starts)
        self._records.append(kept)

    def runs(self) -> Array:
        """What was lost, as runs sorted by code and place (dtype with place, pages, time, tid, code)."""
        return merged(self._standing())

    def times(self) -> tuple[Array, Array]:
        """When pages were lost (ns), and how many."""
        records = self._standing()
        return records["time"], records["pages"]

    def rename(self, places: list[tuple[int, int]], old: Cause, new: Cause, pages: int) -> None:
        """Give the latest losses by `old` another cause: so many pages of those at `places` (first, pages)."""
        records = self._standing()
        inside = np.zeros(len(records), dtype=bool)
        for first, count in places:
            inside |= (records["place"] >= first) & (records["place"] < first + count)
        chosen = np.flatnonzero(inside & (records["code"] - 1 >> 1 == old))
        single = np.repeat(records[chosen], records["pages"][chosen])
        single["place"], single["pages"] = _every(records["place"][chosen], records["pages"][chosen]), 1
        single = single[np.argsort(single["time"], kind="stable")]
        single["code"][len(single) - pages :] += 2 * (new - old)
        self._records = [np.delete(records, chosen), single]

    def _standing(self) -> Array:
        """The losses that were not taken back."""
        if not self._records:
            return np.empty(0, dtype=_RECORD)
        records = np.concatenate(self._records)
        cancels = records["code"] & CANCEL != 0
        return _settled(records) if cancels.any() else records


def _settled(records: Array) -> Array:
    """Without what was taken back: each CANCEL, and the latest loss of that page before it."""
    cancelled = records[records["code"] & CANCEL != 0]
    places = np.unique(_every(cancelled["place"], cancelled["pages"]))
    low = np.searchsorted(places, records["place"])
    high = np.searchsorted(places, records["place"] + records["pages"])
    touched = low < high
    order = np.arange(len(records))
    # Only what shares a page with a CANCEL is looked at page by page.
    single = np.repeat(records[touched], records["pages"][touched])
    single_order = np.repeat(order[touched], records["pages"][touched])
    single["place"], single["pages"] = _every(records["place"][touched], records["pages"][touched]), 1
    takes_back = single["code"] & CANCEL != 0
    single["code"] &= CANCEL - 1
    by_page = np.lexsort((single_order, single["place"], single["code"]))
    single, takes_back = single[by_page], takes_back[by_page]
    same = (single["code"][1:] == single["code"][:-1]) & (single["place"][1:] == single["place"][:-1])
    undone = np.r_[takes_back[1:] & same, False]
    return np.concatenate([records[~touched], single[~takes_back & ~undone]])


def _every(places: Array, pages: Array) -> Array:
    """Each place of runs that begin at `places`."""
    every: Array = np.repeat(places, pages) + np.arange(int(pages.sum())) - np.repeat(np.cumsum(pages) - pages, pages)
    return every


def lost_pages(
    runs: Array, ranges: Ranges, began: int, most: int | None = None
) -> dict[int, tuple[list[dict[str, Any]], int]]:
    """Number of each range that lost pages: the first `most` of its runs, in the form of the report, and how many not.

    `began` is the time (ns) from which `first_s` counts.
    """
    pieces = sorted((piece.place, piece.pages, piece.start, row.number) for row, piece in ranges.pieces())
    if not len(runs) or not pieces:
        return {}
    table = np.array(pieces, dtype=np.int64)
    places, lengths, starts, numbers = table[:, 0], table[:, 1], table[:, 2], table[:, 3]
    # A run may cross from one piece into the next, where both were one.
    low = np.searchsorted(places, runs["place"], side="right") - 1
    high = np.searchsorted(places, runs["place"] + runs["pages"], side="left")
    which = np.repeat(np.arange(len(runs)), np.maximum(high - low, 0))
    offset = np.arange(len(which)) - np.repeat(np.cumsum(high - low) - (high - low), high - low)
    at = low[which] + offset
    first = np.maximum(runs["place"][which], places[at])
    last = np.minimum(runs["place"][which] + runs["pages"][which], places[at] + lengths[at])
    inside = first < last
    which, at, first, last = which[inside], at[inside], first[inside], last[inside]
    parts = picked(runs, which)
    parts["place"] = starts[at] // ranges.page_size + first - places[at]
    parts["pages"] = last - first
    owners = numbers[at]
    return {
        number: _listed(merged(picked(parts, index)), ranges.page_size, began, most)
        for number, index in by_value(owners)
    }


def _listed(runs: Array, page_size: int, began: int, most: int | None) -> tuple[list[dict[str, Any]], int]:
    order = np.lexsort((_RANKS[runs["code"]], runs["place"]))[:most]
    listed = [
        {
            "start": hex(int(run["place"]) * page_size),
            "end": hex((int(run["place"]) + int(run["pages"])) * page_size),
            "pages": int(run["pages"]),
            "how": how_of(int(run["code"])),
            "cause": cause_of(int(run["code"])).label,
            "first_s": round((int(run["time"]) - began) / 1e9, 6),
            "tid": int(run["tid"]),
        }
        for run in runs[order]
    ]
    return listed, len(runs) - len(listed)
