"""What /proc says of a process: who it is, its userfaultfds, its registered memory."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from uffdtrace.arrays import Array
from uffdtrace.errors import UffdtraceError
from uffdtrace.kernel import architecture, mappings
from uffdtrace.kernel.page import PAGE_SIZE

PROC = Path("/proc")
# Documentation/admin-guide/mm/pagemap.rst; bit 57 since 5.14 (fb8e37f35a2f).
PAGEMAP_UFFD_WP, PAGEMAP_SWAPPED, PAGEMAP_PRESENT = (np.uint64(1 << bit) for bit in (57, 62, 63))
_PAGEMAP_CHUNK = 1 << 16
_MODES = {"um": 1, "uw": 2, "ui": 4}


class NoProcess(UffdtraceError):
    """There is no such process, or it is gone."""


class NoProc(UffdtraceError):
    """/proc is not mounted."""


def check_mounted() -> None:
    """Raise NoProc where all questions would be answered with "no such process", as in a chroot."""
    # A name that is there for whoever asks, and for nobody without /proc.
    if not (PROC / "self").exists():
        raise NoProc(f"there is no {PROC} here, which tells of processes: mount it (mount -t proc proc {PROC})")


def gone(pid: int) -> str:
    return f"process {pid} has no memory to look at: it ended, or is the kernel's; see ps for what runs"


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
        check_mounted()
        raise NoProcess(f"no process {pid}: see ps for what runs, or start it under uffdtrace run") from None
    return Process(pid, comm, [part.decode(errors="replace") for part in raw.split(b"\0")[:-1]])


def comm(pid: int) -> str:
    """Empty if it is gone."""
    try:
        return (PROC / str(pid) / "comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        return ""


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


@dataclass(frozen=True)
class Fdinfo:
    """What fdinfo says of a userfaultfd: UFFD_FEATURE_*, the faults that nobody has read, and all that wait.

    `blocking` where it is open without O_NONBLOCK.
    """

    features: int
    unread: int
    waiting: int
    blocking: bool


def fdinfo(pid: int, fd: int) -> Fdinfo | None:
    """None if the descriptor is gone, or is no userfaultfd."""
    try:
        lines = (PROC / str(pid) / "fdinfo" / str(fd)).read_text().splitlines()
    except OSError:
        return None
    said = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    if not {"flags", "pending", "total", "API"} <= set(said):
        return None
    blocking = not int(said["flags"], 8) & os.O_NONBLOCK
    return Fdinfo(int(said["API"].split(":")[1], 16), int(said["pending"]), int(said["total"]), blocking)


# kcmp(2)'s types of what is compared (include/uapi/linux/kcmp.h).
_KCMP_FILE, _KCMP_VM = 0, 1


# Its answers: one and the same, or the first before or behind the second in an order of the kernel's own.
_KCMP_ANSWERS = {0: 0, 1: -1, 2: 1}


@lru_cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _compared(pid: int, other: int, what: int, first: int = 0, second: int = 0) -> int | None:
    """0 where two processes have one and the same of something, -1 or 1 else; None where the kernel does not say."""
    number = architecture.system_call("kcmp")
    return None if number is None else _KCMP_ANSWERS.get(_libc().syscall(number, pid, other, what, first, second))


def compared_files(pid: int, fd: int, other: int, other_fd: int) -> int | None:
    """0 where two descriptors are one open file: duplicated, inherited or passed on.

    Else -1 or 1: the first is before or behind the second, in an order that does not change. None where the
    kernel does not say.
    """
    return _compared(pid, other, _KCMP_FILE, fd, other_fd)


def same_memory(pid: int, other: int) -> bool:
    """Whether two processes have one address space, as after vfork(2); False where the kernel does not say."""
    return _compared(pid, other, _KCMP_VM) == 0


@dataclass(frozen=True)
class Area:
    """A mapping: bytes [start, end), and what maps calls it, empty for plain anonymous memory."""

    start: int
    end: int
    name: str


def areas(pid: int) -> list[Area]:
    """Its mappings, without walking its page tables as smaps would; empty if it is gone."""
    try:
        # Names are the target's: a carriage return is no end of line.
        with (PROC / str(pid) / "maps").open(errors="replace", newline="\n") as maps:
            parsed = [mappings.parse(line) for line in maps]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [Area(mapping.start, mapping.end, mapping.name) for mapping in parsed if mapping]


def registered(pid: int) -> list[Registered]:
    """Its registered mappings, from smaps; empty if it is gone."""
    found = []
    memory = mappings.memory_of(pid)
    mapping: mappings.Mapping | None = None
    try:
        with (PROC / str(pid) / "smaps").open(errors="replace", newline="\n") as smaps:
            for line in smaps:
                if line.startswith("VmFlags:"):
                    flags = line.split()[1:]
                    modes = sum(bit for flag, bit in _MODES.items() if flag in flags)
                    if modes and mapping:
                        kind = memory(mapping, "ht" in flags)
                        found.append(Registered(mapping.start, mapping.end, modes, kind, mapping.name))
                elif not line[0].isupper():
                    mapping = mappings.parse(line)
    except (FileNotFoundError, ProcessLookupError):
        return []
    return found


def pagemap_entries(pid: int, start: int, end: int) -> Iterator[tuple[int, Array]]:
    """Address and pagemap entries of each chunk of a range; nothing if the process is gone."""
    try:
        pagemap = (PROC / str(pid) / "pagemap").open("rb", buffering=0)
    except (FileNotFoundError, ProcessLookupError):
        return
    with pagemap:
        for chunk in range(start, end, _PAGEMAP_CHUNK * PAGE_SIZE):
            pages = min(_PAGEMAP_CHUNK, (end - chunk) // PAGE_SIZE)
            try:
                pagemap.seek(chunk // PAGE_SIZE * 8)
                entries = np.frombuffer(pagemap.read(pages * 8), dtype="<u8")
            except ProcessLookupError:
                return
            yield chunk, entries


def protected_runs(pid: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Runs [start, end) of pages with the uffd-wp bit, from pagemap; none before 5.14."""
    for chunk, entries in pagemap_entries(pid, start, end):
        marked = np.r_[False, (entries & PAGEMAP_UFFD_WP) != 0, False]
        edges = np.flatnonzero(marked[1:] != marked[:-1])
        for first, last in zip(edges[::2].tolist(), edges[1::2].tolist()):
            yield chunk + first * PAGE_SIZE, chunk + last * PAGE_SIZE


