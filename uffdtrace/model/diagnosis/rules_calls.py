"""Findings about UFFDIO calls that failed: of a range, and of a userfaultfd where no range was meant."""

from __future__ import annotations

from uffdtrace.model.account.facts import Fact
from uffdtrace.model.account.failures import Failure, Failures
from uffdtrace.model.account.sleep import Killed, Waiting
from uffdtrace.model.account.watched import Userfaultfd
from uffdtrace.model.diagnosis.case import Case
from uffdtrace.model.diagnosis.document import FindingDict
from uffdtrace.model.diagnosis.rule import Rule, fact
from uffdtrace.model.records.events import Ioctl

_MOST_NAMED = 4
# Calls that answer a fault: where one fails, whoever waits there sleeps on.
_ANSWERS = (Ioctl.COPY, Ioctl.ZEROPAGE, Ioctl.CONTINUE, Ioctl.MOVE, Ioctl.POISON, Ioctl.WRITEPROTECT, Ioctl.WAKE)


def _listed(failures: list[Failure]) -> str:
    named = [str(failure) for failure in failures[:_MOST_NAMED]]
    if len(failures) > _MOST_NAMED:
        named.append(f"{sum(failure.count for failure in failures[_MOST_NAMED:]):,} more of other kinds")
    return "; ".join(named)


Sleeper = tuple[int, int]


def _asleep_in(case: Case, places: list[tuple[int, int]]) -> list[Sleeper]:
    """(address, thread) of the faults that wait in these spans [start, end), or did until their threads were killed."""
    faults: list[Waiting | Killed] = [*case.row.waiting, *case.row.killed]
    return sorted(
        (fault.address, fault.tid) for fault in faults if any(low <= fault.address < high for low, high in places)
    )


def _asleep(case: Case) -> list[Sleeper]:
    """Faults that wait where a call that might have answered them failed."""
    # A call may name an address inside the page that it means.
    size = case.row.page_size
    places = [
        (low & -size, high + size - 1) for failure in case.row.failures.of(*_ANSWERS) for low, high in failure.places
    ]
    return _asleep_in(case, places)


def _asleep_beside_a_page(case: Case) -> list[Sleeper]:
    """Faults that wait on pages of which a call said EEXIST."""
    return _asleep_in(case, case.row.spans.get(Fact.EEXIST, []))


def _named(asleep: list[Sleeper]) -> str:
    named = ", ".join(f"thread {tid} at {address:x}" for address, tid in asleep[:_MOST_NAMED])
    return named + (f" and {len(asleep) - _MOST_NAMED:,} more" if len(asleep) > _MOST_NAMED else "")


def _and_protect(case: Case) -> str:
    return ", and UFFDIO_WRITEPROTECT the page if it must be protected" if case.wp else ""


CALL_RULES: tuple[Rule, ...] = (
    Rule(
        "answer-failed",
        "error",
        lambda case: len(_asleep(case)),
        "faults were left asleep where the calls that should have answered them failed",
        "{count} {were} left asleep where a call that should have answered failed: {sleepers}. What failed:"
        " {failures}.",
        "check the result of every UFFDIO call, and answer again with what its error asks for: nobody is woken by a"
        " call that failed",
        unit="faults",
        words={
            "sleepers": lambda case: _named(_asleep(case)),
            "failures": lambda case: _listed(case.row.failures.of(*_ANSWERS)),
        },
    ),
    Rule(
        "eexist-asleep",
        "error",
        lambda case: len(_asleep_beside_a_page(case)),
        "faults were left asleep on pages that were there already when a call was to fill them",
        "{count} {were} left asleep on pages of which UFFDIO_COPY, ZEROPAGE or CONTINUE said EEXIST, which wakes"
        " nobody: {sleepers}.",
        "on EEXIST wake the range with UFFDIO_WAKE: the page is there, and the thread only has to look again",
        unit="faults",
        words={"sleepers": lambda case: _named(_asleep_beside_a_page(case))},
    ),
    Rule(
        "eexist",
        "note",
        fact(Fact.EEXIST),
        "UFFDIO_COPY, ZEROPAGE or CONTINUE found a page already there",
        "{count} failed with EEXIST: the page was there already, so nothing was copied, no protection was set, and"
        " nobody was woken.",
        "on EEXIST wake the range with UFFDIO_WAKE{protect}",
        unit="calls",
        words={"protect": _and_protect},
    ),
    Rule(
        "call-failed",
        "warning",
        lambda case: sum(failure.count for failure in case.row.failures.all()),
        "UFFDIO calls failed",
        "{count} failed: {failures}.",
        "check the result of every UFFDIO call; what its error means stands beside it",
        unit="calls",
        words={"failures": lambda case: _listed(case.row.failures.all())},
    ),
)


def _finding(name: str, severity: str, failures: list[Failure], message: str, remedy: str) -> FindingDict:
    count = sum(failure.count for failure in failures)
    calls = f"{count:,} call{'' if count == 1 else 's'}"
    return {
        "id": name,
        "severity": severity,
        "pages": count,
        "unit": "calls",
        "message": message.format(count=calls, failures=_listed(failures)),
        "remedy": remedy,
    }


def userfaultfd_findings(uffd: Userfaultfd) -> list[FindingDict]:
    """Findings about calls of a userfaultfd that named no range of it, worst first, in the form of the report."""
    failures: Failures = uffd.failures
    found = []
    if registers := failures.of(Ioctl.REGISTER):
        found.append(
            _finding(
                "register-failed",
                "error",
                registers,
                "{count} to UFFDIO_REGISTER failed, and none over the same addresses succeeded afterwards: nobody"
                " watches that memory. {failures}.",
                "check the result of UFFDIO_REGISTER; one process's memory can be registered with one userfaultfd"
                " only.",
            )
        )
    others = [failure for failure in failures.all() if failure.kind not in (Ioctl.REGISTER, Ioctl.API)]
    if others:
        found.append(
            _finding(
                "call-failed",
                "warning",
                others,
                "{count} for addresses that are in no registered range failed: {failures}.",
                "check the result of every UFFDIO call; what its error means stands beside it.",
            )
        )
    if apis := failures.of(Ioctl.API):
        found.append(
            _finding(
                "api-refused",
                "note",
                apis,
                "{count} to UFFDIO_API failed, as they do where a program asks for features that the kernel may not"
                " have: {failures}.",
                "ask for no features first: UFFDIO_API then says which there are.",
            )
        )
    return found
