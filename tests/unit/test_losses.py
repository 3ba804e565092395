"""Lost pages as runs: what is merged, what is taken back, whose page it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.events import THREAD, Events, fed, lost_runs, page_at

from uffdtrace.model.account.losses import _RECORD, CANCEL, CODES, Losses, cause_of, how_of, merged
from uffdtrace.model.account.pages import COUNTS, Cause
from uffdtrace.model.account.states import CHANGES
from uffdtrace.model.records.events import Array, Feature, Mode

# Whatever the machine was that the events are of.
pytestmark = pytest.mark.usefixtures("any_page_size")

Record = tuple[int, int, int, int, int]
_OBSERVED = COUNTS.index("observed")


def records(*found: Record) -> Array:
    return np.array(list(found), dtype=_RECORD)


def runs(found: Array) -> list[Record]:
    return [tuple(int(part) for part in run) for run in found.tolist()]


def test_codes_name_the_loss() -> None:
    names = set()
    for change, code in zip(CHANGES, CODES.tolist()):
        lost = {name: int(change[COUNTS.index(name)]) for name in ("observed", "blind")}
        assert bool(code) == any(lost.values())
        if code:
            plain = code & ~CANCEL
            assert lost[how_of(plain)] == (-1 if code & CANCEL else 1)
            assert change[len(COUNTS) + cause_of(plain)] == lost[how_of(plain)]
            names.add((how_of(plain), cause_of(plain)))
    assert {cause for _, cause in names} == set(Cause) - {Cause.NONE}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([], []),
        ([(5, 1, 10, 1, 3)], [(5, 1, 10, 1, 3)]),
        # They touch, whatever their order.
        ([(6, 1, 9, 2, 3), (5, 1, 10, 1, 3)], [(5, 2, 9, 2, 3)]),
        ([(5, 1, 10, 1, 3), (7, 1, 9, 2, 3)], [(5, 1, 10, 1, 3), (7, 1, 9, 2, 3)]),
        # One within another.
        ([(5, 9, 10, 1, 3), (7, 1, 9, 2, 3), (14, 1, 8, 3, 3)], [(5, 10, 8, 3, 3)]),
        # Of another code.
        ([(5, 1, 10, 1, 3), (6, 1, 9, 2, 4)], [(5, 1, 10, 1, 3), (6, 1, 9, 2, 4)]),
        ([(9, 1, 10, 1, 4), (5, 1, 9, 2, 3)], [(5, 1, 9, 2, 3), (9, 1, 10, 1, 4)]),
        # The same page in two armings: the first tells.
        ([(5, 1, 10, 1, 3), (5, 1, 20, 2, 3)], [(5, 1, 10, 1, 3)]),
        # A long one stays the furthest.
        ([(0, 100, 5, 1, 3), (1, 1, 6, 1, 3), (50, 51, 7, 1, 3), (101, 1, 8, 1, 3)], [(0, 102, 5, 1, 3)]),
    ],
)
def test_merged(found: list[Record], expected: list[Record]) -> None:
    assert runs(merged(records(*found))) == expected


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(1, 6), st.integers(1, 50), st.integers(1, 3), st.integers(1, 3)),
        max_size=20,
    )
)
def test_merged_page_by_page(found: list[Record]) -> None:
    pages: dict[tuple[int, int], tuple[int, int]] = {}
    for place, count, time, tid, code in found:
        for one in range(place, place + count):
            pages[code, one] = min(pages.get((code, one), (99, 99)), (time, tid))
    expected: list[list[Any]] = []
    for (code, one), first in sorted(pages.items()):
        if expected and expected[-1][4] == code and expected[-1][0] + expected[-1][1] == one:
            expected[-1][1] += 1
            expected[-1][2:4] = min(tuple(expected[-1][2:4]), first)
        else:
            expected.append([one, 1, *first, code])
    # Two at the same moment: either thread was first.
    said = runs(merged(records(*found)))
    assert [(run[:3], run[4]) for run in said] == [(tuple(run[:3]), run[4]) for run in expected]


def effect_of(how: str, cause: Cause, back: bool = False) -> int:
    code = 1 + 2 * cause + (how == "blind") | (CANCEL if back else 0)
    return CODES.tolist().index(code)


HOLE, BACK = effect_of("observed", Cause.UNPOPULATED), effect_of("observed", Cause.UNPOPULATED, back=True)
COPY = effect_of("blind", Cause.COPY_WITHOUT_WP)


def noted(*found: tuple[list[int], int, int, int]) -> list[Record]:
    losses = Losses()
    for places, effect, time, tid in found:
        losses.add(np.array(places, dtype=np.int64), np.full(len(places), effect, np.uint8), time, tid)
    return [run[:4] for run in runs(losses.runs())]


def test_nothing_was_lost() -> None:
    assert len(Losses().runs()) == 0
    assert noted(([1, 2, 3], 0, 5, 6), ([], HOLE, 5, 6)) == []


def test_what_was_taken_back() -> None:
    assert noted(([1], HOLE, 5, 6), ([1], BACK, 7, 0)) == []
    # From the middle, from both ends.
    assert noted((list(range(10)), HOLE, 5, 6), ([4], BACK, 7, 0)) == [(0, 4, 5, 6), (5, 5, 5, 6)]
    assert noted((list(range(10)), HOLE, 5, 6), ([0, 9], BACK, 7, 0)) == [(1, 8, 5, 6)]
    # Another's loss is not its.
    assert noted(([1], HOLE, 5, 6), ([1], COPY, 6, 6), ([1], BACK, 7, 0)) == [(1, 1, 6, 6)]


def test_only_the_last_arming_is_taken_back() -> None:
    assert noted(([1], HOLE, 5, 6), ([1], HOLE, 8, 9), ([1], BACK, 10, 0)) == [(1, 1, 5, 6)]
    assert noted(([1], HOLE, 5, 6), ([1], BACK, 6, 0), ([1], HOLE, 8, 9)) == [(1, 1, 8, 9)]
    assert noted(([1], HOLE, 5, 6), ([1], BACK, 6, 0), ([1], HOLE, 8, 9), ([1], BACK, 10, 0)) == []


def test_the_first_of_what_is_left_tells_the_time() -> None:
    assert noted(([1], HOLE, 5, 6), ([2], HOLE, 8, 9), ([1], BACK, 10, 0)) == [(2, 1, 8, 9)]


def test_a_loss_that_nobody_observed_gets_another_cause_too() -> None:
    losses = Losses()
    for how, place, time in (("observed", 5, 10), ("blind", 6, 20), ("observed", 9, 30)):
        losses.add(np.array([place]), np.array([effect_of(how, Cause.UNPOPULATED)]), time, 1)
    losses.rename([(5, 2)], Cause.UNPOPULATED, Cause.UNEXPLAINED, 1)
    told = [(place, how_of(code), cause_of(code)) for place, _, _, _, code in runs(losses.runs())]
    assert sorted(told) == [
        (5, "observed", Cause.UNPOPULATED),
        (6, "blind", Cause.UNEXPLAINED),
        (9, "observed", Cause.UNPOPULATED),
    ]


def test_neighbours_of_different_events_stay_apart_until_asked() -> None:
    losses = Losses()
    effects = np.array([HOLE, HOLE, HOLE, COPY], np.uint8)
    losses.add(np.array([3, 4, 5, 6]), effects, np.array([9, 7, 7, 7]), np.array([1, 2, 2, 2], np.uint32))
    assert [run[:4] for run in runs(losses.runs())] == [(3, 3, 7, 2), (6, 1, 7, 2)]


# ---- as the report tells it ----------------------------------------------------------------


def lost(events: Events) -> list[list[tuple[int, int, str, str, int, int]]]:
    """Per range (first page, pages, how, cause, time in ns, thread), the same for every way to cut."""
    array = events.array()

    def told(cuts: list[int]) -> list[list[tuple[int, int, str, str, int, int]]]:
        model = fed(array, cuts)
        found = lost_runs(model)
        return [
            [
                (
                    page_at(int(run["start"], 16)),
                    run["pages"],
                    run["how"],
                    run["cause"],
                    round(run["first_s"] * 1e9),
                    run["tid"],
                )
                for run in found.get(row.number, [])
            ]
            for row in model.rows()
        ]

    whole = told([])
    assert told(list(range(len(array)))) == whole
    return whole


def started(pages: int = 8, modes: int = Mode.WP, features: int = 0) -> Events:
    events = Events(features=features)
    events.userfaultfd()
    events.register(0, pages, int(modes))
    events.arm(0, pages, 0)
    return events


def test_neighbours_are_one_run_with_the_first_thread() -> None:
    events = started()
    events.thread = 201
    events.fresh(2)
    events.thread = 202
    events.fresh(1)
    events.fresh(4)
    (found,) = lost(events)
    assert found == [(1, 2, "observed", "unpopulated", 8000, 201), (4, 1, "observed", "unpopulated", 10000, 202)]


def test_a_page_that_is_lost_in_two_armings_is_there_once() -> None:
    events = started()
    events.fresh(1)
    events.arm(0, 8, 0)
    events.fresh(1)
    assert lost(events) == [[(1, 1, "observed", "unpopulated", 8000, THREAD)]]


def test_a_page_that_is_lost_in_two_ways_is_there_twice() -> None:
    events = started()
    events.copy(1)
    events.arm(0, 8)
    events.unprotected_write(1)
    (found,) = lost(events)
    assert [run[2:4] for run in found] == [("blind", "copy-without-wp"), ("observed", "unexplained")]
    assert [run[5] for run in found] == [100, THREAD]


def test_a_run_does_not_go_on_into_another_range() -> None:
    events = started(4)
    events.register(100, 4)
    events.arm(100, 4, 0)
    events.thread = 201
    events.fresh(3)
    events.thread = 202
    events.fresh(100)
    first, second = lost(events)
    assert (first[0][0], first[0][5], second[0][0], second[0][5]) == (3, 201, 100, 202)
    assert first[0][4] < second[0][4]


def test_a_run_goes_on_over_the_border_of_two_registrations_of_one_range() -> None:
    events = started(4)
    events.register(4, 4)
    events.arm(4, 4, 0)
    events.fresh(4)
    events.fresh(3)
    assert [[run[:2] for run in found] for found in lost(events)] == [[(3, 2)]]


def test_what_was_lost_stays_lost_when_its_registration_ends() -> None:
    for end in ("unregister", "unmap", "exit", "close"):
        events = started()
        events.fresh(1)
        if end == "unregister":
            events.unregister(0, 4)
        elif end == "unmap":
            events.unmap(0, 8)
        elif end == "exit":
            events.exit()
        else:
            events.release_descriptor()
        assert lost(events) == [[(1, 1, "observed", "unpopulated", 8000, THREAD)]], end


def test_a_loss_belongs_to_the_addresses_where_it_was() -> None:
    events = started(4, features=int(Feature.EVENT_REMAP))
    events.fresh(1)
    events.remap(0, 4, 100)
    events.fresh(102)
    first, second = lost(events)
    assert [run[:2] for run in first] == [(1, 1)]
    assert [run[:2] for run in second] == [(102, 1)]


def test_a_huge_page_is_two_runs_and_a_page() -> None:
    events = started(512)
    events.huge(0, fault=7)
    (found,) = lost(events)
    assert [run[:3] for run in found] == [(0, 7, "blind"), (7, 1, "observed"), (8, 504, "blind")]
