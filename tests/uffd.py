"""userfaultfd(2) by its numbers, for tests; only the standard library."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import struct
from dataclasses import dataclass

PAGE = mmap.PAGESIZE
USERFAULTFD = {"x86_64": 323, "aarch64": 282}[platform.machine()]
PROT_RW, MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE, MAP_HUGETLB = 3, 1, 2, 0x20, 0x4000, 0x40000
MISSING, WP = 1, 2
_MESSAGE = struct.Struct("<B7xQQQ")
_PAGEFAULT, _FLAG_WP = 0x12, 2

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def userfaultfd(features: int = 0, flags: int = 0) -> int:
    fd = libc.syscall(USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK | flags)
    _api(fd, features)
    return int(fd)


def offered() -> int:
    """UFFD_FEATURE_* bits that the kernel has; none where this user may open no userfaultfd."""
    fd = libc.syscall(USERFAULTFD, os.O_CLOEXEC)
    if fd < 0:
        return 0
    try:
        return _api(fd, 0)
    finally:
        os.close(fd)


def _api(fd: int, features: int) -> int:
    answer = fcntl.ioctl(fd, 0xC018AA3F, struct.pack("<QQQ", 0xAA, features, 0))
    return int(struct.unpack("<QQQ", answer)[1])


def register(fd: int, start: int, length: int, modes: int = WP) -> None:
    fcntl.ioctl(fd, 0xC020AA00, struct.pack("<QQQQ", start, length, modes, 0))


def protect(fd: int, start: int, first: int, pages: int, on: bool = True) -> None:
    fcntl.ioctl(fd, 0xC018AA06, struct.pack("<QQQ", start + first * PAGE, pages * PAGE, int(on)))


def copy(fd: int, to: int, source: int) -> None:
    """One page of ours into the watched memory."""
    fcntl.ioctl(fd, 0xC028AA03, struct.pack("<QQQQq", to, source, PAGE, 0, 0))


@dataclass(frozen=True)
class Message:
    address: int
    wp: bool


def messages(data: bytes) -> list[Message]:
    """The page faults among what read(2) gave."""
    found = []
    for event, flags, address, _ in _MESSAGE.iter_unpack(data):
        if event == _PAGEFAULT:
            found.append(Message(address & ~(PAGE - 1), bool(flags & _FLAG_WP)))
    return found


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