def _threads(pid: int) -> list[int]:
    try:
        return [int(entry) for entry in os.listdir(PROC / str(pid) / "task")]
    except (FileNotFoundError, ProcessLookupError):
        return []


def asleep_in_fault(pid: int) -> list[int]:
    """Threads that sleep in handle_userfault() now.

    Told by their kernel stacks; who may not read those asks wchan, which before
    5.16 (bc9bbb81730e) may stay silent about a thread.
    """
    return [
        tid for tid in _threads(pid) if _slept_in(pid, tid)[:1] == ["handle_userfault"] and _state(tid) in ("S", "D")
    ]


def stands_at(tid: int) -> tuple[int | None, int] | None:
    """The system call that a thread sleeps in, None for none, and the user address that it came from; None if unknown.

    Documentation/filesystems/proc.rst, /proc/PID/syscall: `-1 SP PC`, or the call, its arguments, SP and PC.
    """
    try:
        words = (PROC / str(tid) / "syscall").read_text().split()
        call, address = int(words[0]), int(words[-1], 16)
    except (OSError, ValueError, IndexError):
        return None
    return (None if call < 0 else call), address


# The callers of userfaultfd_event_wait_completion(), which may be inlined into them (fs/userfaultfd.c): the
# system call that waits, and the event that the monitor has to read.
_EVENT_CALLERS = {
    "userfaultfd_unmap_complete": ("munmap", "unmap"),
    "userfaultfd_remove": ("madvise", "remove"),
    "mremap_userfaultfd_complete": ("mremap", "remap"),
    "dup_userfaultfd_complete": ("fork", "fork"),
}
_EVENT_WAIT = "userfaultfd_event_wait_completion"


@dataclass(frozen=True)
class EventSleeper:
    """A thread that sleeps until an event is read; `call` and `event` None where only wchan could be asked."""

    tid: int
    call: str | None
    event: str | None


def asleep_in_event(pid: int) -> list[EventSleeper]:
    """Threads that sleep until a monitor has read of their munmap, madvise, mremap or fork."""
    sleepers = []
    for tid in _threads(pid):
        frames = _slept_in(pid, tid)
        if not frames or frames[0] not in (_EVENT_WAIT, *_EVENT_CALLERS) or _state(tid) not in ("S", "D"):
            continue
        # dup_fctx() may stand between the two.
        callers = (_EVENT_CALLERS[frame] for frame in frames[:3] if frame in _EVENT_CALLERS)
        sleepers.append(EventSleeper(tid, *next(callers, (None, None))))
    return sleepers


def _slept_in(pid: int, tid: int) -> list[str]:
    """The functions in which a thread waits, innermost first; of one that runs the answer is worthless."""
    place = PROC / str(pid) / "task" / str(tid)
    try:
        # "[<0>] handle_userfault+0x1f4/0x5a0", without the scheduler's functions.
        lines = (place / "stack").read_text().splitlines()
        return [line.partition("+")[0].rpartition(" ")[2] for line in lines]
    except (FileNotFoundError, ProcessLookupError):
        if place.exists():
            return _wchan(place)  # CONFIG_STACKTRACE is off
        return []
    except PermissionError:
        return _wchan(place)


def _wchan(place: Path) -> list[str]:
    try:
        return [(place / "wchan").read_text()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _state(tid: int) -> str | None:
    """proc_pid_stat(5)'s letter; None where the thread is gone."""
    try:
        stat = (PROC / str(tid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return stat.rpartition(")")[2].split()[0]


def _ended(tid: int) -> bool:
    """Whether that thread is gone, or waits to be reaped."""
    return _state(tid) in (None, "Z", "X")


def has_ended(tid: int) -> bool:
    """Whether a thread of any process is gone, or waits to be reaped."""
    return _ended(tid)


def living_thread(pid: int) -> int:
    """The first thread, or where that has ended, taking its view of memory and files along, one that has not."""
    return next((tid for tid in [pid, *_threads(pid)] if not _ended(tid)), pid)


def is_alive(pid: int) -> bool:
    """Whether it still runs: a zombie does not, unless only its first thread ended."""
    return not _ended(pid) or len(_threads(pid)) > 1
