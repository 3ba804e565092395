"""UFFDIO calls that failed: which, how often, where, and what their error means."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from itertools import islice

from uffdtrace.model.records.events import Ioctl

# As many places are kept of each kind of failure: a call may fail a million times.
MOST_PLACES = 4
# Of a REGISTER each place, for one that succeeds there later forgives what failed there, and nothing else.
MOST_REGISTERS = 1024

# What the errors mean, from fs/userfaultfd.c and mm/userfaultfd.c (5.10 to 7.2). What is not listed is named only.
_EVERY_CALL = {
    errno.EINVAL: "an address or length that is not a multiple of the page size, a length of 0, or a mode bit that this"
    " kernel does not know",
    errno.EAGAIN: "an event waits to be read, and until then every call fails",
    errno.EFAULT: "the argument is not in memory that can be read and written",
    errno.ESRCH: "the process whose memory it is has ended",
    errno.ENOMEM: "no memory, or nothing is mapped there",
}
_FILL_ENOENT = "the addresses are not all inside one mapping that is registered with this userfaultfd"
_MEANINGS: dict[tuple[Ioctl, int], str] = {
    (Ioctl.COPY, errno.ENOENT): _FILL_ENOENT,
    (Ioctl.COPY, errno.EEXIST): "a page is there already: nothing was copied, and nobody was woken",
    (Ioctl.COPY, errno.EINVAL): "unaligned addresses or length, a length of 0, an unknown mode, or UFFDIO_COPY_MODE_WP"
    " for a range that is not registered for WP",
    (Ioctl.COPY, errno.EFAULT): "the source cannot be read",
    (Ioctl.ZEROPAGE, errno.ENOENT): _FILL_ENOENT,
    (Ioctl.ZEROPAGE, errno.EEXIST): "a page is there already, or a marker that keeps an empty page protected",
    (Ioctl.ZEROPAGE, errno.EINVAL): "unaligned, or memory that has no zero page (hugetlb)",
    (Ioctl.CONTINUE, errno.ENOENT): _FILL_ENOENT,
    (Ioctl.CONTINUE, errno.EEXIST): "the page is mapped already: nobody was woken",
    (Ioctl.CONTINUE, errno.EFAULT): "the file has no page there yet: fill it before UFFDIO_CONTINUE",
    (Ioctl.CONTINUE, errno.EINVAL): "unaligned, not shared memory registered for MINOR, or a mode bit that this kernel"
    " does not know (UFFDIO_CONTINUE_MODE_WP needs Linux 6.4)",
    (Ioctl.MOVE, errno.ENOENT): "nothing is mapped at the source, or the destination is not registered with this"
    " userfaultfd (holes need UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES)",
    (Ioctl.MOVE, errno.EEXIST): "a page is at the destination already",
    (Ioctl.MOVE, errno.EBUSY): "a page of the source is shared, pinned, or in use elsewhere: only pages of this process"
    " alone can be moved",
    (Ioctl.MOVE, errno.EINVAL): "unaligned, source or destination not private anonymous memory of alike mappings, or"
    " overlapping",
    (Ioctl.POISON, errno.ENOENT): _FILL_ENOENT,
    (Ioctl.POISON, errno.EEXIST): "a page is there already",
    (
        Ioctl.WRITEPROTECT,
        errno.ENOENT,
    ): "the addresses are not all registered for WP with this userfaultfd (before Linux 6.3: in one mapping)",
    (Ioctl.REGISTER, errno.EBUSY): "a mapping there is registered with another userfaultfd",
    (Ioctl.REGISTER, errno.EINVAL): "unaligned, nothing mapped there, no or unknown modes, or memory that this kernel"
    " cannot watch in these modes",
    (Ioctl.REGISTER, errno.EPERM): "the mapping may not be written to (a sealed or read-only file)",
    (Ioctl.UNREGISTER, errno.EINVAL): "unaligned, nothing mapped there, or memory that cannot be registered at all",
    (Ioctl.API, errno.EINVAL): "a feature that this kernel does not have, or a second UFFDIO_API",
    (Ioctl.API, errno.EPERM): "UFFD_FEATURE_EVENT_FORK needs CAP_SYS_PTRACE",
}


def meaning(kind: Ioctl, error: int) -> str:
    """What an error of a call means, empty where we do not know."""
    return _MEANINGS.get((kind, error)) or _EVERY_CALL.get(error, "")


@dataclass
class Failure:
    """Calls of one kind that failed with one error (errno): how often, and of the first spans [start, end) each."""

    kind: Ioctl
    error: int
    mode: int = 0
    count: int = 0
    places: dict[tuple[int, int], int] = field(default_factory=dict)

    def add(self, count: int, places: dict[tuple[int, int], int]) -> None:
        self.count += count
        most = MOST_REGISTERS if self.kind is Ioctl.REGISTER else MOST_PLACES
        for place, times in places.items():
            if place in self.places or len(self.places) < most:
                self.places[place] = self.places.get(place, 0) + times

    def forgive(self, start: int, end: int) -> None:
        for low, high in [(low, high) for low, high in self.places if low < end and start < high]:
            self.count -= self.places.pop((low, high))

    @property
    def name(self) -> str:
        """`UFFDIO_COPY`; for WRITEPROTECT with what it was to do."""
        called = f"UFFDIO_{self.kind.name}"
        if self.kind is not Ioctl.WRITEPROTECT:
            return called
        return f"{called} {'with' if self.mode else 'without'} MODE_WP"

    def __str__(self) -> str:
        """`UFFDIO_COPY 50 times with ENOENT (what it means), at 1000-5000`."""
        named = errno.errorcode.get(self.error, f"error {self.error}")
        means = meaning(self.kind, self.error)
        where = ", ".join(f"{start:x}-{end:x}" for start, end in islice(self.places, MOST_PLACES))
        times = "once" if self.count == 1 else f"{self.count:,} times"
        return f"{self.name} {times} with {named}" + f" ({means})" * bool(means) + f", at {where}" * bool(where)


class Failures:
    """By call, error and, for WRITEPROTECT, what it was to do."""

    def __init__(self) -> None:
        self._all: dict[tuple[Ioctl, int, int], Failure] = {}

    def add(self, kind: Ioctl, error: int, mode: int, start: int, end: int, count: int = 1) -> None:
        failure = self._all.setdefault((kind, error, mode), Failure(kind, error, mode))
        failure.add(count, {(start, end): count} if start < end else {})

    def absorb(self, other: Failures) -> None:
        for failure in other.all():
            mine = self._all.setdefault((failure.kind, failure.error, failure.mode), failure)
            if mine is not failure:
                mine.add(failure.count, failure.places)

    def forgive(self, kind: Ioctl, start: int, end: int) -> None:
        """The same call succeeded over these addresses since."""
        for failure in self.of(kind):
            failure.forgive(start, end)
        self._all = {key: failure for key, failure in self._all.items() if failure.count}

    def all(self) -> list[Failure]:
        """The most frequent first."""
        return sorted(self._all.values(), key=lambda failure: (-failure.count, failure.kind, failure.error))

    def of(self, *kinds: Ioctl) -> list[Failure]:
        return [failure for failure in self.all() if failure.kind in kinds]

    def count(self, *kinds: Ioctl) -> int:
        return sum(failure.count for failure in self.of(*kinds))
