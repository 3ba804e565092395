"""Ranges that come, go, and come back."""

from __future__ import annotations

from unit.events import Events, fed

from uffdtrace.model.events import Kind


def test_a_page_that_was_a_range_of_its_own_counts_once() -> None:
    events = Events()
    events.userfaultfd()
    events.register(0, 8)
    events.arm(0, 8)
    events.served(3, Kind.WP)
    events.unregister(2, 4)
    events.unregister(0, 2)
    events.register(0, 2)
    events.register(2, 4)
    events.arm(0, 8)
    events.served(3, Kind.WP)
    (row,) = fed(events.array()).rows()
    assert (row.count("armed_pages"), row.count("notified_pages"), row.messages[Kind.WP]) == (8, 1, 2)
