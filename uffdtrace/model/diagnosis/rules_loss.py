"""Findings about armed pages: why their protection was not there."""

from __future__ import annotations

from uffdtrace.model.account.pages import Cause
from uffdtrace.model.diagnosis.case import Case
from uffdtrace.model.diagnosis.rule import Count, Rule
from uffdtrace.model.records.events import Feature


def _cause(cause: Cause) -> Count:
    return lambda case: case.cause(cause)


def _dropped_by(case: Case) -> str:
    """`madvise(MADV_DONTNEED) (1,024) and fallocate (512)`."""
    by_call: dict[str, int] = {}
    for drop, pages in case.row.drops.items():
        by_call[drop.call] = by_call.get(drop.call, 0) + pages
    named = [f"{call} ({pages:,})" if len(by_call) > 1 else call for call, pages in sorted(by_call.items())]
    return " and ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)


def _told_of_drop(case: Case) -> str:
    told = sum(pages for drop, pages in case.row.drops.items() if drop.told)
    if not told:
        return "no event told the monitor"
    everything = told == sum(case.row.drops.values())
    return "UFFD_EVENT_REMOVE told the monitor" + ("" if everything else f" of {told:,} of them, of the rest no event")


def _unpopulated(case: Case) -> str:
    if case.offered is None:
        return "; or ask for UFFD_FEATURE_WP_UNPOPULATED (Linux 6.4)"
    if case.offered & Feature.WP_UNPOPULATED:
        return "; or ask for UFFD_FEATURE_WP_UNPOPULATED, which this kernel has"
    return " (UFFD_FEATURE_WP_UNPOPULATED would help too, but this kernel lacks it)"


_POPULATE = (
    # MADV_POPULATE_READ: 4ca9b3859dac.
    "populate the range before UFFDIO_WRITEPROTECT (madvise MADV_POPULATE_READ, Linux 5.14, or read every page); or"
    " register it with UFFDIO_REGISTER_MODE_MISSING too{unpopulated}"
)
_UNPOPULATED = {"unpopulated": _unpopulated}

_EVERY_MODE = (
    "name every mode in every UFFDIO_REGISTER: one with a mode that the range lacks replaces all of them, it does not"
    " add to them"
)

