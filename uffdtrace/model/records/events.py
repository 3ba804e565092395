"""Events and counters: one record, its numbers, and their C twins.

`c_header()` writes the C that the BPF program is compiled with, so that a
number has one home. The record is 64 bytes, little-endian, naturally aligned;
the trace file stores it as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum, IntFlag

import numpy as np

from uffdtrace.arrays import Array as Array

# What a page can have, in bytes: a trace says which. x86-64 has the first, arm64 whichever its kernel was built for.
PAGE_SIZES = (4096, 16384, 65536)
# User addresses end here with five-level page tables; more no trace can claim.
HIGHEST = 1 << 56


class Type(IntEnum):
    """What an event says. The fields' meaning per type is in FIELDS below."""

    USERFAULTFD = 1
    FAULT = 2
    MESSAGE = 3
    WAKE = 4
    FAULT_RETURN = 5
    IOCTL = 6
    IOCTL_RETURN = 7
    PROTECT = 8
    PROTECT_RETURN = 9
    FRESH_PAGE = 10
    HUGE_PAGE = 11
    HUGE_ZERO_WRITE = 12
    ZERO_PAGE = 13
    HUGE_ZERO_PAGE = 14
    HUGE_FALLBACK = 15
    FILE_PAGE = 16
    UNPROTECTED_WRITE = 17
    DISCARD = 18
    UNMAP = 19
    EXIT = 20
    RELEASE = 21
    FORK = 22
    REMAP = 23
    REMAP_RETURN = 24
    MERGED = 25
    SWAPPED_BACK = 26
    EVENT = 27
    AREA = 28
    FORKED = 29
    PROCESS = 30
    POLL = 31
    HUGE_WRITE = 33
    ZAP = 34
    UNMERGED = 35
    PRESENT = 36
    PROCESS_NAME = 37
    AREA_REGISTERED = 38
    ZAP_RETURN = 39
    FAULT_FOUND = 40
    EVENT_FOUND = 41
    CHILD = 42
    PAGE_SCAN = 43
    PAGE_SCAN_RETURN = 44
    STACK = 45
    # From the collector, not from the kernel:
    RANGE_FOUND = 128
    PAGES_FOUND = 129
    ASLEEP = 130
    WAITERS_FOUND = 131
    SLEEPER_FOUND = 132
    EVENT_ASLEEP = 133
    READER_GONE = 134
    HOLDER_FOUND = 135


