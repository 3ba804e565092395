"""The BPF ring buffer and the CPUs' lanes, played on memory files of the kernel's layout."""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from uffdtrace.collect import ring as ring_module
from uffdtrace.collect.ring import Lanes, Ring, Stream
from uffdtrace.model.records.events import EVENT, Array

PAGE = mmap.PAGESIZE
RECORD = 8 + EVENT.itemsize
BUSY = 1 << 31
PAGES = 2


def event(when: int, tid: int = 0) -> bytes:
    record = np.zeros(1, dtype=EVENT)
    record["time"], record["tid"] = when, tid
    return record.tobytes()


class KernelRing:
    """The kernel's side: a memory file has no second map of the data, so both are written."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("ring")
        self.size = PAGES * PAGE
        os.ftruncate(self.fd, 2 * PAGE + 2 * self.size)
        self.produced = 0

    def _place(self, at: int, data: bytes) -> None:
        for number, value in enumerate(data):
            for copy in (0, self.size):
                os.pwrite(self.fd, bytes([value]), 2 * PAGE + copy + (at + number) % self.size)

    def reserve(self, when: int, tid: int = 0) -> int:
        at = self.produced
        self._place(at, struct.pack("<II", EVENT.itemsize | BUSY, 0) + event(when, tid))
        self.produced += RECORD
        os.pwrite(self.fd, struct.pack("<Q", self.produced), PAGE)
        return at

    def commit(self, at: int) -> None:
        self._place(at, struct.pack("<I", EVENT.itemsize))

    def output(self, when: int, tid: int = 0) -> None:
        self.commit(self.reserve(when, tid))

    @property
    def consumed(self) -> int:
        return int(struct.unpack("<Q", os.pread(self.fd, 8, 0))[0])


@pytest.fixture(params=["x86_64", "aarch64"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[KernelRing]:
    """The reader's steps with fences between them, and without."""
    monkeypatch.setattr(ring_module.platform, "machine", lambda: request.param)
    ring = KernelRing()
    yield ring
    os.close(ring.fd)


def times(events: Array) -> list[int]:
    return [int(when) for when in events["time"]]


def test_nothing(kernel: KernelRing) -> None:
    assert len(Ring(kernel.fd, PAGES).drain()) == 0


def test_what_came_is_read_once(kernel: KernelRing) -> None:
    ring = Ring(kernel.fd, PAGES)
    kernel.output(1, 11)
    kernel.output(2, 12)
    found = ring.drain()
    assert (times(found), found["tid"].tolist(), found.dtype) == ([1, 2], [11, 12], EVENT)
    assert kernel.consumed == 2 * RECORD
    assert len(ring.drain()) == 0


def test_round_and_round(kernel: KernelRing) -> None:
    """The size is no multiple of a record: records wrap at every possible place."""
    ring = Ring(kernel.fd, PAGES)
    when = 0
    for count in [1, 5, 40, 100, 112, 3, 113] * 6:
        expected = list(range(when, when + count))
        for when in expected:
            kernel.output(when)
        when += 1
        assert times(ring.drain()) == expected
    assert kernel.consumed == kernel.produced > 10 * kernel.size


