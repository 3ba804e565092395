"""PAGEMAP_SCAN against plain pagemap, page by page, of every kind of memory."""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from host.tracked import GIB, HUGE, OFFERED, child, need, need_root, need_wp
from uffd import (
    MAP_ANONYMOUS,
    MAP_HUGETLB,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    MISSING,
    PAGE,
    WP,
    libc,
    mapping,
    protect,
    read_pages,
    register,
    userfaultfd,
    write_pages,
)

from uffdtrace.kernel.pagemap import Pagemap, Pages
from uffdtrace.model.records.events import Feature

pytestmark = [pytest.mark.host, need_wp]

MADV_HUGEPAGE, MADV_PAGEOUT, MADV_GUARD = 14, 21, 102
SOME = [0, Feature.WP_UNPOPULATED, Feature.WP_ASYNC]


def mixed(features: int, flags: int) -> list[int]:
    """Written, read, untouched; each protected, released, and left alone."""
    fd = userfaultfd(features)
    start = mapping(600 * PAGE, flags)
    write_pages(start, range(0, 400, 3))
    read_pages(start, range(1, 400, 3))
    register(fd, start, 600 * PAGE)
    protect(fd, start, 0, 500)
    protect(fd, start, 100, 150, False)
    return [start, start + 600 * PAGE]