# Meaning of the fields that differ per type; `ctx` is the kernel's
# userfaultfd_ctx, `tid`/`tgid` the current thread's, unless it says otherwise.
# Addresses are bytes in the target, [start, end).
FIELDS = {
    Type.USERFAULTFD: "a descriptor seen: start=mm, end=features, aux=tgid of the memory's owner or 0,"
    " kind=1 where it was in use before",
    Type.FAULT: "handle_userfault: start=address, aux=fault flags and, from SINCE_RETURN_SHIFT on, how long ago (ns)"
    " the thread's last fault returned (0 where that was told), value=vm_start, end=vm_end, kind=Kind, flags=Memory and"
    " modes, ret=1 where the fault cannot sleep",
    Type.MESSAGE: "read by the monitor: start=address, aux=message flags, kind=Kind, tid=the faulting thread,"
    " tgid=the monitor, value=its thread, flags=Memory or 0, end=the fault's vm_start or 0",
    Type.WAKE: "a fault resolved: start=address, tid=the faulting thread, tgid=the process that woke it,"
    " value=its thread",
    Type.FAULT_RETURN: "handle_userfault returned: value=vm_fault_t, kind=1 as its process dies, aux=how long ago (ns);"
    " for one that was woken the thread's next FAULT tells of it, or its end, or that of the trace",
    Type.IOCTL: "start, end=range, aux=mode, value=source address, kind=Ioctl",
    Type.IOCTL_RETURN: "as IOCTL, value=the result member, ret=0 or -errno; what the call did on its way may be in"
    " flags, aux and value (model/records/acts.py)",
    Type.PROTECT: "change_protection: start, end, kind=1 protect, 0 release, aux=vm_flags, flags=Memory,"
    " value=1 where swap is in use",
    Type.PROTECT_RETURN: "value=pages changed, of a PROTECT with kind=1",
    Type.FRESH_PAGE: "a write fault populated start..end without protection, aux=fault address",
    Type.HUGE_PAGE: "the same with a huge page; kind=1 if a write did it",
    Type.HUGE_ZERO_WRITE: "a write replaced a huge zero page with a huge page",
    Type.ZERO_PAGE: "a read fault mapped the zero page over nothing at start..end",
    Type.HUGE_ZERO_PAGE: "the same with the huge zero page, unless HUGE_FALLBACK follows",
    Type.HUGE_FALLBACK: "that huge zero page did not come about: start, end, aux=fault address",
    Type.FILE_PAGE: "a fault maps a shmem or hugetlb page without protection; kind=1 for a write",
    Type.UNPROTECTED_WRITE: "a write fault on a present page without protection; kind=1 for the zero page",
    Type.DISCARD: "madvise drops start..end; flags=Memory, kind=1 if a REMOVE event tells the monitor,"
    " aux=number of the system call that does it, of that machine (0 where not known), value=its advice, for madvise",
    Type.ZAP: "the entries of start..end are dropped, by whatever call; otherwise as DISCARD",
    Type.ZAP_RETURN: "they are gone",
    Type.HUGE_WRITE: "a write made the huge page start..end, present and not protected, writable; aux=fault address",
    Type.UNMERGED: "KSM gave start..end a page of its own again, writable, though nobody wrote",
    Type.UNMAP: "ctx=mm: munmap of start..end",
    Type.EXIT: "ctx=mm: the address space is going away",
    Type.RELEASE: "the userfaultfd was closed; kind=1 by the end of its last holder, tgid",
    Type.FORK: "a fork copies the area start..end; kind=1 if the child's is watched too (EVENT_FORK),"
    " aux=1 if it is empty there (MADV_WIPEONFORK), flags=Memory",
    Type.REMAP: "ctx=mm: mremap of start..end, aux=new length, flags=MREMAP_*",
    Type.REMAP_RETURN: "value=new address or -errno",
    Type.MERGED: "ctx=mm: KSM put a shared page at start..end, without protection",
    Type.SWAPPED_BACK: "swapoff brought the page at start..end back, on a kernel that drops its protection",
    Type.EVENT: "the kernel waits for the monitor to read an event; kind=UffdEvent",
    Type.AREA: "a registered mapping that the collector looked at: start, end; flags=Memory",
    Type.FORKED: "the child's userfaultfd, made by a fork: start=its mm, end=features, aux=the parent's ctx",
    Type.PROCESS: "ctx=mm: it is the memory of the new process tgid",
    Type.POLL: "poll() was called on it without O_NONBLOCK, for the first time",
    Type.PRESENT: "before the REGISTER with MISSING alone that follows, of this thread: start, end, value=pages"
    " populated there, kind=1 if there may be more",
    Type.PROCESS_NAME: "start and end hold the name of process tgid, 16 bytes",
    Type.AREA_REGISTERED: "an area in which REGISTER enters the userfaultfd: start, end, flags=Memory",
    Type.FAULT_FOUND: "in a fault since before the trace: start=address, aux=message flags, kind=Kind, value=1 if the"
    " message was read, tid, tgid=the thread that sleeps",
    Type.EVENT_FOUND: "waits since before the trace until an event is read: kind=UffdEvent, tid, tgid=the thread",
    Type.CHILD: "ctx=mm: the fork of this thread, which copied areas (FORK), made the process value",
    Type.PAGE_SCAN: "ctx=mm: ioctl(PAGEMAP_SCAN) with PM_SCAN_WP_MATCHING begins to protect what matches in start..end",
    Type.PAGE_SCAN_RETURN: "ctx=mm: that call has gone through start..end; kind=1 where it protected every page there"
    " that counted as written, ret=0 or -errno",
    Type.STACK: "frames of what the thread did at that time: an event of the type `flags`; ctx to value are five"
    " addresses, 0 behind the last, from the frame 5*kind on, or of user space from the frame 5*(kind-STACK_USER) on;"
    " where kind=STACK_NAME, start and end hold the thread's name, 16 bytes",
    Type.RANGE_FOUND: "found registered at attach: start, end, aux=Mode, flags=Memory,"
    " kind=1 if protected pages would be found",
    Type.PAGES_FOUND: "found protected at attach: start, end",
    Type.WAITERS_FOUND: "faults of the userfaultfd found at attach: aux=messages not read yet, value=threads not woken",
    Type.SLEEPER_FOUND: "tid of process tgid slept in handle_userfault at attach",
    Type.ASLEEP: "tid still slept in handle_userfault when the trace ended",
    Type.EVENT_ASLEEP: "tid slept until the monitor reads an event when the trace ended: kind=UffdEvent,"
    " 0 where it is not known which",
    Type.READER_GONE: "tid, which had read messages, was seen to have ended; value=when (ns) it was last seen alive, or"
    " 0, kind=1 if its process had ended, too",
    Type.HOLDER_FOUND: "process tgid held the userfaultfd when the trace ended: value=its descriptor; start and end"
    " hold the process's name, 16 bytes; tgid=0 where it was looked for",
}


