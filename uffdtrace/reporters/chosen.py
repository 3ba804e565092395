"""Some ranges of a report: by address, or by what their mapping is called."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from uffdtrace.errors import UffdtraceError
from uffdtrace.model.diagnosis.case import VERDICTS
from uffdtrace.model.diagnosis.document import RangeDict, ReportDict
from uffdtrace.reporters.words import noun

_ADDRESSES = re.compile(r"(?:0x)?([0-9a-f]{1,16})(?:-(?:0x)?([0-9a-f]{1,16}))?", re.IGNORECASE)


class NothingChosen(UffdtraceError):
    """No range of the trace is one of those that were asked for."""


def bounds(text: str) -> tuple[int, int]:
    """`7f0000000000` or `7f0000000000-7f0000010000`, as /proc/PID/maps writes them: [start, end); ValueError."""
    found = _ADDRESSES.fullmatch(text)
    if not found:
        raise ValueError(text)
    start = int(found[1], 16)
    end = start + 1 if found[2] is None else int(found[2], 16)
    if end <= start:
        raise ValueError(text)
    return start, end


def chosen(report: ReportDict, addresses: tuple[int, int] | None, pattern: str | None) -> tuple[ReportDict, list[int]]:
    """The report of the ranges that overlap `addresses` and whose name `pattern` (as a shell's) matches.

    Its verdict is theirs. With it the places that they had among all ranges. NothingChosen where there are none.
    """

    def wanted(found: RangeDict) -> bool:
        if addresses and not (int(found["start"], 16) < addresses[1] and addresses[0] < int(found["end"], 16)):
            return False
        # A part of it is enough, as for grep.
        return pattern is None or fnmatchcase(found["name"] or "", f"*{pattern}*")

    kept = [at for at, found in enumerate(report["ranges"]) if wanted(found)]
    if not kept:
        raise NothingChosen(
            f"none of the trace's {noun(len(report['ranges']), 'range')} is one of those:"
            " uffdtrace report --all-ranges shows them"
        )
    ranges = [report["ranges"][at] for at in kept]
    used = {found["userfaultfd"] for found in ranges}
    return {
        **report,
        "ranges": ranges,
        "userfaultfds": [uffd for uffd in report["userfaultfds"] if uffd["id"] in used],
        "verdict": min((found["verdict"] for found in ranges), key=VERDICTS.index),
    }, kept
