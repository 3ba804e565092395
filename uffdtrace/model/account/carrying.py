"""What a page's state becomes where it goes on elsewhere: in another range, or in a forked child."""

from __future__ import annotations

import numpy as np

from uffdtrace.model.account.pages import (
    ARMED,
    BARE,
    BLIND,
    DOUBT,
    ELSEWHERE,
    EVER_ARMED,
    FILED,
    FULL,
    NOTIFIED,
    OBSERVED,
    SETTLED,
    WHY_SHIFT,
)
from uffdtrace.model.records.events import Array

_WHY = 15 << WHY_SHIFT


def carried_bits(before: Array, kept: Array) -> Array:
    """Bits of pages that a second registration takes into another range; see states.carry()."""
    kept = kept & (EVER_ARMED | NOTIFIED)
    moved = before & ~np.uint32(EVER_ARMED | NOTIFIED)
    counted = (moved & (OBSERVED | BLIND | BARE | FILED)) != 0
    armed = (moved & (ARMED | DOUBT)) != 0
    marks = np.where(armed, EVER_ARMED, 0) | np.where(counted, ELSEWHERE, 0)
    after = moved | kept | marks.astype(np.uint32)
    settled = (before & EVER_ARMED != 0) & (after & EVER_ARMED == 0)
    return np.where(after & EVER_ARMED != 0, after & ~np.uint32(SETTLED), after | settled * np.uint32(SETTLED))


def inherited_bits(bits: Array) -> Array:
    """Bits of the pages of a forked child; see states.inherit()."""
    kept = bits & np.uint32(ARMED | BARE | FILED | FULL | DOUBT | _WHY)
    armed = (kept & (ARMED | DOUBT)) != 0
    counted = (kept & (BARE | FILED)) != 0
    marks = np.where(armed, EVER_ARMED, 0) | np.where(counted, ELSEWHERE, 0)
    # What it never armed it need not explain.
    return np.where(armed, kept | marks.astype(np.uint32), np.uint32(0))
