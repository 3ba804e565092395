"""A trace of a machine with pages of 4, 16 or 64 KiB, read and shown on this one."""

from __future__ import annotations

import json
from collections import Counter
from io import StringIO
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from unit.events import BASE, Events, bytes_of, new_model, page, pages_of
from unit.reports import a_range, a_report
from unit.traces import WHAT, write

from uffdtrace.export.tables import exported
from uffdtrace.model.diagnosis.guest_memory import Block, GuestMemory
from uffdtrace.model.records.events import PAGE_SIZES, Mode
from uffdtrace.reporters import html, offline, text
from uffdtrace.reporters.compare import compare
from uffdtrace.reporters.offline import MOST_CELLS, Picture
from uffdtrace.reporters.options import TextOptions
from uffdtrace.reporters.words import size

SCHEMA = json.loads(Path(offline.__file__).with_name("report.schema.json").read_text())
PAGES = 256


@pytest.fixture
def trace(tmp_path: Path, any_page_size: int) -> Path:
    """256 pages armed, of which two that were empty were written, and one that was told of; another waits."""
    events = Events()
    events.userfaultfd()
    events.register(0, PAGES, int(Mode.WP))
    events.arm(0, PAGES, PAGES - 2)
    events.fresh(3)
    events.fresh(4)
    events.served(7)
    events.fault(9)
    events.message(9)
    events.asleep(events.thread)
    return write(tmp_path / "trace", events.array())


def test_the_numbers(trace: Path, any_page_size: int) -> None:
    report = offline.read(trace)
    jsonschema.validate(json.loads(json.dumps(report)), SCHEMA)
    (found,) = report["ranges"]
    assert (report["trace"]["page_size"], found["page_size"]) == (any_page_size, any_page_size)
    assert (found["start"], found["end"], found["pages"]) == (hex(BASE), hex(BASE + PAGES * any_page_size), PAGES)
    assert (found["armed_pages"], found["holes"], found["notified_pages"], found["pending"]) == (PAGES, 2, 2, 1)
    (run,) = found["lost"]["runs"] or []
    assert (run["start"], run["end"], run["pages"]) == (hex(page(3)), hex(page(5)), 2)
    assert [fault["address"] for fault in found["waiting"] or []] == [hex(page(9))]


def test_the_text(trace: Path, any_page_size: int) -> None:
    out = StringIO()
    text.render(offline.read(trace), out, TextOptions(pages=True))
    said = " ".join(out.getvalue().split())
    assert f"({size(2, any_page_size)} of {size(PAGES, any_page_size)})" in said
    assert f"{page(3):x}-{page(5):x}" in said
    head = out.getvalue().splitlines()[1]
    assert ("pages of" in head) == (any_page_size != 4096)
    assert any_page_size == 4096 or f"x86_64, pages of {any_page_size >> 10} KiB, " in head


def test_the_page(trace: Path, any_page_size: int) -> None:
    pytest.importorskip("jinja2")
    picture = Picture(MOST_CELLS)
    made = html.page(offline.read(trace, picture=picture), picture)
    assert f"{size(PAGES, any_page_size)} anon" in made
    assert (f"pages of {any_page_size >> 10} KiB" in made) == (any_page_size != 4096)
    # A cell for each page: what was lost stands where it was.
    (shown,) = picture.maps
    assert shown.pages == 1 and sum(count for count, _ in shown.runs) == PAGES


def test_the_tables(trace: Path, any_page_size: int) -> None:
    rows = exported(offline.read(trace), "id", {}).rows
    assert [row["page_size"] for row in rows["ranges"]] == [any_page_size]
    assert [(row["start"], row["end"]) for row in rows["lost_runs"]] == [(page(3), page(5))]


def test_a_machines_own_addresses(trace: Path) -> None:
    blocks = [Block(page(0), bytes_of(4), 0, "low"), Block(page(4), bytes_of(4), bytes_of(100), "high")]
    report = GuestMemory(blocks).located(offline.read(trace, None), None)
    assert [block["lost_pages"] for block in report["guest_memory"]] == [1, 1]


@pytest.mark.parametrize(
    ("arch", "calls"),
    [
        ("x86_64", {28: "madvise(MADV_DONTNEED)", 285: "fallocate", 233: "a call that is not known"}),
        ("aarch64", {233: "madvise(MADV_DONTNEED)", 47: "fallocate", 28: "a call that is not known"}),
        ("riscv64", {28: "a call that is not known", 233: "a call that is not known"}),
    ],
)
def test_system_calls_have_the_numbers_of_their_machine(tmp_path: Path, arch: str, calls: dict[int, str]) -> None:
    events = Events()
    events.userfaultfd()
    events.register(0, 4)
    events.arm(0, 4)
    for at, number in enumerate(calls):
        events.discard(at, call=number)
    report = offline.read(write(tmp_path / "trace", events.array(), trace={**WHAT["trace"], "arch": arch}))
    (found,) = report["ranges"]
    dropped = {one["call"]: one["pages"] for one in found["dropped"]}
    assert (report["trace"]["arch"], dropped) == (arch, Counter(calls.values()))


@pytest.mark.parametrize(("arch", "number", "now"), [("x86_64", 28, 0), ("aarch64", 233, 0), ("aarch64", 28, 1)])
def test_what_is_freed_later_is_not_dropped_now(arch: str, number: int, now: int) -> None:
    """MADV_FREE, whose number is another call's on another machine."""
    events = Events()
    events.userfaultfd()
    events.register(0, 4)
    events.arm(0, 4)
    events.discard(0, call=number, advice=8)
    model = new_model(arch)
    model.feed(events.array())
    model.finish()
    assert sum(sum(row.drops.values()) for row in model.rows()) == now


def run_of(page_size: int, lost: int, written: int = 1 << 24) -> dict[str, Any]:
    """A report of `written` bytes armed and written, `lost` pages of them unseen."""
    with pages_of(page_size):
        pages = written // page_size
        one = a_range(pages=pages, lost=lost, page_size=page_size, end=hex(BASE + written))
    report = a_report(one)
    report["trace"]["page_size"] = page_size
    return report


@pytest.mark.parametrize("sizes", [(4096, 65536), (65536, 4096), (16384, 65536)])
@pytest.mark.parametrize(
    ("lost", "change"),
    [((3, 0), "fixed"), ((0, 3), "worse"), ((0, 0), "same"), ((9, 3), "unknown"), ((3, 9), "unknown")],
)
def test_two_machines_whose_pages_differ(sizes: tuple[int, int], lost: tuple[int, int], change: str) -> None:
    """The ranges of one size are the same; some pages of one size are not more or fewer than some of the other."""
    found = compare(*(run_of(*one) for one in zip(sizes, lost)))
    assert found["change"] == change
    assert [bool(pair["before"] and pair["after"]) for pair in found["ranges"]] == [True]
    said = " ".join([found["answer"], *found["notes"]])
    assert f"differ, {sizes[0] >> 10} KiB and {sizes[1] >> 10} KiB" in said
    assert [run["page_size"] for run in (found["before"], found["after"])] == list(sizes)


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_two_runs_on_one_machine(page_size: int) -> None:
    found = compare(run_of(page_size, 9), run_of(page_size, 3))
    assert (found["change"], found["notes"]) == ("better", [])
