"""The options of `uffdtrace report`: what goes with what, and what comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from unit.reports import a_range, a_report, a_userfaultfd, finding, latency, waits

from uffdtrace.cli import main, report
from uffdtrace.model.diagnosis.report import MOST_RUNS
from uffdtrace.reporters.options import MOST_RANGES

LOSING = a_report(a_range(lost=3, latency_us=latency(), pending=1, waiting=[waits(3)]))
FINE = a_report(a_range())
REPORTS = {
    "uffdtrace.data": LOSING,
    "before": LOSING,
    "after": FINE,
    "unknown": a_report(a_range(lost=None)),
    "dropped": a_report(a_range(), events_dropped=7, lower_bounds=["lost"]),
    "cut": a_report(a_range(), probes_missed=None),
    "unarmed": a_report(a_range(findings=[finding("never-armed")], verdict="never-armed")),
    "unwatched": {
        **a_report(a_range()),
        "userfaultfds": [a_userfaultfd(findings=[finding("register-failed", 1, "error", "calls")])],
    },
    "undecided": a_report(a_range(findings=[finding("undecided", severity="warning")])),
}


@pytest.fixture(autouse=True)
def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """How many runs each report was to hold."""
    asked: list[int | None] = []

    def read(path: Path, most_runs: int | None = MOST_RUNS, picture: object = None) -> dict[str, Any]:
        asked.append(most_runs)
        return REPORTS[str(path)]

    monkeypatch.setattr(report, "read", read)
    return asked


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["report", *arguments])


def test_pages(asked_for: list[int | None]) -> None:
    out = invoke("--pages").output
    assert "Lost pages in 7f0000000000" in out and "Waiting faults in 7f0000000000" in out
    assert "Lost pages" not in invoke().output
    assert asked_for == [None, MOST_RUNS]


def test_all_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    ranges = [a_range(0x1000_0000 + at * 0x100000, name=f"heap {at}") for at in range(MOST_RANGES + 1)]
    many = a_report(*ranges)
    monkeypatch.setitem(REPORTS, "many", many)
    assert "and 1 more range: " in invoke("many").output
    for arguments in (["many"], ["--compare", "many", "many"]):
        assert "more range" not in invoke("--all-ranges", *arguments).output


def test_relative() -> None:
    assert "\n0-3000 " in invoke("--pages", "--relative").output
    found = json.loads(invoke("--relative", "--format", "json").output)
    assert found["relative"] is True and found["ranges"][0]["lost"]["runs"][0]["end"] == "0x3000"
    assert "relative" not in json.loads(invoke("--format", "json").output)


def test_each_range_is_a_line_of_the_json(monkeypatch: pytest.MonkeyPatch) -> None:
    report = a_report(*[a_range(0x1000_0000 + at * 0x100000, name=f"heap {at}") for at in range(3)])
    monkeypatch.setitem(REPORTS, "three", report)
    lines = invoke("three", "--format", "json").output.splitlines()
    ranges = [json.loads(line.rstrip(",")) for line in lines if line.startswith('    {"start"')]
    assert ranges == report["ranges"] and json.loads("\n".join(lines)) == report


def test_histogram() -> None:
    assert "< 16" in invoke("--histogram").output
    assert "< 16" not in invoke().output


def test_compare() -> None:
    assert invoke("--compare", "before", "after").output.splitlines()[-1].startswith("Verdict: fixed. Yes: ")
    found = json.loads(invoke("--compare", "before", "after", "--format", "json").output)
    assert (found["schema"], found["change"]) == ("uffdtrace-compare/1", "fixed")


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--check"], 3),
        (["--check", "after"], 0),
        (["--check", "unknown"], 4),
        (["--check", "dropped"], 4),
        (["--check", "cut"], 4),
        (["--check", "undecided"], 4),
        (["--check", "unarmed"], 5),
        (["--check", "unwatched"], 5),
        (["--check", "--compare", "before", "unknown"], 4),
        (["--check", "--compare", "before", "after"], 0),
        (["--check", "--compare", "after", "before"], 3),
        (["--compare", "after", "before"], 0),
    ],
)
def test_check(arguments: list[str], status: int) -> None:
    assert invoke(*arguments).exit_code == status


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--compare", "before"], "requires 2 arguments"),
        (["--compare", "before", "after", "third"], "--compare takes BEFORE and AFTER"),
        (["third", "--compare", "before", "after"], "--compare takes BEFORE and AFTER"),
        (["--compare", "before", "after", "--pages"], "--compare takes BEFORE and AFTER"),
        (["--compare", "before", "after", "--relative"], "--compare takes BEFORE and AFTER"),
        (["--compare", "before", "after", "--histogram"], "--compare takes BEFORE and AFTER"),
        (["--relative"], "--relative changes what --pages"),
    ],
)
def test_what_does_not_go_together(arguments: list[str], words: str) -> None:
    done = invoke(*arguments)
    assert done.exit_code == 2
    (line,) = [line for line in done.output.splitlines() if line.startswith("Error: ")]
    assert words in line
