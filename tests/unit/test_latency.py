"""How long faults waited: percentiles, histogram, readable units."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uffdtrace.model.account.latencies import BEGINS_US, MOST_EXACT, SLOW_NS, Latencies, buckets
from uffdtrace.model.diagnosis.latency import latency, percentiles, readable
from uffdtrace.model.records.events import Array

NAN = float("nan")


def waits(*found: tuple[float, float, float, float]) -> Array:
    return np.array(list(found), dtype=np.float32).reshape(-1, 4)


def of(*parts: Array) -> Latencies:
    found = Latencies()
    for part in parts:
        found.add(part)
    return found


def total(*found: int) -> Array:
    return waits(*((0, wait, wait, NAN) for wait in found))


def test_nobody_waited() -> None:
    assert latency(of()) is None


def test_one_fault() -> None:
    assert latency(of(waits((1000, 2000, 3000, 500)))) == {
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


def test_half_of_a_tenth_of_a_microsecond_rounds_as_the_number_itself() -> None:
    # 0.05 lies above one half of 0.1 as a double, 199.95 below.
    assert [percentiles(np.array([[wait]]))[0]["max"] for wait in (50.0, 199_950.0)] == [0.1, 199.9]


def test_wake_ups_are_of_the_threads_that_were_seen_to_run_on() -> None:
    found = latency(of(waits((1, 1, 2, NAN), (1, 1, 2, 7000)), waits((1, 1, 2, 9000))))
    assert found is not None
    assert (found["faults"], found["wakeup"]["max"], found["wakeup"]["p50"]) == (3, 9.0, 8.0)
    found = latency(of(waits((1, 1, 2, NAN))))
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
    found = latency(of(total(wait)))
    assert found is not None
    assert found["histogram"] == [{"below_us": below, "faults": 1}]


def test_the_histogram_has_every_power_between() -> None:
    found = latency(of(total(1500, 40_000), total(41_000)))
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
    told = latency(of(total(*found)))
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


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 63))
def test_a_wait_lies_in_its_bucket(wait: int) -> None:
    (bucket,) = buckets(np.array([wait], dtype=np.float64)).tolist()
    assert (BEGINS_US[bucket] <= wait / 1000 or bucket == 0) and wait / 1000 < BEGINS_US[bucket + 1]


def many(seed: int) -> Array:
    """More waits than are kept as they are, from ns to hours; some threads were not seen to run on."""
    chance = np.random.default_rng(seed)
    found = np.exp(chance.uniform(0, 30, (MOST_EXACT * 3 + 7, 4)))
    found[:, 2] = found[:, 0] + found[:, 1]
    found[::5, 3] = NAN
    return found


@pytest.mark.parametrize("seed", range(5))
def test_many_waits_are_off_by_a_thirty_second_at_most_and_the_longest_by_nothing(seed: int) -> None:
    rows = many(seed)
    told = latency(of(rows))
    assert told is not None
    for phase, found in (("queue", told["queue"]), ("service", told["service"]), ("wakeup", told["wakeup"])):
        column = np.sort(rows[:, ("queue", "service", "total", "wakeup").index(phase)])
        column = column[~np.isnan(column)] / 1000
        assert found["max"] == round(column[-1], 1)
        for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
            true = column[int(share * (len(column) - 1))]
            assert abs(found[name] - true) <= true / 32 + 0.05
    for one in told["histogram"]:
        low = one["below_us"] // 2 if one["below_us"] > 1 else 0
        total_us = rows[:, 2] / 1000
        assert one["faults"] == np.count_nonzero((low <= total_us) & (total_us < one["below_us"]))


@pytest.mark.parametrize("cuts", [[], [1], [MOST_EXACT], [MOST_EXACT + 1, MOST_EXACT + 2], [10, 9000]])
def test_in_which_parts_waits_come_changes_nothing(cuts: list[int]) -> None:
    rows = many(0)
    whole, parts = of(rows), of(*np.split(rows, cuts))
    joined = of(rows[:100])
    joined.absorb(of(rows[100:]))
    assert latency(whole) == latency(parts) == latency(joined)
    assert whole.slow == parts.slow == joined.slow == np.count_nonzero(rows[:, 2] >= SLOW_NS)


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
