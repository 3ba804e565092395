"""What dropped the content of armed pages: which call, and whether an event told the monitor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uffdtrace.model.records.counting import among
from uffdtrace.model.records.events import Array, Dropping, Type

# include/uapi/asm-generic/mman-common.h; MADV_GUARD_INSTALL since 6.13 (662df3e5c376).
_ADVICE = {
    4: "MADV_DONTNEED",
    8: "MADV_FREE",
    9: "MADV_REMOVE",
    21: "MADV_PAGEOUT",
    24: "MADV_DONTNEED_LOCKED",
    102: "MADV_GUARD_INSTALL",
}
_ADVISED = (Dropping.MADVISE, Dropping.PROCESS_MADVISE)
DISCARDS = among((Type.DISCARD, Type.ZAP))
# What MADV_FREE frees stays until reclaim takes it, which nobody sees.
_LATER = 8


@dataclass(frozen=True)
class Dropped:
    """A call that dropped pages; `told` where it waited until the monitor had read a REMOVE event."""

    call: str
    told: bool


def dropping(event: Array) -> Dropped:
    """The call behind a DISCARD or ZAP event."""
    number, advice = int(event["aux"]), int(event["value"])
    call = Dropping(number).name.lower() if number in list(Dropping) else "a call that is not known"
    if number in _ADVISED:
        call = f"{call}({_ADVICE.get(advice, 'an advice that is not known')})"
    return Dropped(call, bool(event["kind"]))


def at_once(events: Array) -> Array:
    """Per DISCARD or ZAP event: whether the content is gone when the call returns."""
    advised = np.isin(events["aux"], _ADVISED)
    now: Array = ~(advised & (events["value"] == _LATER))
    return now


def by_call(events: Array, pages: Array) -> dict[Dropped, int]:
    """Pages dropped by each call; `pages` has the count of each of `events` (DISCARD or ZAP)."""
    total: dict[Dropped, int] = {}
    said = events[["aux", "value", "kind"]]
    for one in np.unique(said):
        call = dropping(one)
        total[call] = total.get(call, 0) + int(pages[said == one].sum())
    return total
