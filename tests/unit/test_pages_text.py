"""The lists of `report --pages`, with addresses or offsets."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from unit.reports import BASE, a_range, a_report, run, waits

from uffdtrace.reporters import text
from uffdtrace.reporters.options import TextOptions
from uffdtrace.reporters.relative import relative


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def rendered(found: dict[str, Any]) -> str:
    out = io.StringIO()
    text.render(found, out, TextOptions(pages=True))
    return out.getvalue()


def with_runs(*runs: dict[str, Any], left_off: int = 0) -> dict[str, Any]:
    found = a_range(pages=4096, lost=sum(one["pages"] for one in runs))
    found["lost"].update(runs=list(runs), runs_left_off=left_off)
    return found


def test_runs() -> None:
    out = rendered(
        a_report(with_runs(run(0, 2), run(5, 1000, how="blind", cause="huge-page-over-hole", first_s=1234.5)))
    )
    assert "Lost pages in 7f0000000000-7f0001000000: 1,002 pages in 2 runs\n" in out
    assert out[out.index("Addresses") :].splitlines()[:5] == [
        "Addresses                  Pages   First s  Thread         How       Cause",
        "─" * 80,
        '7f0000000000-7f0000002000      2     0.123  4711 "writer"  observed  unpopulated',
        '7f0000005000-7f00003ed000  1,000  1234.500  4711 "writer"  blind',
        "    huge-page-over-hole",
    ]


def test_one_run_of_one_page() -> None:
    assert ": 1 page in 1 run\n" in rendered(a_report(with_runs(run(0, 1))))


def test_what_waits() -> None:
    waiting = [waits(3), waits(4, kind="missing", for_s=None, read=True)]
    out = rendered(a_report(a_range(pending=20, waiting=waiting, verdict="pending")))
    assert "Waiting faults in 7f0000000000-7f0000010000: the 2 longest of 20\n" in out
    assert out[out.index("Address ") :].splitlines()[:4] == [
        "Address       Kind     Thread  Waiting for  Message",
        "─" * 52,
        "7f0000003008  wp       4712          1.5 s  not read",
        "7f0000004008  missing  4712              ?  read",
    ]
    assert "7f0000010000: 2\n" in rendered(a_report(a_range(pending=2, waiting=waiting)))


def test_what_is_not_known_is_said() -> None:
    out = rendered(a_report(a_range(lost=None, pending=None, waiting=None)))
    assert "Lost pages in 7f0000000000-7f0000010000: not known" in out
    assert "Waiting faults in 7f0000000000-7f0000010000: not known" in out
    assert "No page was lost" not in out


def test_nothing_to_list_is_said() -> None:
    assert "No page was lost, and no fault waits." in rendered(a_report(a_range()))


def test_runs_that_a_report_leaves_off_are_counted() -> None:
    assert "and 7 more runs" in rendered(a_report(with_runs(run(0, 1), left_off=7)))


def test_offsets() -> None:
    start = BASE + 0x123000
    found = a_range(start, lost=4, pending=1, waiting=[waits(3, start)])
    report = a_report(found, a_range(lost=None, waiting=None))
    before = json.dumps(report)
    offsets = relative(report)
    assert json.dumps(report) == before
    assert offsets["relative"] is True
    one = offsets["ranges"][0]
    assert (one["start"], one["end"]) == (found["start"], found["end"])
    assert [(item["start"], item["end"]) for item in one["lost"]["runs"]] == [("0x0", "0x4000")]
    assert [item["address"] for item in one["waiting"]] == ["0x3008"]
    assert offsets["ranges"][1]["lost"]["runs"] is offsets["ranges"][1]["waiting"] is None
    schema = json.loads(Path(text.__file__).with_name("report.schema.json").read_text())
    jsonschema.validate(offsets, schema)
    out = rendered(offsets)
    assert "Offsets count from the range's start." in out
    assert "\n0-4000  " in out and "\n3008  " in out
    assert "Lost pages in 7f0000123000-7f0000133000" in out


def test_every_cause_fits_80_columns() -> None:
    schema = json.loads(Path(text.__file__).with_name("report.schema.json").read_text())
    causes = schema["$defs"]["cause"]["enum"]
    runs = [run(at * 2, 1_048_576, cause=cause, first_s=12345.678, tid=4194304) for at, cause in enumerate(causes)]
    out = rendered(a_report(with_runs(*runs)))
    assert all(cause in out for cause in causes)
    assert all(len(line) <= 80 for line in out.splitlines())


def test_a_great_many_runs_are_all_listed_and_soon() -> None:
    began = time.monotonic()
    out = rendered(a_report(with_runs(*(run(at * 2, 1) for at in range(100_000)))))
    assert out.count("observed  unpopulated") == 100_000
    # rich's own tables take half a minute.
    assert time.monotonic() - began < 10


def test_every_range_is_listed() -> None:
    out = rendered(a_report(*(a_range(BASE + at * 0x100000, lost=1) for at in range(1000))))
    assert out.count("Lost pages in ") == 1000
