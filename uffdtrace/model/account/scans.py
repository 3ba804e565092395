"""ioctl(PAGEMAP_SCAN) with PM_SCAN_WP_MATCHING: how a tracker arms under WP_ASYNC without a userfaultfd's call."""

from __future__ import annotations

from collections.abc import Iterator

from uffdtrace.model.account.facts import Fact
from uffdtrace.model.account.watched import Watched
from uffdtrace.model.records.events import HIGHEST, Array, Feature, Type


def armed(watched: Watched, event: Array) -> Iterator[tuple[int, int, int]]:
    """(userfaultfd, start, end) that a scan which ended has armed; notes which ranges it went through.

    It passes over what is not registered with WP_ASYNC (fs/proc/task_mmu.c,
    pagemap_scan_test_walk()), and protects what matches.
    """
    start, end = int(event["start"]), min(int(event["end"]), HIGHEST)
    ended = event["type"] == Type.PAGE_SCAN_RETURN
    # Where only some pages were to match, the events do not tell which did.
    if start >= end or (ended and (event["ret"] or not event["kind"])):
        return
    for uffd in watched.of_memory(int(event["ctx"])):
        if uffd.has(Feature.WP_ASYNC):
            rows = map(watched.ranges.row_of, watched.ranges.space(uffd.ctx).overlapping(start, end))
            for row in {row.number: row for row in rows}.values():
                row.note(Fact.SCANNED_WHOLE if ended else Fact.SCANNED)
            if ended:
                yield (uffd.ctx, *watched.ranges.bounds(start, end))
