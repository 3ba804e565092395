"""The BPF ring buffer, read as numpy arrays.

The kernel's layout (kernel/bpf/ringbuf.c): a page with the consumer position,
a page with the producer position, then the data, mapped twice in a row so that
no record wraps. A record is an 8-byte header (length, two flag bits) and the
payload padded to 8; ours are all of one size, so the ring is a strided array.
"""

from __future__ import annotations

import mmap
from types import TracebackType
from typing import Optional, Type

import numpy as np

from uffdtrace.model.events import EVENT

_HEADER = np.dtype([("length", "<u4"), ("page", "<u4")])
_RECORD = np.dtype([("header", _HEADER), ("event", EVENT)])
_BUSY = np.uint32(1 << 31)


class Ring:
    """A consumer of one ring; `drain()` returns what is complete."""

    def __init__(self, fd: int, pages: int) -> None:
        page = mmap.PAGESIZE
        self.size = pages * page
        self._consumer_map = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        self._producer_map = mmap.mmap(fd, page + 2 * self.size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._consumer = np.frombuffer(self._consumer_map, dtype="<u8", count=1)
        self._producer = np.frombuffer(self._producer_map, dtype="<u8", count=1)
        self._data = np.frombuffer(self._producer_map, dtype=np.uint8, offset=page)

    def drain(self) -> np.ndarray:
        """A copy of every event that is complete, in the order in which they were reserved."""
        consumed = int(self._consumer[0])
        waiting = (int(self._producer[0]) - consumed) // _RECORD.itemsize
        if not waiting:
            return np.empty(0, dtype=EVENT)
        offset = consumed % self.size
        records = self._data[offset : offset + waiting * _RECORD.itemsize].view(_RECORD)
        # x86 keeps loads in order: a header seen without BUSY means a complete payload.
        busy = np.flatnonzero(records["header"]["length"] & _BUSY)
        if busy.size:
            records = records[: busy[0]]
        events = records["event"].copy()
        self._consumer[0] = consumed + len(records) * _RECORD.itemsize
        return events

    def __enter__(self) -> Ring:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        # The maps are freed with the last array that looks into them.
        del self._consumer, self._producer, self._data
