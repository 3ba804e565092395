"""Pages that were there when MISSING alone was registered over them."""

from __future__ import annotations

import pytest
from unit.events import BASE, MM, MONITOR, Events, fed, page, page_size

from uffdtrace.model.account.populated import Populated
from uffdtrace.model.diagnosis.case import Case
from uffdtrace.model.diagnosis.rules import findings
from uffdtrace.model.records.events import Memory, Mode, Type

# Whatever the machine was that the events are of.
pytestmark = pytest.mark.usefixtures("any_page_size")

PAGES = 64


class Registering(Events):
    def late(self, pages: int, at: int = 0, size: int = PAGES, more: bool = False, ret: int = 0) -> None:
        """REGISTER for MISSING alone, over so many populated pages."""
        own = {"value": pages, "kind": int(more), "tid": MONITOR, "tgid": MONITOR}
        self.add(Type.PRESENT, **self._span(at, size), **own)
        self.register(at, size, Mode.MISSING, ret=ret)


@pytest.fixture
def events() -> Registering:
    made = Registering()
    made.userfaultfd()
    return made


def told(events: Events) -> dict[str, int]:
    model = fed(events.array())
    cases = [Case(row, model.uffd_of(row)) for row in model.rows()]
    late = {"registered-late", "already-populated"}
    return {str(one["id"]): int(str(one["pages"])) for case in cases for one in findings(case) if one["id"] in late}


def test_a_reset_that_left_a_window(events: Registering) -> None:
    events.late(0)
    events.unregister(0, PAGES)
    events.late(16)
    assert told(events) == {"registered-late": 16}


def test_populated_when_first_registered(events: Registering) -> None:
    events.late(16)
    assert told(events) == {"already-populated": 16}


def test_registered_again_while_it_stands_may_count_what_was_told(events: Registering) -> None:
    events.late(0)
    events.late(16)
    events.late(16, size=2 * PAGES)
    assert told(events) == {}


def test_a_register_that_failed_registers_nothing(events: Registering) -> None:
    events.late(16, ret=-16)
    # As a thread's next call may be, where its own record was dropped.
    events.register(0, PAGES, Mode.MISSING | Mode.WP)
    assert told(events) in ({}, {"already-populated": 16})
    events = Registering()
    events.userfaultfd()
    events.late(16, ret=-16)
    events.register(0, PAGES // 2, Mode.MISSING)
    assert told(events) == {}


def test_what_is_dropped_afterwards_sends_its_message(events: Registering) -> None:
    events.late(16)
    events.add(Type.DISCARD, **events._span(0, PAGES), flags=int(Memory.ANON), tid=7)
    assert told(events) == {}


def test_dropped_in_part_it_is_a_lower_bound(events: Registering) -> None:
    events.late(16)
    for _ in range(2):
        events.add(Type.DISCARD, **events._span(0, 10), flags=int(Memory.ANON), tid=7)
    assert told(events) == {"already-populated": 6}


def test_what_others_dropped_at_the_same_addresses_is_not_of_it(events: Registering) -> None:
    """The kernel used the userfaultfd's address before, and uses it again."""
    drop = {**events._span(0, PAGES), "flags": int(Memory.ANON), "tid": 7}
    events.register(0, PAGES, Mode.WP)
    events.add(Type.DISCARD, **drop)
    events.release_descriptor()
    events.userfaultfd()
    events.late(16)
    events.release_descriptor()
    events.userfaultfd()
    events.register(0, PAGES, Mode.WP)
    events.add(Type.DISCARD, **drop)
    assert told(events) == {"already-populated": 16}


def test_what_was_registered_otherwise_is_no_news(events: Registering) -> None:
    events.register(0, PAGES, Mode.WP)
    events.late(16)
    assert told(events) == {}


def test_more_may_be_there(events: Registering) -> None:
    events.late(16, more=True)
    model = fed(events.array())
    (row,) = model.rows()
    (one,) = [one for one in findings(Case(row, model.uffd_of(row))) if one["id"] == "already-populated"]
    assert "and there may be more" in str(one["message"])


def test_a_trace_may_claim_anything(events: Registering) -> None:
    events.late(1 << 60)
    events.late(-5, at=2 * PAGES)
    assert told(events) == {"already-populated": PAGES}


def test_where_missing_was_registered_is_kept_as_few_intervals() -> None:
    populated = Populated(page_size())
    for at in (8, 0, 4, 2, 6, 1):
        populated.remember(MM, page(at), page(at + 1))
    assert populated._registered[MM] == [(page(0), page(3)), (page(4), page(5)), (page(6), page(7)), (page(8), page(9))]
    populated.remember(MM, page(0), page(8))
    assert populated._registered[MM] == [(BASE, page(9))]
    assert populated._was_registered(MM, page(8), page(20)) and not populated._was_registered(MM, page(9), page(20))
    populated.gone(MM)
    assert not populated._was_registered(MM, 0, page(20))


def test_what_memory_an_area_is_is_told_at_register_and_at_fork() -> None:
    for what in (Type.AREA_REGISTERED, Type.FORK):
        events = Registering()
        events.userfaultfd()
        events.register(0, PAGES)
        events.add(what, **events._span(0, PAGES), flags=int(Memory.FILE))
        (row,) = fed(events.array()).rows()
        assert row.memory == Memory.FILE
