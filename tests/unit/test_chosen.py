"""A report of some ranges only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from unit.reports import BASE, a_range, a_report
from unit.traces import history, write

from uffdtrace.cli import main
from uffdtrace.reporters.chosen import NothingChosen, bounds, chosen

RANGES = [
    a_range(BASE, name="/memfd:guest-ram (deleted)", lost=3, verdict="lost-writes"),
    a_range(BASE + (1 << 20), name="[heap]", verdict="ok"),
    a_range(BASE + (2 << 20), name=None, verdict="idle"),
]
REPORT = a_report(*RANGES, verdict="lost-writes")


@pytest.mark.parametrize(
    ("addresses", "pattern", "places", "verdict"),
    [
        (f"{BASE:x}", None, [0], "lost-writes"),
        (f"0x{BASE + 0xFFFF:x}", None, [0], "lost-writes"),
        (f"{BASE + (1 << 20):x}-{BASE + (2 << 20) + 1:x}", None, [1, 2], "ok"),
        (None, "guest-ram", [0], "lost-writes"),
        (None, "[[]heap]", [1], "ok"),
        (None, "", [0, 1, 2], "lost-writes"),
        (f"{BASE:x}-{BASE + (4 << 20):x}", "h?ap", [1], "ok"),
    ],
)
def test_ranges_are_chosen(addresses: str | None, pattern: str | None, places: list[int], verdict: str) -> None:
    found, kept = chosen(REPORT, bounds(addresses) if addresses else None, pattern)
    assert kept == places
    assert found["ranges"] == [RANGES[place] for place in places]
    assert found["verdict"] == verdict


@pytest.mark.parametrize(("addresses", "pattern"), [((1, 2), None), (None, "nowhere"), ((BASE, BASE + 1), "heap")])
def test_nothing_chosen(addresses: tuple[int, int] | None, pattern: str | None) -> None:
    with pytest.raises(NothingChosen, match="none of the trace's 3 ranges"):
        chosen(REPORT, addresses, pattern)


@pytest.mark.parametrize("text", ["", "x", "-", "10-", "-10", "20-10", "10-10", "1" * 17, "0x", "1 2"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError):
        bounds(text)
    assert CliRunner().invoke(main, ["report", "--range", text]).exit_code == 2


def test_the_command_line(tmp_path: Path) -> None:
    trace = str(write(tmp_path / "trace", history()))
    said = CliRunner().invoke(main, ["report", "--format", "json", "--range", f"{BASE:x}", trace])
    assert len(json.loads(said.stdout)["ranges"]) == 1
    said = CliRunner().invoke(main, ["report", "--name", "nowhere", trace])
    assert said.exit_code == 1 and said.output.count("\n") == 1
    page = CliRunner().invoke(main, ["report", "--format", "html", "--range", f"{BASE:x}", trace])
    assert page.output.count('class="map"') == 1
