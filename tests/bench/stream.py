"""What a kernel would send of a tracker that is served well: every page armed, written, told, released, woken.

Writes to a range of `RANGE_PAGES` come in random order; when each page was written,
all are armed again.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from unit.events import STEP_NS, THREAD, Events

from uffdtrace.model.events import PAGE_SIZE, Array, Ioctl, Kind, Type

RANGE_PAGES = 1 << 18
# As many pages as come between two looks at the ring.
BATCH_PAGES = 1 << 13
PER_PAGE = 7


def _prelude() -> Array:
    events = Events()
    events.userfaultfd()
    events.register(0, RANGE_PAGES)
    return events.array()


def _armed() -> Array:
    events = Events()
    events.arm(0, RANGE_PAGES)
    return events.array()


def _page() -> Array:
    """The events of page 0."""
    events = Events()
    events.fault(0, Kind.WP, area=(0, RANGE_PAGES))
    events.message(0, Kind.WP)
    events.call(Ioctl.WRITEPROTECT, 0, 1)
    events.protect(0, 1, on=False)
    events.wake(0, by=events.monitor)
    events.returned(Ioctl.WRITEPROTECT, 0, 1)
    events.fault_return(THREAD)
    assert len(events) == PER_PAGE
    return events.array()


def _written(pages: Array) -> Array:
    """The events of these page numbers, one page after the other."""
    one = _page()
    events = np.tile(one, len(pages))
    offsets = np.repeat(pages.astype(np.uint64) * np.uint64(PAGE_SIZE), PER_PAGE)
    # Those with an address; a FAULT's end is its mapping's.
    events["start"] += np.where(events["start"] != 0, offsets, np.uint64(0))
    of_page = (events["end"] != 0) & (events["type"] != Type.FAULT)
    events["end"] += np.where(of_page, offsets, np.uint64(0))
    return events


def batches(count: int) -> Iterator[Array]:
    """`count` events of written pages and those of arming between them, in order of time."""
    random = np.random.default_rng(0)
    order = np.empty(0, dtype=np.int64)
    ahead = _prelude()
    time, left = STEP_NS, count // PER_PAGE
    while left:
        if not len(order):
            order = random.permutation(RANGE_PAGES)
            ahead = np.concatenate([ahead, _armed()])
        now = min(BATCH_PAGES, left, len(order))
        events = np.concatenate([ahead, _written(order[:now])])
        events["time"] = time + np.arange(len(events), dtype=np.uint64) * STEP_NS
        yield events
        time, left, order, ahead = time + len(events) * STEP_NS, left - now, order[now:], ahead[:0]
