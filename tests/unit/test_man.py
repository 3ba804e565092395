"""The man pages and the help: of today's options and findings, free of faults, with examples that run."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import click
import pytest
from click.testing import CliRunner, Result
from unit.events import BASE
from unit.test_readme import readme
from unit.traces import history, write

from uffdtrace.cli import doctor, inspect, main
from uffdtrace.collect import machine
from uffdtrace.kernel import preflight
from uffdtrace.kernel.preflight import Refusal
from uffdtrace.model.diagnosis.case import VERDICTS
from uffdtrace.model.diagnosis.guest_memory import Block, written
from uffdtrace.model.diagnosis.inspection import VERDICTS as INSPECT_VERDICTS
from uffdtrace.model.diagnosis.rules import RULES

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "man").glob("*.1"))
GUIDES = sorted((ROOT / "man").glob("*.7"))
VERBS = sorted(main.commands)
SECTIONS = ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "EXAMPLES", "SEE ALSO", "CAVEATS"]
MEMORY = Block(BASE, 1 << 20, 0, "pc.ram")
NEEDS_ROOT = ("attach", "run", "doctor")


def rendered(page: Path) -> str:
    done = subprocess.run(
        ["mandoc", "-Tascii", "-O", "width=1000", str(page)], capture_output=True, text=True, check=True
    )
    # Bold and underlined characters are struck twice.
    return re.sub(".\b", "", done.stdout)


def command_of(page: Path) -> click.Command:
    return main.commands[page.stem.partition("-")[2]] if "-" in page.stem else main


def help_of(*verb: str) -> str:
    return CliRunner().invoke(main, [*verb, "--help"], prog_name="uffdtrace").output


def help_examples(*verb: str) -> list[str]:
    """The commands below Examples; a description follows after two blanks."""
    below = help_of(*verb).partition("\n  Examples:\n")[2].partition("\n\n")[0]
    return [re.split("  +", line.strip())[0].replace("sudo ", "") for line in below.splitlines()]


def man_examples(page: Path) -> list[str]:
    lines = re.findall(r"^\.Dl [#$] (.*)$", page.read_text(), re.MULTILINE)
    return [line.replace(r"\-", "-").replace(r"\(dq", '"') for line in lines]


EXAMPLES = sorted(
    {
        *(line for verb in ([], *([verb] for verb in VERBS)) for line in help_examples(*verb)),
        *(line for page in PAGES for line in man_examples(page) if line.startswith("uffdtrace ")),
    }
)


def invoke(*arguments: str, **environment: str) -> Result:
    return CliRunner(env=environment).invoke(main, list(arguments), prog_name="uffdtrace")


@pytest.fixture
def traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the examples name; attach, run and doctor stop where they would ask the kernel."""

    def refuse(*arguments: object) -> NoReturn:
        raise Refusal("enough seen")

    (tmp_path / "vm1.map").write_text(written([MEMORY]))
    (tmp_path / "mappings.json").write_text('[{"base_host_virt_addr": 4096, "size": 4096, "offset": 0}]')
    monkeypatch.setattr(machine, "Qmp", lambda socket: contextlib.nullcontext(SimpleNamespace(ask=refuse)))
    monkeypatch.setattr(machine, "qemu", lambda ask: [MEMORY])
    for name in ("uffdtrace.data", "uffdtrace.data.old", "migration.data", "tracker.data"):
        write(tmp_path / name, history())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preflight, "check_privileges", refuse)
    monkeypatch.setattr(doctor, "check", refuse)
    # inspect --watch waits between two looks.
    monkeypatch.setattr(inspect.time, "sleep", refuse)


def test_a_page_for_uffdtrace_and_for_each_verb() -> None:
    assert {page.stem for page in PAGES} == {"uffdtrace", *(f"uffdtrace-{verb}" for verb in VERBS)}


