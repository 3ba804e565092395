"""What dropped the content of armed pages: which call, and whether an event told the monitor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uffdtrace.model.records.counting import among
from uffdtrace.model.records.events import Array, Type

# Calls that can drop pages of a mapping, by their numbers on each machine, as uname(1) calls it:
# arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
_CALLS = {
    "x86_64": {28: "madvise", 76: "truncate", 77: "ftruncate", 285: "fallocate", 440: "process_madvise"},
    "aarch64": {233: "madvise", 45: "truncate", 46: "ftruncate", 47: "fallocate", 440: "process_madvise"},
}
# include/uapi/asm-generic/mman-common.h; MADV_GUARD_INSTALL since 6.13 (662df3e5c376).
_ADVICE = {
    4: "MADV_DONTNEED",
    8: "MADV_FREE",
    9: "MADV_REMOVE",
    21: "MADV_PAGEOUT",
    24: "MADV_DONTNEED_LOCKED",
    102: "MADV_GUARD_INSTALL",
}
_ADVISED = ("madvise", "process_madvise")
DISCARDS = among((Type.DISCARD, Type.ZAP))
# What MADV_FREE frees stays until reclaim takes it, which nobody sees.
_LATER = 8


@dataclass(frozen=True)
class Dropped:
    """A call that dropped pages; `told` where it waited until the monitor had read a REMOVE event."""

    call: str
    told: bool


def _calls(arch: str) -> dict[int, str]:
    """On any other machine no number means a call that we know."""
    return _CALLS.get(arch, {})


def dropping(event: Array, arch: str) -> Dropped:
    """The call behind a DISCARD or ZAP event of that machine."""
    number, advice = int(event["aux"]), int(event["value"])
    call = _calls(arch).get(number, "a call that is not known")
    if call in _ADVISED:
        call = f"{call}({_ADVICE.get(advice, 'an advice that is not known')})"
    return Dropped(call, bool(event["kind"]))


def at_once(events: Array, arch: str) -> Array:
    """Per DISCARD or ZAP event: whether the content is gone when the call returns."""
    advised = np.isin(events["aux"], [number for number, call in _calls(arch).items() if call in _ADVISED])
    now: Array = ~(advised & (events["value"] == _LATER))
    return now


def by_call(events: Array, pages: Array, arch: str) -> dict[Dropped, int]:
    """Pages dropped by each call; `pages` has the count of each of `events` (DISCARD or ZAP)."""
    total: dict[Dropped, int] = {}
    said = events[["aux", "value", "kind"]]
    for one in np.unique(said):
        call = dropping(one, arch)
        total[call] = total.get(call, 0) + int(pages[said == one].sum())
    return total
