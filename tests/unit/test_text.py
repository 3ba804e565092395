"""The report as text: what it says, within 80 columns, whatever a target is called."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable

import jsonschema
import pytest
from unit.events import Events
from unit.reports import BASE, HOSTILE, PROCESS, a_range, a_report, a_userfaultfd, finding, latency, run, waits
from unit.traces import write

from uffdtrace.model.diagnosis.case import VERDICTS
from uffdtrace.reporters import compare_text, text, words
from uffdtrace.reporters.compare import compare
from uffdtrace.reporters.options import MOST_PROCESSES, MOST_RANGES, Color, TextOptions

ROOT = Path(__file__).resolve().parents[2]
SCHEMA_FILE = Path(text.__file__).with_name("report.schema.json")


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With lost writes and latencies."""
    events = Events()
    events.userfaultfd()
    events.register(0, 4)
    events.arm(0, 4, 3)
    events.fresh(1)
    events.served(2)
    events.fault_return()
    return write(tmp_path_factory.mktemp("trace") / "trace", events.array())


def small() -> dict[str, Any]:
    return a_report(a_range(pages=4, lost=1))


def rendered(found: dict[str, Any], **options: Any) -> str:
    out = io.StringIO()
    text.render(found, out, TextOptions(**options))
    return out.getvalue()


def ascii_only(found: dict[str, Any], **options: Any) -> str:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    text.render(found, stream, TextOptions(**options))
    stream.flush()
    return raw.getvalue().decode("ascii")