class Kind(IntEnum):
    """Kinds of fault and message, in the order every report lists them."""

    MISSING = 0
    WP = 1
    MINOR = 2


class Memory(IntFlag):
    """The low bits of `flags`; the page order of hugetlb stands above MEMORY_ORDER_SHIFT."""

    ANON = 1
    SHMEM = 2
    HUGETLB = 4
    # An ordinary file or a device: since 6.7 WP_ASYNC takes any mapping (d61ea1cb0095).
    FILE = 8


# The bits of `flags` that are Memory's.
MEMORY_MASK = 15

MEMORY_ORDER_SHIFT = 8
# enum fault_flag (include/linux/mm_types.h) in a FAULT's aux; above them stands how long ago the last fault returned.
SINCE_RETURN_SHIFT = 16
FAULT_FLAGS = (1 << SINCE_RETURN_SHIFT) - 1
# The first slot of a STACK that tells of user space; those before it tell of the kernel. Five frames each.
STACK_USER = 4
STACK_NAME = 7
# No architecture has huge pages of more than 2^18 base pages: 1 GiB of 4 KiB ones, 1 GiB of 16 KiB ones (2^16),
# 16 GiB of 64 KiB ones (arch/arm64/mm/hugetlbpage.c).
MOST_ORDER = 18
# In a FAULT's flags, the area's modes: MISSING and WP, MINOR's bit is not the same everywhere.
MODES_SHIFT = 16


class Mode(IntFlag):
    """UFFDIO_REGISTER_MODE_* (include/uapi/linux/userfaultfd.h)."""

    MISSING = 1
    WP = 2
    MINOR = 4


class Ioctl(IntEnum):
    """_UFFDIO_* numbers (include/uapi/linux/userfaultfd.h)."""

    REGISTER = 0x00
    UNREGISTER = 0x01
    WAKE = 0x02
    COPY = 0x03
    ZEROPAGE = 0x04
    MOVE = 0x05
    WRITEPROTECT = 0x06
    CONTINUE = 0x07
    POISON = 0x08
    API = 0x3F


class UffdEvent(IntEnum):
    """UFFD_EVENT_* (include/uapi/linux/userfaultfd.h)."""

    FORK = 0x13
    REMAP = 0x14
    REMOVE = 0x15
    UNMAP = 0x16


class Feature(IntFlag):
    """UFFD_FEATURE_* (include/uapi/linux/userfaultfd.h)."""

    PAGEFAULT_FLAG_WP = 1 << 0
    EVENT_FORK = 1 << 1
    EVENT_REMAP = 1 << 2
    EVENT_REMOVE = 1 << 3
    MISSING_HUGETLBFS = 1 << 4
    MISSING_SHMEM = 1 << 5
    EVENT_UNMAP = 1 << 6
    SIGBUS = 1 << 7
    THREAD_ID = 1 << 8
    MINOR_HUGETLBFS = 1 << 9
    MINOR_SHMEM = 1 << 10
    EXACT_ADDRESS = 1 << 11
    WP_HUGETLBFS_SHMEM = 1 << 12
    WP_UNPOPULATED = 1 << 13
    POISON = 1 << 14
    WP_ASYNC = 1 << 15
    MOVE = 1 << 16


class MessageFlag(IntFlag):
    """UFFD_PAGEFAULT_FLAG_*: in `aux` of MESSAGE."""

    WRITE = 1
    WP = 2
    MINOR = 4


class Counter(IntEnum):
    """Slots of a range's counters: its faults and messages for which the kernel, or the file, had no room."""

    FAULT_MISSING = 0
    FAULT_WP = 1
    FAULT_MINOR = 2
    MESSAGE_MISSING = 3
    MESSAGE_WP = 4
    MESSAGE_MINOR = 5


# A power of two, so that the BPF program can mask the index.
COUNTER_SLOTS = 8


class Loss(IntEnum):
    """Slots of the loss array: what could not be recorded."""

    RING_FULL = 0
    MAP_FULL = 1
    UNREADABLE = 2


# WRITEPROTECT, COPY and CONTINUE modes (include/uapi/linux/userfaultfd.h).
WRITEPROTECT_MODE_WP = 1
COPY_MODE_WP = 2
CONTINUE_MODE_WP = 2
# UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES (the same header, since 6.8: adef440691ba).
MOVE_MODE_ALLOW_SRC_HOLES = 2
# include/uapi/linux/mman.h
MREMAP_DONTUNMAP = 4


