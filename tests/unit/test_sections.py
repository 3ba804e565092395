"""A report's ranges by process: which sections, in what order, and what they are called."""

from __future__ import annotations

import io
from typing import Any

import pytest
from unit.reports import BASE, HOSTILE, PROCESS, a_range, a_report, a_userfaultfd

from uffdtrace.reporters import text
from uffdtrace.reporters.sections import badness, command, not_followed, sections

MINE = PROCESS["pid"]
CHILD, MONITOR = 8, 9
CHILD_PROCESS = {"pid": CHILD, "comm": "snapshot", "cmdline": ["./tracker"]}
MONITOR_PROCESS = {"pid": MONITOR, "comm": "vmm", "cmdline": ["vmm", "-x"]}


def report(*userfaultfds: dict[str, Any], ranges: list[dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    """With a range of each userfaultfd unless told which."""
    made = [a_userfaultfd(**{"id": number, **one}) for number, one in enumerate(userfaultfds)]
    if ranges is None:
        ranges = [a_range(BASE + number * 0x100000, userfaultfd=number) for number in range(len(made))]
    processes = [PROCESS, CHILD_PROCESS, MONITOR_PROCESS]
    return {**a_report(*ranges), "userfaultfds": made, "processes": processes, **changes}


def headings(found: dict[str, Any]) -> list[str]:
    return [section.heading for section in sections(found)]


def starts(found: dict[str, Any]) -> list[list[int]]:
    """Each section's ranges, by their number."""
    return [[(int(one["start"], 16) - BASE) // 0x100000 for one in section.ranges] for section in sections(found)]


def rendered(found: dict[str, Any]) -> str:
    stream = io.StringIO()
    text.render(found, stream)
    return stream.getvalue()


# ---- headings --------------------------------------------------------------------


def test_a_process_that_watches_itself_needs_no_heading() -> None:
    assert headings(report({})) == [""]
    assert headings(report({}, {})) == [""]
    assert headings(report({"monitor_pids": []})) == [""]


def test_no_ranges_are_no_sections() -> None:
    assert sections(report({}, ranges=[])) == []


def test_who_watches_from_another_process() -> None:
    assert headings(report({"monitor_pids": [MONITOR]})) == ["Memory of tracker (7), watched by vmm (9)"]
    assert headings(report({"monitor_pids": [MINE, MONITOR]})) == ["Memory of tracker (7), watched by vmm (9)"]


def test_the_monitors_of_all_of_its_userfaultfds() -> None:
    found = report({"monitor_pids": [MONITOR]}, {"monitor_pids": [CHILD, MONITOR]})
    assert headings(found) == ["Memory of tracker (7), watched by snapshot (8), vmm (9)"]


def test_memory_of_another_process_than_the_traced_one() -> None:
    """attach to the monitor."""
    found = report({"owner_pid": CHILD, "monitor_pids": [MINE]})
    assert headings(found) == ["Memory of snapshot (8), watched by tracker (7)"]
    assert headings(report({"owner_pid": CHILD, "monitor_pids": [CHILD]})) == ["Memory of snapshot (8)"]


def test_a_child_is_called_so() -> None:
    child = {"owner_pid": CHILD, "forked_from": 0, "monitor_pids": [MINE]}
    assert headings(report({}, child)) == [
        "Memory of tracker (7)",
        "Memory of snapshot (8), forked from tracker (7), watched by tracker (7)",
    ]


def test_a_child_whose_parent_has_no_ranges_left() -> None:
    child = {"owner_pid": CHILD, "forked_from": 0, "monitor_pids": []}
    found = report({}, child, ranges=[a_range(userfaultfd=1)])
    assert headings(found) == ["Memory of snapshot (8), forked from tracker (7)"]


def test_a_child_of_two_userfaultfds_is_forked_from_one_process() -> None:
    children = [{"owner_pid": CHILD, "forked_from": number, "monitor_pids": []} for number in (0, 1)]
    assert headings(report({}, {}, *children))[1] == "Memory of snapshot (8), forked from tracker (7)"


def test_a_grandchild_is_its_parents() -> None:
    child = {"owner_pid": CHILD, "forked_from": 0, "monitor_pids": []}
    grandchild = {"owner_pid": MONITOR, "forked_from": 1, "monitor_pids": []}
    assert headings(report({}, child, grandchild))[2] == "Memory of vmm (9), forked from snapshot (8)"


def test_a_parent_that_is_no_userfaultfd_of_the_report() -> None:
    assert headings(report({"forked_from": 77})) == [""]


def test_processes_that_nobody_knows() -> None:
    found = report({"owner_pid": None, "monitor_pids": [4711]}, {"owner_pid": 4712, "forked_from": 0})
    assert headings(found) == [
        "Memory of a process that is not known, watched by ? (4711)",
        "Memory of ? (4712), forked from a process that is not known, watched by tracker (7)",
    ]


def test_everybody_is_called_by_name() -> None:
    found = report({}, {"owner_pid": CHILD, "monitor_pids": [CHILD]}, process=None)
    assert headings(found) == ["Memory of tracker (7)", "Memory of snapshot (8)"]
    assert headings(report({}, process=None)) == ["Memory of tracker (7)"]


def test_a_hostile_name() -> None:
    processes = [{"pid": MINE, "comm": HOSTILE, "cmdline": [HOSTILE]}]
    found = report({"monitor_pids": [MONITOR]}, process=processes[0], processes=processes)
    (heading,) = headings(found)
    for line in (heading, command(found["process"])):
        assert line.isprintable() and "[bold red]" in line
    for shown in (rendered(found), rendered({**found, "process": None})):
        assert "[bold red]x[/bold red]" in shown
        assert all(one.isprintable() for one in shown.replace("\n", ""))
        shown.encode()


# ---- order -----------------------------------------------------------------------


def test_the_worst_section_is_the_first() -> None:
    ranges = [
        a_range(BASE, userfaultfd=0),
        a_range(BASE + 0x100000, userfaultfd=1),
        a_range(BASE + 0x200000, lost=3, userfaultfd=1),
        a_range(BASE + 0x300000, lost=5, userfaultfd=0),
        a_range(BASE + 0x400000, lost=4, userfaultfd=2),
    ]
    found = report({}, {"owner_pid": CHILD}, {"owner_pid": None}, ranges=ranges)
    assert starts(found) == [[3, 0], [4], [2, 1]]


def test_userfaultfds_of_one_process_are_one_section() -> None:
    assert starts(report({}, {"owner_pid": CHILD}, {})) == [[0, 2], [1]]


def test_those_that_are_as_bad_stay_in_their_order() -> None:
    assert starts(report({}, {}, {})) == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        (a_range(lost=1), a_range()),
        (a_range(lost=2), a_range(lost=1)),
        (a_range(lost=1), a_range(lost=None, verdict="lost-writes")),
        (a_range(verdict="blind"), a_range(verdict="never-armed")),
        (a_range(verdict="ok"), a_range(verdict="idle")),
    ],
)
def test_badness(worse: dict[str, Any], better: dict[str, Any]) -> None:
    assert badness(worse) < badness(better)


# ---- what was traced -------------------------------------------------------------


@pytest.mark.parametrize(
    ("process", "line"),
    [
        (None, "every userfaultfd"),
        (PROCESS, "./tracker --snapshot (7)"),
        ({**PROCESS, "cmdline": []}, "tracker (7)"),
        ({**PROCESS, "cmdline": [""]}, " (7)"),
    ],
)
def test_command(process: dict[str, Any] | None, line: str) -> None:
    assert command(process) == line


# ---- children that were not traced -----------------------------------------------


def forks(count: int) -> dict[str, int]:
    return {"fork": count, "remap": 5, "remove": 5, "unmap": 5}


@pytest.mark.parametrize(
    ("userfaultfds", "untraced"),
    [
        ([{}], 0),
        ([{"events": forks(1)}], 1),
        ([{"events": forks(2)}, {"events": forks(3)}], 5),
        ([{"events": forks(2)}, {"forked_from": 0}], 1),
        ([{"events": forks(2)}, {"forked_from": 0}, {"forked_from": 0}], 0),
        # A grandchild's event is its parent's, who is a child.
        ([{"events": forks(1)}, {"forked_from": 0, "events": forks(1)}, {"forked_from": 1}], 0),
        # Dropped events: no fewer than none.
        ([{}, {"forked_from": 0}], 0),
    ],
)
def test_not_followed(userfaultfds: list[dict[str, Any]], untraced: int) -> None:
    said = not_followed(report(*userfaultfds))
    assert said.startswith(f"Not traced: {untraced} userfaultfd") if untraced else said == ""
    assert ("--follow-forks" in said) == bool(untraced)
    assert said in " ".join(rendered(report(*userfaultfds)).split())


def test_one_is_one() -> None:
    assert "1 userfaultfd that watches" in not_followed(report({"events": forks(1)}))
    assert "2 userfaultfds that watch" in not_followed(report({"events": forks(2)}))


# ---- together --------------------------------------------------------------------


def test_each_section_has_its_ranges_and_findings() -> None:
    ranges = [a_range(BASE, lost=2, userfaultfd=0), a_range(BASE, lost=1, userfaultfd=1)]
    found = report({}, {"owner_pid": CHILD, "forked_from": 0}, ranges=ranges)
    first, second = rendered(found).split("Memory of snapshot (8)")
    assert "Memory of tracker (7)" in first
    for part, said in ((first, "2 pages said"), (second, "1 pages said")):
        assert part.count("error [unpopulated] in") == part.count(said) == 1
