"""What the command line takes for its own, and what it says when it cannot go on."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from unit.reports import HOSTILE, a_report
from unit.traces import history, write

from uffdtrace.cli import attach, common, main, run
from uffdtrace.cli.common import errors_in_one_line, where
from uffdtrace.cli.messages import say
from uffdtrace.kernel.preflight import Refusal
from uffdtrace.trace.file import TraceError


def test_options_after_the_command_are_the_commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`uffdtrace run ./tracker -o x` writes no trace to x."""
    seen: list[list[str]] = []

    def refuse(arguments: list[str], user: str | None) -> None:
        seen.append(arguments)
        raise Refusal("enough seen")

    monkeypatch.setattr(run.preflight, "check_privileges", lambda: None)
    monkeypatch.setattr(run.preflight, "check_tracing", lambda: None)
    monkeypatch.setattr(run, "Command", refuse)
    for separator in ([], ["--"]):
        done = CliRunner().invoke(main, ["run", "-d", "1", *separator, "true", "-o", "x", "--backend", "none"])
        assert (done.exit_code, done.output) == (1, "uffdtrace: enough seen\n")
    assert seen == [["true", "-o", "x", "--backend", "none"]] * 2


def test_an_option_of_ours_that_does_not_exist_is_a_usage_error() -> None:
    assert CliRunner().invoke(main, ["run", "--frobnicate", "--", "true"]).exit_code == 2


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["atach", "1234"], "did you mean uffdtrace attach?"),
        (["Report"], "did you mean uffdtrace report?"),
        (["1234", "-d", "10"], "did you mean uffdtrace attach 1234?"),
        (["frobnicate"], f"there are {', '.join(main.commands)}"),
        (["att\nach"], "did you mean uffdtrace attach?"),
        (["--", "--frob"], f"there are {', '.join(main.commands)}"),
    ],
)
def test_a_mistyped_verb_is_one_line(words: list[str], remedy: str) -> None:
    done = CliRunner().invoke(main, words, prog_name="uffdtrace")
    word = words[-1] if words[0] == "--" else words[0]
    assert (done.exit_code, done.output) == (2, f"uffdtrace: {word!r} is no command: {remedy}\n")


@pytest.mark.parametrize(
    ("output", "argument"),
    [
        ("uffdtrace.data", ""),
        ("my trace", " 'my trace'"),
        ("a;b'c", """ 'a;b'"'"'c'"""),
        ("-x", " ./-x"),
        ("/tmp/$HOME", " '/tmp/$HOME'"),
    ],
)
def test_the_command_that_reads_the_trace_can_be_pasted(output: str, argument: str) -> None:
    said = where(a_report(), Path(output))
    assert said == f"the process exited; trace in {output}: read it again with uffdtrace report{argument}"


@pytest.mark.parametrize("verb", ["attach", "run", "report", "inspect"])
def test_color_is_an_option_of_every_verb_with_a_report(verb: str) -> None:
    done = CliRunner().invoke(main, [verb, "--color", "pink", "1"])
    assert done.exit_code == 2 and "'auto', 'always', 'never'" in done.output


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_report_that_nobody_can_take_is_one_line(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / "trace", history())
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "uffdtrace", "report", "--format", form, str(path)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (
        1,
        "uffdtrace: cannot write the report: No space left on device: make room, or send it elsewhere\n",
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["attach", "qemu"], "'qemu' is no process number: find it with pidof or ps"),
        (["inspect", "0"], "'0' is no process number: find it with pidof or ps"),
        (["attach", "-d", "nan", "1"], "is no time: give seconds, or a number with s, m or h"),
    ],
)
def test_a_word_where_a_number_belongs_is_a_usage_error(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2 and words in done.output


def test_the_help_says_what_each_verb_is_for() -> None:
    out = CliRunner().invoke(main, ["--help"], terminal_width=80).output
    assert "..." not in out.partition("Commands:")[2]


def test_what_it_says_cannot_steer_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    say(f"tracing {HOSTILE} (7)")
    said = capfd.readouterr().err
    assert said.startswith("uffdtrace: tracing a?[2J") and said.count("\n") == 1
    assert all(one.isprintable() for one in said[:-1])


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "memory"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (PermissionError(errno.EPERM, "Operation not permitted", "/proc/1/maps"), "/proc/1/maps: Operation not"),
        (TraceError("a\n trace"), "uffdtrace: a trace"),
    ],
)
def test_an_error_is_one_line(capfd: pytest.CaptureFixture[str], error: BaseException, words: str) -> None:
    @errors_in_one_line
    def fails() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        fails()
    said = capfd.readouterr().err
    assert (ended.value.code, said.count("\n"), words in said) == (1, 1, True)


