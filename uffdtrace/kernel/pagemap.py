"""Which pages of a process are protected, present, swapped or empty, without BPF and without changing any.

PAGEMAP_SCAN tells runs of alike pages and passes over what is empty; older
kernels have an entry for each page to read. Both told the same of every page
of anonymous, huge, shmem and hugetlb memory, swapped or not, with markers or
not (tests/host/test_inspect.py). What differs between kernels is whether an
empty page counts as WRITTEN: here it is neither PRESENT nor SWAPPED, and so
never asked for.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from types import TracebackType

import numpy as np

from uffdtrace.arrays import Array
from uffdtrace.kernel import proc
from uffdtrace.kernel.page import PAGE_SIZE

# include/uapi/linux/fs.h, Linux 6.7.
_PAGEMAP_SCAN = 0xC0606610
_PM_SCAN_WP_MATCHING = 1
# size, flags, start, end, walk_end, vec, vec_len, max_pages, category_inverted, _mask, _anyof_mask, return_mask
_ARGUMENT = struct.Struct("<12Q")
_WPALLOWED, _WRITTEN, _PRESENT, _SWAPPED = 1 << 0, 1 << 1, 1 << 3, 1 << 4
_REGIONS = 1 << 15


class Kind(IntEnum):
    """What Pages counts, as far as each page is one of them."""

    PROTECTED = 0
    UNPROTECTED = 1
    SWAPPED = 2
    EMPTY = 3


@dataclass(frozen=True)
class Pages:
    """Pages by what their page-table entries say.

    `protected` ones are present, swapped, or markers; `unprotected` are
    present, `swapped` and `empty` are not, and not protected either. `swapped`
    is any entry for a page that is not there: migrating, poisoned, guarded.
    """

    protected: int
    unprotected: int
    swapped: int
    empty: int
    in_memory: int


def protect_written(fd: int, start: int, end: int) -> None:
    """Protect what counts as written in [start, end), where it is registered with WP_ASYNC; OSError without the call.

    Of memory of our own: a tracer protects nothing of others.
    """
    flags, mask = _PM_SCAN_WP_MATCHING, _WRITTEN
    fcntl.ioctl(fd, _PAGEMAP_SCAN, _ARGUMENT.pack(_ARGUMENT.size, flags, start, end, 0, 0, 0, 0, 0, mask, 0, mask))


class Pagemap:
    """The pagemap of a process, open; it `scans` where the kernel has PAGEMAP_SCAN."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._regions = np.zeros((_REGIONS, 3), dtype="<u8")
        try:
            self._fd = os.open(proc.PROC / str(pid) / "pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError):
            raise proc.NoProcess(proc.gone(pid)) from None
        try:
            self._scan(0, PAGE_SIZE, _PRESENT, _PRESENT)
            self.scans = True
        except OSError:
            self.scans = False

    def __enter__(self) -> Pagemap:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        os.close(self._fd)

    def _scan(self, start: int, end: int, any_of: int, tell: int) -> tuple[Array, int]:
        """Rows start, end, categories of pages in any of the categories, and where the kernel stopped."""
        # No flags: PM_SCAN_WP_MATCHING would protect pages.
        argument = bytearray(
            _ARGUMENT.pack(_ARGUMENT.size, 0, start, end, 0, self._regions.ctypes.data, _REGIONS, 0, 0, 0, any_of, tell)
        )
        try:
            found = fcntl.ioctl(self._fd, _PAGEMAP_SCAN, argument)
        except ProcessLookupError:
            raise proc.NoProcess(proc.gone(self._pid)) from None
        return self._regions[:found], _ARGUMENT.unpack(argument)[4]

    def wp_async(self, start: int) -> bool:
        """Whether the mapping there is registered with UFFD_FEATURE_WP_ASYNC, which is as old as PAGEMAP_SCAN."""
        return self.scans and len(self._scan(start, start + PAGE_SIZE, _WPALLOWED, _WPALLOWED)[0]) > 0

    def pages(self, start: int, end: int) -> Pages:
        counts = self._scanned(start, end) if self.scans else self._read(start, end)
        protected, unprotected, swapped, in_memory = counts.tolist()
        empty = (end - start) // PAGE_SIZE - protected - unprotected - swapped
        return Pages(protected, unprotected, swapped, empty, in_memory)

    def runs(self, start: int, end: int) -> Iterator[tuple[int, int, Kind]]:
        """[start, end) in order, cut where the kind of page changes; neighbours of a kind are one."""
        begin, kind = start, None
        for first, last, found in self._parts(start, end):
            if found is not kind:
                if kind is not None and begin < first:
                    yield begin, first, kind
                begin, kind = first, found
            end = last
        if kind is not None and begin < end:
            yield begin, end, kind

    def _parts(self, start: int, end: int) -> Iterator[tuple[int, int, Kind]]:
        """The same, cut more often."""
        if not self.scans:
            for at, entries in proc.pagemap_entries(self._pid, start, end):
                kinds = np.select(
                    _of_entries(entries)[:3], (Kind.PROTECTED, Kind.UNPROTECTED, Kind.SWAPPED), Kind.EMPTY
                )
                cuts = np.flatnonzero(np.diff(kinds)) + 1
                bounds = [0, *cuts.tolist(), len(kinds)]
                for first, last in zip(bounds[:-1], bounds[1:]):
                    yield at + first * PAGE_SIZE, at + last * PAGE_SIZE, Kind(int(kinds[first]))
            return
        while start < end:
            regions, stopped = self._scan(start, end, _PRESENT | _SWAPPED, _PRESENT | _SWAPPED | _WRITTEN)
            for first, last, categories in regions.tolist():
                if start < first:
                    yield start, first, Kind.EMPTY
                written, present = categories & _WRITTEN, categories & _PRESENT
                yield first, last, Kind.PROTECTED if not written else Kind.UNPROTECTED if present else Kind.SWAPPED
                start = last
            if start < stopped:
                yield start, stopped, Kind.EMPTY
            start = stopped

    def _scanned(self, start: int, end: int) -> Array:
        counts = np.zeros(4, dtype=np.int64)
        while start < end:
            regions, start = self._scan(start, end, _PRESENT | _SWAPPED, _PRESENT | _SWAPPED | _WRITTEN)
            pages = ((regions[:, 1] - regions[:, 0]) // np.uint64(PAGE_SIZE)).astype(np.int64)
            written, present = (regions[:, 2] & np.uint64(bit) != 0 for bit in (_WRITTEN, _PRESENT))
            counts += [pages[which].sum() for which in (~written, written & present, written & ~present, present)]
        return counts

    def _read(self, start: int, end: int) -> Array:
        counts = np.zeros(4, dtype=np.int64)
        for _, entries in proc.pagemap_entries(self._pid, start, end):
            counts += [np.count_nonzero(kind) for kind in _of_entries(entries)]
        return counts


def _of_entries(entries: Array) -> tuple[Array, ...]:
    """Which are protected, unprotected, swapped; and which are present at all."""
    # A hugetlb marker has only the bit of protection.
    protected, present, swapped = (
        entries & bit != 0 for bit in (proc.PAGEMAP_UFFD_WP, proc.PAGEMAP_PRESENT, proc.PAGEMAP_SWAPPED)
    )
    return protected, ~protected & present, ~protected & swapped, present
