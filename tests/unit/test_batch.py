"""Batches: events chosen, joined and changed, against arrays of records."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdtrace.model.records.batch import Batch
from uffdtrace.model.records.events import EVENT, Array


def records(count: int) -> Array:
    found = np.zeros(count, dtype=EVENT)
    found["time"], found["tid"] = np.arange(count), np.arange(count) % 3
    return found


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("slice"), st.integers(-6, 12), st.integers(-6, 12)),
        st.tuples(st.just("mask"), st.integers(2, 4), st.integers(0, 3)),
        st.tuples(st.just("numbers"), st.integers(0, 5), st.integers(0, 5)),
        st.tuples(st.just("joined"), st.integers(0, 4), st.integers(0, 4)),
        st.tuples(st.just("changed"), st.integers(0, 9), st.integers(0, 9)),
    ),
    max_size=6,
)


@given(st.integers(0, 12), STEPS)
def test_as_an_array_of_records(count: int, steps: list[tuple[str, int, int]]) -> None:
    plain = records(count)
    batch = Batch(plain.copy())
    for what, first, second in steps:
        if what == "slice":
            plain, batch = plain[first:second], batch[first:second]
        elif what == "mask":
            mask = np.arange(len(plain)) % first == second
            plain, batch = plain[mask], batch[mask]
        elif what == "numbers" and len(plain):
            numbers = np.array([first % len(plain), second % len(plain)])
            plain, batch = plain[numbers], batch[numbers]
        elif what == "joined":
            plain, batch = (
                np.concatenate([plain[first:], plain[second:]]),
                Batch.joined([batch[first:], batch[second:]]),
            )
        elif what == "changed":
            plain = plain.copy()
            plain["tid"] = first
            batch = batch.changed({"tid": np.full(len(plain), first, dtype=np.uint32)})
    assert [batch[name].tolist() for name in ("time", "tid")] == [plain[name].tolist() for name in ("time", "tid")]
    assert [event.tolist() for event in batch] == plain.tolist()
    assert [batch[number].tolist() for number in range(-len(plain), 0)] == plain.tolist()
    assert batch.settled().records.tolist() == batch.records.tolist() == plain.tolist()
    with pytest.raises(IndexError):
        batch[len(plain)]
