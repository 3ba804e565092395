"""What a kernel would send of a tracker that is served well: every page armed, written, told, released, woken.

Writes to a range of `RANGE_PAGES` come in random order; when each page was written,
all are armed again.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from unit.events import STEP_NS, Events, page_size
from unit.folding import folded

from uffdtrace.model.records.events import SINCE_RETURN_SHIFT, Act, Array, Ioctl, Kind, Type

RANGE_PAGES = 1 << 18
# As many pages as come between two looks at the ring.
BATCH_PAGES = 1 << 13
# Fault, message, call and its return.
PER_PAGE = 4
PAGE_NS = 8 * STEP_NS


def _prelude() -> Array:
    events = Events()
    events.userfaultfd()
    events.register(0, RANGE_PAGES)
    return events.array()


def _armed() -> Array:
    events = Events()
    events.arm(0, RANGE_PAGES)
    return events.array()


def sent_of_page(area: tuple[int, int] = (0, RANGE_PAGES)) -> Array:
    """The events of page 0, in an area from page to page, as the kernel sends them; times (ns) from the fault's on."""
    events = Events()
    events.fault(0, Kind.WP, area=area)
    events.message(0, Kind.WP)
    events.call(Ioctl.WRITEPROTECT, 0, 1)
    events.protect(0, 1, on=False)
    events.wake(0, by=events.monitor)
    events.returned(Ioctl.WRITEPROTECT, 0, 1)
    sent = folded(events.array())
    sent["time"] -= sent["time"][0]
    assert len(sent) == PER_PAGE
    return sent


def at_pages(pages: Array, area: tuple[int, int] = (0, RANGE_PAGES)) -> Array:
    """The events of each of these pages, one after the other, all with the times of one."""
    events = np.tile(sent_of_page(area), len(pages))
    offsets = np.repeat(pages.astype(np.uint64) * np.uint64(page_size()), PER_PAGE)
    # Those with an address; a FAULT's end is its mapping's.
    events["start"] += np.where(events["start"] != 0, offsets, np.uint64(0))
    of_page = (events["end"] != 0) & (events["type"] != Type.FAULT)
    events["end"] += np.where(of_page, offsets, np.uint64(0))
    return events


def _written(pages: Array, random: np.random.Generator, threads: int) -> Array:
    """The events of these page numbers, each `PAGE_NS` / `threads` later, by so many threads and monitors in turn."""
    events = at_pages(pages)
    place = np.arange(len(pages), dtype=np.uint64)
    events["time"] += np.repeat(place * np.uint64(PAGE_NS // threads), PER_PAGE)
    # No two calls take equally long: else a file would have nothing to say of that.
    late, fault, ended = (random.integers(0, STEP_NS // 2, len(pages)).astype(np.uint64) for _ in range(3))
    events["time"][3::PER_PAGE] += late
    events["value"][3::PER_PAGE] += late.astype(np.int64)
    events["aux"][3::PER_PAGE] += late << np.uint64(Act.SINCE_SHIFT)
    events["time"][::PER_PAGE] += fault
    # When the fault before it returned.
    events["aux"][::PER_PAGE] |= (ended + np.uint64(STEP_NS)) << np.uint64(SINCE_RETURN_SHIFT)
    if threads == 1:
        return events
    # Threads and monitors are numbered from where the first one is.
    of_page = place % np.uint64(threads)
    events["tid"] += np.repeat(of_page, PER_PAGE).astype(np.uint32)
    events["value"][1::PER_PAGE] += of_page.astype(np.int64)
    events["aux"][3::PER_PAGE] += of_page << np.uint64(Act.TID_SHIFT)
    return events[np.argsort(events["time"], kind="stable")]


def served(faults: int, threads: int = 1) -> Iterator[Array]:
    """The events of so many, of so many threads at once, and those of arming between them, in order of time."""
    random = np.random.default_rng(0)
    order = np.empty(0, dtype=np.int64)
    ahead = _prelude()
    time, left = STEP_NS, faults
    while left:
        if not len(order):
            order = random.permutation(RANGE_PAGES)
            ahead = np.concatenate([ahead, _armed()])
        now = min(BATCH_PAGES, left, len(order))
        ahead["time"] = time + np.arange(len(ahead), dtype=np.uint64) * np.uint64(STEP_NS)
        time += len(ahead) * STEP_NS
        written = _written(order[:now], random, threads)
        written["time"] += np.uint64(time)
        yield np.concatenate([ahead, written])
        time, left, order, ahead = time + now * PAGE_NS, left - now, order[now:], ahead[:0]
