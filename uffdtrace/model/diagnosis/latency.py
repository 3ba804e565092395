"""How long faults waited, as percentiles and a histogram."""

from __future__ import annotations

from typing import Any

import numpy as np

from uffdtrace.model.account.sleep import QUEUE, SERVICE, TOTAL, WAKEUP
from uffdtrace.model.records.events import Array

_NS_PER_US = 1000.0
_PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
_BELOW_US = np.array([1 << power for power in range(62)], dtype=np.float64)


def percentiles(waits: Array) -> list[dict[str, float]]:
    """Per column: p50, p90, p99 and max in µs of waits in ns; of one at least. Between two waits it is interpolated."""
    # Not np.percentile(): ten thousand ranges have a few faults each, and it takes a third of a millisecond.
    ordered = np.sort(waits, axis=0).astype(np.float64)
    last = len(ordered) - 1
    found = []
    for share in _PERCENTILES.values():
        place = int(share * last)
        low, high = ordered[place], ordered[min(place + 1, last)]
        found.append(low + (high - low) * (share * last - place))
    columns = (np.array(found) / _NS_PER_US).T.tolist()
    return [{name: round(value, 1) for name, value in zip(_PERCENTILES, column)} for column in columns]


def _histogram(waits: Array) -> list[dict[str, int]]:
    """Faults by powers of two of µs, each bucket up to but without `below_us`."""
    # Not frexp() or log2(): numpy's vectorized ones crash on emulated CPUs.
    buckets = np.searchsorted(_BELOW_US, waits / _NS_PER_US, side="right")
    first, last = int(buckets.min()), int(buckets.max())
    counts = np.bincount(buckets - first, minlength=last - first + 1)
    return [{"below_us": 1 << (first + place), "faults": int(count)} for place, count in enumerate(counts.tolist())]


def latency(waits: list[Array]) -> dict[str, Any] | None:
    """The report's `latency_us` of faults that were served: rows of sleep.QUEUE, SERVICE, TOTAL, WAKEUP in ns."""
    if not waits:
        return None
    served = np.concatenate(waits)
    woken = served[~np.isnan(served[:, WAKEUP])]
    total, queue, service = percentiles(served[:, (TOTAL, QUEUE, SERVICE)])
    return {
        "faults": len(served),
        **total,
        "queue": queue,
        "service": service,
        "wakeup": percentiles(woken[:, WAKEUP:])[0] if len(woken) else None,
        "histogram": _histogram(served[:, TOTAL]),
    }


def readable(microseconds: float) -> str:
    """`850 µs`, `12.3 ms`, `4.1 s`, `7,200 s`."""
    for limit, scale, unit in ((999.5, 1, "µs"), (999.5e3, 1e3, "ms"), (999.5e6, 1e6, "s")):
        if microseconds < limit:
            return f"{microseconds / scale:.3g} {unit}"
    return f"{microseconds / 1e6:,.0f} s"
