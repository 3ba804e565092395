"""How long faults waited: percentiles, histogram, readable units."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uffdtrace.model.diagnosis.latency import latency, percentiles, readable
from uffdtrace.model.records.events import Array

NAN = float("nan")


def waits(*found: tuple[float, float, float, float]) -> Array:
    return np.array(list(found), dtype=np.float32).reshape(-1, 4)


def total(*found: int) -> Array:
    return waits(*((0, wait, wait, NAN) for wait in found))


def test_nobody_waited() -> None:
    assert latency([]) is None


def test_one_fault() -> None:
    assert latency([waits((1000, 2000, 3000, 500))]) == {
        "faults": 1,
        "p50": 3.0,
        "p90": 3.0,
        "p99": 3.0,
        "max": 3.0,
        "queue": {"p50": 1.0, "p90": 1.0, "p99": 1.0, "max": 1.0},
        "service": {"p50": 2.0, "p90": 2.0, "p99": 2.0, "max": 2.0},
        "wakeup": {"p50": 0.5, "p90": 0.5, "p99": 0.5, "max": 0.5},
        "histogram": [{"below_us": 4, "faults": 1}],
    }


def test_percentiles_of_a_hundred() -> None:
    (found,) = percentiles(np.arange(1, 102, dtype=np.float32)[:, None] * 1000)
    assert found == {"p50": 51.0, "p90": 91.0, "p99": 100.0, "max": 101.0}


def test_wake_ups_are_of_the_threads_that_were_seen_to_run_on() -> None:
    found = latency([waits((1, 1, 2, NAN), (1, 1, 2, 7000)), waits((1, 1, 2, 9000))])
    assert found is not None
    assert (found["faults"], found["wakeup"]["max"], found["wakeup"]["p50"]) == (3, 9.0, 8.0)
    found = latency([waits((1, 1, 2, NAN))])
    assert found is not None
    assert found["wakeup"] is None


@pytest.mark.parametrize(
    ("wait", "below"),
    [
        (0, 1),
        (1, 1),
        (999, 1),
        (1000, 2),
        (1999, 2),
        (2000, 4),
        (1_023_999, 1024),
        (1_024_000, 2048),
        (1 << 20, 2048),
        (1_000_000_000, 1 << 20),
        (1_048_576_000, 1 << 21),
    ],
)
def test_a_bucket_ends_before_its_bound(wait: int, below: int) -> None:
    found = latency([total(wait)])
    assert found is not None
    assert found["histogram"] == [{"below_us": below, "faults": 1}]


def test_the_histogram_has_every_power_between() -> None:
    found = latency([total(1500, 40_000), total(41_000)])
    assert found is not None
    assert [(one["below_us"], one["faults"]) for one in found["histogram"]] == [
        (2, 1),
        (4, 0),
        (8, 0),
        (16, 0),
        (32, 0),
        (64, 2),
    ]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 1 << 24), min_size=1, max_size=60))
def test_the_histogram_counts_every_fault_once(found: list[int]) -> None:
    told = latency([total(*found)])
    assert told is not None
    histogram = told["histogram"]
    assert sum(one["faults"] for one in histogram) == len(found) == told["faults"]
    assert histogram[0]["faults"] and histogram[-1]["faults"]
    bounds = [one["below_us"] for one in histogram]
    assert bounds == [bounds[0] << place for place in range(len(bounds))]
    for one in histogram:
        low = one["below_us"] // 2 if one["below_us"] > 1 else 0
        assert one["faults"] == sum(low * 1000 <= wait < one["below_us"] * 1000 for wait in found)
    assert told["p50"] <= told["p90"] <= told["p99"] <= told["max"]
    assert told["max"] == pytest.approx(max(found) / 1000, abs=0.06)


@pytest.mark.parametrize(
    ("microseconds", "expected"),
    [
        (0, "0 µs"),
        (0.25, "0.25 µs"),
        (850, "850 µs"),
        (12_345, "12.3 ms"),
        (4_100_000, "4.1 s"),
        (999, "999 µs"),
        (1000, "1 ms"),
        (1_000_000, "1 s"),
        (123_000_000, "123 s"),
    ],
)
def test_readable(microseconds: float, expected: str) -> None:
    assert readable(microseconds) == expected
