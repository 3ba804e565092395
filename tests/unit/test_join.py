"""Where calls end: the events that tell of it."""

from __future__ import annotations

from unit.events import THREAD, Events

from uffdtrace.model.account import join
from uffdtrace.model.records.batch import Batch
from uffdtrace.model.records.events import Ioctl

OTHER = 777


def ends(events: Events) -> list[int]:
    array = events.array()
    index, found = join.protections_of(Batch(array))
    assert (index[1:] > index[:-1]).all()
    return found.tolist()


def test_a_release_ends_as_its_thread_wakes_somebody() -> None:
    events = Events()
    events.call(Ioctl.WRITEPROTECT, 0, 1)
    events.protect(0, 1, on=False)
    events.wake(0, by=OTHER)
    events.wake(0, THREAD + 1, by=events.monitor)
    events.returned(Ioctl.WRITEPROTECT, 0, 1)
    assert ends(events) == [3]


def test_a_release_that_wakes_nobody_ends_with_its_call() -> None:
    events = Events()
    events.release(0, 1)
    assert ends(events) == [2]


def test_a_release_of_two_areas_ends_with_their_call() -> None:
    events = Events()
    events.call(Ioctl.WRITEPROTECT, 0, 2)
    events.protect(0, 1, on=False)
    events.protect(1, 1, on=False)
    events.returned(Ioctl.WRITEPROTECT, 0, 2)
    assert ends(events) == [3, 3]


def test_a_release_in_a_call_that_has_not_returned_is_open() -> None:
    events = Events()
    events.call(Ioctl.WRITEPROTECT, 0, 1)
    events.protect(0, 1, on=False)
    events.call(Ioctl.WAKE, 0, 1, tid=OTHER)
    events.returned(Ioctl.WAKE, 0, 1, tid=OTHER)
    assert ends(events) == [join.OPEN]


def test_a_release_by_close_waits_for_nothing() -> None:
    events = Events()
    events.release(0, 1)
    events.protect(0, 1, on=False)
    assert ends(events) == [2, join.LOST]
    # What its thread calls later has nothing to do with it.
    events.release(4, 1)
    assert ends(events) == [2, join.LOST, 6]


def test_an_arm_whose_return_was_lost_does_not_take_that_of_a_later_one() -> None:
    events = Events()
    events.call(Ioctl.WRITEPROTECT, 0, 1, 1)
    events.protect(0, 1)
    events.release(0, 1)
    events.protect(0, 1)
    events.protect_return(1)
    assert ends(events) == [join.LOST, 4, 6]
