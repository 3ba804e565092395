"""Ranges that come, go, and come back."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from unit.events import Events, fed

from uffdtrace.model.account.ranges import Piece, Space
from uffdtrace.model.records.events import PAGE_SIZE, Kind


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
)
def test_a_space_against_a_list_of_its_pages(
    changes: list[tuple[bool, tuple[int, int]]], wanted: tuple[int, int], tabled: bool
) -> None:
    """Registering and taking out, page by page."""
    space, owners, place = Space(1), {}, 0
    for number, (adds, (start, end)) in enumerate(changes):
        if adds and not space.overlapping(start * PAGE_SIZE, end * PAGE_SIZE):
            space.add(Piece(start * PAGE_SIZE, end * PAGE_SIZE, place, number))
            owners.update({page: (place + page - start, number) for page in range(start, end)})
            place += end - start
        elif not adds:
            taken = space.cut(start * PAGE_SIZE, end * PAGE_SIZE)
            pages = {page: owners.pop(page) for page in range(start, end) if page in owners}
            assert expanded(taken) == pages
    assert expanded(space.pieces) == owners
    start, end = (bound * PAGE_SIZE for bound in wanted)
    whole = space.pieces
    assert whole == sorted(whole, key=lambda piece: piece.start)
    assert space.overlapping(start, end) == [one for one in whole if one.start < end and one.end > start]
    assert space.touching(start, end) == [one for one in whole if one.start <= end and one.end >= start]
    if tabled:
        space.locate(np.arange(1000, dtype=np.uint64))
    addresses = np.arange(*wanted, dtype=np.uint64) * np.uint64(PAGE_SIZE)
    found = list(zip(*(array.tolist() for array in space.locate(addresses))))
    assert found == [owners.get(page, (-1, -1)) for page in range(*wanted)]


def expanded(pieces: list[Piece]) -> dict[int, tuple[int, int]]:
    """Place in the pool and range of each page."""
    return {
        page: (piece.place + page - piece.start // PAGE_SIZE, piece.range_number)
        for piece in pieces
        for page in range(piece.start // PAGE_SIZE, piece.end // PAGE_SIZE)
    }
