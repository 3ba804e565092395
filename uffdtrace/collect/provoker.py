"""What the proof's child does to memory of its own, so that every probe that can be provoked has something to see.

Runs in a fork of the collector, which has other threads: it takes no lock of theirs, and leaves by _exit().
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import re
import select
import threading
from contextlib import suppress
from pathlib import Path
from typing import Callable

from uffdtrace.kernel import offers, pagemap
from uffdtrace.kernel.page import PAGE_SIZE
from uffdtrace.kernel.probes import HUGE_PAGES
from uffdtrace.kernel.userfaultfd import Userfaultfd
from uffdtrace.model.records.events import Feature, Mode

# sizeof(struct uffd_msg), include/uapi/linux/userfaultfd.h.
_MESSAGE_BYTES = 32
# include/uapi/asm-generic/mman-common.h
_MADV_DONTNEED = 4
_MADV_HUGEPAGE = 14
_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2
# With pages of 64 KiB huge ones have 512 MiB: too much to ask for.
_LARGEST_TRIED = 32 << 20
_WAIT_S = 5.0

_libc = ctypes.CDLL(None, use_errno=True)
for _name in ("mmap", "mremap"):
    getattr(_libc, _name).restype = ctypes.c_void_p
_FAILED = ctypes.c_void_p(-1).value


class _Memory:
    """An anonymous private mapping, or of a file, that starts at a multiple of `align` bytes."""

    def __init__(self, pages: int, align: int = PAGE_SIZE, fd: int = -1) -> None:
        self.bytes = pages * PAGE_SIZE
        flags = mmap.MAP_SHARED if fd >= 0 else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        room = self.bytes + (align if align > PAGE_SIZE else 0)
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        start = _libc.mmap(None, ctypes.c_size_t(room), protection, flags, fd, ctypes.c_long(0))
        if start is None or start == _FAILED:
            raise OSError(ctypes.get_errno(), "mmap")
        self.start = -(-int(start) // align) * align

    def at(self, page: int) -> int:
        return self.start + page * PAGE_SIZE

    def write(self, page: int) -> None:
        """Through libc, which lets other threads run meanwhile."""
        _libc.memset(ctypes.c_void_p(self.at(page)), 1, ctypes.c_size_t(1))

    def read(self, page: int) -> None:
        _libc.memcmp(ctypes.c_void_p(self.at(page)), b"x", ctypes.c_size_t(1))

    def advise(self, page: int, pages: int, advice: int) -> None:
        _libc.madvise(ctypes.c_void_p(self.at(page)), ctypes.c_size_t(pages * PAGE_SIZE), advice)


class _Userfaultfd(Userfaultfd):
    """In pages of a mapping."""

    def watch(self, memory: _Memory, modes: int) -> None:
        self.register(memory.start, memory.bytes, modes)

    def arm(self, memory: _Memory) -> None:
        self.write_protect(memory.start, memory.bytes, True)

    def next_message(self) -> None:
        """Raises TimeoutError: nobody may hang in a proof."""
        if not select.select([self.fd], [], [], _WAIT_S)[0]:
            raise TimeoutError("no message came")
        os.read(self.fd, _MESSAGE_BYTES)


def _beside(act: Callable[[], object], answer: Callable[[], object]) -> None:
    """An act that sleeps until this thread has answered it."""
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    answer()
    thread.join(_WAIT_S)


def _small_pages(uffd: _Userfaultfd, source: _Memory) -> None:
    """Holes written and read, a protected page written and let go, a page dropped, one filled."""
    memory = _Memory(16)
    memory.write(0)
    memory.write(3)
    uffd.watch(memory, int(Mode.WP))
    uffd.arm(memory)
    memory.write(1)
    memory.read(2)
    memory.write(2)

    def answer() -> None:
        uffd.next_message()
        uffd.write_protect(memory.start, PAGE_SIZE, False)

    _beside(lambda: memory.write(0), answer)
    memory.advise(3, 1, _MADV_DONTNEED)
    _libc.munmap(ctypes.c_void_p(memory.at(8)), ctypes.c_size_t(8 * PAGE_SIZE))
    missing = _Memory(4)
    uffd.watch(missing, int(Mode.MISSING))

    def fill() -> None:
        uffd.next_message()
        uffd.copy(missing.start, source.start, PAGE_SIZE)

    _beside(lambda: missing.write(0), fill)


def _huge_pages(uffd: _Userfaultfd) -> bool:
    """A hole of a huge page written, and a protected huge page whose range has lost the mode.

    Whether there were huge pages to be had.
    """
    try:
        huge_page = int((HUGE_PAGES / "hpage_pmd_size").read_text())
    except FileNotFoundError:
        return False
    if huge_page > _LARGEST_TRIED:
        return False
    pages = huge_page // PAGE_SIZE
    memory = _Memory(2 * pages, huge_page)
    memory.advise(0, 2 * pages, _MADV_HUGEPAGE)
    memory.write(pages)
    there = _huge_bytes() >= huge_page
    uffd.watch(memory, int(Mode.WP))
    uffd.arm(memory)
    memory.write(0)
    both = _huge_bytes() >= 2 * huge_page
    uffd.watch(memory, int(Mode.MISSING))
    memory.write(pages)
    return there and both


def _huge_bytes() -> int:
    """Of this process's anonymous memory, in huge pages."""
    said = re.search(r"^AnonHugePages:\s+(\d+) kB$", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    return int(said[1]) << 10 if said else 0


def _file_pages(uffd: _Userfaultfd) -> None:
    """A page of a memfd written through a fresh mapping."""
    fd = os.memfd_create("uffdtrace-proof")
    os.ftruncate(fd, 4 * PAGE_SIZE)
    memory = _Memory(4, fd=fd)
    uffd.watch(memory, int(Mode.WP))
    memory.write(0)


def _moved() -> None:
    """A mremap that sleeps until its event is read."""
    uffd = _Userfaultfd(int(Feature.EVENT_REMAP))
    memory = _Memory(4)
    memory.write(0)
    uffd.watch(memory, int(Mode.MISSING))
    target = _Memory(4)

    def move() -> None:
        _libc.mremap(
            ctypes.c_void_p(memory.start),
            ctypes.c_size_t(memory.bytes),
            ctypes.c_size_t(memory.bytes),
            _MREMAP_MAYMOVE | _MREMAP_FIXED,
            ctypes.c_void_p(target.start),
        )

    _beside(move, uffd.next_message)


def _forked() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _polled(uffd: _Userfaultfd) -> None:
    flags = fcntl.fcntl(uffd.fd, fcntl.F_GETFL)
    fcntl.fcntl(uffd.fd, fcntl.F_SETFL, flags & ~os.O_NONBLOCK)
    select.select([uffd.fd], [], [], 0)


def _scanned(memory: _Memory) -> None:
    """A scan that would protect what matches, had it WP_ASYNC."""
    # Before 6.7 there is no such call, and no probe that should see it.
    with open("/proc/self/pagemap", "rb") as pages, suppress(OSError):
        pagemap.protect_written(pages.fileno(), memory.start, memory.start + memory.bytes)


def provoke(say: Callable[[int, bool, bool], None], wait: Callable[[], None]) -> None:
    """Do all of it, then `wait` until it was looked at.

    `say` is called before with the descriptor of a userfaultfd to look at, and whether
    there were huge pages, and shared memory that can be write-protected.
    """
    source = _Memory(1)
    source.write(0)
    uffd = _Userfaultfd()
    _small_pages(uffd, source)
    huge = _huge_pages(uffd)
    # Since 5.19 (b1f9e876862d, "mm/uffd: enable write protection for shmem & hugetlbfs").
    shared = bool(offers.write_protects(offers.Memory.SHMEM))
    if shared:
        _file_pages(uffd)
    _moved()
    _scanned(source)
    _forked()
    _polled(uffd)
    say(uffd.fd, huge, shared)
    wait()
    # Closed here, so that it is done when the parent hears of the end: see proof.py.
    uffd.close()
