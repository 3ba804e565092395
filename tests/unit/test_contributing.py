"""CONTRIBUTING.md's worked example, applied to a copy of this tree and tested there; CHANGELOG.md and LICENSE."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from unit.test_layout_rules import ROOMS, repository_files

from uffdtrace import __version__
from uffdtrace.cli import main

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
BLOCKS = re.findall(r"^```diff\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
FINDING = SCENARIO = "short-read"
SUITE = "forky"
PARTS = ("uffdtrace", "tests", "scripts", "man", "docs", "examples", "README.md", "pyproject.toml", ".clang-format")
# Code in the prose that is not ours.
KERNELS = {"EINVAL", "read()", "userfaultfd_ctx_read()"}
# Tests of the copy that the example must pass.
OWN = f"every_row or every_rule or every_page or every_finding or every_scenario or {FINDING} or a_short_read"

# How the patched tree would attach the new row, and what its BPF program is compiled from.
PLAN = """
import re
from uffdtrace.collect.program import source_for, sources
from uffdtrace.kernel import architecture, layout, probes
from uffdtrace.model.records.events import FIELDS, Type, c_header
from unit.test_kernel import served

probes.find_call = lambda _, caller, __: (caller, 16)
probes.ahead_of = lambda _, __, offset, ___: offset
(reads,) = served()["reads"]
assert (reads.place, reads.fentry, reads.positions) == ("userfaultfd_read_iter", True, (0, 1))
(reads,) = served(without=("userfaultfd_read_iter",))["reads"]
assert (reads.place, reads.fentry) == ("userfaultfd_read", True)
assert "reads" not in served(without=("userfaultfd_read_iter", "userfaultfd_read"))
here = architecture.of("x86_64")
text = source_for((one for row in served().values() for one in row), here)
assert "tracing_on_read_iter(unsigned long long *ctx)\\n" in text
assert "return tell_stack(ctx, on_read_iter(true, ctx[0], ctx[1]));" in text
for row in probes.TABLE:
    for candidate in row.candidates:
        assert f"static __always_inline int {candidate.handler}(" in text, candidate
assert f"#define EVENT_SHORT_READ {int(Type.SHORT_READ)}\\n" in c_header()
written = "".join(source.read_text() for source in sources(here))
for name in set(re.findall(r"\\bEVENT_[A-Z_]+", written)):
    assert f"#define {name} " in c_header(), name
assert "ITER_COUNT" in layout._MEMBERS and "ITER_COUNT" in written
assert set(FIELDS) == set(Type)
"""


def put(text: str, hunk: list[str]) -> str:
    """The text with a hunk applied; AssertionError unless what it starts from is there once."""
    lines = [line or " " for line in hunk]
    old = "".join(f"{line[1:]}\n" for line in lines if line[0] in " -")
    new = "".join(f"{line[1:]}\n" for line in lines if line[0] in " +")
    places = [found.start() for found in re.finditer(f"^{re.escape(old)}", text, re.MULTILINE)]
    assert len(places) == 1, f"not there once:\n{old}"
    return text[: places[0]] + new + text[places[0] + len(old) :]


def hunks(block: str) -> list[tuple[str, list[str]]]:
    """Path and lines of each hunk; `---` names a file, `@@` begins its next hunk."""
    found: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        if line.startswith("--- "):
            found.append((line[4:], []))
        elif line == "@@":
            found.append((found[-1][0], []))
        else:
            found[-1][1].append(line)
    return found


def run(tree: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{tree}:{tree / 'tests'}", "CFLAGS": "-O0"}
    return subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )


def python(tree: Path, *arguments: str) -> str:
    done = run(tree, sys.executable, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This tree with all blocks applied, and what scripts/readme writes of them."""
    copy = tmp_path_factory.mktemp("contributed")
    for file in repository_files():
        name = file.relative_to(ROOT)
        if name.parts[0] in PARTS:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, copy / name)
    for block in BLOCKS:
        for name, hunk in hunks(block):
            (copy / name).write_text(put((copy / name).read_text(), hunk))
    checked = run(copy, sys.executable, "scripts/readme", "--check")
    assert checked.returncode == 1
    for page in ("README.md", "uffdtrace-report.1"):
        assert f"readme: {page} is out of date: run scripts/readme\n" in checked.stderr
    python(copy, "scripts/readme")
    return copy


def test_every_step_has_its_block() -> None:
    example = TEXT.partition("\n## A worked example\n")[2].partition("\n## ")[0]
    steps = re.split(r"^### ", example, flags=re.MULTILINE)[1:]
    assert [step.split("\n")[0] for step in steps] == [
        "A probe row",
        "An event",
        "A finding",
        "A guest scenario",
        "A kernel",
    ]
    assert all("```diff" in step for step in steps)
    assert example.count("```diff") == len(BLOCKS)


@pytest.mark.parametrize("text", ["", "    first()\n    third()\n", "    first()\n    old()\n" * 2, "x    first()\n"])
def test_a_block_whose_place_is_gone_fails(text: str) -> None:
    hunk = ["     first()", "-    old()", "+    new()"]
    assert put("\n    first()\n    old()\n\n", hunk) == "\n    first()\n    new()\n\n"
    with pytest.raises(AssertionError, match="not there once"):
        put(text, hunk)


def test_the_row_the_event_and_their_c(tree: Path) -> None:
    python(tree, "-c", PLAN)