LOSS_RULES: tuple[Rule, ...] = (
    Rule(
        "unpopulated",
        "error",
        _cause(Cause.UNPOPULATED),
        "pages that were empty when armed were written without a message",
        "{count} had no page-table entry when UFFDIO_WRITEPROTECT armed the range, so nothing was protected: the"
        " kernel gave the first write a new page and sent no message.",
        _POPULATE,
        words=_UNPOPULATED,
    ),
    Rule(
        "huge-page-over-hole",
        "error",
        _cause(Cause.HUGE_PAGE_OVER_HOLE),
        "one write to an empty part mapped a whole huge page, writable",
        "{count} became writable at once when one write to an empty part of the armed range made the kernel map a huge"
        " page; only that first write could be seen.",
        _POPULATE + "; MADV_NOHUGEPAGE alone only makes each loss smaller",
        words=_UNPOPULATED,
    ),
    Rule(
        "zero-page-after-arm",
        "error",
        _cause(Cause.ZERO_PAGE_AFTER_ARM),
        "empty pages were read after arming, which mapped the zero page unprotected, then written",
        "{count} {were} empty when armed, then read: the kernel mapped the zero page without protection, and the write"
        " that followed sent no message.",
        _POPULATE,
        words=_UNPOPULATED,
    ),
    Rule(
        "discarded",
        "error",
        _cause(Cause.DISCARDED),
        "pages were dropped after arming, and their protection with them, then written",
        "{count} {were} dropped after arming (MADV_DONTNEED, MADV_FREE, a balloon, MREMAP_DONTUNMAP), which drops the"
        " protection with them, and {were} then written without a message.",
        "ask for UFFD_FEATURE_EVENT_REMOVE and treat a removed page as written; or hold back discards while the range"
        " is armed",
    ),
    Rule(
        "copy-without-wp",
        "error",
        _cause(Cause.COPY_WITHOUT_WP),
        "UFFDIO_COPY filled armed pages without protecting them",
        "{count} of the armed range {were} filled by UFFDIO_COPY without UFFDIO_COPY_MODE_WP, which left {them}"
        " writable: no write there can be seen.",
        "set UFFDIO_COPY_MODE_WP in uffdio_copy.mode for every page that must stay protected",
    ),
    Rule(
        "zeropage",
        "error",
        _cause(Cause.ZEROPAGE),
        "UFFDIO_ZEROPAGE, which cannot protect, filled armed pages, and they were written",
        "{count} of the armed range {were} filled by UFFDIO_ZEROPAGE, which cannot protect: the write after it went"
        " unseen.",
        "use UFFDIO_COPY with UFFDIO_COPY_MODE_WP from a page of zeroes",
    ),
    Rule(
        "continue-without-wp",
        "error",
        _cause(Cause.CONTINUE_WITHOUT_WP),
        "UFFDIO_CONTINUE mapped armed pages without protecting them",
        "{count} of the armed range {were} mapped by UFFDIO_CONTINUE without UFFDIO_CONTINUE_MODE_WP, which left {them}"
        " writable: no write there can be seen.",
        "set UFFDIO_CONTINUE_MODE_WP in uffdio_continue.mode (Linux 6.4); or UFFDIO_WRITEPROTECT the page afterwards",
    ),
    Rule(
        "marker-erased",
        "error",
        lambda case: case.cause(Cause.COPY_WITHOUT_WP, Cause.CONTINUE_WITHOUT_WP) if case.markers else 0,
        "COPY or CONTINUE without WP erased the marker that kept an empty page protected",
        "{count} {were} empty and protected by a marker in the page table; UFFDIO_COPY or UFFDIO_CONTINUE without its"
        " MODE_WP erased it.",
        "give UFFDIO_COPY_MODE_WP or UFFDIO_CONTINUE_MODE_WP: a marker protects an empty page, not the page that"
        " replaces it",
    ),
    Rule(
        "moved",
        "error",
        _cause(Cause.MOVED),
        "UFFDIO_MOVE took the protection from what it moved or left behind",
        "{count} of the armed range lost {their} protection to UFFDIO_MOVE: what it moves arrives writable, what it"
        " leaves is empty.",
        "UFFDIO_WRITEPROTECT both ranges again after UFFDIO_MOVE, with the writers stopped",
    ),
    Rule(
        "ksm-merge",
        "error",
        _cause(Cause.KSM_MERGE),
        "KSM merged armed pages, which dropped their protection, then they were written",
        "{count} {were} armed when KSM merged {them} with pages of the same content, which drops the protection; the"
        " write that followed sent no message.",
        "keep KSM off tracked memory (madvise MADV_UNMERGEABLE before arming, or no MADV_MERGEABLE); or arm after the"
        " merge: merged pages can be armed",
    ),
    Rule(
        "swapoff",
        "error",
        _cause(Cause.SWAPOFF),
        "swapoff brought armed pages back without their protection",
        "{count} {were} armed and swapped out when swapoff brought {them} back; this kernel drops the protection there,"
        " and the write that followed sent no message.",
        "do not run swapoff while memory is tracked; or arm again after it (Linux 5.19 keeps the protection)",
    ),
    Rule(
        "mode-replaced",
        "error",
        _cause(Cause.MODE_REPLACED),
        "a second UFFDIO_REGISTER without WP replaced the mode, then armed pages were written",
        "{count} {were} armed when a second UFFDIO_REGISTER without UFFDIO_REGISTER_MODE_WP replaced the range's modes,"
        " and {were} then written without a message.",
        _EVERY_MODE,
    ),
    Rule(
        "unexplained",
        "error",
        _cause(Cause.UNEXPLAINED),
        "armed pages were written without a message, and the events do not show why",
        "{count} {were} armed, yet written without a message; the events do not show what took the protection away.",
        "look for what happened before the trace, for UFFDIO_COPY into a mapping that was read-only, and for page"
        " migration; and report it to the project",
    ),
    Rule(
        "holes-left",
        "warning",
        lambda case: case.unwritten_holes,
        "pages that were empty when armed are still unprotected",
        "{count} or more {were} empty when armed and {are} still unprotected: the next write to each of them will be"
        " lost.",
        _POPULATE,
        words=_UNPOPULATED,
    ),
    Rule(
        "exposed",
        "warning",
        lambda case: sum(case.exposed.values()),
        "armed pages stand unprotected; the next write will be lost",
        "{count} {are} armed but unprotected, because of what happened after arming ({causes}): the next write to each"
        " of them will be lost.",
        "arm them again when what happened is over; the finding named like the cause says how to avoid it",
        words={"causes": lambda case: ", ".join(f"{pages:,} {cause.label}" for cause, pages in case.exposed.items())},
    ),
    Rule(
        "wp-dropped",
        "warning",
        lambda case: case.wp_dropped,
        "a second UFFDIO_REGISTER without WP dropped the protection of armed pages",
        "{count} {were} armed when a second UFFDIO_REGISTER without UFFDIO_REGISTER_MODE_WP replaced the range's modes:"
        " the next write to each of them will be lost.",
        _EVERY_MODE,
    ),
    Rule(
        "undecided",
        "warning",
        lambda case: case.row.undecided,
        "no order of events tells whether writes to these pages were missed",
        "{count} {were} written or filled while it was open whether {they_are} protected: a call was arming {them} at"
        " that moment, two calls overlapped on {them}, or a call that answered a write to another page filled {them}."
        " Whether a write was missed there cannot be told.",
        "let no two calls act on a page at once, stop the writers while a range is armed, and release every page that"
        " an answer fills",
    ),
    Rule(
        "content-dropped",
        "warning",
        lambda case: 0 if case.asynchronous else sum(case.row.drops.values()),
        "what armed pages held was dropped, without a write-protect message",
        "{count} of the armed range {were} dropped by {calls}: whatever {they} held is gone without a message, and a"
        " snapshot that had not saved {them} by then has lost it; {told}.",
        "hold back discards, hole punching and balloons until the snapshot is complete; or have whoever drops pages"
        " tell the monitor first (UFFD_FEATURE_EVENT_REMOVE announces madvise, but not fallocate or truncate)",
        words={"calls": _dropped_by, "told": _told_of_drop},
    ),
    Rule(
        "armed-before-trace",
        "warning",
        lambda case: case.populated_before,
        "pages were populated in a range that may have been armed before the trace",
        "{count} {were} populated without protection in a range that was registered before the trace: if armed by then,"
        " {their} writes were lost, and nobody can tell.",
        "trace from the tracker's start with uffdtrace run; or attach before it registers the range",
    ),
)
