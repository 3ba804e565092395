"""What the monitor's calls, and whoever else touched its ranges, ran into."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from unit.events import CTX, MONITOR, STEP_NS, THREAD, Events, bytes_of, counts, fed, page

from uffdtrace.model.account import watched
from uffdtrace.model.account.facts import Fact
from uffdtrace.model.account.model import Model
from uffdtrace.model.records.events import Feature, Ioctl, Kind, Memory, Mode, UffdEvent

# Whatever the machine was that the events are of.
pytestmark = pytest.mark.usefixtures("any_page_size")


def started(pages: int = 8, modes: int = Mode.WP, features: int = 0) -> Events:
    events = Events(features=features)
    events.userfaultfd()
    events.register(0, pages, int(modes))
    return events


def model_of(events: Events) -> Model:
    """The same, whole and cut anywhere."""
    array = events.array()
    model = fed(array)
    whole = counts(model)
    for cuts in (list(range(len(array))), *([cut] for cut in range(len(array)))):
        assert counts(fed(array, cuts)) == whole, f"cut at {cuts}"
    return model


def facts(events: Events) -> list[dict[str, int]]:
    return [{fact.name: count for fact, count in row.facts.items() if count} for row in model_of(events).rows()]


# ---- calls -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Ioctl.COPY, Ioctl.ZEROPAGE, Ioctl.CONTINUE, Ioctl.MOVE])
@pytest.mark.parametrize(
    ("done", "ret", "expected"),
    [
        (4, 0, {}),
        (None, -errno.EEXIST, {"EEXIST": 1}),
        (None, -errno.EAGAIN, {"EAGAIN": 1}),
        # The kernel says EAGAIN of what it did in part.
        (1, -errno.EAGAIN, {"PARTIAL": 1}),
        (3, 0, {"PARTIAL": 1}),
        (None, -errno.ENOENT, {}),
    ],
)
def test_a_call_that_fills(kind: Ioctl, done: int | None, ret: int, expected: dict[str, int]) -> None:
    """`done` pages; None where the result is the error."""
    events = started()
    events.ioctl(kind, 0, 4, value=ret if done is None else bytes_of(done), ret=ret, source=page(100))
    assert facts(events) == [expected]


def test_calls_add_up() -> None:
    events = started()
    for _ in range(3):
        events.ioctl(Ioctl.WRITEPROTECT, 0, 4, 1, ret=-errno.EAGAIN)
    events.ioctl(Ioctl.WRITEPROTECT, 0, 4, 0, ret=-errno.EAGAIN)
    assert facts(events) == [{"EAGAIN": 4}]


def test_a_call_that_does_not_return_went_neither_well_nor_wrong() -> None:
    events = started()
    events.call(Ioctl.WRITEPROTECT, 0, 4, 1)
    events.call(Ioctl.COPY, 0, 4)
    assert facts(events) == [{}]


def test_a_call_belongs_to_the_first_range_that_it_names() -> None:
    events = Events()
    events.userfaultfd()
    events.register(4, 4)
    events.register(10, 4)
    events.ioctl(Ioctl.COPY, 0, 20, value=-errno.EEXIST, ret=-errno.EEXIST)
    events.unregister(4, 4)
    assert facts(events) == [{"EEXIST": 1}, {}]


def test_a_call_outside_of_every_range_belongs_to_none() -> None:
    events = started()
    events.ioctl(Ioctl.COPY, 20, 4, value=-errno.EEXIST, ret=-errno.EEXIST)
    assert facts(events) == [{}]


@pytest.mark.parametrize(
    ("spans", "ret", "expected", "errors"),
    [
        ([(0, 8)], 0, {}, set()),
        ([(0, 3), (3, 5)], 0, {}, set()),
        ([(0, 3), (5, 3)], 0, {"GAP": 2}, set()),
        ([], 0, {"GAP": 8}, set()),
        ([(0, 3)], -errno.ENOENT, {"HALF_PROTECTED": 1}, {"ENOENT"}),
        ([], -errno.ENOENT, {"ARM_FAILED": 1}, {"ENOENT"}),
        ([], -errno.EINVAL, {"ARM_FAILED": 1}, {"EINVAL"}),
        ([], -4095, {"ARM_FAILED": 1}, {"an error"}),
        ([], -errno.EAGAIN, {"EAGAIN": 1}, set()),
    ],
)
def test_writeprotect(spans: list[tuple[int, int]], ret: int, expected: dict[str, int], errors: set[str]) -> None:
    events = started()
    events.arm_part(0, 8, spans, ret)
    (row,) = model_of(events).rows()
    assert {fact.name: count for fact, count in row.facts.items()} == expected
    assert {name for _, name in row.errors} == errors


def test_a_release_protects_nothing_and_fails_nothing() -> None:
    events = started()
    events.ioctl(Ioctl.WRITEPROTECT, 0, 8, 0)
    events.ioctl(Ioctl.WRITEPROTECT, 0, 8, 0, ret=-errno.ENOENT)
    assert facts(events) == [{}]


def test_what_another_thread_protects_is_not_this_calls() -> None:
    events = started()
    events.call(Ioctl.WRITEPROTECT, 0, 8, 1, tid=101)
    events.call(Ioctl.WRITEPROTECT, 0, 4, 1, tid=102)
    events.protect(0, 8, tid=101)
    events.protect_return(8, tid=101)
    events.returned(Ioctl.WRITEPROTECT, 0, 4, 1, ret=-errno.ENOENT, tid=102)
    events.returned(Ioctl.WRITEPROTECT, 0, 8, 1, tid=101)
    assert facts(events) == [{"ARM_FAILED": 1}]


def test_what_a_thread_protects_without_a_call_is_not_anothers() -> None:
    # PAGEMAP_SCAN
    events = started()
    events.call(Ioctl.WRITEPROTECT, 0, 4, 1, tid=102)
    events.protect(0, 4, tid=105)
    events.protect_return(4, tid=105)
    events.returned(Ioctl.WRITEPROTECT, 0, 4, 1, ret=-errno.ENOENT, tid=102)
    assert facts(events) == [{"ARM_FAILED": 1}]


def test_spans_are_of_the_call_that_stopped_half_way() -> None:
    events = started(16)
    events.arm_part(0, 4, [(0, 2)])
    events.arm_part(8, 4, [(8, 2)], -errno.ENOENT)
    events.arm_part(12, 2, [], -errno.EINVAL)
    (row,) = model_of(events).rows()
    assert row.spans[Fact.HALF_PROTECTED] == [(page(8), page(10))]
    assert row.errors == {(Fact.HALF_PROTECTED, "ENOENT"), (Fact.ARM_FAILED, "EINVAL")}


def test_what_two_ranges_ran_into_is_added_up_when_they_become_one() -> None:
    events = Events()
    events.userfaultfd()
    for at in (0, 8):
        events.register(at, 4)
        events.arm_part(at, 4, [(at, 2)], -errno.ENOENT)
    events.register(4, 4)
    assert facts(events) == [{"HALF_PROTECTED": 2}]


# ---- threads -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first_reads", "ret", "expected"),
    [(True, 0, {"MONITOR_FAULT": 1}), (False, 0, {}), (True, 1, {"REFUSED": 1})],
)
def test_a_monitor_that_faults(first_reads: bool, ret: int, expected: dict[str, int]) -> None:
    events = started()
    if first_reads:
        events.served(1)
    events.fault(2, tid=MONITOR, ret=ret)
    events.asleep(0)
    assert facts(events) == [expected]


def test_the_monitor_of_another_userfaultfd_may_fault() -> None:
    events = started()
    events.served(1)
    events.using(CTX + 4096).userfaultfd()
    events.register(20, 4)
    events.fault(20, tid=MONITOR)
    events.asleep(0)
    assert facts(events) == [{}, {}]


@pytest.mark.parametrize(("flags", "expected"), [(0, {"REFUSED": 1}), (0x55, {"REFUSED": 1}), (0x8, {}), (0x1D, {})])
def test_a_fault_that_cannot_sleep_unless_it_will_not(flags: int, expected: dict[str, int]) -> None:
    events = started()
    events.fault(2, ret=1, flags=flags)
    assert facts(events) == [expected]


# ---- mappings ----------------------------------------------------------------------------


def test_a_fork_counts_once_however_many_areas_it_copies() -> None:
    events = started()
    events.fork(0, 4)
    events.fork(4, 4)
    events.fork(0, 4)
    events.fork(4, 4)
    events.fork(0, 8, watched=True)
    assert facts(events) == [{"FORK": 2}]


@pytest.mark.parametrize(
    ("tid", "child", "memory", "expected"),
    [
        (THREAD, 300, Memory.ANON, {"FORK": 1}),
        # As system() does, by the thread that reads.
        (MONITOR, 300, Memory.ANON, {}),
        # A process that is to read.
        (THREAD, MONITOR, Memory.ANON, {}),
        (MONITOR, 300, Memory.SHMEM, {"FORK": 1}),
    ],
)
def test_a_fork_of_the_monitor(tid: int, child: int, memory: Memory, expected: dict[str, int]) -> None:
    events = started()
    events.memory = memory
    events.fork(0, 8, tid=tid)
    events.child(child, tid)
    # It is known only now who the monitor is.
    events.served(0)
    assert facts(events) == [expected]


def test_a_target_that_forks_and_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only so many forks are remembered: what was known of the monitor when one is forgotten decides."""
    monkeypatch.setattr(watched, "MOST_FORKS", 4)
    events = started()
    events.served(0)
    for child in range(300, 310):
        events.fork(0, 8, tid=MONITOR)
        events.child(child, MONITOR)
        events.fork(0, 8)
        events.child(child + 100)
    model = model_of(events)
    assert [row["facts"] for row in counts(model)] == [{"FORK": 10}]
    assert not any(home.unwatched_forks for home in model.watched.userfaultfds)


