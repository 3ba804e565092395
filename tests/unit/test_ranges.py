"""Ranges that come, go, and come back."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from unit.events import MONITOR, THREAD, Events, fed

from uffdtrace.model.account.ranges import Piece, Space
from uffdtrace.model.records.events import PAGE_SIZES, Kind, Memory, Mode


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


# ---- which pieces lie where --------------------------------------------------------------

SPANS = st.tuples(st.integers(0, 60), st.integers(1, 12)).map(lambda span: (span[0], span[0] + span[1]))


@given(
    changes=st.lists(st.tuples(st.booleans(), SPANS), max_size=12),
    wanted=SPANS,
    tabled=st.booleans(),
    page_size=st.sampled_from(PAGE_SIZES),
)
def test_a_space_against_a_list_of_its_pages(
    changes: list[tuple[bool, tuple[int, int]]], wanted: tuple[int, int], tabled: bool, page_size: int
) -> None:
    """Registering and taking out, page by page."""
    space, owners, place = Space(1, page_size), {}, 0
    for number, (adds, (start, end)) in enumerate(changes):
        if adds and not space.overlapping(start * page_size, end * page_size):
            space.add(Piece(start * page_size, end * page_size, place, number, page_size))
            owners.update({page: (place + page - start, number) for page in range(start, end)})
            place += end - start
        elif not adds:
            taken = space.cut(start * page_size, end * page_size)
            pages = {page: owners.pop(page) for page in range(start, end) if page in owners}
            assert expanded(taken) == pages
    assert expanded(space.pieces) == owners
    start, end = (bound * page_size for bound in wanted)
    whole = space.pieces
    assert whole == sorted(whole, key=lambda piece: piece.start)
    assert space.overlapping(start, end) == [one for one in whole if one.start < end and one.end > start]
    assert space.touching(start, end) == [one for one in whole if one.start <= end and one.end >= start]
    if tabled:
        space.locate(np.arange(1000, dtype=np.uint64))
    addresses = np.arange(*wanted, dtype=np.uint64) * np.uint64(page_size)
    found = list(zip(*(array.tolist() for array in space.locate(addresses))))
    assert found == [owners.get(page, (-1, -1)) for page in range(*wanted)]


def expanded(pieces: list[Piece]) -> dict[int, tuple[int, int]]:
    """Place in the pool and range of each page."""
    return {
        page: (piece.place + page - piece.start // piece.page_size, piece.range_number)
        for piece in pieces
        for page in range(piece.start // piece.page_size, piece.end // piece.page_size)
    }


def named_before_it_was_known() -> Events:
    """Two messages of threads that slept when the userfaultfd turned up, then a fault that tells their range."""
    events = Events(monitor=MONITOR)
    events.userfaultfd()
    for at in (3, 9, 30):
        events.message(at, Kind.MISSING, tid=THREAD + at)
    events.message(3, Kind.MISSING, tid=THREAD + 77)
    events.fault(5, Kind.MISSING, area=(0, 16), modes=Mode.MISSING | Mode.WP)
    events.message(5, Kind.MISSING)
    return events


def test_messages_read_before_their_range_was_known_are_its_messages() -> None:
    events = named_before_it_was_known().array()
    for cut in range(len(events)):
        model = fed(events, [cut])
        (row,) = model.rows()
        assert (row.messages, row.faults) == ([4, 0, 0], [1, 0, 0])
        assert row.count("notified_pages") == 3
        # The one at page 30.
        assert model.unattributed_messages == 1


def test_a_registration_that_was_seen_has_no_messages_from_before_it() -> None:
    events = named_before_it_was_known()
    events.message(31, Kind.MISSING, tid=THREAD + 31)
    events.register(28, 4, Mode.MISSING)
    events.fault(29, Kind.MISSING, area=(28, 32), modes=Mode.MISSING)
    model = fed(events.array())
    first, second = model.rows()
    assert (first.messages, second.messages) == ([4, 0, 0], [0, 0, 0])
    assert model.unattributed_messages == 2


def test_of_huge_pages_each_message_names_all() -> None:
    events = Events()
    events.memory, events.order = Memory.HUGETLB, 9
    events.userfaultfd()
    events.message(512, Kind.MISSING, tid=THREAD + 1)
    events.fault(0, Kind.MISSING, area=(0, 1024), modes=Mode.MISSING)
    (row,) = fed(events.array()).rows()
    assert (row.messages, row.count("notified_pages")) == ([1, 0, 0], 512)
