"""What the proof's child does to memory of its own, so that every probe that can be provoked has something to see.

Runs in a fork of the collector: it uses nothing but system calls, and leaves by _exit().
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import re
import select
import struct
import threading
from contextlib import suppress
from pathlib import Path
from typing import Callable

from uffdtrace.kernel import offers, pagemap
from uffdtrace.model.events import PAGE_SIZE, Feature, Mode

# include/uapi/linux/userfaultfd.h
_UFFD_API = 0xAA
_API = 0xC018AA3F
_REGISTER = 0xC020AA00
_UNREGISTER = 0x8010AA01
_COPY = 0xC028AA03
_WRITEPROTECT = 0xC018AA06
_MESSAGE_BYTES = 32
# include/uapi/asm-generic/mman-common.h
_MADV_DONTNEED = 4
_MADV_HUGEPAGE = 14
_MREMAP_MAYMOVE = 1
_HUGE_PAGE = 2 << 20
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


class _Userfaultfd:
    def __init__(self, features: int = 0) -> None:
        self.fd, _ = offers.open_userfaultfd()
        fcntl.ioctl(self.fd, _API, struct.pack("<QQQ", _UFFD_API, features, 0))

    def register(self, memory: _Memory, modes: int) -> None:
        fcntl.ioctl(self.fd, _REGISTER, struct.pack("<QQQQ", memory.start, memory.bytes, modes, 0))

    def unregister(self, memory: _Memory) -> None:
        fcntl.ioctl(self.fd, _UNREGISTER, struct.pack("<QQ", memory.start, memory.bytes))

    def protect(self, memory: _Memory, on: bool, page: int = 0, pages: int | None = None) -> None:
        length = memory.bytes if pages is None else pages * PAGE_SIZE
        fcntl.ioctl(self.fd, _WRITEPROTECT, struct.pack("<QQQ", memory.at(page), length, int(on)))

    def copy(self, memory: _Memory, page: int, source: _Memory, mode: int = 0) -> None:
        argument = struct.pack("<QQQQq", memory.at(page), source.start, PAGE_SIZE, mode, 0)
        fcntl.ioctl(self.fd, _COPY, argument)

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
    uffd.register(memory, int(Mode.WP))
    uffd.protect(memory, True)
    memory.write(1)
    memory.read(2)
    memory.write(2)

    def answer() -> None:
        uffd.next_message()
        uffd.protect(memory, False, 0, 1)

    _beside(lambda: memory.write(0), answer)
    memory.advise(3, 1, _MADV_DONTNEED)
    _libc.munmap(ctypes.c_void_p(memory.at(8)), ctypes.c_size_t(8 * PAGE_SIZE))
    missing = _Memory(4)
    uffd.register(missing, int(Mode.MISSING))

    def fill() -> None:
        uffd.next_message()
        uffd.copy(missing, 0, source, 0)

    _beside(lambda: missing.write(0), fill)


def _huge_pages(uffd: _Userfaultfd) -> bool:
    """A hole of a huge page written, and a protected huge page whose range has lost the mode.

    Whether there were huge pages to be had.
    """
    pages = _HUGE_PAGE // PAGE_SIZE
    memory = _Memory(2 * pages, _HUGE_PAGE)
    memory.advise(0, 2 * pages, _MADV_HUGEPAGE)
    memory.write(pages)
    there = _huge_bytes() >= _HUGE_PAGE
    uffd.register(memory, int(Mode.WP))
    uffd.protect(memory, True)
    memory.write(0)
    both = _huge_bytes() >= 2 * _HUGE_PAGE
    uffd.register(memory, int(Mode.MISSING))
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
    uffd.register(memory, int(Mode.WP))
    memory.write(0)


def _moved(source: _Memory) -> None:
    """A mremap that sleeps until its event is read."""
    uffd = _Userfaultfd(int(Feature.EVENT_REMAP))
    memory = _Memory(4)
    memory.write(0)
    uffd.register(memory, int(Mode.MISSING))
    target = _Memory(4)

    def move() -> None:
        _libc.mremap(
            ctypes.c_void_p(memory.start),
            ctypes.c_size_t(memory.bytes),
            ctypes.c_size_t(memory.bytes),
            _MREMAP_MAYMOVE | 2,
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


def protects_shared() -> bool:
    """Whether shared memory can be write-protected: since 5.19 (b1f9e876862d)."""
    return bool(offers.write_protects(offers.Memory.SHMEM))


def provoke(say: Callable[[int, bool], None], wait: Callable[[], None]) -> None:
    """Do all of it; `say` is called with the descriptor of a userfaultfd to look at, and whether there were huge pages.

    Then `wait` until it was looked at.
    """
    source = _Memory(1)
    source.write(0)
    uffd = _Userfaultfd()
    _small_pages(uffd, source)
    huge = _huge_pages(uffd)
    if protects_shared():
        _file_pages(uffd)
    _moved(source)
    _scanned(source)
    _forked()
    _polled(uffd)
    say(uffd.fd, huge)
    wait()
    # Closed here, so that it is done when the parent hears of the end: see proof.py.
    os.close(uffd.fd)
