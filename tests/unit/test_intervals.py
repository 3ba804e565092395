"""Intervals that overlap others, against a look at each of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from uffdtrace.intervals import Intervals

SPANS = st.tuples(st.integers(0, 40), st.integers(0, 40))


@given(st.lists(SPANS, max_size=40), st.lists(SPANS, max_size=10))
def test_the_same_as_a_look_at_each(spans: list[tuple[int, int]], asked: list[tuple[int, int]]) -> None:
    intervals = Intervals((start, end, number) for number, (start, end) in enumerate(spans))
    for low, high in asked:
        found = list(intervals.overlapping(low, high))
        wanted = [
            (start, end, number)
            for number, (start, end) in enumerate(spans)
            if start < end and max(start, low) < min(end, high)
        ]
        if low < high:
            assert sorted(found) == sorted(wanted)
        assert [one[0] for one in found] == sorted(one[0] for one in found)


def test_a_long_one_does_not_hide_those_behind_it() -> None:
    """Each question is answered in steps, not by a walk over all that stand between."""
    spans = [(0, 1 << 40, -1), *((10 * number, 10 * number + 5, number) for number in range(1, 20_000))]
    intervals = Intervals(spans)
    for number in range(1, 20_000, 7):
        assert [item for _, _, item in intervals.overlapping(10 * number + 1, 10 * number + 2)] == [-1, number]
