"""The README's table of findings is that of the rules, and no page that scripts/readme writes is out of date."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from uffdtrace.model.diagnosis.report import MOST_RUNS, MOST_WAITING
from uffdtrace.model.diagnosis.rules import RULES
from uffdtrace.reporters.compare import COMPARABLE
from uffdtrace.reporters.findings import BEGIN, END, put, table

ROOT = Path(__file__).resolve().parents[2]


def readme(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "readme"), *arguments], capture_output=True, text=True, check=False
    )


def test_every_page_is_up_to_date() -> None:
    done = readme("--check")
    assert (done.returncode, done.stderr) == (0, "")


def test_its_limits_are_those_of_the_code() -> None:
    page = " ".join((ROOT / "README.md").read_text().split())
    assert f"(the {MOST_WAITING} longest of a range)" in page
    assert f"it stops at {MOST_RUNS:,} runs a range" in page
    assert COMPARABLE == 0.1 and "less than a tenth of BEFORE's writes" in page


def test_every_finding_has_a_line_of_four_cells() -> None:
    head, rule, *lines = table().splitlines()
    assert head.count("|") == rule.count("|") == 5
    assert {line.split("`")[1] for line in lines} == {found.id for found in RULES}
    assert len(lines) == len(RULES)
    for line in lines:
        assert line.replace("\\|", "").count("|") == 5
        assert not set("{}") & set(line), "a placeholder that nothing fills"
    severities = [line.split("|")[2].strip() for line in lines]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)


def test_drift_is_found_and_mended(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    done = readme("--check", "--file", str(page))
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "run scripts/readme" in done.stderr
    assert "old" in page.read_text()
    assert readme("--file", str(page)).returncode == 0
    assert page.read_text() == f"before\n{BEGIN}\n{table()}{END}\nafter\n"
    assert readme("--check", "--file", str(page)).returncode == 0


@pytest.mark.parametrize("page", ["", BEGIN, END, END + BEGIN, BEGIN + END + END, BEGIN + BEGIN + END])
def test_a_page_without_its_markers(page: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="each once"):
        put(page)
    file = tmp_path / "page.md"
    file.write_text(page)
    assert readme("--file", str(file)).returncode == 1
    assert file.read_text() == page
