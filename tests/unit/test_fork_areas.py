"""What a fork copies: areas, of several userfaultfds, while others act, or in vain; and what comes afterwards."""

from __future__ import annotations

import pytest
from unit.events import CTX, MM, THREAD, Events, counts, fed, page, parent_of, told
from unit.forks import (
    CHILD,
    CHILD_CTX,
    CHILD_MM,
    FORK,
    FORKER,
    GRANDCHILD,
    GRANDCHILD_CTX,
    GRANDCHILD_MM,
    OTHER_CTX,
    back,
    both,
    child,
    follow,
    lost,
    of,
    started,
)

from uffdtrace.model.diagnosis.case import Case, verdict
from uffdtrace.model.records.events import Mode, Type

# Whatever the machine was that the events are of.
pytestmark = pytest.mark.usefixtures("any_page_size")

# ---- areas -----------------------------------------------------------------------


def test_one_range_of_several_mappings_stays_one() -> None:
    events = started()
    events.arm(0, 8)
    row = child(follow(events, (0, 3), (3, 1), (4, 4)))
    assert (row["start"], row["end"], row["armed_pages"]) == (0, 8, 8)


def test_several_ranges() -> None:
    events = started(4)
    events.register(6, 4)
    events.register(10, 4, Mode.MISSING)
    events.arm(0, 3)
    events.arm(6, 4, 1)
    follow(events, (0, 4), (6, 4), (10, 4))
    rows = of(told(events), CHILD_CTX)
    said = [(row["start"], row["end"], row["modes"], row["armed_pages"], row["holes"]) for row in rows]
    assert said == [(0, 4, Mode.WP, 3, 0), (6, 10, Mode.WP, 4, None), (10, 14, Mode.MISSING, 0, 0)]


def test_ranges_that_the_parent_merges_only_later_are_two_in_the_child() -> None:
    events = started(4)
    events.register(8, 4)
    events.arm(8, 4)
    for at in (0, 8):
        events.fork(at, 4, watched=True)
    events.register(4, 4)
    follow(events)
    rows = told(events)
    assert [(row["start"], row["end"]) for row in of(rows, CTX)] == [(0, 12)]
    said = [(row["start"], row["end"], row["armed_pages"]) for row in of(rows, CHILD_CTX)]
    assert said == [(0, 4, 0), (8, 12, 4)]


def test_a_mapping_that_the_fork_leaves_out() -> None:
    """MADV_DONTFORK."""
    events = started(8)
    events.arm(0, 8)
    follow(events, (0, 2), (6, 2))
    assert [(row["start"], row["end"]) for row in of(told(events), CHILD_CTX)] == [(0, 2), (6, 8)]


def test_an_area_is_no_more_than_what_is_registered_of_it() -> None:
    events = started(4)
    events.register(6, 2)
    rows = of(told(follow(events, (0, 16))), CHILD_CTX)
    assert [(row["start"], row["end"]) for row in rows] == [(0, 4), (6, 8)]


def test_many_areas() -> None:
    events = Events(features=FORK)
    events.userfaultfd()
    for number in range(300):
        events.register(number * 3, 2)
        events.arm(number * 3, 1 + number % 2)
    follow(events, *((number * 3, 2) for number in range(300)))
    rows = of(counts(fed(events.array())), CHILD_CTX)
    assert [(row["start"], row["armed_pages"]) for row in rows] == [(n * 3, 1 + n % 2) for n in range(300)]


# ---- several userfaultfds --------------------------------------------------------


def two() -> Events:
    """Two of one process, whose areas lie between each other's: even pages the first's, odd ones the second's."""
    events = started(1)
    events.register(4, 1)
    events.arm(0, 1)
    events.using(OTHER_CTX).userfaultfd()
    for at in (2, 6):
        events.register(at, 1)
    events.arm(6, 1)
    for at, ctx in ((0, CTX), (2, OTHER_CTX), (4, CTX), (6, OTHER_CTX)):
        events.using(ctx).fork(at, 1, watched=True)
    return events


def test_several_userfaultfds_are_forked_at_once() -> None:
    events = two()
    events.using(CTX).forked(CHILD_CTX, CHILD_MM)
    events.using(OTHER_CTX).forked(CHILD_CTX + 8, CHILD_MM)
    events.process(CHILD, CHILD_MM)
    rows = told(events)
    for ctx, parent, expected in ((CHILD_CTX, CTX, {0: 1, 4: 0}), (CHILD_CTX + 8, OTHER_CTX, {2: 0, 6: 1})):
        assert {row["start"]: row["armed_pages"] for row in of(rows, ctx)} == expected
        assert {(row["owner"], row["parent"]) for row in of(rows, ctx)} == {(CHILD, parent)}