def test_report_without_a_trace_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["report"])
    assert done.exit_code == 1
    assert done.output.startswith("uffdtrace: no trace file uffdtrace.data: ") and done.output.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["--help"], {}),
        ([], {"_UFFDTRACE_COMPLETE": "bash_complete", "COMP_WORDS": "uffdtrace ", "COMP_CWORD": "1"}),
    ],
)
def test_no_verb_is_imported_for_its_name(arguments: list[str], environment: dict[str, str]) -> None:
    """Help and Tab would wait for numpy."""
    code = "import sys; from uffdtrace.cli import main\ntry: main(prog_name='uffdtrace')\n"
    code += "finally: print(sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env={**os.environ, **environment}, text=True, capture_output=True
    )
    assert done.returncode == 0
    assert all(verb in done.stdout for verb in main.commands)
    assert "numpy" not in done.stderr and "uffdtrace.cli.messages" in done.stderr


@pytest.mark.parametrize(
    ("size", "wanted"), [("1", 1), ("64k", 64 << 10), ("500M", 500 << 20), ("2G", 2 << 30), ("1t", 1 << 40)]
)
def test_a_size(monkeypatch: pytest.MonkeyPatch, size: str, wanted: int) -> None:
    found: list[Any] = []

    def refuse(options: Any, say: Any) -> None:
        found.append(options.most_bytes)
        raise Refusal("enough seen")

    monkeypatch.setattr(attach.preflight, "check_privileges", lambda: None)
    monkeypatch.setattr(attach.preflight, "check_namespaces", lambda: None)
    monkeypatch.setattr(attach, "load", refuse)
    CliRunner().invoke(main, ["attach", str(os.getpid()), "--max-size", size])
    assert found == [wanted]


@pytest.mark.parametrize(
    ("text", "seconds"), [("10", 10.0), ("10s", 10.0), ("0.5", 0.5), (".5s", 0.5), ("2m", 120.0), ("1.5h", 5400.0)]
)
def test_a_duration(text: str, seconds: float) -> None:
    assert common.Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "-1", "1d", "1e3", "inf", "1_0", "s", ".", "1 s", "\u0661", "9" * 10])
def test_no_duration(text: str) -> None:
    assert CliRunner().invoke(main, ["attach", "-d", text, "1"]).exit_code == 2


@pytest.mark.parametrize("size", ["", "0", "0G", "-1", "1.5G", "1_0", "1GB", "G", "\u0661", "9" * 16])
def test_no_size(size: str) -> None:
    done = CliRunner().invoke(main, ["attach", "1", "--max-size", size])
    assert done.exit_code == 2
    assert "is no size: give bytes, or a number with K, M, G or T" in done.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["{}"],
        ["--{}"],
        ["-{}"],
        ["report", "--{}"],
        ["report", "--format", "{}"],
        ["report", "one", "{}", "three"],
        ["report", "{}"],
        ["attach", "{}"],
        ["attach", "--backend", "{}", "1"],
        ["attach", "-d", "{}", "1"],
        ["attach", "--max-size", "{}", "1"],
        ["run", "-u", "{}"],
        ["inspect", "{}"],
        ["doctor", "{}"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("hostile", ["\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "\u202etxt.exe", "a\nb\rc"])
def test_no_argument_steers_the_terminal(arguments: list[str], hostile: str) -> None:
    done = CliRunner().invoke(main, [one.replace("{}", hostile) for one in arguments])
    assert done.exit_code
    assert not [one for one in done.output if not one.isprintable() and one != "\n"], repr(done.output)
