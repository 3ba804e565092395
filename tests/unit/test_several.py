"""report of several traces: the worst first, a line each, and what was found in all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from unit.events import Events
from unit.traces import write

from uffdtrace.cli import main


def trace(path: Path, lost: int, served: int = 2) -> Path:
    events = Events()
    events.userfaultfd()
    events.register(0, 16)
    events.arm(0, 16, served if lost else 16)
    for page in range(served):
        events.served(page)
    for page in range(served, served + lost):
        events.fresh(page)
    return write(path, events.array())


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    lost = {"clean": 0, "few": 2, "many": 9}
    return [str(trace(tmp_path / name, count)) for name, count in lost.items()]


def report(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["report", *arguments])


def test_the_worst_stands_first(paths: list[str]) -> None:
    clean, few, many = paths
    lines = report(*paths).output.splitlines()
    assert [line.split()[:2] for line in lines[:3]] == [["CORRUPT", many], ["CORRUPT", few], ["OK", clean]]
    assert lines[0].split(maxsplit=2)[2].startswith("9 of 16 armed pages (36 KiB of 64 KiB) were written without")


def test_what_was_found_is_summed_up(paths: list[str]) -> None:
    out = report(*paths).output
    assert "error [unpopulated] in 2 traces, 11 pages in all\n" in out
    assert out.count("[unpopulated]") == 1 and "Remedy: 1. populate the range" in out


def test_a_file_that_is_none_is_named_and_passed_over(paths: list[str], tmp_path: Path) -> None:
    (tmp_path / "none").write_text("nothing")
    done = report(str(tmp_path / "none"), *paths)
    lines = done.output.splitlines()
    assert done.exit_code == 1
    assert lines[0] == f"uffdtrace: {tmp_path}/none is not a uffdtrace trace file"
    assert lines[1].startswith("CORRUPT") and lines[-1] == "uffdtrace: 1 of 4 files could not be read"


def test_the_status_is_that_of_the_worst(paths: list[str]) -> None:
    clean, few, many = paths
    assert report("--check", clean, few, many).exit_code == 3
    assert report("--check", clean, clean).exit_code == 0
    assert report(clean, many).exit_code == 0


@pytest.mark.parametrize(
    "options", [["--pages"], ["--format", "json"], ["--summary"], ["--range", "1000"], ["--name", "a"], ["--histogram"]]
)
def test_what_is_of_one_trace(paths: list[str], options: list[str]) -> None:
    done = report(*options, *paths)
    assert done.exit_code == 2 and "of several traces a line each is printed" in done.output


def test_a_hostile_name(tmp_path: Path, paths: list[str]) -> None:
    hostile = trace(tmp_path / "a\x1b[2J\u202eb", 1)
    assert all(one.isprintable() or one == "\n" for one in report(str(hostile), *paths).output)