def test_the_second_is_made_when_the_firsts_monitor_has_read() -> None:
    """Its pages are as they were when they were copied."""
    events = two()
    events.using(CTX).forked(CHILD_CTX, CHILD_MM)
    events.using(OTHER_CTX)
    events.arm(2, 1)
    events.fresh(6)
    events.unregister(6, 1)
    events.forked(CHILD_CTX + 8, CHILD_MM)
    events.process(CHILD, CHILD_MM)
    rows = of(told(events), CHILD_CTX + 8)
    assert [(row["start"], row["armed_pages"], row["observed"]) for row in rows] == [(2, 0, 0), (6, 1, 0)]


def test_one_of_two_follows_forks() -> None:
    events = started(4)
    events.arm(0, 4)
    events.using(OTHER_CTX).features = 0
    events.userfaultfd()
    events.register(4, 4)
    events.arm(4, 4)
    events.using(CTX).fork(0, 4, watched=True)
    events.using(OTHER_CTX).fork(4, 4)
    events.using(CTX).features = FORK
    rows = told(follow(events))
    assert [(row["start"], row["armed_pages"]) for row in of(rows, CHILD_CTX)] == [(0, 4)]
    assert (of(rows, CTX)[0]["facts"], of(rows, OTHER_CTX)[0]["facts"]) == ({}, {"FORK": 1})


def test_two_threads_fork_at_once() -> None:
    """Each waits for the monitor; the areas were copied one fork after the other."""
    events = started()
    events.arm(0, 8)
    events.fork(0, 8, watched=True)
    events.release(0, 4)
    events.fork(0, 8, watched=True, tid=FORKER)
    events.forked(CHILD_CTX + 8, CHILD_MM + 8, FORKER)
    rows = told(follow(events))
    assert [row["armed_pages"] for row in (*of(rows, CHILD_CTX), *of(rows, CHILD_CTX + 8))] == [8, 4]


def test_a_fork_after_the_other() -> None:
    events = started()
    events.arm(0, 4)
    follow(events, (0, 8))
    back(events).arm(4, 4)
    events.fork(0, 8, watched=True)
    events.forked(CHILD_CTX + 8, CHILD_MM + 8)
    rows = told(events)
    assert [row["armed_pages"] for row in (*of(rows, CHILD_CTX), *of(rows, CHILD_CTX + 8))] == [4, 8]


# ---- while it forks --------------------------------------------------------------


def test_what_the_parent_does_meanwhile_is_its_own() -> None:
    events = started()
    events.arm(0, 8)
    events.fork(0, 8, watched=True)
    events.served(1)
    events.release(1, 1)
    events.copy(2)
    events.zero(3)
    events.unprotected_write(4)
    events.unregister(5, 3)
    parent, copy = both(follow(events))
    assert (parent["messages"], lost(parent)[:2]) == ([0, 1, 0], (1, 1))
    assert (copy["start"], copy["end"], copy["armed_pages"], copy["messages"]) == (0, 8, 8, [0, 0, 0])
    assert (lost(copy), copy["exposed"], set(copy["belief"].values())) == ((0, 0, {}), {}, {1})


def test_what_the_monitor_arms_meanwhile_leaves_the_childs_holes_known() -> None:
    events = started()
    events.arm(0, 8)
    events.fork(0, 8, watched=True)
    events.arm(0, 8, 3)
    parent, copy = both(follow(events))
    assert (parent["holes"], copy["holes"]) == (5, 0)


def test_its_parents_holes_come_before_the_fork_or_not_at_all() -> None:
    """Between the areas: the second range's alone are in doubt."""
    events = started(2)
    events.register(4, 2)
    events.arm(4, 2, 1)
    rows = of(told(follow(events, (0, 2), (4, 2))), CHILD_CTX)
    assert [row["holes"] for row in rows] == [0, None]


def test_its_first_fault_may_come_at_once() -> None:
    events = started()
    events.arm(0, 8, 7)
    follow(events, (0, 8))
    events.fault(0, tid=CHILD, area=(0, 8))
    events.fresh(1)
    events.message(0, tid=CHILD)
    events.wake(0, tid=CHILD)
    row = child(events)
    assert (row["faults"], row["messages"], lost(row)) == ([0, 1, 0], [0, 1, 0], (1, 0, {"unpopulated": 1}))