class Act(IntEnum):
    """Where an IOCTL_RETURN holds what its call did on its way (model/records/acts.py)."""

    # In `aux`: the mode, the flags of the message of whom it woke, that thread's tid, and how long ago that was (ns).
    MODE = 0xFF
    MESSAGE_SHIFT = 8
    MESSAGE = 0x7
    TID_SHIFT = 11
    # PID_MAX_LIMIT (include/linux/threads.h) is 2^22.
    TID = (1 << 22) - 1
    SINCE_SHIFT = 33
    WOKE_MOST = (1 << 31) - 1
    # In `flags`: it woke somebody. Memory stands below it where the call released all of its range.
    WOKE = 1 << 31


def name_in(event: Array) -> str:
    """The process's name that `start` and `end` of an event hold."""
    raw = event["start"].tobytes() + event["end"].tobytes()
    return raw.partition(b"\0")[0].decode(errors="replace")


# name, numpy type, C type
_RECORD = (
    ("time", "<u8", "u64"),
    ("ctx", "<u8", "u64"),
    ("start", "<u8", "u64"),
    ("end", "<u8", "u64"),
    ("aux", "<u8", "u64"),
    ("value", "<i8", "s64"),
    ("tid", "<u4", "u32"),
    ("tgid", "<u4", "u32"),
    ("type", "u1", "u8"),
    ("kind", "u1", "u8"),
    ("ret", "<i2", "s16"),
    ("flags", "<u4", "u32"),
)

EVENT = np.dtype([(name, kind) for name, kind, _ in _RECORD])
assert EVENT.itemsize == 64

# What the collector reads of a thread's state in the kernel: that begins with it (bpf/maps.bpf.c). `tid` is 0 where
# there is no thread; its last fault returned at `returned_at` (ns) in the memory of `returned_in`, a ctx, if no event
# has told of that yet (else 0).
_THREAD = (
    ("tid", "<u4", "u32"),
    ("tgid", "<u4", "u32"),
    ("returned_in", "<u8", "u64"),
    ("returned_at", "<u8", "u64"),
)
THREAD = np.dtype([(name, kind) for name, kind, _ in _THREAD])

# A lane (bpf/maps.bpf.c): how many records were ever written into it, and whether a program is writing.
_LANE = (("head", "<u8", "u64"), ("busy", "<u8", "u64"))
LANE = np.dtype([(name, kind) for name, kind, _ in _LANE])


# An event as 64 bytes without members: numpy copies records member by member where it picks or joins them.
WHOLE = np.dtype((np.void, EVENT.itemsize))


def _whole(records: Array) -> Array:
    return np.ascontiguousarray(records).view(np.dtype((np.void, records.dtype.itemsize)))


def picked(records: Array, index: Array) -> Array:
    """A copy of records[index] (any dtype of records); `index` has numbers or is a mask."""
    copied: Array = _whole(records)[index].view(records.dtype)
    return copied


def joined(parts: Sequence[Array]) -> Array:
    """These records (all of one dtype, EVENT where there are none), one part after the other."""
    if len(parts) < 2:
        return parts[0] if parts else np.empty(0, dtype=EVENT)
    whole: Array = np.concatenate([_whole(part) for part in parts]).view(parts[0].dtype)
    return whole


def c_header() -> str:
    """The record, enums and constants of this module as C."""
    lines = []
    for struct, members in (("event", _RECORD), ("thread_head", _THREAD), ("lane", _LANE)):
        lines += [f"struct {struct} {{", *(f"\t{kind} {name};" for name, _, kind in members), "};"]
    for prefix, enum in (
        ("EVENT", Type),
        ("KIND", Kind),
        ("MODE", Mode),
        ("MEMORY", Memory),
        ("IOCTL", Ioctl),
        ("UFFD_EVENT", UffdEvent),
        ("MESSAGE_FLAG", MessageFlag),
        ("COUNTER", Counter),
        ("ACT", Act),
        ("LOSS", Loss),
    ):
        lines += [f"#define {prefix}_{member.name} {int(member)}" for member in enum]
        lines += [f"#define {prefix}_COUNT {len(enum)}"]
    lines += [f"#define COUNTER_SLOTS {COUNTER_SLOTS}"]
    lines += [f"#define SINCE_RETURN_SHIFT {SINCE_RETURN_SHIFT}", f"#define FAULT_FLAGS {FAULT_FLAGS:#x}"]
    lines += [f"#define STACK_USER {STACK_USER}", f"#define STACK_NAME {STACK_NAME}"]
    lines += [f"#define MEMORY_ORDER_SHIFT {MEMORY_ORDER_SHIFT}", f"#define MODES_SHIFT {MODES_SHIFT}"]
    return "\n".join(lines) + "\n"
