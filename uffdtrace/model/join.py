"""Calls and their returns, joined, so that a call acts when it began, with its result known.

A fault that a call resolves runs on before the call returns, so effects must
stand where the call began; what it did is known only at its return.
"""

from __future__ import annotations

import numpy as np

from uffdtrace.model.events import EVENT, Array, Type

# A call that does not return must not hold the account back for ever: 64 MiB of events.
MOST_HELD = 1 << 20
OPEN = -2
LOST = -1


def returns_of(events: Array, call: Type, result: Type) -> tuple[Array, Array]:
    """(index of each call, index of its return, or LOST, or OPEN while it may still come)."""
    chosen = np.flatnonzero((events["type"] == call) | (events["type"] == result))
    order = chosen[np.argsort(events["tid"][chosen], kind="stable")]
    types, tids = events["type"][order], events["tid"][order]
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
        return np.concatenate(parts) if len(parts) > 1 else parts[0] if parts else np.empty(0, dtype=EVENT)

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
