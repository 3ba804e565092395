"""PAGEMAP_SCAN with PM_SCAN_WP_MATCHING, which arms under WP_ASYNC."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from unit.events import Events, fed, page

from uffdtrace.model.account.facts import Fact
from uffdtrace.model.account.pages import Cause
from uffdtrace.model.account.ranges import Range
from uffdtrace.model.records.events import Feature, Mode, Type

# Whatever the machine was that the events are of.
pytestmark = pytest.mark.usefixtures("any_page_size")

ASYNC = int(Feature.WP_ASYNC)


def started(features: int = ASYNC) -> Events:
    events = Events(features=features)
    events.userfaultfd()
    events.register(0, 8, int(Mode.WP))
    return events


def scan(events: Events, first: int, end: int, walked: int | None = None, ret: int = 0, whole: int = 1) -> None:
    """Of pages first..end; it came to `walked`."""
    events.add(Type.PAGE_SCAN, ctx=events.mm, start=page(first), end=page(end))
    walk_end = page(end if walked is None else walked)
    events.add(Type.PAGE_SCAN_RETURN, ctx=events.mm, start=page(first), end=walk_end, ret=ret, kind=whole)


def row_of(events: Events) -> Range:
    (row,) = fed(events.array()).rows()
    return row


@pytest.mark.parametrize(
    ("how", "armed", "scanned"),
    [
        ({}, 4, (1, 1)),
        ({"walked": 3}, 1, (1, 1)),
        # Nothing is known of what it did.
        ({"whole": 0}, 0, (1, 0)),
        ({"ret": -errno.EPERM}, 0, (1, 0)),
    ],
)
def test_a_scan_arms_what_it_went_through(how: dict[str, Any], armed: int, scanned: tuple[int, int]) -> None:
    events = started()
    scan(events, 2, 6, **how)
    row = row_of(events)
    assert row.count("armed_pages") == armed
    assert (row.fact(Fact.SCANNED), row.fact(Fact.SCANNED_WHOLE)) == scanned


def test_it_passes_over_what_has_no_wp_async() -> None:
    events = started(features=0)
    scan(events, 0, 8)
    row = row_of(events)
    assert (row.count("armed_pages"), row.fact(Fact.SCANNED)) == (0, 0)


def test_what_was_dropped_is_armed_by_the_next_scan() -> None:
    events = started()
    scan(events, 0, 8)
    events.discard(0, 4)
    assert row_of(events).exposed[Cause.DISCARDED] == 4
    scan(events, 0, 2)
    assert row_of(events).exposed[Cause.DISCARDED] == 2


def test_a_scan_of_other_memory() -> None:
    events = started()
    events.add(Type.PAGE_SCAN, ctx=events.mm + 8, start=page(0), end=page(8))
    # As a broken trace may have it.
    events.add(Type.PAGE_SCAN, ctx=events.mm, start=page(8), end=page(0))
    assert row_of(events).fact(Fact.SCANNED) == 0
