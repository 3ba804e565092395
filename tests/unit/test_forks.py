"""Forked children that are watched too: who they are, and what they have of their parents."""

from __future__ import annotations

import pytest
from unit.events import MM, THREAD, Events, fed, page, told
from unit.forks import (
    CHILD,
    CHILD_CTX,
    CHILD_MM,
    FORK,
    GRANDCHILD_CTX,
    OTHER_CTX,
    back,
    both,
    child,
    child_row,
    follow,
    lost,
    of,
    started,
)

from uffdtrace.model.records.events import Feature, Memory, Mode, UffdEvent

# Whatever the machine was that the events are of.
pytestmark = pytest.mark.usefixtures("any_page_size")

# ---- who the child is ------------------------------------------------------------


def test_the_child_is_a_process_of_its_own() -> None:
    model = fed(follow(started(), (0, 8)).array())
    parent, copy = model.userfaultfds
    assert (copy.ctx, copy.mm, copy.features, copy.owner, copy.parent) == (CHILD_CTX, CHILD_MM, FORK, CHILD, parent)
    assert (parent.owner, parent.parent, parent.events) == (THREAD, None, {UffdEvent.FORK: 1})
    assert [(row.start, row.end, row.modes) for row in model.rows()] == [(page(0), page(8), Mode.WP)] * 2


def test_until_it_is_told_nobody_knows_whose_memory_it_is() -> None:
    events = started()
    events.fork(0, 8, watched=True)
    events.forked(CHILD_CTX, CHILD_MM)
    assert child(events)["owner"] is None
    # The task that owns the new mm still has its parent's number.
    events.using(CHILD_CTX, mm=CHILD_MM).userfaultfd()
    events.process(CHILD, CHILD_MM)
    assert child(events)["owner"] == CHILD


def test_it_is_its_processs_although_it_was_closed_before_that_ran() -> None:
    events = started()
    events.fork(0, 8, watched=True)
    events.forked(CHILD_CTX, CHILD_MM)
    events.using(CHILD_CTX).release_descriptor()
    events.process(CHILD, CHILD_MM)
    assert child(events)["owner"] == CHILD


def test_what_the_api_call_left_in_the_features_is_none() -> None:
    events = started()
    events.features |= 1 << 31
    assert fed(follow(events, (0, 8)).array()).userfaultfds[1].features == FORK


def test_memory_of_another_process_has_the_owner_it_had() -> None:
    events = started()
    events.process(CHILD, MM + 0x7000)
    assert told(events)[0]["owner"] == THREAD


def test_a_fork_that_copied_nothing_of_it_makes_an_empty_child() -> None:
    """The trace began while it forked."""
    events = started()
    events.arm(0, 8)
    follow(events)
    assert of(told(events), CHILD_CTX) == []
    events.fault(1, tid=CHILD, area=(0, 8))
    row = child(events)
    assert (row["start"], row["end"], row["armed_pages"], row["faults"]) == (0, 8, 0, [0, 1, 0])


def test_a_child_of_somebody_that_is_not_known() -> None:
    events = Events(features=FORK)
    follow(events, (0, 8))
    model = fed(events.array())
    assert [(home.ctx, home.parent, home.owner) for home in model.userfaultfds if home.ctx == CHILD_CTX] == [
        (CHILD_CTX, None, CHILD)
    ]
    assert model.rows() == []


# ---- what it inherits ------------------------------------------------------------


def test_its_pages_are_armed_as_its_parents_were() -> None:
    events = started()
    events.arm(1, 4)
    events.release(2, 1)
    parent, copy = both(follow(events, (0, 8)))
    assert (parent["armed_pages"], copy["armed_pages"]) == (4, 3)
    assert copy["belief"] == {0: -1, 1: 1, 2: -1, 3: 1, 4: 1, 5: -1, 6: -1, 7: -1}


def test_what_it_writes_it_is_told_of_apart_from_its_parent() -> None:
    events = started()
    events.arm(0, 8)
    events.served(1)
    follow(events, (0, 8))
    events.served(1, tid=CHILD)
    events.served(2, tid=CHILD)
    parent, copy = both(events)
    assert (parent["messages"], parent["notified_pages"]) == ([0, 1, 0], 1)
    assert (copy["messages"], copy["faults"], copy["notified_pages"]) == ([0, 2, 0], [0, 2, 0], 2)
    assert (copy["repeated"], copy["stale"]) == (0, 0)


