"""Histories of ranges that have a story of their own: each was wrong once, or nearly."""

from __future__ import annotations

import pytest
from unit.events import CTX, THREAD, Events, fed, told

from uffdtrace.model.events import Feature, Ioctl, Kind, Memory, Mode, Type


def started(pages: int = 8, modes: int = Mode.WP, features: int = 0) -> Events:
    events = Events(features=features)
    events.userfaultfd()
    events.register(0, pages, int(modes))
    return events


def test_written_while_it_is_armed_is_undecided_even_if_another_call_is_open() -> None:
    events = started()
    events.protect(0, 4, tid=101)
    events.call(Ioctl.WAKE, 0, 1, tid=102)
    events.fresh(1)
    events.protect_return(3, tid=101)
    events.returned(Ioctl.WAKE, 0, 1, tid=102)
    (row,) = told(events)
    assert (row["undecided"], row["observed"], row["fresh_page"], row["holes"]) == (1, 0, 0, 1)


def test_a_huge_page_that_begins_before_what_is_armed_is_undecided_too() -> None:
    events = started(1024)
    events.protect(256, 512, tid=101)
    events.huge(0, fault=300)
    events.protect_return(0, tid=101)
    (row,) = told(events)
    assert (row["observed"], row["blind"]) == (0, 0)


def test_a_page_armed_again_after_its_part_was_registered_again_is_one_page() -> None:
    events = started(10)
    events.arm(0, 10)
    events.unregister(5, 5)
    events.register(5, 5)
    events.arm(0, 10)
    (row,) = told(events)
    assert (row["start"], row["end"], row["armed_pages"]) == (0, 10, 10)


def test_a_page_notified_again_after_its_part_was_registered_again_is_one_page() -> None:
    events = started(10)
    events.served(7)
    events.unregister(5, 5)
    events.register(5, 5)
    events.served(7)
    (row,) = told(events)
    assert (row["messages"], row["notified_pages"]) == ([0, 2, 0], 1)


def test_modes_changed_there_and_back_count_a_page_once() -> None:
    events = started(10)
    events.arm(0, 10)
    events.register(3, 2, Mode.WP | Mode.MISSING)
    events.register(3, 2, Mode.WP)
    first, second = told(events)
    assert (first["armed_pages"], second["armed_pages"]) == (10, 2)


def test_a_zero_page_of_the_range_before_does_not_come_off_the_next() -> None:
    events = started(4)
    events.arm(0, 4, 0)
    events.zero(1)
    events.register(0, 4, Mode.WP | Mode.MISSING)
    events.fresh(1)
    rows = told(events)
    assert all(row["zero_page"] >= 0 for row in rows)
    assert sum(row["observed"] for row in rows) == 1


def test_a_loss_of_the_range_before_does_not_come_off_the_next() -> None:
    events = started(4)
    events.arm(0, 4, 0)
    events.fresh(1)
    events.register(0, 4, Mode.WP | Mode.MISSING)
    events.fault(1)
    events.wake(1)
    rows = told(events)
    assert all(row["observed"] >= 0 for row in rows)


def test_mode_replaced() -> None:
    events = started(4)
    events.arm(0, 4)
    events.register(0, 4, Mode.MISSING)
    events.unprotected_write(2)
    first, second = told(events)
    assert (first["observed"], second["observed"], second["causes"]) == (0, 1, {"mode-replaced": 1})


@pytest.mark.parametrize("order", [9, 18], ids=["2 MiB", "1 GiB"])
def test_a_message_on_hugetlb_memory_names_the_whole_page(order: int) -> None:
    pages = 1 << order
    events = Events()
    events.memory, events.order = Memory.HUGETLB, order
    events.userfaultfd()
    events.register(0, 2 * pages)
    events.arm(0, 2 * pages)
    events.served(5)
    (row,) = told(events)
    assert row["notified_pages"] == pages


@pytest.mark.parametrize("order", [9, 18], ids=["2 MiB", "1 GiB"])
def test_nothing_is_lost_under_wp_async(order: int) -> None:
    pages = 1 << order
    events = Events(features=int(Feature.WP_ASYNC))
    events.memory, events.order = Memory.HUGETLB, order
    events.userfaultfd()
    events.register(0, pages)
    events.arm(0, pages)
    events.file(0, pages)
    (row,) = told(events)
    assert (row["observed"], row["file_page"]) == (0, 0)


def test_the_first_fault_tells_of_a_range_registered_before_the_trace() -> None:
    events = Events()
    events.userfaultfd()
    events.fault(0, Kind.MISSING, THREAD, area=(0, 8))
    events.fault(1, Kind.WP, THREAD + 1, area=(0, 8))
    rows = told(events)
    assert [(row["start"], row["end"], row["faults"]) for row in rows] == [(0, 8, [1, 1, 0])]


def test_what_came_before_that_first_fault_is_of_no_range() -> None:
    events = Events()
    events.userfaultfd()
    events.arm(0, 8)
    events.fault(1, Kind.WP, area=(0, 8))
    told(events)


def test_an_unknown_kind_of_message_belongs_to_no_other_range() -> None:
    events = started(4)
    events.using(CTX + 4096).userfaultfd()
    events.register(100, 4)
    events.using(CTX)
    events.add(Type.MESSAGE, start=0x7F0000000000, kind=4)
    _first, second = told(events)
    assert second["messages"] == [0, 0, 0]


