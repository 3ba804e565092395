"""Events from the kernel, read as numpy arrays, in order of time."""

from __future__ import annotations

import mmap
import platform
import threading
import time

import numpy as np

from uffdtrace.collect.maps import whole_pages
from uffdtrace.kernel import architecture
from uffdtrace.model.records.events import EVENT, LANE, WHOLE, Array, Type, joined, picked

_HEADER = np.dtype([("length", "<u4"), ("page", "<u4")])
_RECORD = np.dtype([("header", _HEADER), ("event", WHOLE)])
_BUSY = np.uint32(1 << 31)

# An event has its time before it has its place: one that is older than this is complete.
_SETTLE_NS = 200_000_000


class _Fence:
    """A call of it keeps loads in order: those that stand before it take place before those that stand after it.

    Python has no memory barrier. To let a lock go is a store-release and to take it a load-acquire, and arm64
    keeps an acquire behind a release that stands before it (RCsc; Arm ARM B2.3, "barrier-ordered-before"). Where a
    CPU's loads take place in their order anyway, it does nothing.
    """

    def __init__(self) -> None:
        here = architecture.KNOWN.get(platform.machine())
        self._lock = None if here is not None and here.ordered else threading.Lock()
        if self._lock is not None:
            self._lock.acquire()

    def __call__(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock.acquire()


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
        self._fence = _Fence()
        # The last look ended at a record that was not complete: what lies behind it is not known.
        self.blocked = False

    def drain(self) -> Array:
        """A copy of every event that is complete, in the order in which they were reserved."""
        consumed = int(self._consumer[0])
        waiting = (int(self._producer[0]) - consumed) // _RECORD.itemsize
        # The kernel marks a record as busy before it moves the producer's position behind it.
        self._fence()
        self.blocked = False
        if not waiting:
            return np.empty(0, dtype=EVENT)
        offset = consumed % self._size
        records = self._data[offset : offset + waiting * _RECORD.itemsize].view(_RECORD)
        busy = np.flatnonzero(records["header"]["length"] & _BUSY)
        # From here on a header that was seen without BUSY means a complete payload.
        self._fence()
        if busy.size:
            records = records[: busy[0]]
            self.blocked = True
        events = records["event"].copy().view(EVENT)
        # The kernel writes there again once the position has moved.
        self._fence()
        self._consumer[0] = consumed + len(records) * _RECORD.itemsize
        return events


class Lanes:
    """Records that each CPU writes into slots of its own (the maps `slots`, `lanes` and `tails`).

    `count` lanes of `size` slots each. The kernel writes a slot before it moves the lane's
    head, and none that we have not read: what finds its lane full goes into the ring. It uses
    them on machines only that keep stores and loads in order (ORDERED in bpf/maps.bpf.c).
    """

    def __init__(self, slots_fd: int, heads_fd: int, tails_fd: int, count: int, size: int) -> None:
        slots = mmap.mmap(slots_fd, whole_pages(count * size * EVENT.itemsize), mmap.MAP_SHARED, mmap.PROT_READ)
        heads = mmap.mmap(heads_fd, whole_pages(count * LANE.itemsize), mmap.MAP_SHARED, mmap.PROT_READ)
        tails = mmap.mmap(tails_fd, whole_pages(count * 8), mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._slots = np.frombuffer(slots, dtype=WHOLE, count=count * size).reshape(count, size)
        self._heads = np.frombuffer(heads, dtype=LANE, count=count)["head"]
        self._tails = np.frombuffer(tails, dtype="<u8", count=count)
        self._size = size

    def drain(self) -> Array:
        """A copy of what is new, lane by lane."""
        heads = self._heads.copy()
        new = (heads - self._tails).astype(np.int64)
        found = np.empty(int(new.sum()), dtype=WHOLE)
        at = 0
        for lane in np.flatnonzero(new).tolist():
            count, place = int(new[lane]), int(self._tails[lane]) % self._size
            straight = min(count, self._size - place)
            found[at : at + straight] = self._slots[lane][place : place + straight]
            found[at + straight : at + count] = self._slots[lane][: count - straight]
            at += count
            # From here on the kernel may write there again: such a machine keeps a store behind the loads before it.
            self._tails[lane] = heads[lane]
        return found.view(EVENT)


class Stream:
    """Ring, lanes and events of our own, merged in order of time."""

    def __init__(self, ring: Ring, lanes: Lanes) -> None:
        self._ring = ring
        self._lanes = lanes
        # What is held, one part after the other: to join them each time would copy all of them each time.
        self._parts: list[Array] = []
        # What of it came since arrived() was asked last.
        self._fresh: list[Array] = []
        # When (ns) the ring was last seen with nothing hidden behind an incomplete record.
        self._clear = 0
        # The time up to which events were handed on.
        self._handed = 0
        # STACK records, which are no events.
        self._stacks: list[Array] = []
        # Events that came after younger ones had been handed on: their order is lost.
        self.late = 0

    @property
    def held(self) -> Array:
        """What was not handed on yet, as it came."""
        if len(self._parts) != 1:
            self._parts = [joined(self._parts)]
        return self._parts[0]

    @held.setter
    def held(self, events: Array) -> None:
        self._parts, self._fresh = [events], [events]

    def push(self, events: list[Array]) -> None:
        """Add events of our own, with the time at which they were true."""
        # One part alone need not be copied to be joined.
        some = [part for part in events if len(part)]
        self._parts += some
        self._fresh += some

    def arrived(self) -> Array:
        """What of the held events came since the last call, as it came; if some were taken out since, all of them."""
        fresh, self._fresh = joined(self._fresh), []
        return fresh

    def peek(self) -> Array:
        """What came just now; it stays in the stream."""
        return joined(self._read())

    def _read(self) -> list[Array]:
        """Hold what came just now, which is returned."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        came = [self._without_stacks(self._ring.drain()), self._lanes.drain()]
        if not self._ring.blocked:
            self._clear = now
        self.late += sum(int((events["time"] < self._handed).sum()) for events in came)
        self.push(came)
        return came

    def _without_stacks(self, came: Array) -> Array:
        stacks = came["type"] == Type.STACK
        if not stacks.any():
            return came
        self._stacks.append(came[stacks])
        return picked(came, ~stacks)

    def stacks(self) -> Array:
        """The STACK records that came since the last call."""
        found, self._stacks = joined(self._stacks), []
        return found

    def forget_stacks(self, tgid: int) -> None:
        """Those of this process tell nobody anything."""
        self._stacks = [picked(part, part["tgid"] != tgid) for part in self._stacks]

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
        times = np.ascontiguousarray(held["time"])
        ready = np.ones(len(held), dtype=bool) if horizon is None else times < np.uint64(horizon)
        self._parts = [picked(held, ~ready)]
        self._handed = max(self._handed, horizon or 0)
        index = np.flatnonzero(ready)
        return picked(held, index[np.argsort(times[index], kind="stable")])