def huge_bytes(start: int) -> int:
    """What the mapping there has in huge pages."""
    _, _, told = Path("/proc/self/smaps").read_text().partition(f"\n{start:x}-")
    found = re.search(r"^AnonHugePages: +(\d+) kB$", told, re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def huge(features: int) -> list[int]:
    fd = userfaultfd(features)
    start = (mapping(6 * HUGE) + HUGE - 1) & -HUGE
    libc.madvise(start, 5 * HUGE, MADV_HUGEPAGE)
    write_pages(start, range(0, 2048, 512))
    got = huge_bytes(start)
    register(fd, start, 5 * HUGE)
    # A whole one, one that is split, one that is not protected, and nothing.
    protect(fd, start, 0, 700)
    protect(fd, start, 512 * 4, 512)
    return [start, start + 5 * HUGE, got]


def hugetlb(features: int, flags: int) -> list[int]:
    fd = userfaultfd(features)
    start = mapping(8 * HUGE, flags | MAP_ANONYMOUS | MAP_HUGETLB)
    write_pages(start, range(0, 1024, 512))
    read_pages(start, range(1024, 1025))
    register(fd, start, 8 * HUGE)
    protect(fd, start, 0, 6 * 512)
    protect(fd, start, 512, 512, False)
    return [start, start + 8 * HUGE]


def swapped(features: int, flags: int) -> list[int]:
    fd = userfaultfd(features)
    start = mapping(300 * PAGE, flags)
    write_pages(start, range(128))
    read_pages(start, range(128, 140))
    register(fd, start, 300 * PAGE)
    protect(fd, start, 0, 64)
    protect(fd, start, 200, 50)
    assert libc.madvise(start, 300 * PAGE, MADV_PAGEOUT) == 0
    read_pages(start, range(0, 100, 10))
    return [start, start + 300 * PAGE]


def poisoned() -> list[int]:
    fd = userfaultfd(Feature.POISON)
    start = mapping(64 * PAGE)
    write_pages(start, range(32))
    register(fd, start, 64 * PAGE, WP | MISSING)
    protect(fd, start, 0, 64)
    libc.madvise(start + 40 * PAGE, 4 * PAGE, MADV_GUARD)
    fcntl.ioctl(fd, 0xC020AA08, struct.pack("<QQQQ", start + 50 * PAGE, 2 * PAGE, 0, 0))
    return [start, start + 64 * PAGE]


def same_both_ways(pid: int, start: int, end: int) -> Pages:
    """Counts of the whole, when PAGEMAP_SCAN and pagemap agree on each page and on the sums."""
    with Pagemap(pid) as scanned, Pagemap(pid) as read:
        if OFFERED & Feature.WP_ASYNC:
            assert scanned.scans
        read.scans = False
        for page in range(start, end, PAGE):
            assert scanned.pages(page, page + PAGE) == read.pages(page, page + PAGE), (page - start) // PAGE
        assert scanned.pages(start, end) == read.pages(start, end)
        return scanned.pages(start, end)


@pytest.mark.parametrize("features", SOME)
def test_anonymous_memory(features: int) -> None:
    need(features)
    with child(lambda: mixed(features, MAP_PRIVATE | MAP_ANONYMOUS)) as (pid, start, end):
        found = same_both_ways(pid, start, end)
        present, released = 267, 100
        empty_armed = 0 if not features else 350 - (present - released)
        assert found == Pages(present - released + empty_armed, released, 0, 600 - present - empty_armed, present)


@pytest.mark.parametrize("features", SOME)
def test_shared_memory(features: int) -> None:
    need(features | Feature.WP_HUGETLBFS_SHMEM)
    with child(lambda: mixed(features, MAP_SHARED | MAP_ANONYMOUS)) as (pid, start, end):
        assert same_both_ways(pid, start, end) == Pages(350, 100, 0, 150, 267)


@pytest.mark.parametrize("features", SOME)
def test_huge_pages(features: int) -> None:
    need(features)
    with child(lambda: huge(features)) as (pid, start, end, got):
        if got < 4 * HUGE:
            pytest.skip("the kernel gave us no huge pages")
        found = same_both_ways(pid, start, end)
        assert found.protected == 700 + (512 if features else 0)
        assert found.in_memory == 2048


@pytest.fixture
def huge_pages() -> Iterator[None]:
    setting = Path("/proc/sys/vm/nr_hugepages")
    before = setting.read_text()
    setting.write_text(str(int(before) + 10))
    try:
        if int(setting.read_text()) < int(before) + 10:
            pytest.skip("the kernel has no huge pages to spare")
        yield
    finally:
        setting.write_text(before)


@need_root
@pytest.mark.usefixtures("huge_pages")
@pytest.mark.parametrize("flags", [MAP_PRIVATE, MAP_SHARED])
@pytest.mark.parametrize("features", SOME)
def test_hugetlb(features: int, flags: int) -> None:
    need(features | Feature.WP_HUGETLBFS_SHMEM)
    with child(lambda: hugetlb(features, flags)) as (pid, start, end):
        assert same_both_ways(pid, start, end) == Pages(5 * 512, 512, 0, 2 * 512, 3 * 512)


@pytest.fixture
def swap(tmp_path: Path) -> Iterator[None]:
    """A small swap file, unless there is swap."""
    if len(Path("/proc/swaps").read_text().splitlines()) > 1:
        yield
        return
    file = tmp_path / "swap"
    file.write_bytes(bytes(8 << 20))
    file.chmod(0o600)
    subprocess.run(["mkswap", file], check=True, capture_output=True)
    if libc.swapon(os.fsencode(file), 0):
        pytest.skip(f"no swap file here: {os.strerror(ctypes.get_errno())}")
    yield
    assert libc.swapoff(os.fsencode(file)) == 0


@need_root
@pytest.mark.usefixtures("swap")
@pytest.mark.parametrize("features", SOME)
@pytest.mark.parametrize("flags", [MAP_PRIVATE, MAP_SHARED])
def test_swapped(features: int, flags: int) -> None:
    need(features | (Feature.WP_HUGETLBFS_SHMEM if flags == MAP_SHARED else 0))
    with child(lambda: swapped(features, flags | MAP_ANONYMOUS)) as (pid, start, end):
        found = same_both_ways(pid, start, end)
        markers = 50 if features or flags == MAP_SHARED else 0
        assert found.protected == 64 + markers
        assert found.in_memory < 140
        assert (found.swapped > 0) == (flags == MAP_PRIVATE)


def test_poison_and_guards() -> None:
    need(Feature.POISON)
    with child(poisoned) as (pid, start, end):
        found = same_both_ways(pid, start, end)
        assert (found.protected, found.unprotected) == (32, 0)
        assert found.swapped >= 2


def test_more_runs_than_one_call_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uffdtrace.kernel.pagemap._REGIONS", 7)
    with child(lambda: mixed(0, MAP_PRIVATE | MAP_ANONYMOUS)) as (pid, start, end):
        same_both_ways(pid, start, end)


@pytest.mark.parametrize("scans", [True, False])
def test_64_gib_of_nothing(scans: bool) -> None:
    def prepare() -> list[int]:
        start = mapping(64 * GIB, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)
        register(userfaultfd(), start, 64 * GIB)
        return [start, start + 64 * GIB]

    with child(prepare) as (pid, start, end), Pagemap(pid) as pagemap:
        pagemap.scans &= scans
        # Of the CPU: others run here too.
        began = time.process_time()
        assert pagemap.pages(start, end) == Pages(0, 0, 0, 64 * GIB // PAGE, 0)
        assert time.process_time() - began < (0.5 if pagemap.scans else 10)