def test_the_monitor_acts_on_it_before_it_runs() -> None:
    """It has read the event; the fork goes on only then."""
    events = started()
    events.arm(0, 8)
    events.fork(0, 8, watched=True)
    events.forked(CHILD_CTX, CHILD_MM)
    events.using(CHILD_CTX, mm=CHILD_MM).release(0, 4)
    events.process(CHILD, CHILD_MM)
    events.using(CHILD_CTX, mm=CHILD_MM, owner=CHILD).unprotected_write(1)
    events.unprotected_write(5)
    row = child(events)
    assert (row["owner"], row["observed"]) == (CHILD, 1)


# ---- forks that fail -------------------------------------------------------------


def test_what_a_failed_fork_copied_is_not_the_next_childs() -> None:
    events = started(4)
    events.register(6, 4)
    events.arm(0, 4)
    # Without memory for the second area; Linux 6.12 then tells nobody.
    events.fork(0, 4, watched=True)
    events.release(0, 4)
    rows = of(told(follow(events, (0, 4), (6, 4))), CHILD_CTX)
    assert [(row["start"], row["armed_pages"]) for row in rows] == [(0, 0), (6, 0)]


@pytest.mark.parametrize(
    ("before", "gone", "after"),
    [
        ((0, 4), (0, 4), (8, 4)),
        ((0, 8), (0, 4), (4, 4)),
        ((0, 8), (4, 4), (0, 4)),
        ((4, 4), (4, 4), (0, 4)),
    ],
)
@pytest.mark.parametrize("how", ["unregistered", "unmapped"])
def test_what_is_registered_no_more_is_no_childs(
    how: str, before: tuple[int, int], gone: tuple[int, int], after: tuple[int, int]
) -> None:
    events = Events(features=FORK)
    events.userfaultfd()
    events.register(*before)
    events.arm(*before)
    events.fork(*before, watched=True)
    if how == "unregistered":
        events.unregister(*gone)
    else:
        events.unmap(*gone)
    events.register(*after)
    row = child(follow(events, after))
    assert (row["start"], row["end"] - row["start"]) == after


def test_an_address_used_again_has_none_of_a_failed_forks_areas() -> None:
    events = started(4)
    events.arm(0, 4)
    events.fork(0, 4, watched=True)
    events.release_descriptor()
    events.userfaultfd()
    events.register(6, 4)
    row = child(follow(events, (6, 4)))
    assert (row["start"], row["end"], row["armed_pages"]) == (6, 10, 0)


def test_a_failed_fork_of_which_the_kernel_tells_has_a_child_that_goes_at_once() -> None:
    """Up to 6.11."""
    events = started()
    events.arm(0, 8)
    events.fork(0, 4, watched=True)
    events.forked(CHILD_CTX, CHILD_MM)
    events.using(CHILD_CTX, mm=CHILD_MM).exit()
    back(events).fork(0, 8, watched=True)
    events.forked(CHILD_CTX, CHILD_MM)
    rows = of(told(events), CHILD_CTX)
    assert [(row["start"], row["end"], row["armed_pages"]) for row in rows] == [(0, 4, 4), (0, 8, 8)]


def test_overlapping_areas_that_no_fork_copies() -> None:
    events = started(16)
    events.arm(0, 16)
    row = child(follow(events, (0, 8), (4, 8)))
    assert (row["start"], row["end"], row["armed_pages"]) == (4, 12, 8)


# ---- afterwards ------------------------------------------------------------------


def test_a_grandchild() -> None:
    events = started()
    events.arm(0, 8, 7)
    events.fresh(1)
    follow(events, (0, 8))
    events.served(2, tid=CHILD)
    events.release(2, 1)
    events.fork(0, 8, watched=True, tid=CHILD)
    events.forked(GRANDCHILD_CTX, GRANDCHILD_MM, CHILD)
    events.process(GRANDCHILD, GRANDCHILD_MM)
    events.using(GRANDCHILD_CTX, mm=GRANDCHILD_MM, owner=GRANDCHILD).unprotected_write(1)
    events.unprotected_write(2)
    rows = told(events)
    said = [(row["userfaultfd"], row["parent"], row["owner"], row["armed_pages"], row["observed"]) for row in rows]
    assert said == [
        (CTX, None, THREAD, 8, 1),
        (CHILD_CTX, CTX, CHILD, 8, 0),
        (GRANDCHILD_CTX, CHILD_CTX, GRANDCHILD, 7, 1),
    ]


