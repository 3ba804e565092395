"""What the monitor's calls ran into, as the findings need it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import numpy as np

from uffdtrace.model.account.join import Returned
from uffdtrace.model.records.batch import Batch
from uffdtrace.model.records.counting import among
from uffdtrace.model.records.events import HIGHEST, WRITEPROTECT_MODE_WP, Array, Ioctl, Type

_FILLS = among((Ioctl.COPY, Ioctl.ZEROPAGE, Ioctl.CONTINUE, Ioctl.MOVE))
_KNOWN = frozenset(int(kind) for kind in Ioctl)


class Fact(Enum):
    """What a range tallies beside its pages' states; the unit is the finding's."""

    EAGAIN = "calls that failed with EAGAIN"
    EEXIST = "calls that failed with EEXIST"
    PARTIAL = "calls that filled a part only"
    ARM_FAILED = "calls to WRITEPROTECT that failed and protected nothing"
    HALF_PROTECTED = "calls to WRITEPROTECT that failed and protected a part"
    GAP = "pages that a WRITEPROTECT passed over"
    MONITOR_FAULT = "faults of threads that read the userfaultfd"
    REFUSED = "faults that could not sleep"
    SIGNALLED = "faults of user space under UFFD_FEATURE_SIGBUS"
    FAILED = "calls that failed in another way"
    SCANNED = "calls to PAGEMAP_SCAN that were to protect what matches"
    SCANNED_WHOLE = "those of them that were seen to protect every page that counted as written"
    FORK = "forks that copied the range unwatched"
    MOVED_AWAY = "pages that mremap took out of the registration"
    GROWN = "pages that mremap added"
    UNMAPPED = "pages that were unmapped while registered"
    CLOSED = "faults asleep when the userfaultfd was closed"
    UNREGISTERED = "faults left asleep by UNREGISTER"
    REGISTERED_LATE = "pages populated when MISSING was registered over them again"
    POPULATED_BEFORE = "pages populated when MISSING was first registered over them"
    MORE_POPULATED = "such registrations that may have had more of these pages"


@dataclass(frozen=True)
class Call:
    """A call that went wrong: `index` of its event, and for WRITEPROTECT the spans that it did protect."""

    index: int
    fact: Fact
    count: int
    error: str = ""
    spans: tuple[tuple[int, int], ...] = ()
    # Of a call that failed: its number, its error, 1 for WRITEPROTECT with MODE_WP, and the addresses that it named.
    failed: tuple[Ioctl, int, int, int, int] | None = None


# Arms that fail, EAGAIN and EEXIST have findings of their own.
_TOLD_ELSEWHERE = (-errno.EAGAIN, -errno.EEXIST)


def calls(events: Batch, page_size: int, returned: Returned) -> Iterator[Call]:
    """The calls that did not do what they were asked for, of those that `returned`, with what `events` say of them."""
    index, found, results = returned.calls, returned.returns, returned.results
    kinds, failed, done = results["kind"], results["ret"] < 0, results["value"]
    length = (results["end"] - results["start"]).astype(np.int64)
    fills = _FILLS[kinds]
    partial = fills & (done > 0) & (done < length)
    for fact, hit in (
        (Fact.PARTIAL, partial),
        (Fact.EEXIST, fills & (results["ret"] == -errno.EEXIST)),
        (Fact.EAGAIN, (results["ret"] == -errno.EAGAIN) & ~partial),
    ):
        for place in np.flatnonzero(hit).tolist():
            span = (int(results["start"][place]) & -page_size, int(results["end"][place]))
            spans = (span,) if fact is Fact.EEXIST else ()
            yield Call(int(index[place]), fact, 1, spans=spans, failed=_failed(results[place], 0))
    told = np.isin(results["ret"], _TOLD_ELSEWHERE) & (fills | (results["ret"] == -errno.EAGAIN))
    arming = (kinds == Ioctl.WRITEPROTECT) & (results["aux"] & np.uint64(WRITEPROTECT_MODE_WP) != 0)
    # A REGISTER that failed has its place among those that succeed (Work.refused).
    for place in np.flatnonzero(failed & ~told & ~arming & ~partial & (kinds != Ioctl.REGISTER)).tolist():
        if call := _failed(results[place], 0):
            yield Call(int(index[place]), Fact.FAILED, 1, failed=call)
    arms = (kinds == Ioctl.WRITEPROTECT) & (results["aux"] & np.uint64(WRITEPROTECT_MODE_WP) != 0)
    arms &= results["ret"] != -errno.EAGAIN
    yield from _arms(events, page_size, index[arms], found[arms], failed[arms], length[arms])


def _failed(result: Array, mode: int) -> tuple[Ioctl, int, int, int, int] | None:
    """Call.failed of a call with this IOCTL_RETURN; None of one that we do not know."""
    if result["ret"] >= 0 or int(result["kind"]) not in _KNOWN:
        return None
    kind = Ioctl(int(result["kind"]))
    start, end = (0, 0) if kind is Ioctl.API else (int(result["start"]), int(result["end"]))
    return kind, -int(result["ret"]), mode, start, end


def _last_before(calls: Array, acts: Array, tids: Array) -> Array:
    """For each act the last call before it by the same thread: its place in `calls`, -1 where there is none.

    `calls` and `acts` are indexes of events, whose threads are `tids`.
    """
    places = np.concatenate([calls, acts])
    order = np.lexsort((places, tids[places]))
    sorted_tids = tids[places[order]]
    is_call = order < len(calls)
    # In a row of what each thread did, the place of the last call so far.
    latest = np.maximum.accumulate(np.where(is_call, np.arange(len(order)), -1))
    own = (latest >= 0) & (sorted_tids[latest] == sorted_tids)
    found = np.empty(len(order), dtype=np.int64)
    found[order] = np.where(own, order[latest], -1)
    return found[len(calls) :]


def _arms(events: Batch, page_size: int, index: Array, found: Array, failed: Array, length: Array) -> Iterator[Call]:
    if not len(index):
        return
    protects = events.of(Type.PROTECT)
    protects = protects[events["kind"][protects] == 1]
    within = _last_before(index, protects, events["tid"])
    mine = (within >= 0) & (protects < found[within])
    protects, within = protects[mine], within[mine]
    pages = (events["end"][protects] - events["start"][protects]).astype(np.int64)
    covered = np.bincount(within, weights=pages, minlength=len(index)).astype(np.int64)
    # A call that succeeded cannot have named more than there are addresses.
    passed_over = (covered < length) & (length <= HIGHEST)
    for one in np.flatnonzero(failed | passed_over).tolist():
        own = protects[within == one].tolist()
        spans = tuple((int(events["start"][act]) & -page_size, int(events["end"][act])) for act in own)
        error = errno.errorcode.get(-int(events["ret"][found[one]]), "an error")
        if not failed[one]:
            yield Call(int(index[one]), Fact.GAP, int(length[one] - covered[one]) // page_size, spans=spans)
        elif spans:
            yield Call(int(index[one]), Fact.HALF_PROTECTED, 1, error, spans)
        else:
            yield Call(int(index[one]), Fact.ARM_FAILED, 1, error, failed=_failed(events[found[one]], 1))
