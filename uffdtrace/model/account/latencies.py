"""How long the served faults of a range waited, in memory that does not grow with them."""

from __future__ import annotations

import numpy as np

from uffdtrace.model.account.sleep import TOTAL
from uffdtrace.model.records.events import Array

# As many waits are kept as they are; beyond that all go into buckets.
MOST_EXACT = 4096
# A fault that took that long was served slowly.
SLOW_NS = 50_000_000
PHASES = 4
# Parts of each power of two, as HdrHistogram has them: the middle of a bucket is off by 1/32 at most.
PARTS = 16
_NS_PER_US = 1000.0
# A double's bits above its upper four of the fraction are its power of two and the sixteenth of it.
_PARTS_SHIFT = 48
# The first bucket begins at 2^-10 µs; 2^54 µs, where the last one ends, is more than u64 has ns.
_FIRST_POWER = -10
_BUCKETS = 64 * PARTS
_FIRST = (1023 + _FIRST_POWER) * PARTS
# Where bucket i begins, in µs; its end is the next one's begin.
BEGINS_US = (np.arange(_FIRST, _FIRST + _BUCKETS + 1) << _PARTS_SHIFT).view(np.float64)


def buckets(waits: Array) -> Array:
    """The bucket of each wait (ns)."""
    # Not frexp() or log2(): numpy's vectorized ones crash on emulated CPUs.
    bits = (waits.astype(np.float64) / _NS_PER_US).view(np.int64) >> _PARTS_SHIFT
    return np.clip(bits - _FIRST, 0, _BUCKETS - 1)


class Latencies:
    """Waits in ns, by the columns of sleep.py: QUEUE, SERVICE, TOTAL, WAKEUP (NaN where it is not known)."""

    def __init__(self) -> None:
        self._rows: list[Array] = []
        self._kept = 0
        self._counts: Array | None = None
        self._most = np.zeros(PHASES)
        # How many there are, and how many took SLOW_NS or more.
        self.faults = 0
        self.slow = 0

    def add(self, rows: Array) -> None:
        """More waits (n, 4)."""
        self._rows.append(rows)
        self._kept += len(rows)
        self.faults += len(rows)
        self.slow += int(np.count_nonzero(rows[:, TOTAL] >= SLOW_NS))
        if self._kept > MOST_EXACT:
            self._fold()

    def absorb(self, other: Latencies) -> None:
        self._rows += other._rows
        self._kept += other._kept
        self.faults += other.faults
        self.slow += other.slow
        self._most = np.maximum(self._most, other._most)
        if other._counts is not None:
            self._counts = other._counts if self._counts is None else self._counts + other._counts

    def exact(self) -> Array | None:
        """All waits (n, 4), or None where there are too many."""
        if self.faults > MOST_EXACT:
            return None
        return np.concatenate(self._rows) if self._rows else np.empty((0, PHASES))

    def counts(self, phase: int) -> Array:
        """How many waits of a phase lie in each bucket."""
        self._fold()
        assert self._counts is not None
        found: Array = self._counts[phase]
        return found

    def most(self, phase: int) -> float:
        """The longest of those in buckets (ns), exactly."""
        self._fold()
        return float(self._most[phase])

    def _fold(self) -> None:
        """Put what is kept into buckets."""
        if self._counts is None:
            self._counts = np.zeros((PHASES, _BUCKETS), dtype=np.int64)
        if not self._rows:
            return
        rows = np.concatenate(self._rows)
        self._rows, self._kept = [], 0
        for phase in range(PHASES):
            waits = rows[:, phase]
            waits = waits[~np.isnan(waits)]
            self._counts[phase] += np.bincount(buckets(waits), minlength=_BUCKETS)
            self._most[phase] = max(self._most[phase], waits.max(initial=0))