def test_munmap_and_mremap_are_one_processs_business() -> None:
    events = started()
    events.arm(0, 8)
    follow(events, (0, 8))
    events.unmap(0, 2)
    events.remap(4, 4, 100)
    back(events).unmap(7, 1)
    parent, copy = both(events)
    assert (parent["facts"], copy["facts"]) == ({"UNMAPPED": 1}, {"UNMAPPED": 2, "MOVED_AWAY": 4})
    assert (list(parent["belief"]), list(copy["belief"])) == ([0, 1, 2, 3, 4, 5, 6], [2, 3])


@pytest.mark.parametrize("end", ["exit", "release", "parent's exit", "parent's release"])
def test_one_goes_the_other_stays(end: str) -> None:
    events = started()
    events.arm(0, 8, 6)
    follow(events, (0, 8))
    events.fresh(1)
    if end.startswith("parent"):
        back(events)
    events.exit() if end.endswith("exit") else events.release_descriptor()
    # Of nobody: no probe tells it, but a trace may.
    events.fresh(2)
    events.using(*((CHILD_CTX, None, CHILD_MM, CHILD) if end.startswith("parent") else (CTX, None, MM, THREAD)))
    events.fresh(3)
    parent, copy = both(events)
    assert (parent["observed"], copy["observed"]) == ((0, 2) if end.startswith("parent") else (1, 1))
    assert copy["parent"] == CTX


def test_its_addresses_are_used_again() -> None:
    """The kernel takes the freed userfaultfd and mm for the next child at once."""
    events = started()
    events.arm(0, 8, 6)
    follow(events, (0, 8))
    events.served(1, tid=CHILD)
    events.exit()
    events.release_descriptor()
    back(events).fork(0, 8, watched=True)
    events.forked(CHILD_CTX, CHILD_MM)
    events.process(CHILD + 1, CHILD_MM)
    events.using(CHILD_CTX, mm=CHILD_MM, owner=CHILD + 1).fresh(2)
    first, second = of(told(events), CHILD_CTX)
    assert (first["owner"], first["messages"], first["observed"]) == (CHILD, [0, 1, 0], 0)
    assert (second["owner"], second["messages"], second["observed"]) == (CHILD + 1, [0, 0, 0], 1)


def test_an_address_used_again_where_the_end_was_not_seen() -> None:
    events = started()
    follow(events, (0, 8))
    events.served(1, tid=CHILD)
    back(events).fork(0, 4, watched=True)
    events.forked(CHILD_CTX, CHILD_MM)
    rows = of(told(events), CHILD_CTX)
    assert sorted((row["end"], row["messages"]) for row in rows) == [(4, [0, 0, 0]), (8, [0, 1, 0])]


def test_the_parents_address_used_again_is_no_parent() -> None:
    events = started()
    follow(events, (0, 8))
    back(events).release_descriptor()
    events.userfaultfd()
    model = fed(events.array())
    first, copy, second = model.userfaultfds
    assert copy.parent is first
    assert (parent_of(first), parent_of(second)) == (None, None)


def test_a_thread_of_the_child_that_still_sleeps() -> None:
    events = started()
    events.arm(0, 8)
    follow(events, (0, 8))
    events.fault(3, tid=CHILD)
    assert child(events)["pending"] is None, "nobody looked"
    events.asleep(0)
    events.asleep(CHILD)
    parent, copy = both(events)
    assert (parent["pending"], copy["pending"]) == (0, 1)
    assert [(one[0], one[1]) for one in copy["waiting"]] == [(3, CHILD)]


def test_an_armed_child_that_nobody_armed_again_is_not_never_armed() -> None:
    events = started()
    events.arm(0, 8)
    model = fed(follow(events, (0, 8)).array())
    assert [verdict(Case(row, model.uffd_of(row))) for row in model.rows()] == ["ok", "ok"]
    model = fed(follow(started(), (0, 8)).array())
    assert [verdict(Case(row, model.uffd_of(row))) for row in model.rows()] == ["never-armed", "never-armed"]


def test_a_large_copy_is_told_of_once() -> None:
    """A snapshot of 2^20 pages: as slices, not page by page."""
    events = started(1 << 20)
    events.arm(0, 1 << 20)
    follow(events, (0, 1 << 20))
    events.fresh((1 << 20) - 1)
    rows = counts(fed(events.array()))
    assert [(row["armed_pages"], row["observed"]) for row in rows] == [(1 << 20, 0), (1 << 20, 1)]


def test_a_forked_userfaultfd_that_is_its_own_parent_is_no_kernels() -> None:
    events = started()
    events.fork(0, 8, watched=True)
    events.add(Type.FORKED, start=CHILD_MM, end=FORK, aux=CTX, tid=THREAD)
    events.add(Type.FORK, start=page(0) + 1, end=page(9) - 1, kind=1, tid=THREAD)
    told(events)
