"""A report's ranges by the process whose memory they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from uffdtrace.model.diagnosis.case import VERDICTS
from uffdtrace.model.diagnosis.document import ProcessDict, RangeDict, ReportDict, UserfaultfdDict
from uffdtrace.reporters.harmless import printable
from uffdtrace.reporters.words import lost_pages


@dataclass(frozen=True)
class Section:
    """One process's ranges, the worst first, and its heading, empty where the report is about nothing else."""

    owner: str
    heading: str
    ranges: list[RangeDict]


def command(process: ProcessDict | None, also: Sequence[ProcessDict] = ()) -> str:
    """What was traced, as a line."""
    if process is None:
        return "every userfaultfd"
    called = [printable(f"{' '.join(one['cmdline'] or [one['comm']])} ({one['pid']})") for one in (process, *also)]
    return ", ".join(called)


def badness(found: RangeDict) -> tuple[int, int]:
    return VERDICTS.index(found["verdict"]), -(lost_pages(found) or 0)


def sections(report: ReportDict) -> list[Section]:
    """The worst first; ranges whose process is not known are one section."""
    uffds = {uffd["id"]: uffd for uffd in report["userfaultfds"]}
    names = {process["pid"]: process["comm"] for process in report["processes"]}
    by_owner: dict[int | None, list[RangeDict]] = {}
    for found in sorted(report["ranges"], key=badness):
        by_owner.setdefault(uffds[found["userfaultfd"]]["owner_pid"], []).append(found)
    return [
        Section(_called(owner, names), _heading(report, owner, uffds, names, alone=len(by_owner) == 1), ranges)
        for owner, ranges in by_owner.items()
    ]


def _called(pid: int | None, names: dict[int, str]) -> str:
    return "a process that is not known" if pid is None else printable(f"{names.get(pid, '?')} ({pid})")


def _heading(
    report: ReportDict, owner: int | None, uffds: dict[int, UserfaultfdDict], names: dict[int, str], alone: bool
) -> str:
    mine = [uffd for uffd in uffds.values() if uffd["owner_pid"] == owner]
    others = sorted({pid for uffd in mine for pid in uffd["monitor_pids"]} - {owner})
    watched = f", watched by {', '.join(_called(pid, names) for pid in others)}" if others else ""
    copies = {uffds[uffd["forked_from"]]["owner_pid"] for uffd in mine if uffd["forked_from"] in uffds}
    forked = f", forked from {', '.join(_called(pid, names) for pid in sorted(copies, key=str))}" if copies else ""
    if alone and not watched and not forked and report["process"] is not None and report["process"]["pid"] == owner:
        return ""
    return f"Memory of {_called(owner, names)}{forked}{watched}"


def not_followed(report: ReportDict) -> str:
    """What to say of children with a userfaultfd of their own that were not traced; empty if there are none."""
    made = sum(uffd["events"]["fork"] for uffd in report["userfaultfds"])
    made -= sum(uffd["forked_from"] is not None for uffd in report["userfaultfds"])
    if made <= 0:
        return ""
    watch = "userfaultfd that watches" if made == 1 else "userfaultfds that watch"
    return f"Not traced: {made:,} {watch} forked children: attach --follow-forks."
