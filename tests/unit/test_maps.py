"""The maps' entries, read and written through a library that stands for BCC's."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Any

import numpy as np
import pytest

from uffdtrace.collect import threads
from uffdtrace.collect.image import Map
from uffdtrace.collect.maps import Table
from uffdtrace.model.records.events import THREAD, Type

SHAPE = Map("counts", 1, 2, 4, 8, 0)


class Library:
    """bpf(2) on one map; keys in the order in which they came."""

    def __init__(self) -> None:
        self.entries: dict[bytes, bytes] = {}
        self.error = 0

    def _answer(self, number: int) -> int:
        ctypes.set_errno(number)
        return -1 if number else 0

    def bpf_update_elem(self, fd: int, key: bytes, value: bytes, flags: int) -> int:
        assert (fd, flags, len(key), len(value)) == (3, 0, 2, 4)
        if not self.error:
            self.entries[key] = value
        return self._answer(self.error)

    def bpf_lookup_elem(self, fd: int, key: bytes, value: Any) -> int:
        if self.error or key not in self.entries:
            return self._answer(self.error or errno.ENOENT)
        value.raw = self.entries[key]
        return 0

    def bpf_delete_elem(self, fd: int, key: bytes) -> int:
        if self.error or self.entries.pop(key, None) is None:
            return self._answer(self.error or errno.ENOENT)
        return 0

    def bpf_get_next_key(self, fd: int, key: bytes | None, following: Any) -> int:
        keys = list(self.entries)
        # The kernel begins again where the key is gone.
        place = keys.index(key) + 1 if key in self.entries else 0
        if place == len(keys):
            return self._answer(errno.ENOENT)
        following.raw = keys[place]
        return 0


@pytest.fixture
def library() -> Library:
    return Library()


@pytest.fixture
def table(library: Library) -> Table:
    return Table(library, SHAPE, 3)


def test_entries_come_and_go(table: Table) -> None:
    table[b"aa"] = b"1111"
    table[b"bb"] = b"2222"
    assert list(table) == [b"aa", b"bb"]
    assert dict(table.items()) == {b"aa": b"1111", b"bb": b"2222"}
    table.discard(b"aa")
    table.discard(b"aa")
    assert list(table) == [b"bb"]
    with pytest.raises(KeyError):
        table[b"aa"]


def test_an_entry_that_goes_meanwhile_is_left_out(table: Table, library: Library) -> None:
    for key in (b"aa", b"bb", b"cc"):
        table[key] = b"1111"
    found = []
    for key, _ in table.items():
        library.entries.pop(b"bb", None)
        found.append(key)
    assert found == [b"aa", b"cc"]


def test_a_map_that_never_ends_is_left(table: Table, library: Library) -> None:
    table[b"aa"] = b"1111"
    library.bpf_get_next_key = lambda fd, key, following: 0  # type: ignore[method-assign]
    assert len(list(table)) == 1


def test_what_the_kernel_refuses_is_said(table: Table, library: Library) -> None:
    library.error = errno.E2BIG
    said = "the BPF map counts (takes no entry|cannot be read|keeps an entry): Argument list too long"
    with pytest.raises(OSError, match=said):
        table[b"aa"] = b"1111"
    with pytest.raises(OSError, match=said):
        table[b"aa"]
    with pytest.raises(OSError, match=said):
        table.discard(b"aa")


def array(values: list[bytes], stride: int) -> int:
    """The memory of an array map, of which the kernel puts a value each `stride` bytes."""
    fd = os.memfd_create("array")
    os.ftruncate(fd, -(-len(values) * stride // 4096) * 4096)
    for place, value in enumerate(values):
        os.pwrite(fd, value, place * stride)
    return fd


def test_values_are_read_where_they_are() -> None:
    fd = array([struct.pack("<I", number) for number in range(5)], 8)
    values = Table(None, Map("losses", 2, 4, 4, 5, 1 << 10), fd).values(np.dtype("<u4"))
    assert values.tolist() == [0, 1, 2, 3, 4]
    os.pwrite(fd, struct.pack("<I", 77), 8)
    assert values.tolist() == [0, 77, 2, 3, 4]


def test_what_threads_had_not_told_when_the_trace_ended() -> None:
    head = struct.Struct("<IIQQ")
    slots = [head.pack(*one).ljust(37, b"x") for one in ((0, 0, 0, 0), (11, 10, 0xC0, 500), (12, 10, 0xC0, 0))]
    own = Table(None, Map("threads", 2, 4, 37, 3, 1 << 10), array(slots, 40))

    class Crowded:
        def items(self) -> list[tuple[bytes, bytes]]:
            return [(b"", head.pack(65547, 20, 0xC1, 700).ljust(37, b"x"))]

    events = threads.returns(own, Crowded())  # type: ignore[arg-type]
    assert set(events["type"]) == {int(Type.FAULT_RETURN)}
    told = (events["time"] - events["aux"]).tolist()
    assert list(zip(events["tid"], events["tgid"], events["ctx"], told)) == [
        (11, 10, 0xC0, 500),
        (65547, 20, 0xC1, 700),
    ]
    assert THREAD.itemsize == head.size
