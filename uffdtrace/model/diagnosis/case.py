"""Verdicts and findings: what the counts of one range mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from uffdtrace.model.account.elsewhere import Elsewhere
from uffdtrace.model.account.facts import Fact
from uffdtrace.model.account.latencies import SLOW_NS
from uffdtrace.model.account.pages import Cause
from uffdtrace.model.account.ranges import Range
from uffdtrace.model.account.watched import Userfaultfd
from uffdtrace.model.diagnosis.document import LatencyDict
from uffdtrace.model.diagnosis.latency import latency
from uffdtrace.model.records.events import Feature, Memory, Mode

VERDICTS = ("lost-writes", "blind", "never-armed", "pending", "async", "ok", "idle")
# Those that say that writes were lost, or cannot be seen any more.
LOST = VERDICTS[:2]

# A fault that waits so long is felt by whoever runs there.
SLOW_US = SLOW_NS // 1000
# Whoever is killed after such a wait may have been killed because of it.
LONG_NS = 1_000_000_000
# A retry or two is how EAGAIN is meant.
EAGAIN_STORM = 8
# So many answers in circles are no accident.
CIRCLES = 16
# Nothing can be tracked in so short a time.
TRIED_NS = 100_000_000


@dataclass(frozen=True)
class Case:
    """What a rule looks at: one range, its userfaultfd, and what the kernel offers."""

    row: Range
    userfaultfd: Userfaultfd
    # Bits of UFFDIO_API's features that this kernel has; None where it is not known.
    offered: int | None = None
    # Every event was recorded: what is not there did not happen.
    whole: bool = True
    # Every call that arms pages was recorded; what it answered may be missing.
    arms_seen: bool = True
    # Time (ns) of the trace's end.
    end: int = 0
    # Mappings of its memory that nothing watches.
    elsewhere: Sequence[Elsewhere] = ()
    # Whether PAGEMAP_SCAN was among what was traced.
    sees_page_scans: bool = True

    def cause(self, *causes: Cause) -> int:
        return sum(self.row.cause(cause) for cause in causes)

    def fact(self, fact: Fact) -> int:
        return self.row.fact(fact)

    @cached_property
    def asynchronous(self) -> bool:
        return self.userfaultfd.has(Feature.WP_ASYNC)

    @cached_property
    def wp(self) -> bool:
        return bool(self.row.modes & Mode.WP)

    @cached_property
    def markers(self) -> bool:
        """The kernel marks empty pages as protected here (kernel-semantics.md 1, 4)."""
        return bool(self.row.memory & (Memory.SHMEM | Memory.HUGETLB)) or self.userfaultfd.has(Feature.WP_UNPOPULATED)

    @property
    def before(self) -> bool:
        """It was armed before the trace, or may have been, and not all of it since."""
        row = self.row
        return row.before or (row.unseen and row.count("armed_pages") < row.pages)

    @property
    def never_armed(self) -> bool:
        armed = self.row.count("armed_pages") or self.before or self.fact(Fact.SCANNED)
        # Under WP_ASYNC PAGEMAP_SCAN arms, too.
        unseen = self.asynchronous and not self.sees_page_scans
        # An arming that was not recorded would look like none.
        known = self.arms_seen and not self.row.untracked
        return self.wp and not armed and not unseen and not self.tried and known

    @property
    def tried(self) -> bool:
        """Registered only to see whether that works, as QEMU does before a snapshot."""
        row = self.row
        if row.withdrawn is None or row.count("unarmed") or any(row.faults):
            return False
        return row.withdrawn - row.born < TRIED_NS

    @property
    def unknown_before(self) -> int:
        """Pages populated without protection of which it is not known whether they had been armed."""
        return self.populated_before if self.before else 0

    @property
    def armed(self) -> int | None:
        """Pages that were armed. Of an arming before the trace pagemap shows what it protected, not the holes."""
        armed = self.row.count("armed_pages")
        return None if self.row.untracked or (self.before and armed < self.row.pages) else armed

    @property
    def unknown(self) -> bool:
        """Nobody can tell which of its pages were lost."""
        return self.row.untracked or self.unknown_before > 0

    @property
    def populated_before(self) -> int:
        """The same, also where all of the range was armed since: the losses of those armings are known."""
        row = self.row
        return row.count("unarmed") if (row.before or row.unseen) and not self.asynchronous else 0

    @property
    def unwritten_holes(self) -> int:
        """Pages left unprotected that nobody has written or read yet, at least."""
        row = self.row
        if row.holes is None or row.modes & Mode.MISSING or row.count("rearmed"):
            # Armed twice: which of the holes were the same is not known.
            return 0
        gone = self.cause(Cause.UNPOPULATED, Cause.HUGE_PAGE_OVER_HOLE)
        gone += row.count("zero_page") + row.count("filled") + row.count("untouched")
        return max(0, row.holes - gone)

    @property
    def unprotected(self) -> dict[Cause, int]:
        """Pages that were armed and are protected no more, though no write of theirs was seen, by what took it away."""
        found = np.flatnonzero(self.row.exposed)
        return {Cause(cause): int(self.row.exposed[cause]) for cause in found.tolist()}

    @property
    def exposed(self) -> dict[Cause, int]:
        """Armed pages that stand unprotected, by what took the protection away."""
        if self.asynchronous:
            return {}
        found = self.unprotected
        if self.row.modes & Mode.MISSING:
            # What is empty sends a MISSING message.
            found.pop(Cause.DISCARDED, None)
            found.pop(Cause.MOVED, None)
        return found

    @property
    def reads_as_written(self) -> dict[str, int]:
        """Pages under WP_ASYNC that PAGEMAP_SCAN tells to be written, whether they are or not, by why."""
        row = self.row
        scans_known = self.sees_page_scans and self.fact(Fact.SCANNED) == self.fact(Fact.SCANNED_WHOLE)
        if not (self.asynchronous and self.wp and scans_known) or self.before or self.never_armed:
            return {}
        if row.withdrawn is not None or row.untracked or not self.arms_seen:
            return {}
        found = {cause.label: pages for cause, pages in self.unprotected.items()}
        never = row.pages - row.count("armed_pages")
        return {**found, **({"never-protected": never} if never else {})}

    @property
    def wp_dropped(self) -> int:
        return int(self.row.exposed[Cause.MODE_REPLACED])

    @property
    def stale(self) -> int:
        return self.row.count("stale") if self.arms_seen and not self.before else 0

    @property
    def never_read(self) -> int:
        # A message that was not recorded would be missing here.
        # A monitor that had so long, and read nothing at all, was not about to read.
        waited = (self.row.pending or 0) + self._killed_after(TRIED_NS)
        return waited if self.whole and not (self.userfaultfd.readers or self.userfaultfd.read_before) else 0

    @property
    def killed(self) -> int:
        """Faults that had waited for long when their threads were killed."""
        return self._killed_after(LONG_NS)

    def _killed_after(self, wait_ns: int) -> int:
        return sum(fault.until - fault.since >= wait_ns for fault in self.row.killed)

    @property
    def gap(self) -> int:
        # A PROTECT that was not recorded would look like one.
        return self.fact(Fact.GAP) if self.whole else 0

    @property
    def arm_failed(self) -> int:
        return self.fact(Fact.ARM_FAILED) if self.whole else 0

    @property
    def repeated(self) -> int:
        """Messages: one that names a huge page counts for all of its base pages."""
        return self.row.count("repeated") >> self.row.order

    @property
    def circled(self) -> int:
        """Answers that protected anew what they should have let go, where that is how the monitor answers."""
        # A hole that is filled protected and then let go gives one for two messages, and who arms a new
        # round while faults wait gives one for each of those.
        circled = self.row.count("circled") >> self.row.order
        answered = sum(self.row.messages)
        return circled if circled >= CIRCLES and circled * 3 > answered * 2 else 0

    @cached_property
    def waited(self) -> LatencyDict | None:
        return latency(self.row.latencies)

    @property
    def slow(self) -> int:
        """Faults that took SLOW_US or more, where that is no exception."""
        if self.waited is None or self.waited["p99"] < SLOW_US:
            return 0
        return self.row.latencies.slow


def verdict(case: Case) -> str:
    """The worst that applies, in the order of VERDICTS (design.md section 4)."""
    row = case.row
    if row.count("observed"):
        return "lost-writes"
    if row.count("blind"):
        return "blind"
    if case.never_armed:
        return "never-armed"
    # Of these the range is not known: munmap may have taken it away already.
    if row.pending or case.userfaultfd.event_waits or case.userfaultfd.still_asleep:
        return "pending"
    if case.asynchronous and case.wp:
        return "async"
    # Something happened, though nobody knows whether it was meant to be told.
    return "ok" if any(row.messages) or row.count("armed_pages") or case.unknown else "idle"
