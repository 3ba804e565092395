"""Findings about the memory itself: what was there before it was watched, and who else reaches it."""

from __future__ import annotations

from uffdtrace.model.account.elsewhere import pages
from uffdtrace.model.account.facts import Fact
from uffdtrace.model.diagnosis.case import Case
from uffdtrace.model.diagnosis.rule import Rule, fact

_MOST_NAMED = 4


def _more(case: Case) -> str:
    return ", and there may be more" if case.fact(Fact.MORE_POPULATED) else ""


def _where(case: Case) -> str:
    others = sorted(case.elsewhere, key=lambda other: (other.pid, other.start))
    named = [
        f"{'this process' if other.pid == case.userfaultfd.owner else f'{other.comm} ({other.pid})'} at"
        f" {other.start:x}-{other.end:x}"
        for other in others[:_MOST_NAMED]
    ]
    if len(others) > _MOST_NAMED:
        named.append(f"{len(others) - _MOST_NAMED:,} more")
    return ", ".join(named)


MEMORY_RULES: tuple[Rule, ...] = (
    Rule(
        "not-tracked",
        "warning",
        lambda case: case.row.pages if case.row.untracked else 0,
        "more was registered, or touched, than this machine can keep track of",
        "{count} {are} in a range of which not every page could be tracked: more was registered, or touched far apart,"
        " than uffdtrace keeps on this machine. Messages, faults and calls are counted; whether writes here were lost"
        " is not known.",
        "trace the one process (uffdtrace attach PID) instead of all; or trace where there is more memory",
    ),
    Rule(
        "mapped-elsewhere",
        "warning",
        lambda case: pages(case.row, case.elsewhere),
        "shared memory is also mapped, writable, where nothing watches it",
        "{count} {are} also mapped where no userfaultfd watches: {where}. A write there sends no message, and nothing"
        " in this report counts it.",
        "register each of these mappings too, with a userfaultfd of its process; or let nobody write there while the"
        " range is tracked",
        words={"where": _where},
    ),
    Rule(
        "registered-late",
        "warning",
        fact(Fact.REGISTERED_LATE),
        "pages were populated already when MISSING was registered over them again",
        "{count} {were} populated already when the range was registered again for MISSING alone{more}: a page that is"
        " there never sends a MISSING message. What was written between the reset and UFFDIO_REGISTER was not told, nor"
        " will the next write there be.",
        "let nobody write between the reset and UFFDIO_REGISTER; or drop the pages with madvise MADV_DONTNEED while the"
        " range stays registered, instead of unregistering or mapping it anew",
        words={"more": _more},
    ),
    Rule(
        "already-populated",
        "note",
        fact(Fact.POPULATED_BEFORE),
        "pages were populated already when MISSING was first registered over them",
        "{count} {were} populated already when the range was registered for MISSING alone{more}: an access there sends"
        " no message.",
        "nothing where the content is complete already, as in postcopy after precopy; or else register before anything"
        " is written; or drop the pages with madvise MADV_DONTNEED",
        words={"more": _more},
    ),
)
