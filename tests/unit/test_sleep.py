"""Who sleeps in a fault and for how long, however the events are cut into batches."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.events import STEP_NS, THREAD, Events, counts, fed

from uffdtrace.model.account.facts import Fact
from uffdtrace.model.account.sleep import TOTAL
from uffdtrace.model.records.events import Array, Kind, Mode, Type

# Whatever the machine was that the events are of.
pytestmark = pytest.mark.usefixtures("any_page_size")


def started() -> Events:
    events = Events()
    events.userfaultfd()
    events.register(0, 8, 7)
    return events


def told(events: Events) -> tuple[object, object]:
    """(pending, waits in steps) of the only range, the same for every way to cut."""
    array = events.array()
    every = [[], list(range(len(array))), *([cut] for cut in range(len(array)))]
    every += [list(pair) for pair in itertools.combinations(range(4, len(array)), 2)]
    found = [counts(fed(array, cuts)) for cuts in every]
    for cuts, one in zip(every, found):
        assert one == found[0], f"cut at {cuts}"
    (row,) = found[0]
    return row["pending"], [wait[TOTAL] // STEP_NS for wait in row["waits"]]


def test_a_fault_that_was_served() -> None:
    events = started()
    events.served(1)
    assert told(events) == (0, [2])


def test_several_faults_of_one_thread() -> None:
    events = started()
    events.served(1)
    events.served(2, Kind.MISSING)
    events.fault(3)
    events.message(3)
    events.wake(3)
    assert told(events) == (0, [2, 2, 2])


def test_threads_at_once() -> None:
    events = started()
    for tid in range(3):
        events.fault(tid, tid=THREAD + tid)
    for tid in range(3):
        events.message(tid, tid=THREAD + tid)
    for tid in reversed(range(3)):
        events.wake(tid, tid=THREAD + tid)
    assert told(events) == (0, [4, 6, 8])


def test_an_interrupted_fault_is_neither_served_nor_pending() -> None:
    events = started()
    events.fault(1)
    events.message(1)
    events.fault_return()
    assert told(events) == (0, [])


def test_a_fault_interrupted_and_taken_again() -> None:
    events = started()
    events.fault(1)
    events.message(1)
    events.fault_return()
    events.served(1)
    assert told(events) == (0, [2])


def test_the_next_fault_tells_that_the_one_before_is_over() -> None:
    # Its wake-up was dropped.
    events = started()
    events.fault(1)
    events.message(1)
    events.served(2)
    assert told(events) == (0, [2])


def test_a_fault_whose_message_nobody_read_has_no_latency() -> None:
    events = started()
    events.fault(1)
    events.wake(1)
    events.fault_return()
    assert told(events) == (0, [])


def test_a_message_after_the_wake_is_no_queueing_time() -> None:
    # UFFDIO_WAKE without a read, then a read of another fault of that thread's.
    events = started()
    events.fault(1)
    events.wake(1)
    events.message(1)
    pending, _ = told(events)
    assert pending == 0


def test_what_belongs_to_faults_older_than_the_trace() -> None:
    events = started()
    events.message(1)
    events.wake(1)
    events.fault_return()
    events.served(2)
    assert told(events) == (0, [2])


def test_a_fault_that_cannot_sleep() -> None:
    events = started()
    events.fault(1, ret=1)
    assert told(events) == (0, [])
    assert counts(fed(events.array()))[0]["faults"] == [0, 0, 0]


def test_pending_while_the_thread_sleeps() -> None:
    events = started()
    events.fault(1)
    events.message(1)
    events.fault(2, tid=THREAD + 1)
    events.asleep(0)
    events.asleep(THREAD)
    # The second one woke up unseen.
    assert told(events) == (1, [])


def test_pending_is_unknown_where_nobody_looked() -> None:
    events = started()
    events.fault(1)
    assert told(events) == (None, [])


def killed(events: Events) -> list[tuple[int, int, int]]:
    """(tid, steps that it waited, whether its message was read) of each fault whose thread was killed."""
    told(events)
    (row,) = fed(events.array()).rows()
    return [(fault.tid, (fault.until - fault.since) // STEP_NS, int(fault.read)) for fault in row.killed]


def test_a_thread_that_was_killed_in_its_fault_sleeps_no_more() -> None:
    events = started()
    events.fault(1)
    events.add(0)
    events.fault_return(died=True)
    events.fault(2, tid=THREAD + 1)
    events.message(2, tid=THREAD + 1)
    events.fault_return(tid=THREAD + 1, died=True)
    events.add(0)
    assert told(events) == (0, [])
    assert killed(events) == [(THREAD, 2, 0), (THREAD + 1, 2, 1)]


def test_a_process_that_ended_takes_its_threads_along() -> None:
    # The returns were not seen.
    events = started()
    events.fault(1)
    events.fault(2, tid=THREAD + 1)
    events.wake(2, tid=THREAD + 1)
    events.exit()
    events.add(0)
    assert told(events) == (0, [])
    assert killed(events) == [(THREAD, 3, 0)]


def test_another_process_waits_on_where_the_memory_went() -> None:
    events = started()
    events.fault(1)
    events.owner, owner = THREAD + 50, events.owner
    events.fault(2, tid=THREAD + 50)
    events.owner = owner
    events.exit()
    assert told(events)[0] is None
    assert killed(events) == [(THREAD, 2, 0)]


def test_a_thread_that_was_served_before_it_was_killed_was_not_killed_in_its_fault() -> None:
    events = started()
    events.fault(1)
    events.message(1)
    events.wake(1)
    events.fault_return(died=True)
    assert told(events) == (0, [2])
    assert killed(events) == []


def test_a_died_thread_beside_an_unknown_one() -> None:
    events = started()
    events.fault(1)
    events.fault_return(died=True)
    events.fault(2, tid=THREAD + 1)
    assert told(events) == (None, [])


def phases(events: Events) -> list[tuple[int | None, ...]]:
    """(queue, service, total, wake-up) in steps of each fault served, the same for every way to cut."""
    told(events)
    (row,) = counts(fed(events.array()))
    return [tuple(None if part is None else part // STEP_NS for part in wait) for wait in row["waits"]]


def test_the_phases_of_a_fault() -> None:
    events = started()
    events.fault(1)
    events.add(0)
    events.message(1)
    events.add(0)
    events.add(0)
    events.wake(1)
    events.add(0)
    events.add(0)
    events.add(0)
    events.fault_return()
    assert phases(events) == [(2, 3, 5, 4)]


def test_a_wake_up_that_was_not_seen_is_unknown() -> None:
    # The thread's next fault came, or the trace ended, before its return was seen.
    events = started()
    events.fault(1)
    events.message(1)
    events.wake(1)
    events.fault(2)
    events.message(2)
    events.wake(2)
    assert phases(events) == [(1, 1, 2, None), (1, 1, 2, None)]


def test_a_thread_that_dies_when_it_is_woken_ran_on_nowhere() -> None:
    events = started()
    events.fault(1)
    events.message(1)
    events.wake(1)
    events.fault_return(died=True)
    assert phases(events) == [(1, 1, 2, None)]


def test_a_wake_up_while_others_go_on() -> None:
    events = started()
    events.fault(1)
    events.message(1)
    events.wake(1)
    events.served(2, tid=THREAD + 1)
    events.fault_return()
    assert phases(events) == [(1, 1, 2, 1), (1, 1, 2, 5)]


Step = tuple[int, str]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["fault", "message", "wake", "return"])), max_size=25),
    st.lists(st.integers(0, 40), max_size=5),
)
def test_threads_do_not_mix(history: list[Step], cuts: list[int]) -> None:
    """Each thread alone, added up, is all of them together, wherever the batches end."""

    def play(only: set[int]) -> Events:
        events = started()
        state = [0] * 4
        for thread, what in history:
            # What a kernel can say: a message while the thread sleeps, once; a wake ends it.
            allowed = {"fault": state[thread] == 0, "message": state[thread] == 1}.get(what, state[thread] > 0)
            if not allowed:
                continue
            state[thread] = {"fault": 1, "message": 2}.get(what, 0)
            if thread not in only:
                events.add(0)
                continue
            tid = THREAD + thread
            if what == "fault":
                events.fault(thread, tid=tid)
            elif what == "message":
                events.message(thread, tid=tid)
            elif what == "wake":
                events.wake(thread, tid)
            else:
                events.fault_return(tid)
        return events

    def waits(array: Array, cuts: list[int]) -> list[int]:
        (row,) = counts(fed(array, [cut for cut in cuts if cut < len(array)]))
        return sorted(wait[TOTAL] for wait in row["waits"])

    together = waits(play({0, 1, 2, 3}).array(), cuts)
    assert together == sorted(itertools.chain(*(waits(play({one}).array(), []) for one in range(4))))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_fault_of_a_storm_has_its_wait(count: int) -> None:
    events = started()
    for number in range(count):
        events.served(number % 8)
    assert told(events) == (0, [2] * count)


# ---- faults from before the trace --------------------------------------------------


@pytest.mark.parametrize("read", [False, True])
def test_one_that_waits_since_before_the_trace(read: bool) -> None:
    events = started()
    events.fault_found(1, read=read)
    events.asleep(THREAD)
    assert told(events) == (1, [])
    (row,) = fed(events.array()).rows()
    assert [(fault.since, fault.read, fault.kind) for fault in row.waiting] == [(None, read, Kind.WP)]


def test_one_whose_message_is_read_in_the_trace() -> None:
    events = started()
    events.fault_found(1, read=False)
    events.message(1)
    events.asleep(THREAD)
    (row,) = fed(events.array()).rows()
    assert [fault.read for fault in row.waiting] == [True]


def test_one_that_is_served_in_the_trace_has_no_latency() -> None:
    events = started()
    events.fault_found(1)
    events.wake(1)
    assert told(events) == (0, [])
    (home,) = fed(events.array()).userfaultfds
    assert home.served_later == 1


def test_what_is_known_better_is_not_found() -> None:
    """The queue was looked at after the thread's fault had begun in the trace."""
    events = started()
    events.fault(1)
    events.fault_found(1, read=False)
    events.message(1)
    events.wake(1)
    events.fault_return()
    assert told(events) == (0, [3])


