"""Calls and their returns, joined, so that a call acts when it began, with its result known.

A fault that a call resolves runs on before the call returns, so effects must
stand where the call began; what it did is known only at its return.
"""

from __future__ import annotations

import numpy as np

from uffdtrace.model.events import Array, Type, joined

# A call that does not return must not hold the account back for ever: 64 MiB of events.
MOST_HELD = 1 << 20
OPEN = -2
LOST = -1


def returns_of(events: Array, types: Array, call: Type, result: Type) -> tuple[Array, Array]:
    """(index of each call, index of its return, or LOST, or OPEN while it may still come).

    `types` are those of the events, side by side in memory.
    """
    chosen = np.flatnonzero((types == call) | (types == result))
    tids = events["tid"][chosen]
    by_thread = np.argsort(tids, kind="stable")
    order, tids = chosen[by_thread], tids[by_thread]
    types = types[order]
    calls = np.flatnonzero(types == call)
    following = calls + 1
    inside = following < len(order)
    safe = np.where(inside, following, 0)
    same_thread = inside & (tids[safe] == tids[calls]) if len(order) else inside
    returned = same_thread & (types[safe] == result) if len(order) else inside
    found = np.where(returned, order[safe] if len(order) else 0, np.where(same_thread, LOST, OPEN))
    index = order[calls]
    by_time = np.argsort(index)
    return index[by_time], found[by_time]


def protections_of(events: Array, types: Array) -> tuple[Array, Array]:
    """(index of each PROTECT, index of the event that tells of its end, or LOST, or OPEN while that may still come).

    An arm has a return of its own, for what it found counts. A release is over when its
    thread wakes somebody, or when the call returns in which it is: that comes a little
    later than it was, and no page can be protected anew in between because of it.
    """
    index, found = returns_of(events, types, Type.PROTECT, Type.PROTECT_RETURN)
    released = events["kind"][index] == 0
    if released.any():
        found[released] = _ends_of_releases(events, types, index[released])
    return index, found


def _ends_of_releases(events: Array, types: Array, releases: Array) -> Array:
    """For each of `releases` (indices, ascending) the index of the event that ends it, LOST or OPEN."""
    own = np.zeros(len(events), dtype=bool)
    own[releases] = True
    chosen = np.flatnonzero((types == Type.IOCTL) | (types == Type.IOCTL_RETURN) | (types == Type.WAKE) | own)
    # A WAKE is an act of the thread in its value.
    threads = np.where(types[chosen] == Type.WAKE, events["value"][chosen], events["tid"][chosen])
    by_thread = np.argsort(threads, kind="stable")
    order, threads = chosen[by_thread], threads[by_thread]
    types, own = types[order], own[order]
    place = np.arange(len(order))
    # The next place with something else than a release, and the last with the begin or the end of a call.
    following = np.minimum.accumulate(np.where(own, len(order), place)[::-1])[::-1]
    preceding = np.maximum.accumulate(np.where((types == Type.IOCTL) | (types == Type.IOCTL_RETURN), place, -1))
    at = np.flatnonzero(own)
    after, before = np.minimum(following[at], len(order) - 1), np.maximum(preceding[at], 0)
    followed = (following[at] < len(order)) & (threads[after] == threads[at])
    within = (preceding[at] >= 0) & (threads[before] == threads[at]) & (types[before] == Type.IOCTL)
    over = followed & (types[after] != Type.IOCTL)
    found = np.where(over, order[after], np.where(within & ~followed, OPEN, LOST))
    ends: Array = found[np.argsort(order[at])]
    return ends


class Held:
    """Events that are not accounted for yet: a call that has not returned holds back all that came since it began."""

    def __init__(self) -> None:
        self._parts: list[Array] = []
        self._size = 0
        # The thread of such a call, 0 for none, and how many events waited when its return was last looked for.
        self._blocker = 0
        self._looked_through = 0

    def add(self, events: Array) -> bool:
        """Hold more; whether it is time to look through all of them.

        To look with each batch would take time that grows with the square of what
        waits: it is looked where the thread did something, or twice as many wait.
        """
        self._parts.append(events)
        self._size += len(events)
        many = self._size >= min(2 * self._looked_through, MOST_HELD)
        return not self._blocker or many or bool((events["tid"] == self._blocker).any())

    def take(self) -> Array:
        """All of them, which are held no more."""
        parts, self._parts, self._size = self._parts, [], 0
        return joined(parts)

    def keep(self, events: Array, blocker: int) -> None:
        """Hold what a call of the thread `blocker` (0 for nobody's) keeps from being accounted for."""
        self._parts, self._size = [events.copy()], len(events)
        self._blocker, self._looked_through = blocker, len(events)


def not_within(ready: int, *calls: tuple[Array, Array]) -> int:
    """The largest place up to `ready` that is within no call: what happens in one must be seen with it."""
    while True:
        across = [int(one) for index, found in calls for one in index[(index < ready) & (found >= ready)]]
        if not across:
            return ready
        ready = min(across)
