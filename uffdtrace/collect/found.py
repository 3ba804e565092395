"""What was there before the trace: descriptors, ranges, protected pages.

The kernel says which userfaultfd_ctx a descriptor is by running
userfaultfd_show_fdinfo() under our probe; ranges and pages come from smaps and
pagemap, as events of our own that stand in the stream at the time of reading.
"""

from __future__ import annotations

import os
import time
from typing import Dict, List, Tuple

import numpy as np

from uffdtrace.collect.program import Program
from uffdtrace.collect.ring import Ring
from uffdtrace.kernel import proc
from uffdtrace.model.events import EVENT, Memory, Mode, Type

_MEMORY = {"anon": Memory.ANON, "shmem": Memory.SHMEM, "hugetlb": Memory.HUGETLB}


def _event(kind: Type, **fields: int) -> np.ndarray:
    event = np.zeros(1, dtype=EVENT)
    # The clock of bpf_ktime_get_ns().
    event["time"] = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    event["type"] = kind
    for name, value in fields.items():
        event[name] = value
    return event


def merge(kernel: np.ndarray, own: List[np.ndarray]) -> np.ndarray:
    """Put events of our own among the kernel's, at their time."""
    if not own:
        return kernel
    mine = np.concatenate(own)
    return np.insert(kernel, np.searchsorted(kernel["time"], mine["time"]), mine)


def descriptors(program: Program, ring: Ring, pid: int) -> np.ndarray:
    """Have every userfaultfd that `pid` holds, or that watches its memory, traced.

    Returns the ring's events so far, USERFAULTFD events of the ones found among them.
    """
    holders: List[int] = []
    batches: List[np.ndarray] = [ring.drain()]
    for holder in proc.pids():
        for fd in proc.userfaultfds(holder):
            proc.touch_fdinfo(holder, fd)
            batch = ring.drain()
            mine = batch[(batch["type"] == Type.USERFAULTFD) & (batch["tgid"] == os.getpid())]
            for event in mine:
                if pid in (holder, int(event["aux"])):
                    program.trace_mm(int(event["start"]))
                    holders.append(holder)
                    batches.append(event.reshape(1))
            batches.append(batch[batch["tgid"] != os.getpid()])
    return np.concatenate(batches)


def ranges(userfaultfds: np.ndarray) -> List[np.ndarray]:
    """RANGE_FOUND and PAGES_FOUND events for the memory that USERFAULTFD events tell of.

    Which of several descriptors of one process a mapping belongs to smaps does
    not say; there the first fault tells.
    """
    by_owner: Dict[Tuple[int, int], List[int]] = {}
    for event in userfaultfds:
        contexts = by_owner.setdefault((int(event["aux"]), int(event["start"])), [])
        if int(event["ctx"]) not in contexts:
            contexts.append(int(event["ctx"]))
    own: List[np.ndarray] = []
    for (owner, _), contexts in by_owner.items():
        if not owner or len(contexts) != 1:
            continue
        for found in proc.registered(owner):
            place = {"ctx": contexts[0], "tgid": owner}
            own.append(
                _event(
                    Type.RANGE_FOUND,
                    start=found.start,
                    end=found.end,
                    aux=found.modes,
                    flags=int(_MEMORY[found.memory]),
                    **place,
                )
            )
            if found.modes & Mode.WP:
                for start, end in proc.protected_runs(owner, found.start, found.end):
                    own.append(_event(Type.PAGES_FOUND, start=start, end=end, **place))
    return own


def asleep(owners: List[int]) -> List[np.ndarray]:
    """ASLEEP events for the threads of these processes that sleep in a fault now."""
    own = []
    for owner in owners:
        if proc.is_alive(owner):
            own.append(_event(Type.ASLEEP, tgid=owner))
            own += [_event(Type.ASLEEP, tid=tid, tgid=owner) for tid in proc.asleep_in_fault(owner)]
    return own