def test_a_thread_that_was_served_and_faults_again() -> None:
    events = started()
    events.fault_found(1)
    events.wake(1)
    events.served(2)
    assert told(events) == (0, [2])


def test_one_that_was_answered_unseen_is_not_pending() -> None:
    """Between the look and the first event that was recorded."""
    events = started()
    events.fault_found(1)
    events.asleep(0)
    assert told(events) == (0, [])


def test_one_that_sleeps_still_is_not_told_twice() -> None:
    events = started()
    events.add(Type.WAITERS_FOUND, aux=0, value=1)
    events.add(Type.SLEEPER_FOUND, tid=THREAD, tgid=events.owner)
    events.fault_found(1)
    events.asleep(THREAD)
    model = fed(events.array())
    (row,), (home,) = model.rows(), model.userfaultfds
    assert (row.pending, home.listed, home.still_asleep) == (1, [THREAD], [])


def test_one_whose_userfaultfd_is_closed() -> None:
    events = started()
    events.fault_found(1)
    events.release_descriptor()
    events.wake(1)
    (row,) = fed(events.array()).rows()
    assert row.facts[Fact.CLOSED] == 1


@pytest.mark.parametrize("answer", ["copy", "release"])
def test_an_answer_to_one_loses_nothing(answer: str) -> None:
    """The monitor had read of the write: without protection is how it lets the page go."""
    events = Events()
    events.userfaultfd()
    events.range_found(0, 8, Mode.WP | Mode.MISSING, tells=True)
    events.pages_found(0, 8)
    events.fault_found(1)
    if answer == "copy":
        events.copy(1)
    else:
        events.release(1, 1)
    (row,) = fed(events.array()).rows()
    assert row.count("blind") == row.count("observed") == 0
    # Beside it nobody was told.
    events.copy(3)
    (row,) = fed(events.array()).rows()
    assert row.count("blind") == 1
