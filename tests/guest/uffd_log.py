"""What uffd_log.so wrote down in a program: its messages and UFFDIO calls. Only the standard library."""

from __future__ import annotations

import errno
import mmap
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

# struct head, struct record and RECORDS of uffd_log.c.
_HEAD = struct.Struct("=QQ")
_RECORD = struct.Struct("=IIQQQq")
_RECORDS = 1 << 20
_CALL = 0x100

PAGE_SIZE = mmap.PAGESIZE
# UFFD_EVENT_* and UFFD_PAGEFAULT_FLAG_* (include/uapi/linux/userfaultfd.h).
_PAGEFAULT, _WP, _MINOR = 0x12, 2, 4
EVENTS = {0x13: "fork", 0x14: "remap", 0x15: "remove", 0x16: "unmap"}
KINDS = ("missing", "wp", "minor")
CALLS = {0x00: "register", 0x01: "unregister", 0x02: "wake", 0x03: "copy", 0x04: "zeropage", 0x05: "move"}
CALLS |= {0x06: "writeprotect", 0x07: "continue", 0x08: "poison", 0x3F: "api"}


@dataclass(frozen=True)
class Record:
    """A message, or a call: `what` is its kind, its event or the call's name.

    `userfaultfd` tells those of a process apart. `result` is -errno of a call that
    failed, or the bytes that it says it did.
    """

    what: str
    is_call: bool
    userfaultfd: int
    start: int
    length: int
    mode: int
    result: int


def _what(number: int, mode: int) -> str:
    if number >= _CALL:
        return CALLS[number - _CALL]
    if number == _PAGEFAULT:
        return "wp" if mode & _WP else "minor" if mode & _MINOR else "missing"
    return EVENTS[number]


def preloaded(programs: str, folder: Path) -> list[str]:
    """What to put before a command, so that it and what it starts write into `folder`."""
    return ["env", f"LD_PRELOAD={programs}/uffd_log.so", f"UFFD_LOG={folder}"]


def records(folder: Path, pid: int) -> list[Record]:
    """Of a process, in order; none where it never used a userfaultfd. RuntimeError: there were more than fit."""
    path = folder / str(pid)
    if not path.exists():
        return []
    with path.open("rb") as log:
        used, _ = _HEAD.unpack(log.read(_HEAD.size))
        if used > _RECORDS:
            raise RuntimeError(f"{path}: {used} records, of which {_RECORDS} fit")
        raw = log.read(used * _RECORD.size)
    return [
        Record(_what(what, mode), what >= _CALL, userfaultfd, start, length, mode, result)
        for what, userfaultfd, start, length, mode, result in _RECORD.iter_unpack(raw)
    ]


def pids(folder: Path) -> list[int]:
    """The processes that have used a userfaultfd."""
    return sorted(int(path.name) for path in folder.iterdir())


def counts(folder: Path, pid: int) -> dict[str, int]:
    """Messages by kind, other events, and the bytes that WRITEPROTECT protected."""
    own = records(folder, pid)
    found: Counter[str] = Counter(record.what for record in own if not record.is_call)
    protect = [one for one in own if one.is_call and one.what == "writeprotect" and one.mode & 1 and not one.result]
    return {
        **{kind: found[kind] for kind in KINDS},
        "other_events": sum(found[event] for event in EVENTS.values()),
        "protect_bytes": sum(record.length for record in protect),
    }


def failures(own: list[Record]) -> Counter[str]:
    """Calls that failed: "copy ENOENT" and how often."""
    return Counter(f"{one.what} {errno.errorcode[-one.result]}" for one in own if one.is_call and one.result < 0)
