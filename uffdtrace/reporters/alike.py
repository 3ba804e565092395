"""Ranges of one kind, summed up: a machine's memory in a thousand pieces is one line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from uffdtrace.model.diagnosis.document import RangeDict
from uffdtrace.reporters.words import add

# Fewer are shown one by one.
FEWEST = 4


def alike(ranges: Sequence[RangeDict]) -> list[list[RangeDict]]:
    """Ranges by kind: what they are, what became of them and what was found there. Where few are of a kind, each alone.

    In the order in which the first of each kind stands.
    """
    kinds: dict[object, list[RangeDict]] = {}
    for found in ranges:
        findings = tuple(sorted({finding["id"] for finding in found["findings"]}))
        kind = (found["memory"], tuple(found["modes"]), found["name"], found["page_size"], found["verdict"], findings)
        kinds.setdefault(kind, []).append(found)
    together: list[list[RangeDict]] = []
    for of_kind in kinds.values():
        together += [of_kind] if len(of_kind) >= FEWEST else [[found] for found in of_kind]
    places = {id(found): place for place, found in enumerate(ranges)}
    return sorted(together, key=lambda of_kind: places[id(of_kind[0])])


def summed(ranges: Sequence[RangeDict]) -> RangeDict:
    """The first of them with the pages and messages of all; what is not known of one is not known of all."""
    first, lost = ranges[0], ranges[0]["lost"]
    if len(ranges) == 1:
        return first
    return {
        **first,
        "pages": sum(found["pages"] for found in ranges),
        "messages": _sums(found["messages"] for found in ranges),
        "holes": add(*(found["holes"] for found in ranges)),
        "skipped": {name: add(*(found["skipped"][name] for found in ranges)) for name in first["skipped"]},
        "lost": {
            **lost,
            "observed": add(*(found["lost"]["observed"] for found in ranges)),
            "blind": add(*(found["lost"]["blind"] for found in ranges)),
        },
    }


def _sums(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in counts:
        for kind, count in one.items():
            total[kind] = total.get(kind, 0) + count
    return total