@pytest.mark.parametrize("page", [*PAGES, *GUIDES], ids=lambda page: page.stem)
def test_lint(page: Path) -> None:
    done = subprocess.run(["mandoc", "-Tlint", "-Wwarning", str(page)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_sections_and_options(page: Path) -> None:
    text = rendered(page)
    headings = re.findall(r"^[A-Z][A-Z ]+$", text, re.MULTILINE)
    assert [heading for heading in headings if heading in SECTIONS] == SECTIONS
    for option in command_of(page).params:
        if isinstance(option, click.Option):
            assert re.search(rf"^ +.*{re.escape(option.opts[-1])}\b", text.partition("\nOPTIONS\n")[2], re.MULTILINE)
            assert min(option.opts, key=len) in text.partition("\nSYNOPSIS\n")[2].partition("\nDESCRIPTION\n")[0]


def test_what_only_some_pages_have() -> None:
    whole, report, inspect = (rendered(ROOT / "man" / f"uffdtrace{verb}.1") for verb in ("", "-report", "-inspect"))
    for heading in ("ENVIRONMENT", "FILES", "OVERHEAD"):
        assert f"\n{heading}\n" in whole
    for other in ("userfaultfd(2)", "ioctl_userfaultfd(2)", "bpf(2)", "perf(1)"):
        assert other in whole.partition("\nSEE ALSO\n")[2]
    for text, tags in (
        (whole, [f"uffdtrace-{verb}(1)" for verb in VERBS]),
        (report, [f"{rule.id} ({rule.severity})" for rule in RULES]),
        (report, VERDICTS),
        (inspect, INSPECT_VERDICTS),
    ):
        for tag in tags:
            # A short one has its text beside it.
            assert re.search(rf"^ +{re.escape(tag)}(  .*)?$", text, re.MULTILINE), tag


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_two_examples(verb: str) -> None:
    prefix = f"uffdtrace {verb}"
    for examples in (help_examples(verb), man_examples(ROOT / "man" / f"uffdtrace-{verb}.1")):
        assert len(examples) >= 2 and all(line.startswith(prefix) for line in examples)


@pytest.mark.parametrize("line", EXAMPLES)
@pytest.mark.usefixtures("traces")
def test_examples_run(line: str) -> None:
    _, verb, *arguments = shlex.split(re.sub(r"\$\(pidof [^)]*\)|\b1234\b", str(os.getpid()), line))
    done = invoke(verb, *arguments)
    if verb in NEEDS_ROOT:
        assert (done.exit_code, done.output) == (1, "uffdtrace: enough seen\n")
    else:
        # The trace has a lost write.
        assert done.exit_code == (3 if "--check" in arguments else 1 if "--watch" in arguments else 0), done.output
        assert done.output or "-o" in arguments


@pytest.mark.usefixtures("traces")
def test_exit_statuses_of_report() -> None:
    page = (ROOT / "man" / "uffdtrace-report.1").read_text().partition(".Sh EXIT STATUS\n")[2].partition(".Sh ")[0]
    # No write was lost up to there.
    cut = write(Path("cut"), history()[:2])
    cut.write_bytes(cut.read_bytes()[:-20])
    # Registered for write protection, and never armed.
    write(Path("unarmed"), history()[:3])
    every = ([], ["missing"], ["--frob"], ["--check"], ["--check", "cut"], ["--check", "unarmed"])
    seen = [invoke("report", *arguments).exit_code for arguments in every]
    assert [int(status) for status in re.findall(r"^\.It (\d+)$", page, re.MULTILINE)] == seen == [0, 1, 2, 3, 4, 5]


@pytest.mark.usefixtures("traces")
def test_columns_is_the_width() -> None:
    widths = [max(map(len, invoke("report", COLUMNS=columns).output.splitlines())) for columns in ("60", "80")]
    assert widths[0] <= 60 < widths[1] <= 80


@pytest.mark.parametrize(
    ("name", "part", "words"),
    [
        ("uffdtrace-inspect.1", '.\\" <options>\nold\n.\\" </options>\n', "is out of date"),
        ("uffdtrace-inspect.1", '.\\" <frobs>\n.\\" </frobs>\n', "wants frobs, which is none of"),
        ("uffdtrace-inspect.1", '.\\" <options>\n', "without"),
        ("uffdtrace-inspect.1", "", "without"),
        ("uffdtrace-frob.1", '.\\" <options>\n.\\" </options>\n', "is about frob, which is no command"),
    ],
)
def test_drift_is_found(name: str, part: str, words: str, tmp_path: Path) -> None:
    page = tmp_path / name
    page.write_text(f".Dd today\n{part}.Sh END\n")
    done = readme("--check", "--file", str(page))
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and words in done.stderr
    mends = words == "is out of date"
    assert readme("--file", str(page)).returncode == (0 if mends else 1)
    text = page.read_text()
    assert text.startswith(".Dd today\n") and text.endswith(".Sh END\n") and (".It Fl" in text) == mends
    assert readme("--check", "--file", str(page)).returncode == (0 if mends else 1)