def test_a_fork_of_other_memory() -> None:
    events = started()
    events.fork(20, 4)
    assert facts(events) == [{}]


@pytest.mark.parametrize(("features", "expected"), [(0, {"UNMAPPED": 3}), (int(Feature.EVENT_UNMAP), {})])
def test_unmapped(features: int, expected: dict[str, int]) -> None:
    events = started(features=features)
    events.unmap(5, 7)
    assert facts(events) == [expected]


def test_what_was_unregistered_before_may_be_unmapped() -> None:
    events = started()
    events.unregister(0, 8)
    events.unmap(0, 8)
    events.exit()
    assert facts(events) == [{}]


def moved(features: int, **how: Any) -> list[dict[str, Any]]:
    events = started(4, features=features)
    events.arm(0, 4)
    events.remap(0, 4, **how)
    return counts(model_of(events))


def test_moved_without_the_event() -> None:
    (row,) = moved(0, to=100)
    assert (row["facts"], row["belief"]) == ({"MOVED_AWAY": 4}, {})


def test_moved_with_the_event() -> None:
    old, new = moved(int(Feature.EVENT_REMAP), to=100)
    assert (old["facts"], new["facts"], new["start"], new["end"]) == ({}, {}, 100, 104)
    assert (new["armed_pages"], new["belief"]) == (4, {100: 1, 101: 1, 102: 1, 103: 1})


