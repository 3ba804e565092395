"""The HTML page: what it holds, how large it is, and that nothing of a target's steers it."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.events import Events
from unit.reports import BASE, HOSTILE, a_range, a_report, a_stack, latency
from unit.traces import history, write

from uffdtrace.cli import main
from uffdtrace.model.account.timeline import SLOTS, Timeline
from uffdtrace.model.diagnosis import page_map
from uffdtrace.model.diagnosis.page_map import KINDS, PageMap
from uffdtrace.model.records.batch import Batch
from uffdtrace.reporters import offline
from uffdtrace.reporters.html import page
from uffdtrace.reporters.offline import MOST_CELLS, Picture

Made = tuple[dict[str, Any], Picture]


def one() -> Made:
    """The report of the traces' history, and its picture."""
    path = write(Path(os.environ.get("TMPDIR", "/tmp")) / f"uffdtrace-page-{os.getpid()}.data", history())
    try:
        picture = Picture(MOST_CELLS)
        return offline.read(path, picture=picture), picture
    finally:
        path.unlink()


def many(ranges: int, pages: int = 10_000) -> Made:
    """As bad as can be: each cell another than the one before."""
    size = max(16, min(1024, MOST_CELLS // ranges))
    found = [
        a_range(BASE + at * pages * 8192, pages=pages, lost=1 + at % 7, latency_us=latency()) for at in range(ranges)
    ]
    picture = Picture(MOST_CELLS)
    picture.maps = [PageMap(-(-pages // size), [(1, cell % len(KINDS)) for cell in range(size)]) for _ in found]
    picture.timeline.start = 0
    for name in ("messages", "lost", "arms", "discards", "began"):
        picture.timeline.add(name, np.arange(0, 10**9, 10**6))
    report = a_report(*found, verdict="lost-writes")
    report["stacks"] = [a_stack(), a_stack(event="protect", way="unknown", kernel=[], user=[])] * (ranges // 2 + 1)
    return report, picture


def made(report: dict[str, Any], picture: Picture) -> str:
    return page(report, picture)


def embedded(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="report"( data-packed="gzip")?>(.*?)</script>', text)
    assert found
    data = gzip.decompress(base64.b64decode(found[2])) if found[1] else found[2]
    return dict(json.loads(data))


def test_the_answer_the_map_the_time_the_findings_and_the_data() -> None:
    report, picture = one()
    text = made(report, picture)
    parts = ["CORRUPT", "1 of 4 armed pages", "[unpopulated]", "How it comes about", "Lost pages"]
    for part in (*parts, "every event recorded"):
        assert part in text
    assert 'class="map"' in text and 'class="lost"' in text
    assert embedded(text) == report


def test_nothing_is_fetched() -> None:
    text = made(*many(10))
    assert not re.search(r"(?:src|srcset|@import|url\()\s*=?", text.replace("userfaultfd", ""))
    # Only links that a reader follows.
    assert set(re.findall(r'href="([^"#]*)"', text)) == {"https://docs.kernel.org/admin-guide/mm/userfaultfd.html"}


@pytest.mark.parametrize("ranges", [1, 10, 1000])
def test_a_page_stays_small(ranges: int) -> None:
    text = made(*many(ranges))
    assert len(text.encode()) < 2 << 20
    assert text.count('class="map"') == ranges


def test_more_than_a_thousand_ranges_are_in_the_data() -> None:
    report, picture = many(1200)
    text = made(report, picture)
    assert "And 200 more ranges" in text
    assert len(embedded(text)["ranges"]) == 1200


def test_hostile_text_is_text() -> None:
    report, picture = one()
    name = HOSTILE + "</script><!--<script>x\" onload=y'"
    report["ranges"][0]["name"] = name
    report["process"] = {"pid": 1, "comm": name, "cmdline": [name]}
    report["trace"]["stop_reason"] = name
    report["stacks"] = [a_stack(thread=name, event=name, user=[name], kernel=[name])]
    text = made(report, picture)
    assert text.count("<script") == text.count("</script>") == 2
    assert not [one for one in text if not one.isprintable() and one not in "\n\t"]
    assert embedded(text)["ranges"][0]["name"] == name


def test_nothing_registered() -> None:
    text = made(a_report(verdict="idle"), Picture(MOST_CELLS))
    assert "IDLE" in text and 'class="map"' not in text


# ---- the map -----------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 40),
    st.lists(st.tuples(st.integers(1, 60), st.integers(0, len(KINDS) - 1)), min_size=1, max_size=30),
)
def test_stretches_are_spread_over_cells_as_page_by_page(size: int, runs: list[tuple[int, int]]) -> None:
    pages = [kind for count, kind in runs for _ in range(count)]
    cells = -(-len(pages) // size)
    counts = np.zeros((cells, len(KINDS)), dtype=np.int64)
    sizes = np.array([count for count, _ in runs])
    page_map._spread(counts, size, np.cumsum(sizes) - sizes, sizes, np.array([kind for _, kind in runs]))
    for cell in range(cells):
        part = pages[cell * size : (cell + 1) * size]
        assert counts[cell].tolist() == [part.count(kind) for kind in range(len(KINDS))]


def test_a_cell_shows_the_worst_of_its_pages() -> None:
    """The history's four pages: one was told, one lost."""
    _, picture = one()
    assert [(count, KINDS[kind]) for count, kind in picture.maps[0].runs][1] == (1, "lost")


def test_what_is_not_known_to_be_armed_is_not_said_to_be_unarmed(tmp_path: Path) -> None:
    events = Events()
    events.userfaultfd()
    # Registered before the trace.
    events.range_found(0, 8)
    events.fresh(1)
    picture = Picture(MOST_CELLS)
    report = offline.read(write(tmp_path / "trace", events.array()), picture=picture)
    assert report["ranges"][0]["armed_pages"] is None
    assert {KINDS[kind] for _, kind in picture.maps[0].runs} == {"undecided"}


# ---- time --------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 10**13), min_size=1, max_size=50))
def test_a_timeline_counts_everything_whenever_it_comes(times: list[int]) -> None:
    timeline = Timeline()
    timeline.start = 0
    for time in times:
        timeline.add("messages", np.array([time], dtype=np.uint64))
    counts = timeline.counts("messages")
    assert counts.sum() == len(times) and len(counts) == SLOTS
    for slot in range(SLOTS):
        assert counts[slot] == sum(slot * timeline.width <= time < (slot + 1) * timeline.width for time in times)


@pytest.mark.parametrize("first", [0, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_times_that_no_kernel_has_break_nothing(first: int) -> None:
    events = Events()
    events.userfaultfd()
    events.register(0, 4)
    events.served(1)
    made = events.array()
    made["time"][0] = first
    timeline = Timeline()
    timeline.feed(Batch(made))
    timeline.add("lost", made["time"], np.ones(len(made), dtype=np.int64))
    assert timeline.counts("messages").sum() == 1 and timeline.counts("lost").sum() == len(made)


def test_faults_wait_between_their_begin_and_their_end() -> None:
    timeline = Timeline()
    timeline.start = 0
    timeline.add("began", np.array([0, 2_000_000]))
    timeline.add("ended", np.array([1_000_000]))
    assert timeline.waiting()[:4].tolist() == [1, 0, 1, 1]


# ---- the command line ----------------------------------------------------------------


def test_the_page_goes_to_a_file_or_to_standard_output(tmp_path: Path) -> None:
    trace, out = str(write(tmp_path / "trace", history())), tmp_path / "page.html"
    link = tmp_path / "link.html"
    other = tmp_path / "other"
    other.write_text("mine")
    link.symlink_to(other)
    for file in (out, link):
        done = CliRunner().invoke(main, ["report", "--format", "html", "-o", str(file), trace])
        assert (done.exit_code, done.output) == (0, "")
        assert file.read_text().startswith("<!doctype html>")
    # A link is replaced, not followed.
    assert other.read_text() == "mine" and not link.is_symlink()
    assert CliRunner().invoke(main, ["report", "--format", "html", trace]).output.strip() == out.read_text().strip()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.html", "other", "page.html", "trace"]


def test_a_page_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    trace = str(write(tmp_path / "trace", history()))
    done = CliRunner().invoke(main, ["report", "--format", "html", "-o", str(tmp_path / "no" / "page.html"), trace])
    assert done.exit_code == 1 and done.output.startswith("uffdtrace: cannot write ") and done.output.count("\n") == 1


@pytest.mark.parametrize("options", [["-o", "x"], ["--format", "html", "--pages"], ["--format", "html", "--summary"]])
def test_options_that_do_not_go_together(options: list[str]) -> None:
    assert CliRunner().invoke(main, ["report", *options]).exit_code == 2