def reading(path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """The report of a trace file, from a program of its own with only these variables set."""
    return subprocess.run(
        [sys.executable, "-m", "uffdtrace", "report", *arguments, str(path)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        check=False,
    )


def test_hand_made_reports_are_what_the_schema_says() -> None:
    schema = json.loads(SCHEMA_FILE.read_text())
    full = a_range(lost=3, name="[heap]", latency_us=latency(), pending=1, waiting=[waits(3)])
    for found in (a_report(), small(), a_report(full, a_range(lost=None, pending=None, waiting=None))):
        jsonschema.validate(found, schema)


def test_text_of_a_small_trace() -> None:
    out = rendered(small())
    for part in ("./tracker --snapshot (7)", "7f0000000000", "unpopulated", "Remedy:", "lost-writes"):
        assert part in out
    assert out.rstrip().splitlines()[-1].startswith("Verdict: lost-writes")


def test_text_of_what_is_not_known() -> None:
    unknown = a_range(lost=None, pending=None, waiting=None, memory=None)
    out = rendered(a_report(unknown, events_dropped=None, probes_missed=None), pages=True)
    assert "None" not in out
    assert "Whether something was dropped is not known" in out


def test_probes_that_saw_nothing_when_they_were_tried() -> None:
    found = small()
    found["trace"]["unproven_probes"] = {"discards": ["lost"], "polls": []}
    assert "Tried when the trace began, and saw nothing: 2 probes (discards, polls)." in rendered(found)
    found["trace"]["unproven_probes"] = None
    assert "Whether each probe fires on this kernel could not be tried when the trace began." in rendered(found)


def test_a_report_without_ranges() -> None:
    assert "No memory was registered" in rendered(a_report())
    assert "No memory was registered" in rendered(a_report(), pages=True, histogram=True)


@pytest.mark.parametrize("where", ["cmdline", "comm", "kernel", "arch", "backend", "stop_reason", "file", "uffdtrace"])
def test_nothing_from_a_target_reaches_the_terminal_raw(where: str) -> None:
    found = small()
    if where == "cmdline":
        found["process"]["cmdline"] = [HOSTILE, HOSTILE]
    elif where == "comm":
        found["process"].update(comm=HOSTILE, cmdline=[])
    else:
        found["trace"][where] = HOSTILE
    out = rendered(found)
    assert all(one.isprintable() or one == "\n" for one in out)
    assert len(out.splitlines()) == len(rendered(small()).splitlines()) or where in (
        "file",
        "kernel",
        "arch",
        "stop_reason",
        "backend",
    )
    out.encode()


def test_a_long_command_takes_one_line() -> None:
    found = small()
    found["process"]["cmdline"] = ["x" * 5000]
    assert len(rendered(found).splitlines()[0]) <= 80


def test_a_process_without_a_command_line() -> None:
    found = small()
    found["process"]["cmdline"] = []
    assert rendered(found).startswith("tracker (7)")


def test_a_stream_that_takes_no_unicode() -> None:
    found = small()
    found["process"]["cmdline"] = ["caf\u00e9", "\u4e2d"]
    assert "caf? ?" in ascii_only(found)


@pytest.mark.parametrize("numbers", [7, 1_024, 999_999, 12_345_678, 68_719_476_736])
def test_no_number_is_cut(numbers: int) -> None:
    found = small()
    one = found["ranges"][0]
    one.update(start="0x7ffffffff000", end="0x7fffffffffff", pages=numbers, holes=numbers)
    one["messages"] = {"missing": numbers, "wp": numbers, "minor": numbers}
    one["modes"] = ["missing", "wp", "minor"]
    one["memory"] = "hugetlb"
    one["skipped"]["fresh_page"] = numbers - 1
    one["lost"]["observed"] = numbers
    one["verdict"] = "never-armed"
    out = rendered(found)
    assert "\u2026" not in out and "never-armed" in out and "7ffffffff000-" in out
    flat = out.replace("\n", "").replace(" ", "")
    assert flat.count(f"{numbers:,}") >= 4 or numbers > 999_999, out
    assert all(len(line) <= 80 for line in out.splitlines())


@pytest.mark.parametrize("worst", VERDICTS)
def test_every_verdict_is_explained(worst: str) -> None:
    found = small()
    found["verdict"] = found["ranges"][0]["verdict"] = worst
    assert worst in rendered(found).splitlines()[-1]


def test_the_answer_comes_first_and_its_remedy_stands_once() -> None:
    out = rendered(small())
    answer, rest = out.split("\n\nMemory of", 1) if "Memory of" in out else out.split("\n\nRange", 1)
    assert answer.splitlines()[3].startswith("CORRUPT   ")
    assert [line.split()[0] for line in answer.splitlines()[3:] if not line.startswith(" ")] == [
        "CORRUPT",
        "why",
        "fix",
        "where",
        "who",
        "trust",
    ]
    assert "Remedy: see fix, above" in rest


def test_no_line_is_padded() -> None:
    assert not [line for line in rendered(small(), pages=True).splitlines() if line != line.rstrip()]


def test_many_ranges() -> None:
    ranges = [a_range(BASE + number * 0x10000, name=f"heap {number}", latency_us=latency()) for number in range(1000)]
    ranges[700] = a_range(BASE + 700 * 0x10000, lost=5)
    out = rendered(a_report(*ranges, verdict="lost-writes"))
    assert len(out.splitlines()) < 200
    # The worst stands first, the rest is summed up.
    assert out.index("lost-writes") < out.index(" ok")
    flat = " ".join(out.split())
    assert f"and {1000 - MOST_RANGES} more ranges: {(1000 - MOST_RANGES) * 16:,} messages, 0 lost (`uff" in flat
    assert f"{999 - MOST_RANGES} more ranges with latencies" in out
    assert "(`uffdtrace report --all-ranges` shows them)" in flat


def test_ranges_of_one_kind_are_summed_up() -> None:
    lost = [a_range(BASE + number * 0x10000, lost=5) for number in range(3)]
    served = [a_range(BASE + number * 0x10000) for number in range(3, 1003)]
    unknown = [a_range(BASE + number * 0x10000, memory="shmem", holes=None) for number in range(1003, 1008)]
    out = rendered(a_report(*lost, *served, *unknown, verdict="lost-writes"))
    rows = [re.split("  +", line.strip()) for line in out.splitlines()]
    first = next(at for at, row in enumerate(rows) if row[0] == f"{served[0]['start'][2:]}-")
    assert rows[first + 1 : first + 3] == [[f"{served[0]['end'][2:]}", "wp"], ["and 999 alike"]]
    assert rows[first][1:3] == ["62.5 MiB anon", "16,000 wp"] and rows[first][-1] == "ok"
    assert out.count("and 999 alike") == out.count("and 4 alike") == 1
    # Of few each has its row; and what is not known of one is not known of all.
    assert sum(row[0] == f"{found['start'][2:]}-" for row in rows for found in lost) == 3
    fifth = next(row for row in rows if row[0] == f"{unknown[0]['start'][2:]}-")
    assert fifth[3] == "?"
    assert "`uffdtrace report --all-ranges` shows each of them." in out
    assert "alike" not in rendered(a_report(*lost, *served), all_ranges=True)


def test_all_ranges_and_soon() -> None:
    ranges = [a_range(BASE + number * 0x10000, latency_us=latency()) for number in range(1000)]
    began = time.monotonic()
    out = rendered(a_report(*ranges), all_ranges=True)
    # Alone on a CPU it takes a second.
    assert time.monotonic() - began < 30
    for number in range(1000):
        assert out.count(f"{BASE + number * 0x10000:x}-") == 2
    assert "more range" not in out
    compared = io.StringIO()
    compare_text.render(compare(a_report(*ranges), a_report(*ranges)), compared, TextOptions(all_ranges=True))
    assert compared.getvalue().count("before  7f") == 1000 and "more range" not in compared.getvalue()


def many_processes(processes: int, ranges: int) -> dict[str, Any]:
    """The last process lost most; of one range of each nothing is known."""
    made = []
    for pid in range(processes):
        for at in range(ranges):
            start = BASE + (pid * ranges + at) * 0x100000
            made.append(a_range(start, lost=None if at == 0 else at and pid % 16, userfaultfd=pid))
    found = a_report(*made, verdict="lost-writes")
    found["processes"] = [{**PROCESS, "pid": 1000 + pid, "comm": f"worker-{pid}"} for pid in range(processes)]
    found["userfaultfds"] = [a_userfaultfd(id=pid, owner_pid=1000 + pid, monitor_pids=[7]) for pid in range(processes)]
    return found


def test_a_hundred_processes() -> None:
    found = many_processes(100, 10)
    began = time.monotonic()
    out = rendered(found)
    assert time.monotonic() - began < 30
    assert out.count("Memory of worker-") == MOST_PROCESSES
    assert out.index("Memory of worker-15 (1015)") < out.index("Other processes")
    others = out[out.index("Other processes") :]
    assert others.count("worker-") == MOST_RANGES
    assert "and 70 more: " in others and "at least" in others and "--all-ranges" in others
    assert all(len(line) <= 80 for line in out.splitlines())
    # Whose pages are listed is not a matter of taste.
    for options in ({"all_ranges": True}, {"pages": True}):
        whole = rendered(found, **options)
        assert whole.count("Memory of worker-") == 100 and "Other processes" not in whole
    assert "`uffdtrace report --all-ranges` shows their ranges" in rendered(many_processes(MOST_PROCESSES + 1, 2))
    assert "Other processes" not in rendered(many_processes(MOST_PROCESSES, 2))


# ---- widths, colours, characters -------------------------------------------------


def wide(start: int = 0xFEDCBA98760000, pages: int = 12_345_678) -> dict[str, Any]:
    """As much as a report can have to say: five-level addresses, millions of pages, long names."""
    made = a_range(
        start,
        pages=pages,
        lost=pages,
        name="/dev/shm/a-very-long-name/of/some/ram-backing-file (deleted)",
        memory="hugetlb",
        modes=["missing", "wp", "minor"],
        messages={"missing": pages, "wp": pages, "minor": pages},
        latency_us=latency(pages, 86_400e4),
        pending=1,
        waiting=[waits(3, start)],
        findings=[finding("huge-page-over-hole", pages)],
    )
    made["lost"]["runs"] = [run(0, pages, start, cause="zero-page-after-arm", tid=4194304, first_s=86400.123)]
    return made


@pytest.mark.parametrize("columns", [80, 81, 90, 100, 120, 200])
@pytest.mark.parametrize("render", [rendered, ascii_only])
@pytest.mark.parametrize("pages", [1_234_567, 12_345_678])
def test_no_line_is_wider_than_the_terminal(
    columns: int, render: Callable[..., str], pages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    found = a_report(wide(pages=pages), wide(0xFFFEBA98760000, pages), a_range(lost=None, memory=None))
    found["process"]["cmdline"] = ["x" * 500]
    out = render(found, pages=True, histogram=True, all_ranges=True)
    assert [line for line in out.splitlines() if len(line) > columns] == []
    # A number or an address that is folded is another one.
    for word in (f"{pages:,}", "fedcba98760000-", "lost-writes", "hugetlb", f"{86_400e4 / 1e6:,.0f} s"):
        assert word in out
    assert out.count(f"{pages:,}") >= 2 * 6 + 4
    assert "\u2026" not in out


def test_numbers_stand_below_each_other() -> None:
    found = a_range(messages={"missing": 7, "wp": 12_345, "minor": 0}, modes=["missing", "wp"])
    lines = rendered(a_report(found, a_range(BASE + (1 << 20)))).splitlines()
    starts = [line.index(word) for word in ("7 missing", "5 wp", "6 wp") for line in lines if word in line]
    assert len(starts) == 3 and len(set(starts)) == 1


@pytest.mark.parametrize(
    ("environment", "arguments", "coloured"),
    [
        ({}, [], False),
        ({}, ["--color", "always"], True),
        ({"TERM": "dumb"}, ["--color", "always"], True),
        ({"NO_COLOR": "1"}, ["--color", "always"], True),
        ({"FORCE_COLOR": "1"}, ["--color", "never"], False),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, [], False),
    ],
)
def test_color(environment: dict[str, str], arguments: list[str], coloured: bool, trace: Path) -> None:
    done = reading(trace, *arguments, **environment)
    assert (done.returncode, b"\x1b[1;31mlost-writes" in done.stdout, done.stderr) == (0, coloured, b"")
    assert coloured or b"\x1b" not in done.stdout


@pytest.mark.parametrize("color", Color)
@pytest.mark.parametrize("no_color", [None, "", "1"])
def test_color_on_a_terminal(color: Color, no_color: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color is not None:
        monkeypatch.setenv("NO_COLOR", no_color)
    out = Terminal()
    text.render(small(), out, TextOptions(color))
    assert ("\x1b" in out.getvalue()) is (color is Color.ALWAYS or (color is Color.AUTO and not no_color))


@pytest.mark.parametrize(
    ("environment", "ascii_only"),
    [
        ({"LC_ALL": "C"}, True),
        ({"PYTHONIOENCODING": "ascii"}, True),
        ({"PYTHONIOENCODING": "latin-1"}, True),
        ({"LC_ALL": "C.UTF-8"}, False),
        ({"LC_ALL": "C", "PYTHONIOENCODING": "utf-8"}, False),
        ({"LC_ALL": "C", "PYTHONUTF8": "1"}, False),
    ],
)
def test_terminals_without_utf8(environment: dict[str, str], ascii_only: bool, trace: Path) -> None:
    done = reading(trace, "--pages", "--histogram", **environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii() is ascii_only
    for sign in ("- #" if ascii_only else "─ █ µ").split():
        assert sign in done.stdout.decode()
    # Nothing else changes.
    other = reading(trace, "--pages", "--histogram", PYTHONIOENCODING="utf-8" if ascii_only else "ascii")
    said, expected = (one.stdout.decode().translate(str.maketrans("─█µ", "-#u")) for one in (done, other))
    assert said == expected and " us" in said


def test_units_in_findings_are_ascii_too() -> None:
    slow = finding("slow-service", 3, "warning", "faults")
    slow["message"] = "3 faults took 850 \u00b5s."
    assert "took 850 us." in ascii_only(a_report(a_range(findings=[slow])))


@pytest.mark.parametrize("arguments", [["--pages"], ["--format", "json"]])
def test_a_reader_that_has_enough(arguments: list[str], tmp_path: Path) -> None:
    events = Events()
    events.userfaultfd()
    events.register(0, 40_000)
    events.arm(0, 40_000, 0)
    for page in range(0, 40_000, 2):
        events.fresh(page)
    write(tmp_path / "trace", events.array())
    command = f"{sys.executable} -m uffdtrace report {' '.join(arguments)} {tmp_path / 'trace'} | head -1"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


@pytest.mark.parametrize(
    ("pages", "expected"),
    [(1, "4 KiB"), (2, "8 KiB"), (256, "1 MiB"), (4096, "16 MiB"), (1 << 28, "1 TiB"), (255, "1020 KiB")],
)
def test_size(pages: int, expected: str) -> None:
    assert words.size(pages, 4096) == expected


# ---- names -----------------------------------------------------------------------


def named(name: str | None) -> dict[str, Any]:
    return a_report(a_range(lost=3, name=name, latency_us=latency(), pending=1, waiting=[waits(3)]))


@pytest.mark.parametrize("name", ["[heap]", "[anon:guest-ram]", "[red]x[/red]", "[/]", "a:smile:", "\\[b]"])
def test_a_name_is_shown_as_it_is(name: str) -> None:
    # Once in the answer.
    assert rendered(named(name)).count(name) == 2
    assert rendered(named(name), pages=True).count(name) == 4


@pytest.mark.parametrize(
    "name", [HOSTILE, HOSTILE * 200, "x" * 4096, "\u4e2d" * 2048, "[red]" * 800, "\n" * 4096, " " * 99]
)
def test_a_hostile_name_stays_harmless(name: str) -> None:
    for found in (rendered(named(name), pages=True), ascii_only(named(name), pages=True)):
        assert all(one.isprintable() or one == "\n" for one in found)
        assert all(len(line) <= 80 for line in found.splitlines())
        assert len(found.splitlines()) < len(rendered(named(None), pages=True).splitlines()) + 25
        assert "lost-writes" in found


def test_a_long_name_loses_its_middle() -> None:
    assert words.shorten("/dev/shm/a-very-long-name/ram0", 20) == "/dev/shm/...ame/ram0"
    assert words.shorten("x" * 20, 20) == "x" * 20
    assert words.name({"name": "/memfd:ram (deleted)"}, 20) == "/memfd:ram"


# ---- findings --------------------------------------------------------------------


def test_what_findings_of_several_ranges_make_together_is_in_their_unit() -> None:
    ranges = [
        a_range(BASE + at * 0x100000, findings=[finding("eagain-storm", 9 + at, "warning", "calls")]) for at in range(3)
    ]
    assert "warning [eagain-storm] in 7f0000200000-7f0000210000 and 2 more, 30 calls in all" in rendered(
        a_report(*ranges)
    )


def test_a_finding_that_quotes_the_target_is_harmless() -> None:
    found = small()
    found["ranges"][0]["findings"][0].update(message=f"thread {HOSTILE}", remedy=HOSTILE)
    assert all(one.isprintable() or one == "\n" for one in rendered(found))


def test_the_report_says_how_to_list_the_pages() -> None:
    hint = "`uffdtrace report --pages` lists"
    with_warning = a_range(BASE + (1 << 20), findings=[finding("pending", 1, "warning", "faults")])
    out = rendered(a_report(a_range(lost=1), with_warning))
    assert out.count(hint) == 1 and out.index("unpopulated") < out.index(hint) < out.index("warning")
    assert hint not in rendered(a_report(a_range(lost=1), with_warning), pages=True)
    assert hint not in rendered(a_report(with_warning))
    assert hint not in rendered(a_report(a_range(lost=None)))


# ---- latency ---------------------------------------------------------------------


def test_latency_table() -> None:
    out = rendered(a_report(a_range(latency_us={**latency(1234, 12345.6), "wakeup": None})))
    for row in (
        "queue (fault to read)   6.17 ms  12.3 ms  61.7 ms  617 ms",
        "service (read to wake)  3.09 ms  6.17 ms  30.9 ms  309 ms",
        "wake-up (wake to run)         ?        ?        ?       ?",
        "total (fault to wake)   12.3 ms  24.7 ms   123 ms  1.23 s",
    ):
        assert row in out
    assert "1,234" in out
    assert "Latency" not in rendered(small())


@pytest.mark.parametrize(
    ("microseconds", "expected"),
    [(0, "0 µs"), (0.1, "0.1 µs"), (999, "999 µs"), (1000, "1 ms"), (1_500_000, "1.5 s"), (86_400e6, "86,400 s")],
)
def test_durations(microseconds: float, expected: str) -> None:
    values = dict.fromkeys(("p50", "p90", "p99", "max"), microseconds)
    measured = {**latency(), **values, "queue": values, "service": values, "wakeup": values}
    found = a_report(a_range(latency_us=measured))
    assert rendered(found).count(expected) >= 16
    assert ascii_only(found).count(expected.replace("µ", "u")) >= 16


def test_histogram() -> None:
    found = a_report(a_range(latency_us=latency(1000)))
    assert "█" not in rendered(found)
    out = rendered(found, histogram=True)
    lines = out[out.index("fault to wake: 1,000 faults") :].splitlines()[1:5]
    assert [line.split("  ")[0].strip() for line in lines] == ["< 8 µs", "< 16 µs", "< 32 µs", "< 64 µs"]
    # One fault of a thousand shows, none does not; the longest bar fills the line.
    assert [line.count("█") for line in lines] == [1, 80 - len("< 16 µs") - len("998") - 4, 0, 1]
    assert all(len(line) <= 80 for line in out.splitlines())
    plain = ascii_only(found, histogram=True)
    assert "####" in plain and "?" not in plain
    assert "No histogram" in rendered(small(), histogram=True)


def test_a_histogram_of_many_powers_of_two() -> None:
    bins = [{"below_us": 2**power, "faults": 10**9 if power % 2 else 1} for power in range(40)]
    out = rendered(a_report(a_range(latency_us={**latency(), "histogram": bins})), histogram=True)
    assert "< 549,756 s" in out and all(len(line) <= 80 for line in out.splitlines())


def test_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    found = a_report(a_range(lost=5, latency_us=latency()))
    found["ranges"][0]["lost"]["runs"] = [run(0, 5, cause="zero-page-after-arm")]
    out = rendered(found, pages=True, histogram=True)
    assert "\u2026" not in out and "zero-page-after-arm" in out
