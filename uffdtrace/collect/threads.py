"""What threads had not told yet when the trace ended (the maps `threads` and `crowded`)."""

from __future__ import annotations

import time

import numpy as np

from uffdtrace.collect.maps import Table
from uffdtrace.model.records.events import EVENT, THREAD, Array, Type, joined


def returns(threads: Table, crowded: Table) -> Array:
    """FAULT_RETURN events for the last faults of threads that live on; nothing writes these maps any more."""
    parts = [
        threads.values(THREAD).copy(),
        *(np.frombuffer(value[: THREAD.itemsize], dtype=THREAD) for _, value in crowded.items()),
    ]
    heads = joined(parts)
    heads = heads[(heads["tid"] != 0) & (heads["returned_at"] != 0)]
    events = np.zeros(len(heads), dtype=EVENT)
    events["type"] = Type.FAULT_RETURN
    events["time"] = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    events["aux"] = events["time"] - heads["returned_at"]
    events["ctx"] = heads["returned_in"]
    for name in ("tid", "tgid"):
        events[name] = heads[name]
    return events
