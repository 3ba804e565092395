"""What a finding is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Callable

from uffdtrace.model.diagnosis import Case
from uffdtrace.model.facts import Fact

Count = Callable[[Case], int]
Words = Callable[[Case], str]


@dataclass(frozen=True)
class Rule:
    """A finding: it applies to as many `unit`s as `count` says, to none if 0.

    `meaning` says in a few words what it is, for a list of all findings. In
    `message` and `remedy`, {count} is the number with its noun, {were} and {are}
    agree with it, and `words` fill what else depends on the case.
    """

    id: str
    severity: str
    count: Count
    meaning: str
    message: str
    remedy: str
    unit: str = "pages"
    words: Mapping[str, Words] = field(default_factory=dict)


def fact(fact: Fact) -> Count:
    return lambda case: case.fact(fact)
