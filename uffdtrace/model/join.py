"""Calls and their returns, joined, so that a call acts when it began, with its result known.

A fault that a call resolves runs on before the call returns, so effects must
stand where the call began; what it did is known only at its return.
"""

from __future__ import annotations

import numpy as np

from uffdtrace.model.events import Array, Type

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


def not_within(ready: int, *calls: tuple[Array, Array]) -> int:
    """The largest place up to `ready` that is within no call: what happens in one must be seen with it."""
    while True:
        across = [int(one) for index, found in calls for one in index[(index < ready) & (found >= ready)]]
        if not across:
            return ready
        ready = min(across)
