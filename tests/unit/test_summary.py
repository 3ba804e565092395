"""The answer in a few lines, whatever the report says."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from unit.events import Events
from unit.reports import BASE, HOSTILE, a_range, a_report, a_userfaultfd, finding, run, waits
from unit.traces import history, write

from uffdtrace.cli import main
from uffdtrace.model.diagnosis.case import VERDICTS
from uffdtrace.reporters import summary
from uffdtrace.reporters.summary import answer

BARE = {"verdict": "never-armed", "armed_pages": 0, "notified_pages": 0}


def first(*ranges: dict[str, Any], **more: Any) -> str:
    told = answer(a_report(*ranges, **more))
    return f"{told.word} {told.sentence}"


def line(what: str, *ranges: dict[str, Any], **more: Any) -> list[str]:
    return [said for label, said in answer(a_report(*ranges, **more)).lines if label == what]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([a_range(lost=12)], "CORRUPT 12 of 16 armed pages (48 KiB of 64 KiB) were written without a message"),
        ([a_range(lost=1, pages=1)], "CORRUPT 1 of 1 armed page (4 KiB of 4 KiB) was written without a message"),
        ([a_range(lost=2), a_range(BASE * 2)], "CORRUPT 2 of 16 armed pages (8 KiB of 64 KiB) were written"),
        # Armed again, and lost again.
        ([a_range(lost=40)], "CORRUPT 40 armed pages (160 KiB) were written without a message"),
        ([a_range(lost=3, armed_pages=None)], "CORRUPT 3 armed pages (12 KiB) were written without a message"),
        ([a_range()], "OK no write was lost: 16 armed pages are accounted for (64 KiB)"),
        ([a_range(modes=["missing"], armed_pages=0)], "OK what was to be told was told; nothing was armed"),
        ([a_range(**BARE)], "UNARMED 16 pages are registered for write protection (64 KiB), and nothing ever"),
        ([a_range(pending=2, verdict="pending")], "STUCK 2 faults still waited for the monitor"),
        ([a_range(verdict="async")], "ASYNC the kernel notes writes by itself"),
        ([a_range(verdict="idle", armed_pages=0)], "IDLE memory was registered, and nothing happened there"),
        ([], "IDLE no memory was registered with userfaultfd"),
        ([a_range(lost=None)], "UNKNOWN whether writes were lost is not known: memory may have been armed before"),
        (
            [a_range(lost=None, findings=[finding("not-tracked", 16, "warning")])],
            "UNKNOWN whether writes were lost is not known: more was registered than can be tracked",
        ),
    ],
)
def test_what_it_says_first(found: list[dict[str, Any]], said: str) -> None:
    assert first(*found).startswith(said)


def test_pages_that_no_write_can_be_seen_on() -> None:
    blind = a_range(lost=0)
    blind["lost"] |= {"blind": 511, "observed": 0}
    assert first({**blind, "pages": 512, "armed_pages": 512, "verdict": "blind"}).endswith(
        "(2 MiB of 2 MiB) became writable: no write there can be seen"
    )


def test_dropped_events_make_it_unknown() -> None:
    told = first(a_range(), events_dropped=7, lower_bounds=["lost"])
    assert told.startswith("UNKNOWN no lost write was seen, but not everything was seen")
    trust = line("trust", a_range(), events_dropped=7, probes_missed=2, lower_bounds=["lost", "skipped"])
    assert trust == [
        "7 events dropped; 2 runs of the probes skipped by the kernel; lower bounds, not exact: lost, skipped"
    ]
    assert line("trust", a_range()) == ["every event recorded"]
    assert line("trust", a_range(), probes_missed=None) == ["the trace has no end: what came last is not known"]


def test_why_is_each_error_once_and_the_most_first() -> None:
    one = a_range(
        lost=3, findings=[finding("discarded", 1), finding("unpopulated", 2), finding("exposed", 9, "warning")]
    )
    other = a_range(BASE * 2, lost=5, findings=[finding("unpopulated", 5)])
    assert line("why", one, other) == [
        "[unpopulated] pages that were empty when armed were written without a message (7 pages)",
        "[discarded] pages were dropped after arming, and their protection with them, then written (1 page)",
    ]
    assert line("fix", one, other) == ["do something about unpopulated."]
    assert line("why", a_range(findings=[finding("exposed", 9, "warning")]))[0].startswith(
        "[exposed] armed pages stand"
    )
    many = [finding(name, 1) for name in ("moved", "zeropage", "swapoff", "ksm-merge", "discarded")]
    assert line("why", a_range(lost=5, findings=many))[3:] == ["and 2 more findings: see the whole report"]
    # What a later version may find.
    assert line("why", a_range(findings=[finding("unheard-of")])) == ["[unheard-of] 3 pages said to be unheard-of."]


def test_why_has_what_is_wrong_with_no_range() -> None:
    report = a_report(a_range())
    report["userfaultfds"] = [a_userfaultfd(findings=[finding("never-read", 2, unit="faults")])]
    assert answer(report).lines[0][1].startswith("[never-read] faults wait")


def test_where_is_the_longest_run() -> None:
    runs = [run(2, 1), run(4, 6, first_s=2.0, tid=5)]
    lost = {**a_range(lost=7, name="/memfd:guest-ram (deleted)", memory="shmem")}
    lost["lost"] |= {"runs": runs, "runs_left_off": 3}
    assert line("where", lost) == [
        "offset 0x4000-0xa000 of /memfd:guest-ram (64 KiB shmem at 7f0000000000), and 4 more places"
    ]
    assert line("who", lost) == ['thread 4711 "writer", first 0.123 s into the trace, and 1 more thread']
    assert line("where", a_range(**BARE, findings=[finding("never-armed", 16)])) == ["64 KiB anon at 7f0000000000"]
    assert line("where", a_range()) == line("who", a_range()) == []


def test_who_waits() -> None:
    asleep = a_range(pending=3, verdict="pending", waiting=[waits(1), waits(2, tid=9, for_s=None), waits(3)])
    assert line("who", asleep) == ["thread 9 waits since before the trace, and 2 more"]


@pytest.mark.parametrize("verdict", VERDICTS)
def test_every_verdict_has_an_answer(verdict: str) -> None:
    found = a_range(lost=3 if verdict in ("lost-writes", "blind") else 0, verdict=verdict)
    assert answer(a_report(found)).word.isupper()


def test_nobody_steers_the_terminal() -> None:
    out = io.StringIO()
    hostile = finding(HOSTILE)
    summary.render(a_report(a_range(lost=3, name=HOSTILE, findings=[hostile])), out)
    assert not [one for one in out.getvalue() if not one.isprintable() and one != "\n"]
    assert len(out.getvalue().splitlines()) == len({"CORRUPT", "why", "fix", "where", "who", "trust"})


def test_the_command(tmp_path: Path) -> None:
    path = str(write(tmp_path / "trace", history()))
    done = CliRunner().invoke(main, ["report", "--summary", path])
    assert done.exit_code == 0
    assert done.output.startswith("CORRUPT   1 of 4 armed pages (4 KiB of 16 KiB) was written without a message\nwhy  ")
    assert CliRunner().invoke(main, ["report", "--summary", "--check", path]).exit_code == 3
    for more in (["--pages"], ["--format", "json"], ["--histogram"], ["--all-ranges"]):
        refused = CliRunner().invoke(main, ["report", "--summary", *more, path])
        assert refused.exit_code == 2 and "--summary is text of one trace" in refused.output
    quiet = write(tmp_path / "quiet", Events().array())
    assert CliRunner().invoke(main, ["report", "--summary", str(quiet)]).output.startswith("IDLE")


def test_losses_of_which_nobody_knows_how_many() -> None:
    """In a range that may have been armed before the trace, or of which not all is kept."""
    lost = a_range(lost=None, verdict="lost-writes")
    told = answer(a_report(lost, verdict="lost-writes"))
    assert (told.word, told.sentence) == ("CORRUPT", "writes to armed pages were lost; how many is not known")
