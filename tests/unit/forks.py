"""Followed forks as a kernel would tell of them, and what is said of parent and child."""

from __future__ import annotations

from typing import Any

from unit.events import CTX, MM, THREAD, Events, fed, told

from uffdtrace.model.account.ranges import Range
from uffdtrace.model.records.events import Feature

FORK = int(Feature.EVENT_FORK)
CHILD_CTX, CHILD_MM, CHILD = CTX + 0x100, MM + 0x100, 900
OTHER_CTX = CTX + 0x200
GRANDCHILD_CTX, GRANDCHILD_MM, GRANDCHILD = CTX + 0x300, MM + 0x300, 990
FORKER = THREAD + 1


def started(pages: int = 8, features: int = 0) -> Events:
    events = Events(features=FORK | features)
    events.userfaultfd()
    events.register(0, pages)
    return events


def follow(events: Events, *areas: tuple[int, int], tid: int = THREAD) -> Events:
    """A followed fork of these areas; the stream goes on with the child."""
    for at, pages in areas:
        events.fork(at, pages, watched=True, tid=tid)
    events.forked(CHILD_CTX, CHILD_MM, tid)
    events.process(CHILD, CHILD_MM)
    return events.using(CHILD_CTX, mm=CHILD_MM, owner=CHILD)


def back(events: Events) -> Events:
    return events.using(CTX, mm=MM, owner=THREAD)


def of(rows: list[dict[str, Any]], ctx: int) -> list[dict[str, Any]]:
    return [row for row in rows if row["userfaultfd"] == ctx]


def child(events: Events) -> dict[str, Any]:
    """The child's only range."""
    (row,) = of(told(events), CHILD_CTX)
    return row


def both(events: Events) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parent's only range, and the child's."""
    rows = told(events)
    ((parent,), (copy,)) = of(rows, CTX), of(rows, CHILD_CTX)
    return parent, copy


def child_row(events: Events) -> Range:
    model = fed(events.array())
    (row,) = (row for row in model.rows() if model.uffd_of(row).ctx == CHILD_CTX)
    return row


def lost(row: dict[str, Any]) -> tuple[int, int, dict[str, int]]:
    return row["observed"], row["blind"], row["causes"]
