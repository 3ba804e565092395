"""Findings of many ranges put together: each once, with its number added up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from uffdtrace.model.diagnosis.document import FindingDict, RangeDict, UserfaultfdDict
from uffdtrace.model.diagnosis.rules import SEVERITIES


@dataclass(frozen=True)
class Grouped:
    """One finding: as the place says it that has the most of it, and how much all places have."""

    worst: FindingDict
    # The range or userfaultfd.
    place: RangeDict | UserfaultfdDict
    places: int
    total: int

    @property
    def id(self) -> str:
        return self.worst["id"]

    @property
    def severity(self) -> str:
        return self.worst["severity"]


def grouped(places: Sequence[RangeDict | UserfaultfdDict]) -> list[Grouped]:
    """The findings of ranges or userfaultfds: errors first, each severity in the order in which they are found."""
    together: dict[str, list[tuple[FindingDict, RangeDict | UserfaultfdDict]]] = {}
    for place in places:
        for finding in place["findings"]:
            together.setdefault(finding["id"], []).append((finding, place))
    made = []
    for alike in together.values():
        worst, place = max(alike, key=lambda one: one[0]["pages"])
        made.append(Grouped(worst, place, len(alike), sum(finding["pages"] for finding, _ in alike)))
    return sorted(made, key=lambda one: SEVERITIES.index(one.severity))
