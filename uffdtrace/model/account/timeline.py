"""What happened when: counts by stretches of time, in memory that does not grow with the trace."""

from __future__ import annotations

import numpy as np

from uffdtrace.model.account.dropped import DISCARDS
from uffdtrace.model.records.batch import Batch
from uffdtrace.model.records.events import Array, Type

SLOTS = 256
# A slot begins so short, and doubles when the trace is longer than all slots.
_FIRST_WIDTH_NS = 1_000_000
_LATEST = int(np.iinfo(np.int64).max)
SERIES = ("messages", "lost", "arms", "discards", "began", "ended")


class Timeline:
    """Counts of each of SERIES in SLOTS stretches of `width` ns, from the first event on.

    `began` and `ended` are faults: their sums up to a time make those that waited then.
    """

    def __init__(self) -> None:
        self.start: int | None = None
        self.width = _FIRST_WIDTH_NS
        self._counts = {name: np.zeros(SLOTS, dtype=np.int64) for name in SERIES}

    def feed(self, events: Batch) -> None:
        """The next events, in their order."""
        times = events["time"]
        if self.start is None and len(events):
            # A trace may claim any time: beyond this, numpy would count in doubles.
            self.start = min(int(times[0]), _LATEST)
        self.add("messages", times[events.of(Type.MESSAGE)])
        protects = events.of(Type.PROTECT)
        self.add("arms", times[protects[events["kind"][protects] == 1]])
        self.add("discards", times[DISCARDS[events["type"]]])

    def add(self, name: str, times: Array, counts: Array | None = None) -> None:
        """Something happened at these times (ns), once or as often as `counts` says."""
        if not len(times):
            return
        # A fault may be older than the first event that is here.
        since = np.maximum(times.astype(np.int64) - (self.start or 0), 0)
        while int(since.max()) >= SLOTS * self.width:
            self.width *= 2
            for kept in self._counts.values():
                kept[: SLOTS // 2] = kept.reshape(-1, 2).sum(axis=1)
                kept[SLOTS // 2 :] = 0
        slots = since // self.width
        if counts is None:
            self._counts[name] += np.bincount(slots, minlength=SLOTS)
        else:
            np.add.at(self._counts[name], slots, counts)

    def counts(self, name: str) -> Array:
        return self._counts[name]

    def waiting(self) -> Array:
        """How many faults waited at the end of each slot."""
        found: Array = np.cumsum(self._counts["began"] - self._counts["ended"])
        return found
