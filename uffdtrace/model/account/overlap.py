"""Calls that overlap on a page: nobody can tell which of them took effect last (kernel-semantics.md section 9)."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from uffdtrace.model.records.counting import ordered
from uffdtrace.model.records.events import Array, joined, picked


class Effect(IntEnum):
    """What an act leaves of a page. Two acts of one effect leave the same, whichever comes last."""

    ARMED = 1
    RELEASED = 2
    # Filled without protection.
    FILLED = 3
    EMPTIED = 4


# A page that is let go stays so if it is emptied, too.
_COMMUTE = {(Effect.RELEASED, Effect.EMPTIED), (Effect.EMPTIED, Effect.RELEASED)}

# A call that acts on pages [start, end) of ctx: `index` of its event in the batch, when it began and returned (ns).
ACT = np.dtype(
    [
        ("index", "<i8"),
        ("ctx", "<u8"),
        ("start", "<u8"),
        ("end", "<u8"),
        ("began", "<u8"),
        ("returned", "<u8"),
        ("tid", "<u4"),
        ("effect", "u1"),
    ]
)
# The time of a return that was not seen.
NEVER = np.iinfo(np.uint64).max
# Of an act that an earlier batch began.
EARLIER = -1
# Pairs that are compared at once: memory must not grow with how many calls are open.
_MOST_PAIRS = 1 << 20


def _conflicts() -> Array:
    size = max(Effect) + 1
    table: Array = np.ones((size, size), dtype=bool)
    for one in Effect:
        for other in Effect:
            table[one, other] = one is not other and (one, other) not in _COMMUTE
    return table


_CONFLICTS = _conflicts()


class Overlaps:
    """Finds overlapping acts, batch by batch."""

    def __init__(self) -> None:
        self._open = np.empty(0, dtype=ACT)

    def matters(self, began: Array, returned: Array, until: int) -> Array:
        """Which of a batch's acts (ns, ns) overlap any in time or are open at its end; the others need not be fed."""
        order = ordered(began)
        if order is not None:
            began, returned = began[order], returned[order]
        some = returned > until
        before = np.maximum.accumulate(returned)
        # An act stands alone where all before it have returned when it begins, and it has when the next one does.
        some[1:] |= before[:-1] > began[1:]
        some[:-1] |= returned[:-1] > began[1:]
        if len(self._open):
            some |= int(self._open["returned"].max()) > began
        found = np.flatnonzero(some)
        return found if order is None else np.sort(order[found])

    def feed(self, acts: Array, until: int) -> Array:
        """Take the acts of a batch (dtype ACT); the parts of them that overlap one that began before (dtype ACT).

        `until` is the time (ns) of the batch's last event. A part has its later
        act's index: from there on the order is not known.
        """
        acts = joined([self._open, acts])
        acts = picked(acts, np.argsort(acts["began"], kind="stable"))
        parts = _overlapping(acts)
        self._open = acts[acts["returned"] > until]
        self._open["index"] = EARLIER
        later: Array = parts[parts["index"] != EARLIER]
        return later


def _overlapping(acts: Array) -> Array:
    """Pairs of acts, as parts of the later one; `acts` in the order in which they began."""
    if len(acts) < 2:
        return acts[:0]
    # The acts that began during one follow it: up to `last`.
    last = np.searchsorted(acts["began"], acts["returned"], side="left")
    behind = np.maximum(last - np.arange(len(acts)) - 1, 0)
    parts = []
    shares = np.cumsum(behind) // _MOST_PAIRS
    for chosen in np.split(np.arange(len(acts)), np.flatnonzero(np.diff(shares)) + 1):
        count = behind[chosen]
        first = np.repeat(chosen, count)
        second = first + 1 + np.arange(len(first)) - np.repeat(np.cumsum(count) - count, count)
        one, other = acts[first], acts[second]
        hit = (one["ctx"] == other["ctx"]) & (one["start"] < other["end"]) & (other["start"] < one["end"])
        # A thread makes one call at a time.
        hit &= (one["tid"] != other["tid"]) & _CONFLICTS[one["effect"], other["effect"]]
        part = other[hit]
        part["start"] = np.maximum(part["start"], one["start"][hit])
        part["end"] = np.minimum(part["end"], one["end"][hit])
        parts.append(part)
    found: Array = np.concatenate(parts)
    return found
