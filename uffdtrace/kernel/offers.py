"""What this kernel's userfaultfd offers, asked of one of our own."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path

from uffdtrace.kernel import proc
from uffdtrace.kernel.page import PAGE_SIZE
from uffdtrace.kernel.userfaultfd import Access, Userfaultfd, open_new

_SYSCTL = Path("/proc/sys/vm/unprivileged_userfaultfd")
# include/uapi/linux/userfaultfd.h
_MODE_REGISTER_WP = 2
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


def access() -> Access:
    """What this user gets; OSError says why nothing."""
    fd, found = open_new()
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
    with suppress(OSError), Userfaultfd() as uffd:
        return uffd.offered
    return None


@contextmanager
def _mapping(kind: Memory) -> Iterator[tuple[mmap.mmap, int]]:
    """A page of our own, and its address; OSError where there is none of that kind."""
    flags, length = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, PAGE_SIZE
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


def _protectable(uffd: Userfaultfd, start: int, length: int) -> bool:
    """Whether the memory, which is registered now, can be write-protected."""
    try:
        return bool(uffd.register(start, length, _MODE_REGISTER_WP) & _CAN_WRITEPROTECT)
    except OSError:
        return False


def write_protects(kind: Memory) -> bool | None:
    """Whether memory of that kind can be write-protected: tried on our own. None where it could not be tried."""
    with suppress(OSError), Userfaultfd() as uffd, _mapping(kind) as (page, start):
        return _protectable(uffd, start, len(page))
    return None


def pagemap_tells_protection() -> bool:
    """Whether pagemap shows which pages userfaultfd protects: tried on a page of our own."""
    with suppress(OSError), Userfaultfd() as uffd, _mapping(Memory.ANON) as (page, start):
        page[0] = 1
        if _protectable(uffd, start, len(page)):
            uffd.write_protect(start, len(page), True)
            return any(True for _ in proc.protected_runs(os.getpid(), start, start + len(page)))
    return False
