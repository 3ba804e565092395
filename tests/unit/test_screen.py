"""What an attach shows on a terminal while it traces: the worst ranges, over and over at the same place."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner
from unit.events import Events, new_model, page_at
from unit.test_terminal import LINE, PROGRESS, Terminal, terminal_size

from uffdtrace.cli import attach, main
from uffdtrace.cli.status import StatusLine, screen
from uffdtrace.collect.progress import HISTORY, MOST_RANGES, Progress, RangeProgress, Watch
from uffdtrace.model.account.model import Model

BASE = 0x7F0000000000


def a_range(at: int = 0, **more: Any) -> RangeProgress:
    found: dict[str, Any] = {
        "start": BASE + (at << 24),
        "end": BASE + (at + 1 << 24),
        "pages": 4096,
        "page_size": 4096,
        "memory": "anon",
        "armed": 4096,
        "messages": 1024,
        "per_second": 512.4,
        "p99_us": 870.0,
        "unread": 3,
        "lost": 3072,
        "verdict": "lost-writes",
        "history": (0, 0, 1024, 2048),
    }
    return RangeProgress(**{**found, **more})


FULL = replace(
    PROGRESS, ranges=(a_range(), a_range(1, lost=None, verdict="ok", history=(), p99_us=None)), newest="[unpopulated] x"
)


def test_the_lines() -> None:
    assert screen(FULL, 100, 24, plain=False) == [
        LINE,
        "Range         Memory       Armed  Msg/s     p99  Unread   Lost  Verdict      Losses",
        "7f0000000000  16 MiB anon  4,096    512  870 µs       3  3,072  lost-writes    ▄█",
        "7f0001000000  16 MiB anon  4,096    512               3      ?  ok",
        "newest: [unpopulated] x",
        "0.0 MB written, 0 events dropped",
    ]
    assert "870 us" in screen(FULL, 100, 24, plain=True)[2] and screen(FULL, 100, 24, plain=True)[2].isascii()


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("height", [2, 5, 8, 24, 100])
def test_it_fits(width: int, height: int) -> None:
    many = replace(FULL, ranges=tuple(a_range(at) for at in range(MOST_RANGES)), more=980)
    lines = screen(many, width, height, plain=False)
    # A line of the whole width would wrap on some terminals.
    assert all(len(line) < width for line in lines)
    assert len(lines) <= max(height - 1, 3)
    if height == 24 and width == 80:
        assert "and 990 more ranges" in lines


def shown(written: str) -> list[str]:
    """What stands on a terminal that was written to so: \\r, \\n, ESC [K, ESC [J and ESC [nA are all that is used."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[\d*[AJK]|\r|\n|[^\x1b\r\n]+", written):
        if part == "\r":
            column = 0
        elif part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row == len(lines))
        elif part.endswith("K") and part[0] == "\x1b":
            lines[row] = lines[row][:column]
        elif part.endswith("J") and part[0] == "\x1b":
            lines[row : len(lines)] = [lines[row][:column]]
        elif part.endswith("A") and part[0] == "\x1b":
            row -= int(part[2:-1])
        else:
            lines[row] = lines[row][:column] + part + lines[row][column + len(part) :]
            column += len(part)
    return lines


def test_it_stays_where_it_is_and_goes_when_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    terminal_size(terminal.slave, 100)
    written = ""
    with open(terminal.slave, "w", closefd=False) as stream, StatusLine(stream) as status:
        for progress in (FULL, replace(FULL, ranges=()), FULL):
            status.show(progress)
            written += terminal.read()
            assert shown(written) == screen(progress, 100, 24, plain=False)
    written += terminal.read()
    assert [line for line in shown(written) if line] == []
    # Nothing is cleared that is written anew.
    assert written.count("\x1b[J") == 2
    os.close(terminal.master)
    os.close(terminal.slave)


# ---- where it comes from -------------------------------------------------------------


def fed(*parts: Events) -> tuple[Model, Watch]:
    model = new_model()
    for part in parts:
        model.feed(part.array())
    return model, Watch()


def losing() -> Events:
    events = Events()
    events.userfaultfd()
    events.register(0, 8)
    events.arm(0, 8, 5)
    for page in range(5):
        events.served(page)
    return events


def test_a_look_tells_how_long_faults_waited_till_now() -> None:
    model, watch = fed(losing())
    assert watch.look(model, 1.0, False, 0, 0).ranges[0].p99_us is not None


def test_a_look_tells_who_waits_for_the_monitor_to_read() -> None:
    events = losing()
    events.fault(5, tid=1)
    events.fault(6, tid=2)
    events.message(6, tid=2)
    model, watch = fed(events)
    (row,) = watch.look(model, 1.0, False, 0, 0).ranges
    assert row.unread == 1


def test_a_look_tells_what_the_probes_took() -> None:
    model, watch = fed(losing())
    looks = [
        watch.look(model, second, False, 0, 0, run_ns) for second, run_ns in ((1, 0), (3, 10**9), (4, None), (5, 0))
    ]
    assert [look.probes for look in looks] == [None, 0.5, None, None]
    assert screen(looks[1], 100, 24, plain=False)[-1] == "0.0 MB written, 0 events dropped, probes take 50.0% of a CPU"


def test_a_look_tells_what_is_new_since_the_last() -> None:
    events = losing()
    model, watch = fed(events)
    first = watch.look(model, 1.0, False, 0, 0)
    (row,) = first.ranges
    assert (row.start, row.pages, row.messages, row.lost, row.per_second) == (BASE, 8, 5, 0, 0.0)
    assert first.newest is not None and "unpopulated" not in first.newest
    more = Events()
    for page in range(5, 8):
        more.fresh(page)
    model.feed(more.array())
    second = watch.look(model, 3.0, True, 7, 1000)
    (row,) = second.ranges
    assert (row.lost, row.verdict, row.history, row.per_second) == (3, "lost-writes", (0, 3), 0.0)
    assert (second.lost, second.behind, second.dropped, second.written) == (3, True, 7, 1000)
    assert second.newest is not None and second.newest.startswith("[unpopulated] ")
    for number in range(40):
        last = watch.look(model, 4.0 + number, False, 0, 0)
    assert len(last.ranges[0].history) == HISTORY and sum(last.ranges[0].history) == 0


def test_what_was_armed_before_the_trace_is_no_number() -> None:
    """As in the report: pagemap shows what was protected, and not the holes."""
    events = Events()
    events.userfaultfd()
    events.range_found(0, 8)
    events.pages_found(0, 3)
    model, watch = fed(events)
    assert watch.look(model, 1.0, False, 0, 0).armed is None
    events = losing()
    model, watch = fed(events)
    assert watch.look(model, 1.0, False, 0, 0).armed == 8


def test_the_worst_are_shown_of_many() -> None:
    events = Events()
    events.userfaultfd()
    for at in range(50):
        events.register(at * 4, 2)
        events.arm(at * 4, 2, 0)
    for at in (30, 31, 45):
        events.fresh(at * 4)
    model, watch = fed(events)
    told = watch.look(model, 1.0, False, 0, 0)
    assert len(told.ranges) == MOST_RANGES and told.more == 50 - MOST_RANGES
    assert [page_at(one.start) for one in told.ranges[:3]] == [120, 124, 180]


def test_a_line_of_json_each_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        def __init__(self, program: Any, options: Any, process: Any, say: Any, show: Any = None) -> None:
            self.show = show
            assert options.interval_s == 2.0

        def run(self, **_: Any) -> dict[str, Any]:
            self.show(FULL)
            self.show(PROGRESS)
            from unit.reports import a_range, a_report

            return a_report(a_range(lost=1))

    monkeypatch.setattr(attach, "Session", Fake)
    monkeypatch.setattr(attach, "load", lambda options, say: None)
    monkeypatch.setattr(attach.preflight, "check_privileges", lambda: None)
    monkeypatch.setattr(attach.preflight, "check_namespaces", lambda: None)
    done = CliRunner().invoke(main, ["attach", "--format", "jsonl", "--interval", "2", str(os.getpid())])
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines[0]["progress"]["ranges"][0]["lost"] == 3072
    assert lines[1]["progress"]["messages"] == PROGRESS.messages
    assert lines[2]["schema"].startswith("uffdtrace-report/")
    assert Progress(**{**lines[1]["progress"], "ranges": ()}) == PROGRESS


@pytest.mark.parametrize(
    "options", [["--interval", "1"], ["--format", "jsonl"], ["--format", "json", "--interval", "1"]]
)
def test_both_go_together(options: list[str]) -> None:
    assert CliRunner().invoke(main, ["attach", *options, "1"]).exit_code == 2