def test_a_page_that_its_parent_released_is_not_lost() -> None:
    events = started()
    events.arm(0, 8)
    events.served(1)
    events.release(1, 1)
    follow(events, (0, 8))
    events.unprotected_write(1)
    assert lost(child(events)) == (0, 0, {})


def test_it_can_lose_again_what_its_parent_lost() -> None:
    events = started()
    events.arm(0, 8, 7)
    events.fresh(1)
    parent, copy = both(follow(events, (0, 8)))
    assert (lost(parent), lost(copy)) == ((1, 0, {"unpopulated": 1}), (0, 0, {}))
    assert (copy["fresh_page"], copy["lost"], copy["exposed"]) == (0, [], {"unpopulated": 1})
    # The fork made it read-only for both.
    events.unprotected_write(1)
    parent, copy = both(events)
    assert (lost(parent), lost(copy)) == ((1, 0, {"unpopulated": 1}), (1, 0, {"unpopulated": 1}))
    assert [run[-1] for run in copy["lost"]] == [CHILD]


def test_what_its_parent_lost_blindly_it_loses_seen() -> None:
    events = started(16)
    events.arm(0, 16)
    events.copy(2)
    events.move(4, 12)
    events.zeropage(6)
    events.merged(7)
    events.discard(8)
    follow(events, (0, 16))
    for number in (2, 4, 6, 7):
        events.unprotected_write(number)
    events.fresh(8)
    parent, copy = both(events)
    assert lost(parent) == (0, 2, {"copy-without-wp": 1, "moved": 1})
    causes = {"copy-without-wp": 1, "moved": 1, "zeropage": 1, "ksm-merge": 1, "discarded": 1}
    assert lost(copy) == (5, 0, causes)
    # The source of the move.
    assert copy["exposed"] == {"moved": 1}


def test_a_message_to_its_parent_was_none_to_it() -> None:
    """What a told parent loses is the next write's; what the child loses is the first's."""
    events = started()
    events.arm(0, 8)
    events.fault(1)
    events.message(1)
    follow(events, (0, 8))
    events.copy(1)
    back(events).unprotected_write(1)
    parent, copy = both(events)
    assert (lost(parent), lost(copy)) == ((0, 1, {"unexplained": 1}), (0, 1, {"copy-without-wp": 1}))
    events.using(CHILD_CTX, mm=CHILD_MM, owner=CHILD).unprotected_write(3)
    assert lost(child(events)) == (1, 1, {"copy-without-wp": 1, "unexplained": 1})


def test_skipped_pages_are_counted_once() -> None:
    events = started()
    events.arm(0, 8, 6)
    events.zero(1)
    follow(events, (0, 8))
    events.zero(1)
    parent, copy = both(events)
    assert (parent["zero_page"], copy["zero_page"]) == (1, 0)
    assert (copy["belief"][1], copy["exposed"]) == (0, {"zero-page-after-arm": 1})
    events.unprotected_write(1, zero_page=True)
    parent, copy = both(events)
    assert (parent["zero_page"], copy["zero_page"]) == (1, 0)
    assert (lost(parent), lost(copy)) == ((0, 0, {}), (1, 0, {"zero-page-after-arm": 1}))


def test_a_skipped_page_of_its_own_is_counted() -> None:
    events = started()
    events.arm(0, 8, 6)
    events.zero(1)
    follow(events, (0, 8))
    events.zero(2)
    events.discard(1)
    events.zero(1)
    parent, copy = both(events)
    assert (parent["zero_page"], copy["zero_page"]) == (1, 2)


@pytest.mark.parametrize("what", ["fresh", "fault"])
def test_a_zero_page_that_was_none_is_not_taken_from_the_child(what: str) -> None:
    events = started()
    events.arm(0, 8, 6)
    events.zero(1)
    follow(events, (0, 8))
    if what == "fresh":
        events.fresh(1)
    else:
        events.fault(1, tid=CHILD)
    parent, copy = both(events)
    assert (parent["zero_page"], copy["zero_page"]) == (1, 0)
    assert lost(copy) == ((1, 0, {"unpopulated": 1}) if what == "fresh" else (0, 0, {}))


