"""What /proc says of a process's mappings: where they are, what they map, and who may write there."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

PROC = Path("/proc")

# Documentation/filesystems/proc.rst: addresses, permissions, offset, device, inode, and perhaps a name.
_HEAD = re.compile(
    r"(?P<start>[0-9a-f]{1,16})-(?P<end>[0-9a-f]{1,16}) (?P<permissions>[r-][w-][x-][sp])"
    r" (?P<offset>[0-9a-f]{1,16}) (?P<major>[0-9a-f]{1,5}):(?P<minor>[0-9a-f]{1,5}) (?P<inode>[0-9]{1,20})"
    r"(?: +(?P<name>.*))?",
    re.DOTALL,
)
_MOUNT = re.compile(r"[0-9]+ [0-9]+ (?P<major>[0-9]{1,6}):(?P<minor>[0-9]{1,8}) .* - (?P<type>\S+) ")


@dataclass(frozen=True)
class File:
    """What a mapping maps, as maps names it: a device's numbers, and the inode there."""

    major: int
    minor: int
    inode: int


@dataclass(frozen=True)
class Mapping:
    """Bytes [start, end) of an address space; `offset` is theirs in `file`, which is None for anonymous memory.

    `name` is what maps calls it, and empty for plain anonymous memory.
    """

    start: int
    end: int
    offset: int
    file: File | None
    name: str
    writable: bool
    shared: bool


def parse(line: str) -> Mapping | None:
    """The mapping of a line of maps, or of the first of its lines in smaps; None if it is no such line."""
    fields = _HEAD.fullmatch(line.rstrip("\n"))
    if fields is None:
        return None
    inode = int(fields["inode"])
    return Mapping(
        int(fields["start"], 16),
        int(fields["end"], 16),
        int(fields["offset"], 16),
        File(int(fields["major"], 16), int(fields["minor"], 16), inode) if inode else None,
        fields["name"] or "",
        "w" in fields["permissions"],
        fields["permissions"].endswith("s"),
    )


@lru_cache(maxsize=1)
def _internal_device() -> tuple[int, int] | None:
    """The device of memfds, shared anonymous and System V memory: a tmpfs that is mounted nowhere."""
    try:
        fd = os.memfd_create("uffdtrace")
    except OSError:
        return None
    try:
        device = os.fstat(fd).st_dev
    finally:
        os.close(fd)
    return os.major(device), os.minor(device)


def _mounted(pid: int) -> set[tuple[int, int]]:
    """The devices of the tmpfs file systems that a process sees mounted; empty if it is gone."""
    try:
        # A carriage return in a mount point is no end of line.
        with (PROC / str(pid) / "mountinfo").open(errors="replace", newline="\n") as mountinfo:
            mounts = [_MOUNT.match(line) for line in mountinfo]
    except OSError:
        return set()
    return {(int(mount["major"]), int(mount["minor"])) for mount in mounts if mount and mount["type"] == "tmpfs"}


def memory_of(pid: int) -> Callable[[Mapping, bool], str]:
    """Tells what memory a mapping of the process is, given whether it is huge pages of hugetlbfs (VmFlags ht)."""
    mounted: set[tuple[int, int]] | None = None

    def memory(mapping: Mapping, hugetlb: bool) -> str:
        nonlocal mounted
        if hugetlb:
            return "hugetlb"
        # A private mapping of /dev/zero is anonymous memory (drivers/char/mem.c, mmap_zero()).
        if mapping.file is None or (mapping.name == "/dev/zero" and not mapping.shared):
            return "anon"
        device = (mapping.file.major, mapping.file.minor)
        if device == _internal_device():
            return "shmem"
        if mounted is None:
            mounted = _mounted(pid)
        return "shmem" if device in mounted else "file"

    return memory
