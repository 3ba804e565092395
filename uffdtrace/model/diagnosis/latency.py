"""How long faults waited, as percentiles and a histogram."""

from __future__ import annotations

import numpy as np

from uffdtrace.model.account.latencies import BEGINS_US, PARTS, Latencies
from uffdtrace.model.account.sleep import QUEUE, SERVICE, TOTAL, WAKEUP
from uffdtrace.model.diagnosis.document import BinDict, LatencyDict
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


def _of_buckets(latencies: Latencies, phase: int) -> dict[str, float] | None:
    """The same of a phase whose waits lie in buckets: the middle of the one in question, and the longest exactly."""
    total = np.cumsum(latencies.counts(phase))
    if not total[-1]:
        return None
    most = latencies.most(phase) / _NS_PER_US
    found = {}
    for name, share in _PERCENTILES.items():
        bucket = int(np.searchsorted(total, share * (total[-1] - 1), side="right"))
        middle = float(BEGINS_US[bucket] + BEGINS_US[bucket + 1]) / 2
        found[name] = round(min(middle, most), 1)
    return {**found, "max": round(most, 1)}


def _powers(latencies: Latencies) -> Array:
    """Faults by whole powers of two of µs: below 1, below 2, below 4 and so on."""
    counts, fractions = latencies.counts(TOTAL), int(np.searchsorted(BEGINS_US, 1.0))
    found: Array = np.r_[counts[:fractions].sum(), counts[fractions:].reshape(-1, PARTS).sum(axis=1)]
    return found


def _histogram(latencies: Latencies, exact: Array | None) -> list[BinDict]:
    """Faults by powers of two of µs, each bucket up to but without `below_us`."""
    if exact is None:
        counts = _powers(latencies)
    else:
        counts = np.bincount(np.searchsorted(_BELOW_US, exact[:, TOTAL] / _NS_PER_US, side="right"))
    found = np.flatnonzero(counts)
    return [
        {"below_us": 1 << power, "faults": int(counts[power])} for power in range(int(found[0]), int(found[-1]) + 1)
    ]


def latency(latencies: Latencies) -> LatencyDict | None:
    """The report's `latency_us` of faults that were served, None where there were none."""
    if not latencies.faults:
        return None
    exact = latencies.exact()
    if exact is None:
        total, queue, service, wakeup = (_of_buckets(latencies, phase) for phase in (TOTAL, QUEUE, SERVICE, WAKEUP))
    else:
        total, queue, service = percentiles(exact[:, (TOTAL, QUEUE, SERVICE)])
        woken = exact[~np.isnan(exact[:, WAKEUP])]
        wakeup = percentiles(woken[:, WAKEUP:])[0] if len(woken) else None
    # Every served fault has these three; the thread's return may not have been seen.
    assert total is not None and queue is not None and service is not None
    return {
        "faults": latencies.faults,
        "p50": total["p50"],
        "p90": total["p90"],
        "p99": total["p99"],
        "max": total["max"],
        "queue": queue,
        "service": service,
        "wakeup": wakeup,
        "histogram": _histogram(latencies, exact),
    }


def readable(microseconds: float) -> str:
    """`850 µs`, `12.3 ms`, `4.1 s`, `7,200 s`."""
    for limit, scale, unit in ((999.5, 1, "µs"), (999.5e3, 1e3, "ms"), (999.5e6, 1e6, "s")):
        if microseconds < limit:
            return f"{microseconds / scale:.3g} {unit}"
    return f"{microseconds / 1e6:,.0f} s"
