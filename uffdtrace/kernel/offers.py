"""What this kernel's userfaultfd offers, asked of one of our own."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path

from uffdtrace.kernel import proc

_SYSCTL = Path("/proc/sys/vm/unprivileged_userfaultfd")
_SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282}
# include/uapi/linux/userfaultfd.h
_UFFDIO_API = 0xC018AA3F
_UFFDIO_REGISTER = 0xC020AA00
_UFFDIO_WRITEPROTECT = 0xC018AA06
_UFFD_API = 0xAA
_UFFD_USER_MODE_ONLY = 1
_MODE_REGISTER_WP = 2
_MODE_WRITEPROTECT_WP = 1
# _UFFDIO_WRITEPROTECT's bit in what REGISTER answers.
_CAN_WRITEPROTECT = 1 << 6
# include/uapi/asm-generic/mman-common.h; no reserve, so that hugetlb needs no page in its pool.
_MAP_NORESERVE = 0x4000
_MAP_HUGETLB = 0x40000


class Memory(str, Enum):
    """Kinds of memory that a userfaultfd can watch."""

    ANON = "anon"
    SHMEM = "shmem"
    HUGETLB = "hugetlb"


class Access(str, Enum):
    """What faults a userfaultfd of this user gets: all, or only those that user space raises."""

    FULL = "full"
    USER_MODE_ONLY = "user-mode-only"


def open_userfaultfd() -> tuple[int, Access]:
    """A userfaultfd of our own; OSError says why not."""
    number = _SYS_USERFAULTFD.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    libc = ctypes.CDLL(None, use_errno=True)
    refused = 0
    for access, flag in ((Access.FULL, 0), (Access.USER_MODE_ONLY, _UFFD_USER_MODE_ONLY)):
        fd = int(libc.syscall(number, os.O_CLOEXEC | os.O_NONBLOCK | flag))
        if fd >= 0:
            return fd, access
        # The first is the reason: the flag is not known before 5.11.
        refused = refused or ctypes.get_errno()
    raise OSError(refused, os.strerror(refused))


@contextmanager
def _userfaultfd() -> Iterator[tuple[int, int]]:
    """A userfaultfd, and UFFD_FEATURE_* bits that the kernel offers; OSError where there is none for us."""
    fd, _ = open_userfaultfd()
    try:
        answer = fcntl.ioctl(fd, _UFFDIO_API, struct.pack("<QQQ", _UFFD_API, 0, 0))
        yield fd, int(struct.unpack("<QQQ", answer)[1])
    finally:
        os.close(fd)


def access() -> Access:
    """What this user gets; OSError says why nothing."""
    fd, found = open_userfaultfd()
    os.close(fd)
    return found


def unprivileged() -> bool | None:
    """vm.unprivileged_userfaultfd; None where there is no such setting."""
    try:
        return _SYSCTL.read_text().strip() != "0"
    except OSError:
        return None


def features() -> int | None:
    """UFFD_FEATURE_* bits that the kernel offers; None where it does not say."""
    with suppress(OSError), _userfaultfd() as (_, offered):
        return offered
    return None


@contextmanager
def _mapping(kind: Memory) -> Iterator[tuple[mmap.mmap, int]]:
    """A page of our own, and its address; OSError where there is none of that kind."""
    flags, length = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PAGESIZE
    if kind is Memory.SHMEM:
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS
    elif kind is Memory.HUGETLB:
        flags, length = flags | _MAP_HUGETLB | _MAP_NORESERVE, _huge_page()
    with mmap.mmap(-1, length, flags=flags) as page:
        # The view must go before the mapping can be closed.
        view = ctypes.c_char.from_buffer(page)
        start = ctypes.addressof(view)
        del view
        yield page, start


def _huge_page() -> int:
    """Bytes in a page of hugetlb's default size; OSError where the kernel has no hugetlb."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Hugepagesize:"):
            return int(line.split()[1]) << 10
    raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))


def _register(fd: int, start: int, length: int) -> bool:
    """Whether the memory can now be write-protected."""
    argument = struct.pack("<QQQQ", start, length, _MODE_REGISTER_WP, 0)
    try:
        answer = fcntl.ioctl(fd, _UFFDIO_REGISTER, argument)
    except OSError:
        return False
    return bool(struct.unpack("<QQQQ", answer)[3] & _CAN_WRITEPROTECT)


def write_protects(kind: Memory) -> bool | None:
    """Whether memory of that kind can be write-protected: tried on our own. None where it could not be tried."""
    with suppress(OSError), _userfaultfd() as (fd, _), _mapping(kind) as (page, start):
        return _register(fd, start, len(page))
    return None


def pagemap_tells_protection() -> bool:
    """Whether pagemap shows which pages userfaultfd protects: tried on a page of our own."""
    with suppress(OSError), _userfaultfd() as (fd, _), _mapping(Memory.ANON) as (page, start):
        page[0] = 1
        if _register(fd, start, len(page)):
            fcntl.ioctl(fd, _UFFDIO_WRITEPROTECT, struct.pack("<QQQ", start, len(page), _MODE_WRITEPROTECT_WP))
            return any(True for _ in proc.protected_runs(os.getpid(), start, start + len(page)))
    return False
