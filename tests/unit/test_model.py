"""Histories of ranges that have a story of their own: each was wrong once, or nearly."""

from __future__ import annotations

import pytest
from unit.events import CTX, THREAD, Events, fed, new_model, page_size, told

from uffdtrace.model.records.events import MREMAP_DONTUNMAP, Feature, Ioctl, Kind, Memory, Mode, Type

# Whatever the machine was that the events are of.
pytestmark = pytest.mark.usefixtures("any_page_size")


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


def test_a_poll_is_of_one_userfaultfd() -> None:
    events = started()
    events.using(CTX + 0x1000).userfaultfd()
    events.add(Type.POLL)
    assert [home.blocking_poll for home in fed(events.array()).userfaultfds] == [False, True]


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


@pytest.mark.parametrize("order", [9, 18])
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


@pytest.mark.parametrize("order", [9, 18])
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
    assert (row["blind"], row["observed"], row["causes"]) == (2, 1, {"moved": 3})


def test_a_huge_page_over_a_hole() -> None:
    events = started(1024)
    events.arm(0, 1024, 0)
    events.huge(512, fault=700)
    (row,) = told(events)
    assert (row["observed"], row["blind"], row["huge_page"]) == (1, 511, 512)
    assert row["causes"] == {"huge-page-over-hole": 512}


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


def test_all_of_what_one_table_maps_but_the_page_of_the_fault() -> None:
    """A huge page is 2, 32 or 512 MiB: as many pages as a table has entries of 8 bytes."""
    pages = page_size() // 8
    events = started(4 * pages)
    events.arm(0, 3 * pages, 0)
    events.huge(0, pages, fault=pages // 2)
    events.huge_zero(pages, pages)
    events.huge_zero_write(pages, pages, fault=pages + 3)
    events.huge_zero(2 * pages, pages)
    events.huge_fallback(2 * pages, pages, fault=2 * pages + 1)
    events.arm(3 * pages, pages)
    events.copy(3 * pages, pages)
    events.huge_write(3 * pages, pages, fault=4 * pages - 1)
    (row,) = told(events)
    assert (row["observed"], row["huge_page"], row["zero_page"]) == (2, pages, pages + 1)
    assert (row["blind"], row["causes"]["copy-without-wp"]) == (3 * pages - 2, pages)


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


# ---- mremap, register, fork: what the kernel leaves as it was -----------------------


def test_what_dontunmap_leaves_behind_stays_registered() -> None:
    """mremap(2), MREMAP_DONTUNMAP: faults at the old addresses go to the userfaultfd; seen on Linux 6.18."""
    events = started()
    events.arm(0, 8)
    events.remap_call(0, 8, 8, flags=MREMAP_DONTUNMAP)
    events.remap_return(100)
    events.fresh(0)
    events.arm(0, 8, 1)
    events.fresh(1)
    events.fresh(2)
    (row,) = told(events)
    assert (row["causes"], row["holes"]) == ({"discarded": 1, "unpopulated": 2}, 7)


def test_dontunmap_with_the_event_watches_both_places() -> None:
    events = started(features=Feature.EVENT_REMAP)
    events.arm(0, 8)
    events.remap_call(0, 8, 8, flags=MREMAP_DONTUNMAP)
    events.remap_return(100)
    events.served(101)
    events.fresh(1)
    left, moved = told(events)
    assert (left["observed"], left["notified_pages"]) == (1, 0)
    assert (moved["observed"], moved["notified_pages"], moved["armed_pages"]) == (0, 1, 8)


def test_dontunmap_to_where_something_was_moves_after_that_is_unmapped() -> None:
    events = started(features=Feature.EVENT_REMAP)
    events.arm(0, 8)
    events.remap_call(0, 8, 8, flags=MREMAP_DONTUNMAP | 3)
    events.unmap(64, 8, THREAD)
    events.remap_return(64)
    events.served(65)
    _, moved = told(events)
    assert (moved["armed_pages"], moved["notified_pages"], moved["stale"], moved["facts"]) == (8, 1, 0, {})


def test_a_mapping_that_is_moved_over_a_range_ends_it() -> None:
    events = started()
    events.arm(0, 8)
    events.remap_call(32, 8, 16, flags=3)
    events.unmap(0, 16, THREAD)
    events.unmap(32, 8, THREAD)
    events.remap_return(0)
    (row,) = told(events)
    assert (row["start"], row["end"], row["facts"]) == (0, 8, {"UNMAPPED": 8})


def test_a_move_area_by_area_is_one_move() -> None:
    """Since Linux 6.17: each area is unmapped as it has moved."""
    events = started(features=Feature.EVENT_REMAP)
    events.arm(0, 8)
    events.remap_call(0, 8, 8)
    events.unmap(0, 4)
    events.unmap(4, 4)
    events.remap_return(100)
    events.served(101)
    events.served(105)
    _, moved = told(events)
    assert (moved["armed_pages"], moved["notified_pages"], moved["stale"]) == (8, 2, 0)


@pytest.mark.parametrize("subset", [Mode.MISSING, Mode.WP])
def test_registering_modes_that_a_range_has_changes_nothing(subset: Mode) -> None:
    """userfaultfd_register() skips such an area; seen on Linux 6.18."""
    events = started(modes=Mode.WP | Mode.MISSING)
    events.arm(0, 8)
    events.register(0, 8, int(subset))
    events.served(1)
    (row,) = told(events)
    assert (row["modes"], row["armed_pages"], row["notified_pages"], row["exposed"]) == (3, 8, 1, {})


def test_kinds_of_memory_in_one_range_keep_their_pages() -> None:
    """A message names a huge page where its fault was in hugetlb, whatever else the range holds."""
    events = Events()
    events.userfaultfd()
    events.memory, events.order = Memory.HUGETLB, 9
    events.register(0, 1024)
    events.arm(0, 1024)
    events.memory, events.order = Memory.ANON, 0
    events.register(1024, 8)
    events.arm(1024, 8)
    for at in (1025, 1026):
        events.served(at)
    events.memory, events.order = Memory.HUGETLB, 9
    events.served(512)
    (row,) = told(events)
    assert row["notified_pages"] == 514


@pytest.mark.parametrize("armed", ["found", "copied", "carried"])
def test_protected_pages_in_swap_are_no_holes(armed: str) -> None:
    """change_protection() does not count them; whatever armed them first."""
    events = started()
    if armed == "found":
        events.pages_found(0, 8)
    elif armed == "copied":
        events.copy(0, 8, wp=True)
    else:
        events.arm(0, 8)
        events.register(0, 8, int(Mode.WP | Mode.MISSING))
    events.protect(0, 8, in_swap=True)
    events.protect_return(5)
    assert told(events)[-1]["holes"] is None


def test_munmap_of_what_nobody_watches_is_passed_over() -> None:
    events = started()
    events.arm(0, 8)
    for at in range(8):
        events.unmap(100 + at, 1)
        events.served(at)
    events.unmap(7, 1)
    events.fresh(7)
    (row,) = told(events)
    assert (row["notified_pages"], row["observed"], row["facts"]["UNMAPPED"]) == (8, 0, 1)


def test_a_trace_without_served_faults_keeps_nothing_for_its_batches() -> None:
    model = new_model()
    events = Events()
    events.userfaultfd()
    events.register(0, 8)
    for _ in range(50):
        events.arm(0, 8)
    for event in events.array():
        model.feed(event[None])
    assert model._undivided == []
