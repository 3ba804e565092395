"""Events in few bytes: what is packed comes out again, and what is no packed events is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bench.stream import served
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.traces import WHAT, history, read_all, write

from uffdtrace.model.records.batch import Batch
from uffdtrace.model.records.events import EVENT, Array
from uffdtrace.trace import packing
from uffdtrace.trace.file import EVENTS, PACKED
from uffdtrace.trace.packing import PackingError, pack, unpack
from uffdtrace.trace.writer import Writer


def drawn(member: str) -> st.SearchStrategy[int]:
    """Numbers near each other, and any that fit."""
    limits = np.iinfo(EVENT[member])
    return st.one_of(
        st.integers(1000, 1003).map(lambda value: value % int(limits.max)), st.integers(limits.min, limits.max)
    )


@st.composite
def events(draw: st.DrawFn) -> Array:
    names = EVENT.names or ()
    rows = draw(st.lists(st.tuples(*(st.integers(1, 3) if name == "type" else drawn(name) for name in names))))
    return np.array(rows, dtype=EVENT)


@given(events())
def test_what_is_packed_comes_out(some: Array) -> None:
    assert unpack(pack(Batch(some))).records.tobytes() == some.tobytes()


def test_extremes() -> None:
    some = np.zeros(4, dtype=EVENT)
    for name in EVENT.names or ():
        limits = np.iinfo(EVENT[name])
        some[name][1], some[name][2] = limits.min, limits.max
    some["type"] = 1
    assert unpack(pack(Batch(some))).records.tobytes() == some.tobytes()


def test_a_served_fault_takes_few_bytes() -> None:
    some = np.concatenate(list(served(8192)))
    assert len(pack(Batch(some))) / 8192 < 160


@settings(max_examples=300)
@given(events(), st.data())
def test_what_is_broken_is_refused(some: Array, data: st.DataObject) -> None:
    packed = bytearray(pack(Batch(some)))
    for _ in range(data.draw(st.integers(1, 4))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    packed = packed[: data.draw(st.integers(0, len(packed)))]
    try:
        found = unpack(bytes(packed))
    except PackingError:
        return
    # An event takes a byte at least: a file cannot make us hold more than its length allows.
    assert len(found) <= len(packed)


@pytest.mark.parametrize("count", [packing.MOST + 1, (1 << 32) - 1])
def test_no_count_is_believed(count: int) -> None:
    with pytest.raises(PackingError):
        unpack(count.to_bytes(4, "little") + b"\x02" * 100)


def test_a_long_batch_is_packed_and_a_short_one_is_not(tmp_path: Path) -> None:
    some = history()
    many = np.tile(some, 1 + 300 // len(some))
    many["time"] = np.arange(len(many))
    path = write(tmp_path / "trace", many, many[:3])
    assert [path.read_bytes().count(tag) for tag in (PACKED, EVENTS)] == [1, 1]
    assert read_all(path)[1].tobytes() == many.tobytes() + many[:3].tobytes()


def test_a_batch_that_is_too_long_is_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MOST", 300)
    many = np.zeros(1000, dtype=EVENT)
    many["time"] = np.arange(1000)
    writer = Writer(tmp_path / "trace", WHAT)
    writer.events(many)
    # What is left over is few.
    assert [(tmp_path / "trace").read_bytes().count(tag) for tag in (PACKED, EVENTS)] == [3, 1]
    assert read_all(tmp_path / "trace")[1].tobytes() == many.tobytes()
