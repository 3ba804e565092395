"""Processes with memory of every kind, registered and armed as a test wants it."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from uffdtrace.kernel import offers
from uffdtrace.model.events import Feature, Mode

OFFERED = offers.features() or 0
need_wp = pytest.mark.skipif(not OFFERED & Feature.PAGEFAULT_FLAG_WP, reason="no write protection for this user here")
PAGE = mmap.PAGESIZE
HUGE = 2 << 20
GIB = 1 << 30
NOBODY = 65534
USERFAULTFD = {"x86_64": 323, "aarch64": 282}[platform.machine()]
USER_MODE_ONLY = 1
PROT_RW, MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE, MAP_HUGETLB = 3, 1, 2, 0x20, 0x4000, 0x40000
WP, MISSING = int(Mode.WP), int(Mode.MISSING)

need_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def need(features: int) -> None:
    if features & ~OFFERED:
        pytest.skip(f"this kernel has no {Feature(features)!r}")


def userfaultfd(features: int = 0, flags: int = 0) -> int:
    fd = libc.syscall(USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK | flags)
    fcntl.ioctl(fd, 0xC018AA3F, struct.pack("<QQQ", 0xAA, features, 0))
    return int(fd)


def register(fd: int, start: int, length: int, modes: int = WP) -> None:
    fcntl.ioctl(fd, 0xC020AA00, struct.pack("<QQQQ", start, length, modes, 0))


def protect(fd: int, start: int, first: int, pages: int, on: bool = True) -> None:
    fcntl.ioctl(fd, 0xC018AA06, struct.pack("<QQQ", start + first * PAGE, pages * PAGE, int(on)))


def mapping(length: int, flags: int = MAP_PRIVATE | MAP_ANONYMOUS, fd: int = -1) -> int:
    address = libc.mmap(None, length, PROT_RW, flags, fd, 0)
    assert address not in (None, ctypes.c_void_p(-1).value), os.strerror(ctypes.get_errno())
    return int(address)


def write_pages(start: int, pages: range) -> None:
    for page in pages:
        ctypes.memset(start + page * PAGE, 1, 1)


def read_pages(start: int, pages: range) -> None:
    for page in pages:
        ctypes.string_at(start + page * PAGE, 1)


@contextmanager
def child(prepare: Callable[[], list[int]], uid: int = 0) -> Iterator[list[int]]:
    """A process that prepares and waits: its pid, and what it returned."""
    back, ready = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if uid:
                os.setgid(uid)
                os.setuid(uid)
                # PR_SET_DUMPABLE: as after an exec.
                libc.prctl(4, 1, 0, 0, 0)
            numbers = prepare()
            os.write(ready, struct.pack(f"<{len(numbers)}Q", *numbers))
            os.close(ready)
            signal.pause()
        finally:
            os._exit(1)
    os.close(ready)
    try:
        # Not to its end: what the child forks has it open too.
        said = os.read(back, 4096)
        os.close(back)
        assert said, "the child failed"
        yield [pid, *struct.unpack(f"<{len(said) // 8}Q", said)]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def armed(pages: int, written: range, arm: tuple[int, int], modes: int = WP, features: int = 0) -> list[int]:
    fd = userfaultfd(features)
    start = mapping(pages * PAGE)
    write_pages(start, written)
    register(fd, start, pages * PAGE, modes)
    if arm[1]:
        protect(fd, start, *arm)
    return [start, fd]
