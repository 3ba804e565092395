"""Programs that nobody here wrote: the report's counts are their own, and so is every error that it names."""

from __future__ import annotations

from collections import Counter

import pytest
from guest.features import FOREIGN, FOREIGN_ABSENT, FOREIGN_ERRORS, FOREIGN_FAILS
from guest.results import Guest, Json

from uffdtrace.model.events import Ioctl
from uffdtrace.model.facts import Fact

pytestmark = pytest.mark.parametrize("program", FOREIGN)
# EEXIST and EAGAIN have findings of their own, and so have arms; a part that is done is a failure, too, where it ends
# the call.
_FAILED = (Fact.EEXIST, Fact.EAGAIN, Fact.PARTIAL, Fact.ARM_FAILED, Fact.HALF_PROTECTED)


def own(report: Json, account: Json) -> dict[int, Json]:
    """The userfaultfds of a program's processes, those of its children that it reads among them."""
    pids = set(account["pids"])
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


def test_calls_that_failed(guest: Guest, program: str) -> None:
    """All but REGISTER, which is forgiven where it succeeds later."""
    account, report = guest.step("foreign")["programs"][program], guest.trace("foreign").report
    mine = own(report, account)
    model = guest.trace("foreign").model
    rows = [row for row in model.rows() if model.userfaultfd_of(row).number in mine]
    told = sum(row.fact(fact) for row in rows for fact in _FAILED)
    told += sum(row.failures.count(*Ioctl) - row.failures.count(Ioctl.REGISTER) for row in rows)
    uffds = [uffd for uffd in model.userfaultfds if uffd.number in mine]
    told += sum(uffd.failures.count(*Ioctl) - uffd.failures.count(Ioctl.REGISTER) for uffd in uffds)
    assert told == sum(count for call, count in account["failures"].items() if not call.startswith("register "))


def test_errors_are_those_that_the_program_earns(guest: Guest, suite: str, program: str) -> None:
    account, report = guest.step("foreign")["programs"][program], guest.trace("foreign").report
    findings = [problem for found in ranges(report, account) for problem in found["findings"]]
    findings += [problem for uffd in own(report, account).values() for problem in uffd["findings"]]
    errors = {problem["id"] for problem in findings if problem["severity"] == "error"}
    assert errors == FOREIGN_ERRORS[suite].get(program, frozenset())
