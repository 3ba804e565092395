"""Programs that nobody here wrote: the report's counts are their own, and so is every error that it names."""

from __future__ import annotations

import errno
from collections import Counter

import pytest
from guest.features import FOREIGN, FOREIGN_ABSENT, FOREIGN_ERRORS, FOREIGN_FAILS
from guest.results import Guest, Json

from uffdtrace.model.account.facts import Fact
from uffdtrace.model.records.events import Ioctl

pytestmark = [pytest.mark.parametrize("program", FOREIGN), pytest.mark.step("foreign")]
# EEXIST and EAGAIN have findings of their own, in which no call is named; so have arms. A part that is done ends with
# EAGAIN, too.
_NAMELESS = {"EEXIST": (Fact.EEXIST,), "EAGAIN": (Fact.EAGAIN, Fact.PARTIAL)}
_NAMELESS["writeprotect"] = (Fact.ARM_FAILED, Fact.HALF_PROTECTED)


def own(report: Json, account: Json, *, lost_races: bool = True) -> dict[int, Json]:
    """The userfaultfds of a program's processes, those of its children that it reads among them.

    Without `lost_races` only of its last try (see RACE in foreign.py).
    """
    pids = set(account["pids"])
    if not lost_races:
        pids -= set(account["lost_race_pids"])
    return {
        uffd["id"]: uffd
        for uffd in report["userfaultfds"]
        if uffd["owner_pid"] in pids or pids & set(uffd["monitor_pids"])
    }


def ranges(report: Json, account: Json) -> list[Json]:
    mine = own(report, account)
    return [found for found in report["ranges"] if found["userfaultfd"] in mine]


def test_it_ran(guest: Guest, suite: str, program: str) -> None:
    step = guest.step("foreign")
    ended = {name: int(status) for name, status, _ in map(str.split, step["ended"])}
    assert set(step["programs"]) == set(FOREIGN)
    registered = step["programs"][program]["calls"].get("register", 0)
    if program in FOREIGN_ABSENT[suite]:
        assert not registered, "it runs, where features.py says that it does not"
        return
    assert ended[program] == (program in FOREIGN_FAILS[suite]), step["said"][program]
    assert registered > 0


def test_messages_are_what_the_program_read(guest: Guest, program: str) -> None:
    account, report = guest.step("foreign")["programs"][program], guest.trace("foreign").report
    told: Counter[str] = Counter()
    for found in ranges(report, account):
        told.update(found["messages"])
    for uffd in own(report, account).values():
        told.update(uffd["events"])
    assert {what: count for what, count in told.items() if count} == account["messages"]
    loss = report["loss"]
    assert (loss["events_dropped"], loss["unattributed_messages"], loss["lower_bounds"]) == (0, 0, []), loss


def test_pages_are_those_of_the_messages(guest: Guest, program: str) -> None:
    account, report = guest.step("foreign")["programs"][program], guest.trace("foreign").report
    assert sum(found["notified_pages"] for found in ranges(report, account)) == account["pages"]


def failed(call: str, error: str) -> str:
    """How the report tells of a call that failed with this error."""
    return next((name for name in (error, call) if name in _NAMELESS), f"{call} {error}")


def test_calls_that_failed(guest: Guest, program: str) -> None:
    """By call and error; all but REGISTER, which is forgiven where it succeeds later."""
    account, model = guest.step("foreign")["programs"][program], guest.trace("foreign").model
    mine = own(guest.trace("foreign").report, account)
    rows = [row for row in model.rows() if model.uffd_of(row).number in mine]
    uffds = [uffd for uffd in model.userfaultfds if uffd.number in mine]
    told: Counter[str] = Counter()
    for name, facts in _NAMELESS.items():
        told[name] += sum(row.fact(fact) for row in rows for fact in facts)
    for failure in (failure for place in (*rows, *uffds) for failure in place.failures.all()):
        if failure.kind is not Ioctl.REGISTER:
            told[failed(failure.kind.name.lower(), errno.errorcode[failure.error])] += failure.count
    logged: Counter[str] = Counter()
    for what, count in account["failures"].items():
        call, error = what.split()
        if call != "register":
            logged[failed(call, error)] += count
    assert {name: count for name, count in told.items() if count} == logged


def test_errors_are_those_that_the_program_earns(guest: Guest, suite: str, program: str) -> None:
    account, report = guest.step("foreign")["programs"][program], guest.trace("foreign").report
    last = own(report, account, lost_races=False)
    places = [*last.values(), *(found for found in report["ranges"] if found["userfaultfd"] in last)]
    findings = [problem for place in places for problem in place["findings"]]
    errors = {problem["id"] for problem in findings if problem["severity"] == "error"}
    assert errors == FOREIGN_ERRORS[suite].get(program, frozenset())
