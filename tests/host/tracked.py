"""Processes with memory of every kind, registered and armed as a test wants it."""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from uffd import (
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    PAGE,
    WP,
    libc,
    mapping,
    offered,
    protect,
    register,
    userfaultfd,
    write_pages,
)

from uffdtrace.model.records.events import Feature

# By hand: uffdtrace's own asking is what some tests are about.
OFFERED = offered()
need_wp = pytest.mark.skipif(not OFFERED & Feature.PAGEFAULT_FLAG_WP, reason="no write protection for this user here")
HUGE = 2 << 20
GIB = 1 << 30
NOBODY = 65534
USER_MODE_ONLY = 1

need_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def need(features: int) -> None:
    if features & ~OFFERED:
        pytest.skip(f"this kernel has no {Feature(features)!r}")


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


def armed(
    pages: int,
    written: range,
    arm: tuple[int, int],
    modes: int = WP,
    features: int = 0,
    flags: int = MAP_PRIVATE | MAP_ANONYMOUS,
) -> list[int]:
    fd = userfaultfd(features)
    start = mapping(pages * PAGE, flags)
    write_pages(start, written)
    register(fd, start, pages * PAGE, modes)
    if arm[1]:
        protect(fd, start, *arm)
    return [start, fd]