def test_a_call_that_never_returns_has_no_effect() -> None:
    events = started(4)
    events.arm(0, 4)
    events.call(Ioctl.COPY, 0, 4)
    events.fresh(1)
    (row,) = told(events)
    assert (row["blind"], row["observed"]) == (0, 1)


def test_a_call_whose_return_was_dropped_does_not_hold_the_rest_back() -> None:
    events = started(4)
    events.call(Ioctl.WAKE, 0, 1)
    events.arm(0, 4, 3)
    events.fresh(1)
    (row,) = told(events)
    assert (row["observed"], row["holes"]) == (1, 1)
    assert fed(events.array()).lost_returns == 1


def test_holes_are_unknown_once_a_return_was_dropped() -> None:
    events = started(4)
    events.protect(0, 4)
    events.protect(0, 4)
    events.protect_return(4)
    (row,) = told(events)
    assert (row["holes"], row["armed_pages"]) == (None, 4)


@pytest.mark.parametrize("features", [Feature.WP_UNPOPULATED, Feature.WP_ASYNC])
def test_no_holes_where_the_kernel_marks_empty_pages(features: Feature) -> None:
    events = started(4, features=int(features))
    events.arm(0, 4, 0)
    (row,) = told(events)
    assert row["holes"] == 0


def test_a_copy_that_failed_half_way_did_its_half() -> None:
    events = started(8)
    events.arm(0, 8)
    events.copy(0, 8, done=3, ret=-17)
    (row,) = told(events)
    assert (row["blind"], row["causes"]) == (3, {"copy-without-wp": 3})


def test_a_move_takes_both_ends() -> None:
    events = started(16)
    events.arm(0, 16)
    events.move(0, 8, 2)
    events.fresh(8)
    (row,) = told(events)
    assert (row["blind"], row["observed"], row["causes"]) == (2, 1, {"move": 3})


def test_a_huge_page_over_a_hole() -> None:
    events = started(1024)
    events.arm(0, 1024, 0)
    events.huge(512, fault=700)
    (row,) = told(events)
    assert (row["observed"], row["blind"], row["huge_page"]) == (1, 511, 512)
    assert row["causes"] == {"huge-page": 512}


def test_a_huge_page_at_the_edge_counts_only_what_is_registered() -> None:
    events = started(256)
    events.arm(0, 256, 0)
    events.huge(0, fault=3)
    (row,) = told(events)
    assert (row["observed"], row["blind"], row["huge_page"]) == (1, 255, 256)


def test_a_huge_zero_page_that_did_not_come_about() -> None:
    events = started(512)
    events.arm(0, 512, 0)
    events.huge_zero(0)
    events.huge_fallback(0, fault=7)
    (row,) = told(events)
    # The page that faulted gets a small zero page instead.
    assert row["zero_page"] == 1


def test_a_huge_zero_page_written() -> None:
    events = started(512)
    events.arm(0, 512, 0)
    events.huge_zero(0)
    events.huge_zero_write(0, fault=9)
    (row,) = told(events)
    assert (row["observed"], row["blind"], row["zero_page"]) == (1, 511, 512)


@pytest.mark.parametrize("end", ["exit", "release"])
def test_what_the_next_owner_of_an_address_does_is_its_own(end: str) -> None:
    events = started(4)
    events.arm(0, 4)
    events.exit() if end == "exit" else events.release_descriptor()
    events.fresh(0)
    events.message(0)
    events.userfaultfd()
    events.register(0, 4)
    events.arm(0, 4)
    events.fresh(1)
    first, second = told(events)
    assert (first["observed"], second["observed"], first["messages"]) == (0, 1, [0, 0, 0])


def test_kernels_merge_what_is_adjacent() -> None:
    events = started(4)
    events.register(8, 4)
    events.arm(0, 4)
    events.arm(8, 4)
    events.served(9)
    events.register(4, 4)
    (row,) = told(events)
    assert (row["start"], row["end"], row["armed_pages"], row["messages"]) == (0, 12, 8, [0, 1, 0])


def test_what_was_armed_before_the_trace() -> None:
    events = Events()
    events.userfaultfd()
    events.range_found(0, 8)
    events.pages_found(2, 4)
    events.unprotected_write(3)
    events.unprotected_write(7)
    (row,) = told(events)
    assert (row["armed_pages"], row["observed"]) == (4, 1)


@pytest.mark.parametrize("how", ["registered again", "moved"])
def test_what_may_have_been_armed_before_the_trace_still_may(how: str) -> None:
    events = Events(features=int(Feature.EVENT_REMAP))
    events.userfaultfd()
    events.range_found(0, 4)
    if how == "moved":
        events.remap(0, 4, 100)
    else:
        events.register(0, 4, Mode.WP | Mode.MISSING)
    told(events)
    assert [row.before for row in fed(events.array()).rows()] == [True, True]


def test_who_slept_before_the_trace() -> None:
    events = Events()
    events.userfaultfd()
    events.add(Type.WAITERS_FOUND, aux=1, value=2)
    for tid in (THREAD + 2, THREAD + 1):
        events.add(Type.SLEEPER_FOUND, tid=tid, tgid=THREAD)
    events.add(Type.SLEEPER_FOUND, tid=THREAD + 3, tgid=THREAD + 3)
    (home,) = fed(events.array()).userfaultfds
    assert (home.before, home.slept) == ((1, 2), [THREAD + 2, THREAD + 1])
