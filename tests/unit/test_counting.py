"""Numbers in arrays, against the plain way."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdtrace.model.records.counting import among, by_value, counted, one_of, ranked

NUMBERS = st.lists(st.one_of(st.integers(0, 20), st.integers(0, 1 << 40)), max_size=40)


@given(NUMBERS)
def test_counted(numbers: list[int]) -> None:
    assert counted(np.array(numbers, dtype=np.int64)) == sorted(Counter(numbers).items())


@pytest.mark.parametrize("kind", [np.int64, np.uint64])
@given(numbers=NUMBERS)
def test_by_value(kind: type, numbers: list[int]) -> None:
    found = [(value, index.tolist()) for value, index in by_value(np.array(numbers, dtype=kind))]
    assert found == [(one, [at for at, each in enumerate(numbers) if each == one]) for one in sorted(set(numbers))]


@given(NUMBERS)
def test_ranked(numbers: list[int]) -> None:
    found, which = ranked(np.array(numbers, dtype=np.uint64))
    assert found.tolist() == sorted(set(numbers))
    assert [found[one] for one in which.tolist()] == numbers


@pytest.mark.parametrize("kind", [np.uint32, np.uint64, np.int64])
@given(numbers=st.lists(st.integers(0, 20)), some=st.lists(st.integers(-5, 1 << 70)))
def test_one_of(kind: type, numbers: list[int], some: list[int]) -> None:
    some = some + numbers[::3]
    assert one_of(np.array(numbers, dtype=kind), some).tolist() == [one in some for one in numbers]


@given(st.sets(st.integers(0, 255)))
def test_among(numbers: set[int]) -> None:
    assert among(numbers)[np.arange(256, dtype=np.uint8)].tolist() == [number in numbers for number in range(256)]