def test_the_examples_own_tests_pass(tree: Path) -> None:
    files = [f"tests/unit/test_{name}.py" for name in ("kernel", "model", "rules", "readme")]
    # Builds the workload, and boots nothing.
    listed = "tests/guest/test_scenarios.py::test_the_table_names_every_scenario"
    said = python(tree, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-k", OWN, *files, listed)
    for test in (
        "test_every_row_is_served_by_fentry_where_nothing_speaks_against_it",
        "test_a_short_read_is_of_one_userfaultfd[64 KiB]",
        "test_every_rule_is_here_once",
        f"test_it_fires[{FINDING}]",
        f"test_it_nearly_fires[{FINDING}-0]",
        "test_every_page_is_up_to_date",
        "test_the_table_names_every_scenario",
    ):
        assert f"::{test} PASSED" in said


def test_the_finding_is_in_the_pages(tree: Path) -> None:
    assert f"\n| `{FINDING}` | warning | " in (tree / "README.md").read_text()
    assert "\n.It Sy short\\-read Pq warning\n" in (tree / "man" / "uffdtrace-report.1").read_text()


def test_the_kernel_is_collected_with_the_scenario(tree: Path) -> None:
    wanted = ["tests/guest", "--suite", SUITE, "--collect-only", "-q", "-p", "no:cacheprovider"]
    collected = python(tree, "-m", "pytest", *wanted)
    assert f"::test_scenario[{SUITE}-auto-{SCENARIO}]\n" in collected
    assert SUITE in python(tree, "scripts/guests", "boot", "--help")
    tables = "from guest.features import *; assert set(SERIES) == set(ABSENT) == set(UNEARNED) == set(SECOND_BACKEND)"
    python(tree, "-c", tables + " == set(SAME_AS_AUTO)")


def test_the_example_has_the_form(tree: Path) -> None:
    tools = Path(sys.executable).parent
    changed = {name for block in BLOCKS for name, _ in hunks(block) if not name.endswith(".txt")}
    sources = sorted(name for name in changed if name.endswith((".c", ".h")))
    for command in (
        ["ruff", "check", "--quiet", "--no-cache", *sorted(changed - set(sources))],
        ["ruff", "format", "--check", "--no-cache", *sorted(changed - set(sources))],
        ["clang-format", "--dry-run", "-Werror", *sources],
    ):
        done = run(tree, str(tools / command[0]), *command[1:])
        assert done.returncode == 0, done.stdout + done.stderr


def rows(section: str) -> list[list[str]]:
    body = TEXT.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    lines = [line for line in body.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def test_the_rooms_are_those_of_the_layout() -> None:
    said = {row[0].strip("`"): set(re.findall(r"`(\w+)`", row[2])) for row in rows("Rooms")}
    assert said.pop("bpf") == set()
    assert said == ROOMS


@pytest.mark.parametrize("row", rows("The data's way"), ids=lambda row: str(row[1]))
def test_the_data_goes_that_way(row: list[str]) -> None:
    path, name = re.findall(r"`([^`]+)`", row[1])
    text = (ROOT / path).read_text()
    assert re.search(rf"^(class|def|static __always_inline (void|bool)) {name}\b", text, re.MULTILINE)


def test_every_path_is_there() -> None:
    named = set(re.findall(r"(?<![\w./])(?:uffdtrace|tests|scripts|man)/[\w./*-]+\w", TEXT))
    assert len(named) > 30
    assert [path for path in sorted(named) if not any(ROOT.glob(path))] == []


def test_every_name_is_there() -> None:
    """Code in the prose: each is in the tree, or was added by the blocks."""
    prose = re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    names = set(re.findall(r"`(_?[A-Z][A-Za-z_]{2,}|[a-z_]+\(\))`", prose)) - KERNELS
    assert len(names) > 10
    mine = Path(__file__).name
    code = "".join(
        file.read_text(errors="replace")
        for file in repository_files()
        if file.suffix in (".py", ".c", ".h") and file.name != mine
    )
    assert [name for name in sorted(names) if not re.search(rf"\b{name.rstrip('()')}\b", code)] == []


# ---- what goes with a release ------------------------------------------------------------


def test_the_changelog_is_of_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    releases = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert releases[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", release) for release in releases[1:])
    unreleased = text.partition("## [Unreleased]\n")[2].partition("\n## ")[0]
    assert __version__ in (unreleased if len(releases) == 1 else releases[1])
    assert set(re.findall(r"^### (.*)$", text, re.MULTILINE)) <= {
        "Added",
        "Changed",
        "Deprecated",
        "Removed",
        "Fixed",
        "Security",
    }
    assert [verb for verb in main.commands if f"`uffdtrace {verb}" not in text] == []


def test_the_licence_is_everywhere_the_same() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    (name,) = re.findall(r'^license = "(.*)"$', pyproject, re.MULTILINE)
    assert name == "GPL-2.0-or-later"
    first, second = (ROOT / "LICENSE").read_text().splitlines()[:2]
    assert (first.strip(), second.strip()) == ("GNU GENERAL PUBLIC LICENSE", "Version 2, June 1991")
    for file in repository_files():
        # The stub headers hold what a kernel's would, in a line or two.
        if (file.suffix in (".c", ".h", ".S", ".1", ".7") and "include" not in file.parts) or file.name == "Makefile":
            head = file.read_text().split("\n", 1)[0]
            assert re.search(rf"SPDX-License-Identifier: {re.escape(name)}(?!\S)", head), file
