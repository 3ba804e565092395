"""What a finding is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Callable

from uffdtrace.model.account.facts import Fact
from uffdtrace.model.diagnosis.case import Case
from uffdtrace.model.records.events import Mode

Count = Callable[[Case], int]
Words = Callable[[Case], str]


@dataclass(frozen=True)
class Rule:
    """A finding: it applies to as many `unit`s as `count` says, to none if 0.

    `meaning` says in a few words what it is, for a list of all findings. In
    `message` and `remedy`, {count} is the number with its noun, {were} and {are}
    agree with it, and `words` fill what else depends on the case. In `remedy`, "; or "
    stands between alternatives, of which the first is recommended.
    """

    id: str
    severity: str
    count: Count
    meaning: str
    message: str
    remedy: str
    unit: str = "pages"
    words: Mapping[str, Words] = field(default_factory=dict)


# What lets a fault of each mode go on.
_ANSWERS = {
    Mode.MISSING: "UFFDIO_COPY or UFFDIO_ZEROPAGE",
    Mode.WP: "UFFDIO_WRITEPROTECT without MODE_WP",
    Mode.MINOR: "UFFDIO_CONTINUE",
}


def answers(case: Case) -> str:
    """The calls that answer faults in this range: a mode that it lacks has none."""
    return ", ".join([*(call for mode, call in _ANSWERS.items() if case.row.modes & mode), "or UFFDIO_WAKE"])


def fact(fact: Fact) -> Count:
    return lambda case: case.fact(fact)