@pytest.mark.parametrize("what", ["fresh", "fault"])
def test_a_loss_that_was_none_is_taken_back_from_the_child_only(what: str) -> None:
    events = started()
    events.arm(0, 8, 6)
    events.fresh(1)
    follow(events, (0, 8))
    events.unprotected_write(1)
    events.fault(1, tid=CHILD)
    parent, copy = both(events)
    assert (lost(parent), lost(copy)) == ((1, 0, {"unpopulated": 1}), (0, 0, {}))


def test_a_files_page_without_protection() -> None:
    events = started()
    events.memory = Memory.SHMEM
    events.arm(0, 8)
    events.file(1, write=False)
    events.file(2)
    follow(events, (0, 8))
    events.file(1)
    events.file(2)
    events.file(3)
    parent, copy = both(events)
    assert (parent["file_page"], copy["file_page"]) == (2, 1)
    assert (lost(parent), lost(copy)) == ((1, 0, {"unexplained": 1}), (3, 0, {"unexplained": 3}))


def test_huge_pages() -> None:
    events = started(1024)
    events.arm(0, 1024, 0)
    events.huge(0, fault=3)
    follow(events, (0, 1024))
    events.huge(512, fault=700)
    events.unprotected_write(5)
    parent, copy = both(events)
    assert lost(parent) == (1, 511, {"huge-page-over-hole": 512})
    assert (copy["huge_page"], copy["observed"], copy["blind"]) == (512, 2, 511)
    assert (copy["armed_pages"], copy["causes"]) == (1024, {"huge-page-over-hole": 513})


def test_hugetlb_memory_is_known_to_be() -> None:
    events = started(1024)
    events.memory, events.order = Memory.HUGETLB, 9
    events.arm(0, 1024)
    follow(events, (0, 1024))
    events.memory, events.order = Memory(0), 0
    events.fault(5, tid=CHILD)
    events.message(5, tid=CHILD)
    assert child(events)["notified_pages"] == 512
    row = child_row(events)
    assert (row.memory, row.order) == (Memory.HUGETLB, 9)


def test_nothing_is_lost_under_wp_async() -> None:
    events = started(features=int(Feature.WP_ASYNC))
    events.arm(0, 8, 0)
    follow(events, (0, 8))
    events.fresh(1)
    events.unprotected_write(2)
    row = child(events)
    assert (row["armed_pages"], row["holes"], lost(row)) == (8, 0, (0, 0, {}))


def test_registered_again_by_its_parent_it_is_no_first_registration() -> None:
    """Protection that an earlier registration left behind is the child's too."""
    events = started()
    events.arm(0, 8)
    events.unregister(0, 8)
    events.register(0, 8)
    follow(events, (0, 8))
    events.served(1, tid=CHILD)
    assert (child(events)["armed_pages"], child(events)["stale"]) == (0, 1)


@pytest.mark.parametrize("modes", [Mode.MISSING, Mode.WP | Mode.MISSING])
def test_modes(modes: Mode) -> None:
    events = Events(features=FORK)
    events.userfaultfd()
    events.register(0, 8, int(modes))
    assert child(follow(events, (0, 8)))["modes"] == modes


def test_a_range_that_was_armed_before_the_trace_may_have_been_in_the_child() -> None:
    events = Events(features=FORK)
    events.userfaultfd()
    events.range_found(0, 8)
    assert child_row(follow(events, (0, 8))).before
    assert not child_row(follow(started(), (0, 8))).before


# ---- holes -----------------------------------------------------------------------


@pytest.mark.parametrize(("present", "holes"), [(8, 0), (7, None), (None, 0)])
def test_holes_are_not_known_unless_there_were_none(present: int | None, holes: int | None) -> None:
    events = started()
    if present is not None:
        events.arm(0, 8, present)
    assert child(follow(events, (0, 8)))["holes"] == holes