def test_a_mremap_that_failed_moves_nothing() -> None:
    (row,) = moved(0, to=None)
    assert (row["facts"], row["belief"]) == ({}, dict.fromkeys(range(4), 1))


def test_grown_in_place() -> None:
    (row,) = moved(0, to=0, new=6)
    assert (row["facts"], row["end"], row["armed_pages"]) == ({"GROWN": 2}, 6, 4)


def test_grown_while_it_moves() -> None:
    _, new = moved(int(Feature.EVENT_REMAP), to=100, new=6)
    assert (new["facts"], new["end"], new["armed_pages"]) == ({"GROWN": 2}, 106, 4)


def test_shrunk() -> None:
    events = started(4)
    events.remap_call(0, 4, 2)
    events.unmap(2, 2, THREAD)
    events.remap_return(0)
    assert facts(events) == [{"UNMAPPED": 2}]


def test_shrunk_while_it_moves() -> None:
    events = started(4, features=int(Feature.EVENT_REMAP | Feature.EVENT_UNMAP))
    events.remap_call(0, 4, 2)
    events.unmap(2, 2, THREAD)
    events.unmap(0, 2, THREAD)
    events.remap_return(100)
    _, new = counts(model_of(events))
    assert (new["start"], new["end"], new["facts"]) == (100, 102, {})


