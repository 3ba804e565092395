"""Calls and their returns, joined, so that a call acts when it began, with its result known.

A fault that a call resolves runs on before the call returns, so effects must
stand where the call began; what it did is known only at its return.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uffdtrace.model.records.batch import Batch
from uffdtrace.model.records.counting import among, goes_on, ordered
from uffdtrace.model.records.events import Array, Type

# A call that does not return must not hold the account back for ever: 64 MiB of events.
MOST_HELD = 1 << 20
OPEN = -2
LOST = -1


@dataclass(frozen=True)
class Returned:
    """Calls that returned: the index of each, that of its return, and the returns themselves."""

    calls: Array
    returns: Array
    results: Batch


# What tells that a release of the same thread is over, or whether it is within a call.
_AROUND_A_RELEASE = among((Type.IOCTL, Type.IOCTL_RETURN, Type.WAKE))


def returns_of(events: Batch, call: Type, result: Type) -> tuple[Array, Array]:
    """(index of each call, index of its return, or LOST, or OPEN while it may still come)."""
    calls, results, types = events.of(call), events.of(result), events["type"]
    if not calls.size:
        return calls, calls
    chosen = np.sort(np.concatenate([calls, results]), kind="stable")
    tids = events["tid"][chosen]
    by_thread = ordered(tids)
    order = chosen
    if by_thread is not None:
        order, tids = chosen[by_thread], tids[by_thread]
    is_call = types[order] == call
    calls = np.flatnonzero(is_call)
    followed = goes_on(tids)[calls]
    following = np.minimum(calls + 1, len(order) - 1)
    returned = followed & ~is_call[following]
    found = np.where(returned, order[following], np.where(followed, LOST, OPEN))
    index = order[calls]
    by_time = ordered(index)
    return (index, found) if by_time is None else (index[by_time], found[by_time])


def protections_of(events: Batch) -> tuple[Array, Array]:
    """(index of each PROTECT, index of the event that tells of its end, or LOST, or OPEN while that may still come).

    An arm has a return of its own, for what it found counts. A release is over when its
    thread wakes somebody, or when the call returns in which it is: that comes a little
    later than it was, and no page can be protected anew in between because of it.
    """
    index = events.of(Type.PROTECT)
    released = events["kind"][index] == 0
    if released.all():
        found = np.full(len(index), LOST)
    else:
        _, found = returns_of(events, Type.PROTECT, Type.PROTECT_RETURN)
    if released.any():
        found[released] = _ends_of_releases(events, index[released])
    return index, found


def _ends_of_releases(events: Batch, releases: Array) -> Array:
    """For each of `releases` (indices, ascending) the index of the event that ends it, LOST or OPEN."""
    types = events["type"]
    wanted = _AROUND_A_RELEASE[types]
    wanted[releases] = True
    chosen = np.flatnonzero(wanted)
    # A WAKE is an act of the thread in its value.
    threads = np.where(types[chosen] == Type.WAKE, events["value"][chosen].astype(np.uint32), events["tid"][chosen])
    by_thread = ordered(threads)
    order = chosen
    if by_thread is not None:
        order, threads = chosen[by_thread], threads[by_thread]
    types = types[order]
    own = types == Type.PROTECT
    place = np.arange(len(order))
    # The next place with something else than a release, and the last with the begin or the end of a call.
    following = np.minimum.accumulate(np.where(own, len(order), place)[::-1])[::-1]
    preceding = np.maximum.accumulate(np.where(own | (types == Type.WAKE), -1, place))
    at = np.flatnonzero(own)
    after, before = np.minimum(following[at], len(order) - 1), np.maximum(preceding[at], 0)
    followed = (following[at] < len(order)) & (threads[after] == threads[at])
    within = (preceding[at] >= 0) & (threads[before] == threads[at]) & (types[before] == Type.IOCTL)
    over = followed & (types[after] != Type.IOCTL)
    found = np.where(over, order[after], np.where(within & ~followed, OPEN, LOST))
    by_time = ordered(order[at])
    ends: Array = found if by_time is None else found[by_time]
    return ends


class Held:
    """Events that are not accounted for yet: a call that has not returned holds back all that came since it began."""

    def __init__(self) -> None:
        self._parts: list[Batch] = []
        self._size = 0
        # The thread of such a call, 0 for none, and how many events waited when its return was last looked for.
        self._blocker = 0
        self._looked_through = 0

    def add(self, events: Batch) -> bool:
        """Hold more; whether it is time to look through all of them.

        To look with each batch would take time that grows with the square of what
        waits: it is looked where the thread did something, or twice as many wait.
        """
        self._parts.append(events)
        self._size += len(events)
        many = self._size >= min(2 * self._looked_through, MOST_HELD)
        return not self._blocker or many or bool((events["tid"] == self._blocker).any())

    def take(self) -> Batch:
        """All of them, which are held no more."""
        parts, self._parts, self._size = self._parts, [], 0
        return Batch.joined(parts)

    def keep(self, events: Batch, blocker: int) -> None:
        """Hold what a call of the thread `blocker` (0 for nobody's) keeps from being accounted for."""
        self._parts, self._size = [events.settled()], len(events)
        self._blocker, self._looked_through = blocker, len(events)


def not_within(ready: int, *calls: tuple[Array, Array]) -> int:
    """The largest place up to `ready` that is within no call: what happens in one must be seen with it."""
    while True:
        across = [int(one) for index, found in calls for one in index[(index < ready) & (found >= ready)]]
        if not across:
            return ready
        ready = min(across)
