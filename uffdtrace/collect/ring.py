"""Events from the kernel, read as numpy arrays, in order of time."""

from __future__ import annotations

import mmap
import time

import numpy as np

from uffdtrace.model.events import EVENT, WHOLE, Array, joined, picked

_HEADER = np.dtype([("length", "<u4"), ("page", "<u4")])
_RECORD = np.dtype([("header", _HEADER), ("event", WHOLE)])
_BUSY = np.uint32(1 << 31)

# An event has its time before it has its place: one that is older than this is complete.
_SETTLE_NS = 200_000_000


class Ring:
    """The BPF ring buffer (kernel/bpf/ringbuf.c).

    A page with the consumer position, a page with the producer position, then
    the data, mapped twice in a row so that no record wraps. A record is an
    8-byte header (length, two flag bits) and the payload padded to 8; ours are
    all of one size, so the ring is a strided array.
    """

    def __init__(self, fd: int, pages: int) -> None:
        page = mmap.PAGESIZE
        self._size = pages * page
        consumer = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        producer = mmap.mmap(fd, page + 2 * self._size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        # The arrays keep the maps alive.
        self._consumer = np.frombuffer(consumer, dtype="<u8", count=1)
        self._producer = np.frombuffer(producer, dtype="<u8", count=1)
        self._data = np.frombuffer(producer, dtype=np.uint8, offset=page)
        # The last look ended at a record that was not complete: what lies behind it is not known.
        self.blocked = False

    def drain(self) -> Array:
        """A copy of every event that is complete, in the order in which they were reserved."""
        consumed = int(self._consumer[0])
        waiting = (int(self._producer[0]) - consumed) // _RECORD.itemsize
        self.blocked = False
        if not waiting:
            return np.empty(0, dtype=EVENT)
        offset = consumed % self._size
        records = self._data[offset : offset + waiting * _RECORD.itemsize].view(_RECORD)
        # x86 keeps loads in order: a header seen without BUSY means a complete payload.
        busy = np.flatnonzero(records["header"]["length"] & _BUSY)
        if busy.size:
            records = records[: busy[0]]
            self.blocked = True
        events = records["event"].copy().view(EVENT)
        self._consumer[0] = consumed + len(records) * _RECORD.itemsize
        return events


class Slots:
    """The messages' slots, `count` for each CPU (the maps `messages` and `heads`).

    The kernel writes a slot before it moves the head. The one that it writes next
    may hold half of a message, so one slot less than there are can be relied on.
    """

    def __init__(self, messages_fd: int, heads_fd: int, cpus: int, count: int) -> None:
        slots = mmap.mmap(messages_fd, _pages(cpus * count * EVENT.itemsize), mmap.MAP_SHARED, mmap.PROT_READ)
        heads = mmap.mmap(heads_fd, _pages(cpus * 8), mmap.MAP_SHARED, mmap.PROT_READ)
        self._slots = np.frombuffer(slots, dtype=WHOLE, count=cpus * count).reshape(cpus, count)
        self._heads = np.frombuffer(heads, dtype="<u8", count=cpus)
        self._tails = np.zeros(cpus, dtype=np.int64)
        self._count = count
        self._sound = count - 1
        self.overwritten = 0

    def drain(self) -> Array:
        """A copy of what is new, CPU by CPU; what was overwritten before is counted."""
        found: list[Array] = []
        for cpu in np.flatnonzero(self._heads.astype(np.int64) != self._tails).tolist():
            head, tail = int(self._heads[cpu]), int(self._tails[cpu])
            first = max(tail, head - self._sound)
            place, end = first % self._count, first % self._count + head - first
            parts = (self._slots[cpu][place:end], self._slots[cpu][: max(0, end - self._count)])
            events = np.concatenate(parts).view(EVENT)
            # Whatever was written while we copied may have hit the oldest of them.
            spoilt = max(0, int(self._heads[cpu]) - self._sound - first)
            lost = max(0, head - self._sound - tail) + min(spoilt, len(events))
            self.overwritten += lost
            found.append(events[spoilt:])
            self._tails[cpu] = head
        return joined(found)


def _pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


class Stream:
    """Ring, slots and events of our own, merged in order of time."""

    def __init__(self, ring: Ring, slots: Slots) -> None:
        self._ring = ring
        self._slots = slots
        # What is held, one part after the other: to join them each time would copy all of them each time.
        self._parts: list[Array] = []
        # When (ns) the ring was last seen with nothing hidden behind an incomplete record.
        self._clear = 0
        # The time up to which events were handed on.
        self._handed = 0
        # Events that came after younger ones had been handed on: their order is lost.
        self.late = 0

    @property
    def overwritten(self) -> int:
        return self._slots.overwritten

    @property
    def held(self) -> Array:
        """What was not handed on yet, as it came."""
        self._parts = [joined(self._parts)]
        return self._parts[0]

    @held.setter
    def held(self, events: Array) -> None:
        self._parts = [events]

    def push(self, events: list[Array]) -> None:
        """Add events of our own, with the time at which they were true."""
        self._parts += events

    def peek(self) -> Array:
        """What came just now; it stays in the stream."""
        return joined(self._read())

    def _read(self) -> list[Array]:
        """Hold what came just now, which is returned."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        came = [self._ring.drain(), self._slots.drain()]
        if not self._ring.blocked:
            self._clear = now
        self.late += sum(int((events["time"] < self._handed).sum()) for events in came)
        self.push(came)
        return came

    def fetch(self) -> int:
        """Hold what came; the time (ns) before which nothing is missing.

        Whatever an incomplete record hides was put into the ring after the last look
        at which there was none.
        """
        self._read()
        return max(0, self._clear - _SETTLE_NS)

    def drain(self, horizon: int | None) -> Array:
        """The held events before `horizon`, in order of time; all of them if None, once nothing can come."""
        held = self.held
        events = picked(held, np.argsort(held["time"], kind="stable"))
        ready = len(events) if horizon is None else int(np.searchsorted(events["time"], np.uint64(horizon)))
        self.held = events[ready:].copy()
        self._handed = max(self._handed, horizon or 0)
        return events[:ready]