def test_a_mapping_that_mremap_doubles_stays() -> None:
    """Old length 0 maps shared memory once more."""
    events = started(4)
    events.remap_call(0, 0, 4)
    events.remap_return(100)
    (row,) = counts(model_of(events))
    assert (row["facts"], row["end"]) == ({}, 4)


def test_lengths_that_the_kernel_rounds_up() -> None:
    events = started(4)
    events.remap_call(0, 4, 6)
    events._records[-1]["end"] -= 100
    events._records[-1]["aux"] -= 100
    events.remap_return(0)
    (row,) = counts(model_of(events))
    assert (row["facts"], row["end"]) == ({"GROWN": 2}, 6)


def test_what_another_thread_unmaps_meanwhile_is_unmapped() -> None:
    events = started(8)
    events.remap_call(0, 4, 4)
    events.unmap(6, 2, THREAD + 1)
    events.unmap(0, 4, THREAD)
    events.remap_return(100)
    assert facts(events) == [{"MOVED_AWAY": 4, "UNMAPPED": 2}]


def test_a_write_before_the_move_is_of_the_old_addresses() -> None:
    events = started(4, features=int(Feature.EVENT_REMAP))
    events.arm(0, 4, 0)
    events.remap_call(0, 4, 4)
    events.fresh(1)
    events.unmap(0, 4, THREAD)
    events.fresh(102)
    events.remap_return(100)
    old, new = counts(model_of(events))
    assert (old["observed"], new["observed"]) == (1, 1)


def test_a_move_is_over_when_its_own_thread_unmapped() -> None:
    events = started(4, features=int(Feature.EVENT_REMAP))
    events.arm(0, 4, 0)
    events.remap_call(0, 4, 4)
    events.unmap(0, 4, THREAD)
    events.fresh(102)
    events.unmap(0, 2, THREAD + 1)
    events.remap_return(100)
    old, new = counts(model_of(events))
    assert (old["observed"], new["observed"]) == (0, 1)


# ---- events ------------------------------------------------------------------------------


def test_events_are_the_userfaultfds() -> None:
    events = started()
    events.event(UffdEvent.REMOVE)
    events.event(UffdEvent.REMOVE)
    events.event(UffdEvent.FORK)
    events.event(0x55)
    assert model_of(events).userfaultfds[0].events == {UffdEvent.REMOVE: 2, UffdEvent.FORK: 1}


def test_the_next_owner_of_the_address_had_no_events() -> None:
    events = started()
    events.event(UffdEvent.UNMAP)
    events.release_descriptor()
    events.userfaultfd()
    assert [home.events for home in model_of(events).userfaultfds] == [{UffdEvent.UNMAP: 1}, {}]


# ---- registrations that end under sleepers ------------------------------------------------


def ended(
    how: str, modes: int = Mode.WP, kind: Kind = Kind.WP, when: str = "asleep", at: int = 1
) -> list[dict[str, int]]:
    events = started(8, modes)
    events.fault(at, kind, modes=modes)
    events.message(at, kind)
    if when == "woken before":
        events.wake(at)
        events.fault_return()
    elif when == "interrupted before":
        events.fault_return()
    if how == "close":
        events.release_descriptor()
    elif how == "die":
        events.exit()
        events.release_descriptor(dying=True)
    else:
        events.unregister(0, 4, ret=-errno.EINVAL if how == "fail" else 0)
    if when == "woken after":
        events.wake(at)
        events.fault_return()
    elif when == "faults after":
        events.fault_return()
        events.fault(at + 100, kind, area=(100, 110))
    else:
        events.asleep(0)
        events.asleep(THREAD)
    return facts(events)[:1]