def test_a_full_ring(kernel: KernelRing) -> None:
    ring = Ring(kernel.fd, PAGES)
    for round_ in range(3):
        expected = list(range(kernel.size // RECORD))
        for when in expected:
            kernel.output(when)
        assert times(ring.drain()) == expected, round_


def test_what_is_not_complete_holds_the_rest_back(kernel: KernelRing) -> None:
    ring = Ring(kernel.fd, PAGES)
    kernel.output(1)
    open_ = kernel.reserve(2)
    kernel.output(3)
    assert times(ring.drain()) == [1]
    assert len(ring.drain()) == 0
    kernel.commit(open_)
    assert times(ring.drain()) == [2, 3]


def test_events_are_a_copy(kernel: KernelRing) -> None:
    ring = Ring(kernel.fd, PAGES)
    kernel.output(1)
    found = ring.drain()
    for when in range(2, 150):
        kernel.output(when)
        ring.drain()
    assert times(found) == [1]


class KernelLanes:
    """The kernel's side of `count` lanes: it writes no slot that was not read."""

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size
        self.slots, self.heads, self.tails = (os.memfd_create(name) for name in ("slots", "heads", "tails"))
        os.ftruncate(self.slots, -(-count * size * EVENT.itemsize // PAGE) * PAGE)
        for fd in (self.heads, self.tails):
            os.ftruncate(fd, -(-count * 16 // PAGE) * PAGE)
        self.head = [0] * count

    def tail(self, lane: int) -> int:
        return int(struct.unpack("<Q", os.pread(self.tails, 8, lane * 8))[0])

    def output(self, lane: int, when: int) -> bool:
        """False where the lane is full."""
        if self.head[lane] - self.tail(lane) == self.size:
            return False
        place = lane * self.size + self.head[lane] % self.size
        os.pwrite(self.slots, event(when), place * EVENT.itemsize)
        self.head[lane] += 1
        os.pwrite(self.heads, struct.pack("<Q", self.head[lane]), lane * 16)
        return True

    def reader(self) -> Lanes:
        return Lanes(self.slots, self.heads, self.tails, self.count, self.size)


@pytest.fixture
def lanes() -> Iterator[KernelLanes]:
    made = KernelLanes(3, 8)
    yield made
    for fd in (made.slots, made.heads, made.tails):
        os.close(fd)


def test_lanes_are_read_once(lanes: KernelLanes) -> None:
    reader = lanes.reader()
    assert len(reader.drain()) == 0
    lanes.output(0, 1)
    lanes.output(2, 2)
    lanes.output(2, 3)
    assert times(reader.drain()) == [1, 2, 3]
    assert len(reader.drain()) == 0


@pytest.mark.parametrize("step", range(1, 9))
def test_lanes_go_round(lanes: KernelLanes, step: int) -> None:
    reader = lanes.reader()
    for base in range(0, 60, step):
        for when in range(base, base + step):
            assert lanes.output(1, when)
        assert times(reader.drain()) == list(range(base, base + step))
        assert lanes.tail(1) == base + step


def test_a_lane_that_is_full_has_room_once_it_is_read(lanes: KernelLanes) -> None:
    reader = lanes.reader()
    assert [lanes.output(1, when) for when in range(9)] == [True] * 8 + [False]
    assert lanes.output(0, 100)
    assert times(reader.drain()) == [100, *range(8)]
    assert lanes.output(1, 9)
    assert times(reader.drain()) == [9]


def test_what_is_read_is_a_copy(lanes: KernelLanes) -> None:
    reader = lanes.reader()
    lanes.output(1, 1)
    found = reader.drain()
    for when in range(2, 40):
        lanes.output(1, when)
        reader.drain()
    assert times(found) == [1]


def test_what_comes_while_it_is_read_is_for_the_next_time(lanes: KernelLanes, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = lanes.reader()
    for when in range(8):
        lanes.output(1, when)
    concatenate = np.concatenate

    def meanwhile(parts: Sequence[Array]) -> Array:
        # After the head was read, before the slots are copied.
        monkeypatch.undo()
        assert not lanes.output(1, 100)
        joined: Array = concatenate(parts)
        return joined

    monkeypatch.setattr(np, "concatenate", meanwhile)
    assert times(reader.drain()) == list(range(8))
    assert lanes.output(1, 101)
    assert times(reader.drain()) == [101]


def now() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def own(when: int) -> Array:
    return np.frombuffer(event(when), dtype=EVENT)


def test_a_stream_is_in_order_of_time(kernel: KernelRing, lanes: KernelLanes) -> None:
    stream = Stream(Ring(kernel.fd, PAGES), lanes.reader())
    kernel.output(10)
    kernel.output(5)
    lanes.output(0, 7)
    lanes.output(1, 3)
    stream.push([own(6), own(1)])
    assert times(stream.drain(stream.fetch())) == [1, 3, 5, 6, 7, 10]
    assert len(stream.drain(None)) == 0


def test_events_of_the_same_time_keep_their_order(kernel: KernelRing, lanes: KernelLanes) -> None:
    stream = Stream(Ring(kernel.fd, PAGES), lanes.reader())
    for tid in range(50):
        kernel.output(5, tid)
    assert stream.drain(stream.fetch())["tid"].tolist() == list(range(50))


def test_what_is_young_waits_for_what_may_be_older(kernel: KernelRing, lanes: KernelLanes) -> None:
    stream = Stream(Ring(kernel.fd, PAGES), lanes.reader())
    young = now() + 60_000_000_000
    kernel.output(young)
    kernel.output(5)
    assert times(stream.drain(stream.fetch())) == [5]
    lanes.output(0, young - 1)
    stream.peek()
    assert times(stream.drain(None)) == [young - 1, young]


def test_looking_does_not_take(kernel: KernelRing, lanes: KernelLanes) -> None:
    stream = Stream(Ring(kernel.fd, PAGES), lanes.reader())
    kernel.output(9)
    assert times(stream.peek()) == [9]
    assert len(stream.peek()) == 0
    kernel.output(8)
    assert times(stream.drain(None)) == [9], "what nobody has seen stays where it is"
    stream.peek()
    assert times(stream.drain(None)) == [8]


def test_nothing_younger_than_what_is_not_complete_is_handed_on(kernel: KernelRing, lanes: KernelLanes) -> None:
    stream = Stream(Ring(kernel.fd, PAGES), lanes.reader())
    before = now() - 1_000_000_000
    kernel.output(before)
    assert times(stream.drain(stream.fetch())) == [before]
    open_ = kernel.reserve(now())
    hidden = now()
    kernel.output(hidden)
    message = now()
    lanes.output(0, message)
    # Long after, the messages come by another way than the ring.
    for _ in range(3):
        time.sleep(0.22)
        assert times(stream.drain(stream.fetch())) == []
    kernel.commit(open_)
    time.sleep(0.22)
    stream.fetch()
    time.sleep(0.22)
    assert times(stream.drain(stream.fetch()))[1:] == [hidden, message]
    assert stream.late == 0


def test_what_comes_after_younger_events_were_handed_on_is_counted(kernel: KernelRing, lanes: KernelLanes) -> None:
    stream = Stream(Ring(kernel.fd, PAGES), lanes.reader())
    kernel.output(50)
    stream.drain(stream.fetch())
    kernel.output(40)
    kernel.output(now() + 1_000_000_000)
    assert times(stream.drain(stream.fetch())) == [40]
    assert stream.late == 1
