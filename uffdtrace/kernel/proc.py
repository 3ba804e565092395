"""What /proc says of a process: who it is, its userfaultfds, its registered memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PROC = Path("/proc")
_PAGE = os.sysconf("SC_PAGE_SIZE")
# Documentation/admin-guide/mm/pagemap.rst; since 5.14 (fb8e37f35a2f).
_PAGEMAP_UFFD_WP = np.uint64(1 << 57)
_PAGEMAP_CHUNK = 1 << 16
_MODES = {"um": 1, "uw": 2, "ui": 4}


class NoProcess(Exception):
    """There is no such process, or it is gone."""


@dataclass(frozen=True)
class Process:
    pid: int
    comm: str
    cmdline: list[str]


@dataclass(frozen=True)
class Registered:
    """A mapping registered with userfaultfd: bytes [start, end), modes as UFFDIO_REGISTER_MODE_*.

    `name` is what maps calls it, and empty for plain anonymous memory.
    """

    start: int
    end: int
    modes: int
    memory: str
    name: str = ""


def process(pid: int) -> Process:
    try:
        comm = (PROC / str(pid) / "comm").read_text(errors="replace").rstrip("\n")
        raw = (PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        raise NoProcess(f"no process {pid}: see ps for what runs, or start it under uffdtrace run") from None
    return Process(pid, comm, [part.decode(errors="replace") for part in raw.split(b"\0")[:-1]])


def pids() -> list[int]:
    return sorted(int(entry) for entry in os.listdir(PROC) if entry.isdigit())


def userfaultfds(pid: int) -> list[int]:
    """Descriptor numbers of its userfaultfds; empty if it is gone."""
    found = []
    try:
        for entry in os.listdir(PROC / str(pid) / "fd"):
            try:
                if os.readlink(PROC / str(pid) / "fd" / entry) == "anon_inode:[userfaultfd]":
                    found.append(int(entry))
            except FileNotFoundError:
                continue
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []
    return sorted(found)


def touch_fdinfo(pid: int, fd: int) -> bool:
    """Have the kernel run userfaultfd_show_fdinfo() for a descriptor; False if it is gone."""
    try:
        (PROC / str(pid) / "fdinfo" / str(fd)).read_bytes()
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class Area:
    """A mapping: bytes [start, end) and `anon`, `shmem` or `hugetlb`, as userfaultfd tells them apart."""

    start: int
    end: int
    memory: str
    name: str = ""


def areas(pid: int) -> list[Area]:
    """Its mappings, without walking its page tables as smaps would; empty if it is gone."""
    found = []
    try:
        with (PROC / str(pid) / "maps").open(errors="replace") as maps:
            for line in maps:
                addresses, _, _, _, inode, *name = line.rstrip("\n").split(maxsplit=5)
                start, end = (int(part, 16) for part in addresses.split("-"))
                memory = "anon" if inode == "0" else _file_memory(pid, addresses)
                found.append(Area(start, end, memory, name[0] if name else ""))
    except (FileNotFoundError, ProcessLookupError):
        return []
    return found


def _file_memory(pid: int, addresses: str) -> str:
    """A file that can be registered is shmem or hugetlb: those of hugetlbfs have huge blocks."""
    try:
        block = (PROC / str(pid) / "map_files" / addresses).stat().st_blksize
    except OSError:
        return "shmem"
    return "hugetlb" if block > _PAGE else "shmem"


def registered(pid: int) -> list[Registered]:
    """Its registered mappings, from smaps; empty if it is gone."""
    found = []
    start = end = 0
    name = ""
    try:
        with (PROC / str(pid) / "smaps").open(errors="replace") as smaps:
            for line in smaps:
                head = re.match(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+\s*(.*)", line)
                if head:
                    start, end, name = int(head.group(1), 16), int(head.group(2), 16), head.group(3)
                elif line.startswith("VmFlags:"):
                    flags = line.split()[1:]
                    modes = sum(bit for flag, bit in _MODES.items() if flag in flags)
                    if modes:
                        memory = (
                            "hugetlb"
                            if "ht" in flags
                            else "shmem"
                            if name.startswith(("/", "[anon_shmem:"))
                            else "anon"
                        )
                        found.append(Registered(start, end, modes, memory, name))
    except (FileNotFoundError, ProcessLookupError):
        return []
    return found


def protected_runs(pid: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Runs [start, end) of pages with the uffd-wp bit, from pagemap; none before 5.14."""
    try:
        pagemap = (PROC / str(pid) / "pagemap").open("rb", buffering=0)
    except (FileNotFoundError, ProcessLookupError):
        return
    with pagemap:
        for chunk in range(start, end, _PAGEMAP_CHUNK * _PAGE):
            pages = min(_PAGEMAP_CHUNK, (end - chunk) // _PAGE)
            try:
                pagemap.seek(chunk // _PAGE * 8)
                entries = np.frombuffer(pagemap.read(pages * 8), dtype="<u8")
            except ProcessLookupError:
                return
            marked = np.r_[False, (entries & _PAGEMAP_UFFD_WP) != 0, False]
            edges = np.flatnonzero(marked[1:] != marked[:-1])
            for first, last in zip(edges[::2].tolist(), edges[1::2].tolist()):
                yield chunk + first * _PAGE, chunk + last * _PAGE


def asleep_in_fault(pid: int) -> list[int]:
    """Threads that sleep in handle_userfault() now, from their wchan."""
    found = []
    try:
        for entry in os.listdir(PROC / str(pid) / "task"):
            try:
                if (PROC / str(pid) / "task" / entry / "wchan").read_text() == "handle_userfault":
                    found.append(int(entry))
            except (FileNotFoundError, ProcessLookupError):
                continue
    except (FileNotFoundError, ProcessLookupError):
        return []
    return found


def is_alive(pid: int) -> bool:
    """Whether it still runs: a zombie does not, unless only its first thread ended."""
    try:
        stat = (PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    if stat.rpartition(")")[2].split()[0] not in ("Z", "X"):
        return True
    try:
        return len(os.listdir(PROC / str(pid) / "task")) > 1
    except (FileNotFoundError, ProcessLookupError):
        return False
