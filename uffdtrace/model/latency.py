"""How long faults waited, as percentiles and a histogram."""

from __future__ import annotations

from typing import Any

import numpy as np

from uffdtrace.model.events import Array
from uffdtrace.model.sleep import QUEUE, SERVICE, TOTAL, WAKEUP

_NS_PER_US = 1000.0
_BELOW_US = np.array([1 << power for power in range(62)], dtype=np.float64)


def percentiles(waits: Array) -> dict[str, float]:
    """p50, p90, p99 and max in µs of waits in ns; of one at least."""
    p50, p90, p99 = np.percentile(waits, (50, 90, 99)) / _NS_PER_US
    most = float(waits.max()) / _NS_PER_US
    return {name: round(float(value), 1) for name, value in (("p50", p50), ("p90", p90), ("p99", p99), ("max", most))}


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
    woken = served[:, WAKEUP][~np.isnan(served[:, WAKEUP])]
    return {
        "faults": len(served),
        **percentiles(served[:, TOTAL]),
        "queue": percentiles(served[:, QUEUE]),
        "service": percentiles(served[:, SERVICE]),
        "wakeup": percentiles(woken) if len(woken) else None,
        "histogram": _histogram(served[:, TOTAL]),
    }


def readable(microseconds: float) -> str:
    """`850 µs`, `12.3 ms`, `4.1 s`, `7,200 s`."""
    for limit, scale, unit in ((999.5, 1, "µs"), (999.5e3, 1e3, "ms"), (999.5e6, 1e6, "s")):
        if microseconds < limit:
            return f"{microseconds / scale:.3g} {unit}"
    return f"{microseconds / 1e6:,.0f} s"
