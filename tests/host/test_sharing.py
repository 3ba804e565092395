"""Who else maps shared memory, as /proc tells it: real mappings of this process and of children."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from uffdtrace.kernel import proc, sharing
from uffdtrace.kernel.mappings import parse
from uffdtrace.kernel.sharing import Elsewhere

PAGE = mmap.PAGESIZE


@contextmanager
def child(*mappings: mmap.mmap) -> Iterator[int]:
    """A child that holds these mappings until it is let go."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    try:
        yield pid
    finally:
        os.close(writing)
        os.waitpid(pid, 0)


def addresses(pid: int, name: str) -> list[tuple[int, int, int]]:
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    found = [mapping for mapping in map(parse, lines) if mapping and f"/memfd:{name} " in mapping.name]
    return [(mapping.start, mapping.end, mapping.offset) for mapping in found]


@pytest.fixture
def fd() -> Iterator[int]:
    made = os.memfd_create("shared")
    os.ftruncate(made, 8 * PAGE)
    yield made
    os.close(made)


def test_a_forked_child_with_the_same_shared_mapping(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with mmap.mmap(fd, 8 * PAGE) as mapping, child(mapping) as owner, child(mapping) as other:
        monkeypatch.setattr(proc, "pids", lambda: [owner, other])
        ((start, end, _),) = addresses(owner, "shared")
        found = sharing.look({owner: [(start + PAGE, start + 3 * PAGE)]})
        assert found.unreadable == 0
        name = proc.comm(other)
        # The rest of its own mapping is not registered, but is not the same part of the file.
        assert found.elsewhere == [
            Elsewhere(owner, start + PAGE, start + 3 * PAGE, other, name, start + PAGE, start + 3 * PAGE)
        ]
        assert sharing.look({owner: [(start, end)]}).elsewhere[0].end == end
        assert sharing.look({owner: [(start, end)], other: [(start, end)]}).elsewhere == []


def test_a_second_mapping_in_the_same_process(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with mmap.mmap(fd, 4 * PAGE, offset=4 * PAGE) as one, mmap.mmap(fd, 8 * PAGE) as two, child(one, two) as owner:
        monkeypatch.setattr(proc, "pids", lambda: [owner])
        by_offset = {offset: (start, end) for start, end, offset in addresses(owner, "shared")}
        if len(by_offset) != 2:
            pytest.skip("the kernel merged them")
        found = sharing.look({owner: [by_offset[4 * PAGE]]}).elsewhere
        assert [(other.pid, other.start, other.end) for other in found] == [
            (owner, by_offset[0][0] + 4 * PAGE, by_offset[0][1])
        ]


@pytest.mark.parametrize("how", [{"prot": mmap.PROT_READ}, {"flags": mmap.MAP_PRIVATE}])
def test_who_cannot_write_to_it_is_not_named(fd: int, how: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    with mmap.mmap(fd, 8 * PAGE) as mapping, child(mapping) as owner:
        ((start, end, _),) = addresses(owner, "shared")
        with mmap.mmap(fd, 8 * PAGE, **how) as other:
            mapping.close()
            with child(other) as reader:
                monkeypatch.setattr(proc, "pids", lambda: [owner, reader])
                assert sharing.look({owner: [(start, end)]}).elsewhere == []


def test_private_memory_is_looked_for_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    with mmap.mmap(-1, 8 * PAGE, flags=mmap.MAP_PRIVATE) as mapping, child(mapping) as owner:
        buffer = ctypes.c_char.from_buffer(mapping)
        start = ctypes.addressof(buffer)
        del buffer
        monkeypatch.setattr(proc, "pids", lambda: 1 / 0)
        # The other one is gone.
        assert sharing.look({owner: [(start, start + 8 * PAGE)], 2**22 + 1: [(0, 1 << 47)]}).elsewhere == []


def test_who_may_not_be_looked_at_is_counted(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with mmap.mmap(fd, 8 * PAGE) as mapping, child(mapping) as owner:
        ((start, end, _),) = addresses(owner, "shared")
        real = sharing._mappings
        monkeypatch.setattr(proc, "pids", lambda: [owner, 1, 2])
        monkeypatch.setattr(sharing, "_mappings", lambda pid: None if pid in (1, 2) else real(pid))
        assert sharing.look({owner: [(start, end)]}).unreadable == 2


def test_many_ranges_of_one_file(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of thousands is told of, and none is compared with all others."""
    os.ftruncate(fd, 4096 * PAGE)
    with mmap.mmap(fd, 4096 * PAGE) as mapping, child(mapping) as owner, child(mapping) as other:
        monkeypatch.setattr(proc, "pids", lambda: [owner, other])
        ((start, _, _),) = addresses(owner, "shared")
        spans = [(start + number * PAGE, start + (number + 1) * PAGE) for number in range(0, 4096, 2)]
        found = sharing.look({owner: spans})
        in_owner = [one for one in found.elsewhere if one.pid == owner]
        assert [(one.start, one.end) for one in found.elsewhere if one.pid == other] == spans
        # The pages between are registered nowhere, and are none of the file's pages that are.
        assert in_owner == [] and found.unreadable == 0


def test_a_process_that_maps_it_more_often_than_is_told(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "MOST_ELSEWHERE", 2)
    with mmap.mmap(fd, 8 * PAGE) as mapping, child(mapping) as owner, child(mapping) as other, child(mapping) as third:
        monkeypatch.setattr(proc, "pids", lambda: [owner, other, third])
        ((start, _, _),) = addresses(owner, "shared")
        spans = [(start + number * PAGE, start + (number + 1) * PAGE) for number in (0, 2, 4)]
        found = sharing.look({owner: spans})
        assert [(one.pid, one.start) for one in found.elsewhere] == [(other, start), (other, start + 2 * PAGE)]
        assert found.unreadable == 2
