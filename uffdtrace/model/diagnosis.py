"""Verdicts and findings: rules over one range's counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

from uffdtrace.model.events import Feature, Mode
from uffdtrace.model.model import Userfaultfd
from uffdtrace.model.pages import Cause
from uffdtrace.model.ranges import Range

VERDICTS = ("lost-writes", "blind", "never-armed", "pending", "async", "ok", "idle")
SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Case:
    """What a rule looks at: one range, its userfaultfd, and what the kernel offers."""

    row: Range
    userfaultfd: Userfaultfd
    # Bits of UFFDIO_API's features that this kernel has; None where it is not known.
    offered: int | None = None

    @property
    def asynchronous(self) -> bool:
        return self.userfaultfd.has(Feature.WP_ASYNC)

    @property
    def wp(self) -> bool:
        return bool(self.row.modes & Mode.WP)

    @property
    def never_armed(self) -> bool:
        # Under WP_ASYNC PAGEMAP_SCAN arms without a call that could be seen.
        armed = self.row.count("armed_pages") or self.row.before
        return self.wp and not armed and not self.asynchronous

    @property
    def unknown_before(self) -> int:
        """Pages populated without protection of which it is not known whether they had been armed."""
        return self.row.count("unarmed") if self.row.before and not self.asynchronous else 0

    @property
    def unwritten_holes(self) -> int:
        """Pages left unprotected that nobody has written or read yet, at least."""
        row = self.row
        if row.holes is None or row.modes & Mode.MISSING:
            return 0
        gone = row.cause(Cause.HOLE) + row.cause(Cause.HUGE_PAGE) + row.count("zero_page")
        return max(0, row.holes - gone)


def verdict(case: Case) -> str:
    """The worst that applies, in the order of VERDICTS (design.md section 4)."""
    row = case.row
    if row.count("observed"):
        return "lost-writes"
    if row.count("blind"):
        return "blind"
    if case.never_armed:
        return "never-armed"
    if row.pending:
        return "pending"
    if case.asynchronous and case.wp:
        return "async"
    return "ok" if any(row.messages) or row.count("armed_pages") else "idle"


@dataclass(frozen=True)
class Rule:
    """A finding: it applies to as many pages as `pages` says, to none if 0.

    `{pages}` in the texts is that number with its noun.
    """

    id: str
    severity: str
    pages: Callable[[Case], int]
    message: str
    remedy: str


def _cause(cause: Cause) -> Callable[[Case], int]:
    return lambda case: case.row.cause(cause)


_POPULATE = (
    "populate the range before UFFDIO_WRITEPROTECT (madvise MADV_POPULATE_READ), or register it with"
    " UFFDIO_REGISTER_MODE_MISSING too{unpopulated}"
)

RULES: tuple[Rule, ...] = (
    Rule(
        "unpopulated",
        "error",
        _cause(Cause.HOLE),
        "{pages} had no page-table entry when UFFDIO_WRITEPROTECT armed the range, so nothing was protected: the"
        " kernel gave the first write a new page and sent no message.",
        _POPULATE,
    ),
    Rule(
        "huge-page-over-hole",
        "error",
        _cause(Cause.HUGE_PAGE),
        "{pages} became writable at once when one write to an empty part of the armed range made the kernel map a huge"
        " page; only that first write could be seen.",
        _POPULATE + "; MADV_NOHUGEPAGE alone only makes each loss smaller",
    ),
    Rule(
        "zero-page-after-arm",
        "error",
        _cause(Cause.ZERO_PAGE_AFTER_ARM),
        "{pages} {were} empty when armed, then read: the kernel mapped the zero page without protection, and the write"
        " that followed sent no message.",
        _POPULATE,
    ),
    Rule(
        "discarded",
        "error",
        _cause(Cause.DISCARDED),
        "{pages} {were} dropped after arming (MADV_DONTNEED, MADV_FREE, a balloon), which drops the protection with"
        " them, and were then written without a message.",
        "ask for UFFD_FEATURE_EVENT_REMOVE and treat a removed page as written, or hold back discards while the range"
        " is armed",
    ),
    Rule(
        "copy-without-wp",
        "error",
        _cause(Cause.COPY_WITHOUT_WP),
        "{pages} of the armed range were filled by UFFDIO_COPY without UFFDIO_COPY_MODE_WP: they are writable and no"
        " write to them can be seen.",
        "set UFFDIO_COPY_MODE_WP in uffdio_copy.mode for every page that must stay protected",
    ),
    Rule(
        "zeropage",
        "error",
        _cause(Cause.ZEROPAGE),
        "{pages} of the armed range were filled by UFFDIO_ZEROPAGE, which cannot protect: the write after it goes"
        " unseen.",
        "use UFFDIO_COPY with UFFDIO_COPY_MODE_WP from a page of zeroes",
    ),
    Rule(
        "continue-without-wp",
        "error",
        _cause(Cause.CONTINUE_WITHOUT_WP),
        "{pages} of the armed range were mapped by UFFDIO_CONTINUE without UFFDIO_CONTINUE_MODE_WP: they are writable"
        " and no write to them can be seen.",
        "set UFFDIO_CONTINUE_MODE_WP in uffdio_continue.mode (Linux 6.4), or UFFDIO_WRITEPROTECT the page afterwards",
    ),
    Rule(
        "moved",
        "error",
        _cause(Cause.MOVE),
        "{pages} of the armed range lost their protection to UFFDIO_MOVE: what it moves arrives writable, what it"
        " leaves is empty.",
        "UFFDIO_WRITEPROTECT both ranges again after UFFDIO_MOVE, with the writers stopped",
    ),
    Rule(
        "mode-replaced",
        "error",
        _cause(Cause.MODE_REPLACED),
        "{pages} {were} armed when a second UFFDIO_REGISTER without UFFDIO_REGISTER_MODE_WP replaced the range's modes,"
        " and were then written without a message.",
        "name every mode in every UFFDIO_REGISTER: a later one replaces the modes, it does not add to them",
    ),
    Rule(
        "unexplained",
        "error",
        _cause(Cause.UNKNOWN),
        "{pages} {were} armed and present, yet written without a message; the events do not show what took the"
        " protection away.",
        "look for KSM (MADV_MERGEABLE), swapoff, a fork, or protection left from an earlier registration",
    ),
    Rule(
        "never-armed",
        "error",
        lambda case: case.row.pages if case.never_armed else 0,
        "{pages} {are} registered with UFFDIO_REGISTER_MODE_WP, but UFFDIO_WRITEPROTECT was never called on them: no"
        " write can be seen.",
        "call UFFDIO_WRITEPROTECT with UFFDIO_WRITEPROTECT_MODE_WP after UFFDIO_REGISTER: registering protects nothing",
    ),
    Rule(
        "pending",
        "warning",
        lambda case: case.row.pending or 0,
        "{faults} {were} not resolved when the trace ended: the threads sleep in handle_userfault().",
        "see that the monitor reads every message and answers each with UFFDIO_WRITEPROTECT, COPY, CONTINUE or WAKE",
    ),
    Rule(
        "holes-left",
        "warning",
        lambda case: case.unwritten_holes,
        "{pages} {were} empty when armed and are still unprotected: the next write to each of them will be lost.",
        _POPULATE,
    ),
    Rule(
        "undecided",
        "warning",
        lambda case: case.row.undecided,
        "{pages} {were} populated while UFFDIO_WRITEPROTECT ran over them; whether they are protected cannot be shown.",
        "stop the writers while the range is armed, or populate it before",
    ),
    Rule(
        "armed-before-trace",
        "warning",
        lambda case: case.unknown_before,
        "{pages} {were} populated without protection in a range that was registered before the trace: if they had been"
        " armed by then, their writes were lost, and nobody can tell.",
        "trace from the tracker's start with uffdtrace run, or attach before it arms the range",
    ),
    Rule(
        "async",
        "note",
        lambda case: case.row.pages if case.asynchronous and case.wp else 0,
        "The userfaultfd uses UFFD_FEATURE_WP_ASYNC: the kernel resolves write faults itself and sends no message, by"
        " design.",
        "read written pages with ioctl(PAGEMAP_SCAN)",
    ),
)


def _noun(count: int, one: str) -> str:
    return f"{count:,} {one}" + ("" if count == 1 else "s")


def findings(case: Case) -> list[dict[str, object]]:
    """The findings that apply, worst first, in the form of the report (design.md section 4)."""
    if case.offered is None:
        unpopulated = ", or ask for UFFD_FEATURE_WP_UNPOPULATED (Linux 6.4)"
    elif case.offered & Feature.WP_UNPOPULATED:
        unpopulated = ", or ask for UFFD_FEATURE_WP_UNPOPULATED, which this kernel has"
    else:
        unpopulated = " (UFFD_FEATURE_WP_UNPOPULATED would help too, but this kernel lacks it)"
    found: list[dict[str, object]] = []
    for severity in SEVERITIES:
        for rule in RULES:
            pages = rule.pages(case) if rule.severity == severity else 0
            if pages:
                names = {
                    "pages": _noun(pages, "page"),
                    "faults": _noun(pages, "fault"),
                    "were": "was" if pages == 1 else "were",
                    "are": "is" if pages == 1 else "are",
                    "unpopulated": unpopulated,
                }
                found.append(
                    {
                        "id": rule.id,
                        "severity": severity,
                        "pages": pages,
                        "message": rule.message.format(**names),
                        "remedy": rule.remedy.format(**names) + ".",
                    }
                )
    return found