def test_holes_that_nobody_knows_stay_unknown() -> None:
    events = started()
    events.protect(0, 4)
    events.protect(0, 4)
    events.protect_return(4)
    parent, copy = both(follow(events, (0, 8)))
    assert parent["holes"] is copy["holes"] is None


def test_holes_of_its_own_armings() -> None:
    events = started()
    events.arm(0, 8)
    follow(events, (0, 8))
    events.arm(0, 8, 5)
    parent, copy = both(events)
    assert (parent["holes"], copy["holes"], copy["rearmed"]) == (0, 3, 8)


def test_holes_of_its_own_are_not_known_where_its_parents_are_not() -> None:
    events = started()
    events.arm(0, 8, 7)
    follow(events, (0, 8))
    events.arm(0, 8, 5)
    assert child(events)["holes"] is None


def test_what_the_child_inherited_protected_and_swapped_out_is_no_hole() -> None:
    """change_protection() does not count it: it is protected already."""
    events = started()
    events.arm(0, 8)
    follow(events, (0, 8))
    events.protect(0, 8, CHILD, in_swap=True)
    events.protect_return(5, CHILD)
    assert child(events)["holes"] is None


# ---- forks that come to nothing -----------------------------------------------------


def test_a_fork_whose_monitor_closed_before_it_read_is_not_watched() -> None:
    """The kernel drops the child's registration (userfaultfd_event_wait_completion()); seen on Linux 6.18."""
    events = started()
    events.arm(0, 8)
    events.fork(0, 8, watched=True)
    events.forked(CHILD_CTX, CHILD_MM)
    events.release_descriptor()
    events.process(CHILD, CHILD_MM)
    mine, copy = both(events)
    assert (copy["armed_pages"], copy["holes"], copy["belief"]) == (0, 0, {})
    assert mine["facts"]["FORK"] == 1


def test_a_child_whose_userfaultfd_is_used_was_read_of() -> None:
    events = started()
    events.arm(0, 8)
    events.fork(0, 8, watched=True)
    events.forked(CHILD_CTX, CHILD_MM)
    events.using(CHILD_CTX, mm=CHILD_MM).arm(0, 8)
    back(events).release_descriptor()
    events.process(CHILD, CHILD_MM)
    assert child(events)["armed_pages"] == 8


def test_of_two_userfaultfds_the_one_that_was_read_stays() -> None:
    """A fork waits for one monitor after the other."""
    events = started()
    events.arm(0, 4)
    events.using(OTHER_CTX).userfaultfd()
    events.register(4, 4)
    events.arm(4, 4)
    back(events).fork(0, 4, watched=True)
    events.using(OTHER_CTX).fork(4, 4, watched=True)
    back(events).forked(CHILD_CTX, CHILD_MM)
    events.using(OTHER_CTX).forked(GRANDCHILD_CTX, CHILD_MM)
    back(events).release_descriptor()
    events.using(OTHER_CTX).release_descriptor()
    events.process(CHILD, CHILD_MM)
    rows = told(events)
    assert [row["armed_pages"] for row in of(rows, CHILD_CTX) + of(rows, GRANDCHILD_CTX)] == [4, 0]


def test_a_monitor_that_closes_its_own_end_keeps_the_childs() -> None:
    events = started()
    events.arm(0, 8)
    follow(events, (0, 8))
    events.using(events.ctx).release_descriptor()
    assert child(events)["armed_pages"] == 8


def test_the_address_of_a_fork_that_failed_is_another_processs() -> None:
    events = started()
    events.arm(0, 8)
    events.fork(0, 8, watched=True)
    events.forked(CHILD_CTX, CHILD_MM)
    events.using(CHILD_CTX, mm=CHILD_MM).exit()
    events.process(CHILD + 1, CHILD_MM)
    assert child(events)["owner"] is None


def test_memory_that_is_wiped_on_fork_is_empty_in_the_child() -> None:
    events = started()
    events.arm(0, 8)
    events.fork(0, 8, watched=True, wiped=True)
    events.forked(CHILD_CTX, CHILD_MM)
    events.process(CHILD, CHILD_MM)
    events.using(CHILD_CTX, mm=CHILD_MM, owner=CHILD).fresh(1)
    assert child(events)["causes"] == {"discarded": 1}
