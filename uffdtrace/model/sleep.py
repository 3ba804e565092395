"""Who sleeps in a fault, and for how long."""

from __future__ import annotations

import numpy as np

from uffdtrace.model.events import EVENT, Array, Type

_TYPES = np.array([Type.FAULT, Type.MESSAGE, Type.WAKE, Type.FAULT_RETURN], dtype=np.uint8)


def _first(segments: Array, times: Array, mask: Array, count: int) -> Array:
    """Time of the first event under `mask` in each of `count` segments, 0 for none."""
    found = np.zeros(count, dtype=np.int64)
    numbers, index = np.unique(segments[mask], return_index=True)
    found[numbers] = times[mask][index]
    return found


class Sleepers:
    """Matches each fault with its message and its wake-up, thread by thread.

    A thread sleeps in one fault at a time, so what follows a fault up to the
    thread's next one belongs to it.
    """

    def __init__(self) -> None:
        self._open = np.empty(0, dtype=EVENT)
        self._open_ranges = np.empty(0, dtype=np.int64)

    def feed(self, events: Array, ranges: Array) -> tuple[Array, Array]:
        """Take a batch; (range number, [queue, service, total] in ns) of each fault served.

        `ranges` has the range number of every event of the batch.
        """
        wanted = np.isin(events["type"], _TYPES) & ~((events["type"] == Type.FAULT) & (events["ret"] != 0))
        events = np.concatenate([self._open, events[wanted]])
        numbers = np.concatenate([self._open_ranges, ranges[wanted]])
        order = np.argsort(events["tid"], kind="stable")
        events, numbers = events[order], numbers[order]
        faults = events["type"] == Type.FAULT
        # Before a thread's first fault: of faults older than the trace.
        segments = np.cumsum(faults) - 1
        first_of_thread = np.r_[True, events["tid"][1:] != events["tid"][:-1]] if len(events) else faults
        started = (
            np.maximum.accumulate(np.where(first_of_thread, np.arange(len(events)), 0)) if len(events) else segments
        )
        heads = np.flatnonzero(faults)
        orphan = (
            (segments < 0) | (heads[np.maximum(segments, 0)] < started) if heads.size else np.ones(len(events), bool)
        )
        events, numbers, segments, faults = events[~orphan], numbers[~orphan], segments[~orphan], faults[~orphan]
        count = int(faults.sum())
        times = events["time"].astype(np.int64)
        began = times[faults]
        read = _first(segments, times, events["type"] == Type.MESSAGE, count)
        woken = _first(segments, times, events["type"] == Type.WAKE, count)
        # A thread that dies in its fault was not served: it stays, as proof.
        returned = _first(segments, times, (events["type"] == Type.FAULT_RETURN) & (events["kind"] == 0), count)
        tids = events["tid"][faults]
        superseded = np.r_[tids[1:] == tids[:-1], False] if count else np.zeros(0, bool)
        still = (woken == 0) & (returned == 0) & ~superseded
        keep = still[segments] if count else np.zeros(len(events), bool)
        self._open, self._open_ranges = events[keep], numbers[keep]
        # Where the message was read only after the wake-up, nobody waited for it.
        served = (read > 0) & (woken >= read)
        waits = np.stack([read - began, woken - read, woken - began], axis=1)[served]
        return numbers[faults][served], waits

    def pending(self, asleep: set[int], looked_at: set[int]) -> tuple[Array, Array]:
        """Range numbers of the faults that nobody resolved, and of those that may be.

        `looked_at` are the tgids that still lived at the end, `asleep` their
        threads that were seen in handle_userfault(). Of a process that was gone
        by then, a thread's return tells that it died in its fault.
        """
        faults = self._open["type"] == Type.FAULT
        tids, tgids = self._open["tid"][faults], self._open["tgid"][faults]
        numbers = self._open_ranges[faults]
        alive = np.isin(tgids, list(looked_at))
        died = np.isin(tids, self._open["tid"][self._open["type"] == Type.FAULT_RETURN])
        sure = np.where(alive, np.isin(tids, list(asleep)), died)
        return numbers[sure], numbers[~alive & ~died]
