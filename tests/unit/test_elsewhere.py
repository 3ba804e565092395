"""Shared memory that is also mapped elsewhere: what is found, and what is said of it."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from unit.events import THREAD, Events, page
from unit.traces import ENDING, WHAT

from uffdtrace.model.account.elsewhere import Elsewhere, Look, Others, pages
from uffdtrace.model.account.ranges import Range
from uffdtrace.model.account.watched import Userfaultfd
from uffdtrace.model.diagnosis.case import Case
from uffdtrace.model.diagnosis.rules import findings
from uffdtrace.model.records.events import Memory, Mode
from uffdtrace.reporters import offline, text
from uffdtrace.trace.file import LOOKS, TraceError
from uffdtrace.trace.reader import Reader
from uffdtrace.trace.writer import Writer

# Whatever the machine was that the events are of.
pytestmark = pytest.mark.usefixtures("any_page_size")

PAGE = 4096
OTHER = Elsewhere(50, 300, 0, 8 * PAGE, 400, "dpdk", 0x7000, 0x7000 + 8 * PAGE)


def row(modes: Mode = Mode.WP, memory: Memory = Memory.SHMEM, **changes: int) -> Range:
    made = Range(0, 0, 8 * PAGE, modes, PAGE, memory)
    made.born = 10
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def seen(row: Range, *others: Elsewhere, gone: int | None = None) -> list[Elsewhere]:
    return Others([Look(0, (other,)) for other in others]).of_range(row, Userfaultfd(0, 1, owner=300, gone=gone))


@pytest.mark.parametrize(
    ("modes", "memory", "concerns"),
    [
        (Mode.WP, Memory.SHMEM, True),
        (Mode.WP, Memory.HUGETLB, True),
        (Mode.WP, Memory.FILE, True),
        (Mode.WP, Memory(0), True),
        (Mode.WP, Memory.ANON, False),
        (Mode.MISSING, Memory.SHMEM, True),
        (Mode.MISSING | Mode.WP | Mode.MINOR, Memory.SHMEM, True),
        # They are filled through another mapping.
        (Mode.MINOR, Memory.SHMEM, False),
        (Mode.MISSING | Mode.MINOR, Memory.SHMEM, False),
    ],
)
def test_whom_it_concerns(modes: Mode, memory: Memory, concerns: bool) -> None:
    assert bool(seen(row(modes, memory), OTHER)) == concerns


def test_what_is_of_the_range() -> None:
    assert seen(row(), OTHER, replace(OTHER, time=60)) == [replace(OTHER, time=60)]
    assert seen(row(), replace(OTHER, owner=301)) == []
    assert seen(row(), replace(OTHER, of_start=8 * PAGE, of_end=9 * PAGE)) == []
    # Another range's that was there before or after.
    assert seen(row(born=51), OTHER) == []
    assert seen(row(withdrawn=49), OTHER) == []
    assert seen(row(), OTHER, gone=49) == []


def test_pages_count_once() -> None:
    assert pages(row(), []) == 0
    halves = [replace(OTHER, of_end=4 * PAGE), replace(OTHER, of_start=2 * PAGE, of_end=6 * PAGE), OTHER]
    assert [pages(row(), halves[:count]) for count in (1, 2, 3)] == [4, 6, 8]
    assert pages(row(), [replace(OTHER, of_start=6 * PAGE, of_end=99 * PAGE)]) == 2


def told(*others: Elsewhere) -> str:
    case = Case(row(), Userfaultfd(0, 1, owner=300), elsewhere=others)
    return next((str(one["message"]) for one in findings(case) if one["id"] == "mapped-elsewhere"), "")


def test_what_is_said() -> None:
    assert told() == ""
    assert told(OTHER).startswith(
        "8 pages are also mapped where no userfaultfd watches: dpdk (400) at 7000-f000. A write there sends no message"
    )
    assert "this process at 7000-f000" in told(replace(OTHER, pid=300))
    # The name is the other process's to choose.
    assert "{count} {0} (400)" in told(replace(OTHER, comm="{count} {0}"))
    many = [replace(OTHER, pid=pid) for pid in range(400, 406)]
    assert "dpdk (403) at 7000-f000, 2 more." in told(*many)


def written(path: Path, *looks: Look) -> dict[str, Any]:
    events = Events()
    events.memory = Memory.SHMEM
    events.userfaultfd()
    events.register(0, 8)
    events.arm(0, 8)
    writer = Writer(path, WHAT)
    writer.events(events.array())
    writer.looks([])
    writer.looks(list(looks))
    writer.done(ENDING)
    return offline.read(path)


def of_trace(pid: int = 400) -> Elsewhere:
    return Elsewhere(5000, THREAD, page(0), page(8), pid, "dpdk", 0x7000, 0xF000)


def test_the_file_keeps_what_was_seen(tmp_path: Path) -> None:
    found = written(tmp_path / "trace", Look(0, (of_trace(),)), Look(3, (of_trace(), of_trace(401))))
    (row,) = found["ranges"]
    others = [{"pid": pid, "comm": "dpdk", "start": "0x7000", "end": "0xf000"} for pid in (400, 401)]
    assert (row["mapped_elsewhere"], found["processes_not_searched"]) == (others, 3)
    assert (row["verdict"], [one["id"] for one in row["findings"]]) == ("ok", ["mapped-elsewhere"])
    stream = io.StringIO()
    text.render(found, stream)
    said = " ".join(stream.getvalue().split())
    assert "3 processes could not be looked at: whether they map the same memory is not known." in said
    assert "it does not cover writes through the other mappings of its memory, which send no message." in said


def test_nobody_looked(tmp_path: Path) -> None:
    found = written(tmp_path / "trace")
    assert (found["ranges"][0]["mapped_elsewhere"], found["processes_not_searched"]) == ([], None)
    assert written(tmp_path / "trace", Look(0, ()))["processes_not_searched"] == 0


@pytest.mark.parametrize("change", [{"pid": "400"}, {"comm": None}, {"start": 1.5}, {"owner": True}, {"more": 1}])
def test_a_look_that_is_none(tmp_path: Path, change: dict[str, Any]) -> None:
    other = {**asdict(of_trace()), **change}
    writer = Writer(tmp_path / "trace", WHAT)
    writer._chunk(LOOKS, json.dumps([{"unreadable": 0, "elsewhere": [other]}]).encode())
    writer.done(ENDING)
    with pytest.raises(TraceError, match="broken"):
        list(Reader(tmp_path / "trace").events())