@pytest.mark.parametrize("when", ["asleep", "woken after", "faults after"])
def test_closed_while_a_thread_slept(when: str) -> None:
    assert ended("close", when=when) == [{"CLOSED": 1}]
    assert ended("close", Mode.MISSING, Kind.MISSING, when) == [{"CLOSED": 1}]


@pytest.mark.parametrize("when", ["asleep", "woken after", "faults after"])
def test_unregistered_while_a_thread_slept(when: str) -> None:
    assert ended("unregister", when=when) == [{"UNREGISTERED": 1}]
    # With MISSING, UNREGISTER wakes them.
    assert ended("unregister", Mode.WP | Mode.MISSING, when=when) == [{}]
    assert ended("unregister", Mode.MISSING, Kind.MISSING, when=when) == [{}]
    # Its page stays registered.
    assert ended("unregister", at=6, when=when) == [{}]
    assert ended("fail", when=when) == [{}]


@pytest.mark.parametrize("how", ["close", "unregister"])
@pytest.mark.parametrize("when", ["woken before", "interrupted before"])
def test_nobody_slept_any_more(how: str, when: str) -> None:
    assert ended(how, when=when) == [{}]


def test_a_process_that_dies_closes_nothing_under_its_threads() -> None:
    assert ended("die") == [{}]


def test_a_fault_after_the_next_registration_is_not_the_last_ones() -> None:
    events = started()
    events.unregister(0, 8)
    events.register(0, 8)
    events.fault(1)
    events.release_descriptor()
    events.wake(1)
    assert facts(events)[1] == {"CLOSED": 1}


def test_every_thread_counts() -> None:
    events = started()
    for thread in range(3):
        events.fault(thread, tid=THREAD + thread)
    events.unregister(0, 2)
    events.asleep(0)
    assert facts(events) == [{"UNREGISTERED": 2}]


# ---- what is still there at the end --------------------------------------------------------


def test_waiting_says_who_where_and_since_when() -> None:
    events = started()
    events.fault(1)
    since = len(events) * STEP_NS
    events.message(1)
    events.fault(3, Kind.MISSING, tid=THREAD + 1)
    later = len(events) * STEP_NS
    events.served(5, tid=THREAD + 2)
    events.asleep(0)
    events.asleep(THREAD)
    events.asleep(THREAD + 1)
    (row,) = counts(model_of(events))
    assert row["pending"] == 2
    assert row["waiting"] == [(1, THREAD, 1, since, True), (3, THREAD + 1, 0, later, False)]


def test_a_thread_that_was_killed_in_its_fault_does_not_wait() -> None:
    events = started()
    events.fault(1)
    events.fault_return(died=True)
    (row,) = counts(model_of(events))
    assert (row["pending"], row["waiting"], row["killed"]) == (0, [], [(1, THREAD, False)])


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("discard", {"discarded": 2}),
        ("zeropage", {"zeropage": 2}),
        ("merged", {"ksm-merge": 2}),
        ("swapped_back", {"swapoff": 1}),
        ("zero", {"zero-page-after-arm": 1}),
        ("arm", {}),
        ("release", {}),
        ("unregister", {}),
        ("copy", {}),
    ],
)
def test_exposed(what: str, expected: dict[str, int]) -> None:
    events = started()
    events.arm(0, 8, 0)
    getattr(events, what)(*((2,) if what in ("zero", "swapped_back") else (2, 2)))
    (row,) = counts(model_of(events))
    assert row["exposed"] == expected


def test_a_page_that_is_lost_is_not_exposed() -> None:
    events = started()
    events.arm(0, 8)
    events.discard(1, 2)
    events.fresh(1)
    (row,) = counts(model_of(events))
    assert (row["exposed"], row["causes"]) == ({"discarded": 1}, {"discarded": 1})


def test_exposed_when_the_memory_went() -> None:
    events = started()
    events.arm(0, 8)
    events.discard(1, 2)
    events.exit()
    (row,) = counts(model_of(events))
    assert row["exposed"] == {"discarded": 2}
