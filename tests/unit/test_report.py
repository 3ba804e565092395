"""Verdicts, findings, the report as JSON and as text."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from unit.events import Events, fed

from uffdtrace.model import report as report_module
from uffdtrace.model.diagnosis import RULES, SEVERITIES, VERDICTS, Case, findings, verdict
from uffdtrace.model.events import Feature, Memory, Mode
from uffdtrace.model.model import Userfaultfd
from uffdtrace.model.pages import COUNTS, Cause
from uffdtrace.model.ranges import Range
from uffdtrace.model.report import build
from uffdtrace.reporters import text

SCHEMA_FILE = Path(text.__file__).with_name("report.schema.json")
TRACE = {
    "file": "uffdtrace.data",
    "started": "2026-01-02T03:04:05.678+00:00",
    "duration_s": 2.5,
    "kernel": "6.1.0",
    "arch": "x86_64",
    "backend": "fentry",
    "stop_reason": "the process exited",
    "uffdtrace": "1",
}
PROCESS = {"pid": 7, "comm": "tracker", "cmdline": ["./tracker", "--snapshot"]}
ENDING: dict[str, Any] = {"events_dropped": 0, "probes_missed": {}, "doubtful": [], "counters": []}


def row(modes: Mode = Mode.WP, pages: int = 16, **changes: Any) -> Range:
    """A range with these counts; causes by the name of Cause's member."""
    found = Range(0, 0, pages * 4096, modes, Memory.ANON)
    for name, value in changes.items():
        if name in COUNTS:
            found.changes[COUNTS.index(name)] = value
        elif name in Cause.__members__:
            found.changes[len(COUNTS) + Cause[name]] = value
        else:
            setattr(found, name, value)
    return found


def case(features: int = 0, offered: int | None = None, **changes: Any) -> Case:
    return Case(row(**changes), Userfaultfd(0, 1, features=features), offered)


ASYNC = int(Feature.WP_ASYNC)


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        ("idle", case(modes=Mode.MISSING)),
        ("ok", case(modes=Mode.MISSING, messages=[1, 0, 0])),
        ("ok", case(modes=Mode.MINOR, messages=[0, 0, 1])),
        ("ok", case(armed_pages=1)),
        ("async", case(ASYNC, armed_pages=1)),
        ("async", case(ASYNC)),
        ("idle", case(ASYNC, modes=Mode.MISSING)),
        ("pending", case(ASYNC, armed_pages=1, pending=1)),
        ("pending", case(armed_pages=1, pending=1)),
        ("ok", case(armed_pages=1, pending=None)),
        ("never-armed", case()),
        ("never-armed", case(pending=1)),
        ("never-armed", case(modes=Mode.WP | Mode.MISSING, messages=[1, 0, 0])),
        ("blind", case(armed_pages=1, blind=1, pending=1)),
        ("lost-writes", case(armed_pages=1, blind=1, observed=1, pending=1)),
        ("lost-writes", case(modes=Mode.MISSING, armed_pages=1, observed=1, MODE_REPLACED=1)),
    ],
)
def test_verdict(expected: str, found: Case) -> None:
    assert verdict(found) == expected


@pytest.mark.parametrize("what", ["a WP message", "a WP fault"])
def test_a_range_that_was_armed_before_the_trace_is_not_never_armed(what: str) -> None:
    """Attached after UFFDIO_WRITEPROTECT: Linux 5.10 does not show which pages are protected."""
    events = Events()
    events.userfaultfd()
    events.range_found(0, 8)
    events.fault(1)
    if what == "a WP message":
        events.message(1)
        events.wake(1)
    model = fed(events.array())
    found = build(model, TRACE, PROCESS, ENDING)
    assert found["ranges"][0]["verdict"] != "never-armed"
    assert "never-armed" not in ids(found["ranges"][0]["findings"])


def test_the_worst_range_is_the_verdict() -> None:
    events = Events()
    events.userfaultfd()
    events.register(0, 4, Mode.MISSING)
    events.register(10, 4)
    events.arm(10, 4, 0)
    events.fresh(10)
    found = build(fed(events.array()), TRACE, PROCESS, ENDING)
    assert ([one["verdict"] for one in found["ranges"]], found["verdict"]) == (["idle", "lost-writes"], "lost-writes")


def test_no_range_at_all() -> None:
    assert build(fed(Events().array()), TRACE, PROCESS, ENDING)["verdict"] == "idle"


def ids(found: Any) -> list[str]:
    return [one["id"] for one in found]


CAUSE_FINDINGS = {
    "HOLE": "unpopulated",
    "HUGE_PAGE": "huge-page-over-hole",
    "ZERO_PAGE_AFTER_ARM": "zero-page-after-arm",
    "DISCARDED": "discarded",
    "COPY_WITHOUT_WP": "copy-without-wp",
    "ZEROPAGE": "zeropage",
    "CONTINUE_WITHOUT_WP": "continue-without-wp",
    "MOVE": "moved",
    "MODE_REPLACED": "mode-replaced",
    "UNKNOWN": "unexplained",
}


@pytest.mark.parametrize(("cause", "finding"), CAUSE_FINDINGS.items())
def test_each_cause_has_its_finding(cause: str, finding: str) -> None:
    found = findings(case(armed_pages=5, observed=3, **{cause: 3}))
    assert ids(found) == [finding]
    assert (found[0]["severity"], found[0]["pages"]) == ("error", 3)
    assert "3 pages" in str(found[0]["message"])


def test_every_cause_that_can_come_up_has_a_finding() -> None:
    # No event tells of KSM: it is UNKNOWN.
    assert set(CAUSE_FINDINGS) == set(Cause.__members__) - {"NONE", "KSM_MERGE"}


@pytest.mark.parametrize(
    ("present", "changes"),
    [
        (["holes-left"], {"armed_pages": 4, "holes": 2}),
        ([], {"armed_pages": 4, "holes": 0}),
        ([], {"armed_pages": 4, "holes": None}),
        # MISSING mode catches the first touch of an empty page.
        ([], {"armed_pages": 4, "holes": 2, "modes": Mode.WP | Mode.MISSING}),
        ([], {"armed_pages": 4, "holes": 2, "zero_page": 2}),
        (["unpopulated"], {"armed_pages": 4, "holes": 2, "observed": 2, "HOLE": 2}),
        (["unpopulated", "holes-left"], {"armed_pages": 4, "holes": 3, "observed": 2, "HOLE": 2}),
        (["pending"], {"armed_pages": 4, "pending": 1}),
        ([], {"armed_pages": 4, "pending": None}),
        (["undecided"], {"armed_pages": 4, "undecided": 1}),
        (["never-armed"], {}),
        ([], {"armed_pages": 1}),
        ([], {"modes": Mode.MISSING | Mode.MINOR}),
        (["never-armed", "pending"], {"pending": 2}),
    ],
)
def test_findings_at_near_misses(present: list[str], changes: dict[str, Any]) -> None:
    assert ids(findings(case(**changes))) == present


def test_async_is_a_note_and_nothing_is_never_armed_there() -> None:
    assert ids(findings(case(ASYNC))) == ["async"]
    assert ids(findings(case(ASYNC, modes=Mode.MISSING))) == []


def test_findings_come_worst_first_and_are_whole_sentences() -> None:
    everything = dict.fromkeys(CAUSE_FINDINGS, 1)
    found = findings(case(ASYNC, armed_pages=9, observed=9, holes=9, pending=1, undecided=1, **everything))
    severities = [SEVERITIES.index(str(one["severity"])) for one in found]
    assert severities == sorted(severities)
    # Those of ranges that were not armed, or before the trace.
    assert {rule.id for rule in RULES} - set(ids(found)) <= {"never-armed", "armed-before-trace"}
    for one in found:
        for sentence in (str(one["message"]), str(one["remedy"])):
            assert sentence.endswith(".") and not sentence.endswith(".."), sentence
            assert "{" not in sentence and "  " not in sentence


@pytest.mark.parametrize("count", [1, 2])
def test_the_verb_agrees_with_the_number(count: int) -> None:
    everything = dict.fromkeys(CAUSE_FINDINGS, count)
    found = findings(case(armed_pages=9, observed=9, holes=9 * count, pending=count, undecided=count, **everything))
    found += findings(case(pages=count))
    wrong = [
        str(one["message"])
        for one in found
        for plural in ("were", "are", "have")
        if count == 1 and f"1 page {plural}" in str(one["message"])
    ]
    wrong += [str(one["message"]) for one in found if count == 1 and "1 fault were" in str(one["message"])]
    assert not wrong


@pytest.mark.parametrize(
    ("offered", "words"),
    [
        (None, "(Linux 6.4)"),
        (int(Feature.WP_UNPOPULATED), "which this kernel has"),
        (int(Feature.WP_ASYNC), "this kernel lacks it"),
    ],
)
def test_the_remedy_is_one_that_this_kernel_has(offered: int | None, words: str) -> None:
    (found,) = findings(case(offered=offered, armed_pages=1, observed=1, HOLE=1))
    assert words in str(found["remedy"])


# ---- the report as a whole -------------------------------------------------------


def small() -> dict[str, Any]:
    events = Events()
    events.userfaultfd()
    events.register(0, 4)
    events.arm(0, 4, 3)
    events.fresh(1)
    events.served(2)
    return build(fed(events.array()), copy.deepcopy(TRACE), copy.deepcopy(PROCESS), ENDING)


def test_the_whole_report_of_a_small_trace() -> None:
    found = small()
    finding = found["ranges"][0]["findings"][0]
    assert set(finding) == {"id", "severity", "pages", "message", "remedy"}
    finding.update(message="said elsewhere", remedy="said elsewhere")
    assert found == {
        "schema": "uffdtrace-report/1",
        "trace": TRACE,
        "process": PROCESS,
        "loss": {"events_dropped": 0, "probes_missed": 0, "unattributed_messages": 0, "lower_bounds": []},
        "userfaultfds": [{"id": 0, "features": [], "owner_pid": 200, "monitor_pids": [100]}],
        "ranges": [
            {
                "start": "0x7f0000000000",
                "end": "0x7f0000004000",
                "pages": 4,
                "page_size": 4096,
                "memory": "anon",
                "modes": ["wp"],
                "userfaultfd": 0,
                "armed_pages": 4,
                "holes": 1,
                "messages": {"missing": 0, "wp": 1, "minor": 0},
                "notified_pages": 1,
                "faults": {"missing": 0, "wp": 1, "minor": 0},
                "pending": 0,
                "skipped": {"zero_page": 0, "fresh_page": 1, "huge_page": 0, "file_page": 0},
                "lost": {"observed": 1, "blind": 0, "causes": {"hole": 1}},
                "latency_us": {"p50": 2.0, "p90": 2.0, "p99": 2.0, "max": 2.0},
                "verdict": "lost-writes",
                "findings": [
                    {
                        "id": "unpopulated",
                        "severity": "error",
                        "pages": 1,
                        "message": "said elsewhere",
                        "remedy": "said elsewhere",
                    }
                ],
            }
        ],
        "verdict": "lost-writes",
    }


def test_the_report_is_what_its_schema_says() -> None:
    schema = json.loads(SCHEMA_FILE.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(json.dumps(small())), schema)
    jsonschema.validate(json.loads(json.dumps(nulls())), schema)


def nulls() -> dict[str, Any]:
    """A trace without an end, whose fields nobody knows."""
    events = Events()
    events.memory = Memory(0)
    events.register(0, 4)
    events.fault(1)
    events.protect(0, 4)
    trace = {**TRACE, "stop_reason": "cut short"}
    return build(fed(events.array()), trace, PROCESS, {})


def test_what_is_not_known_is_null() -> None:
    found = nulls()
    assert found["loss"]["events_dropped"] is found["loss"]["probes_missed"] is None
    assert found["userfaultfds"][0]["features"] is found["userfaultfds"][0]["owner_pid"] is None
    (one,) = found["ranges"]
    assert one["memory"] is one["pending"] is one["latency_us"] is None


def test_dropped_events_make_lower_bounds() -> None:
    model = fed(Events().array())
    found = build(model, TRACE, PROCESS, {**ENDING, "events_dropped": 5})
    assert {"lost", "skipped", "holes", "pending"} <= set(found["loss"]["lower_bounds"])


def counter_row(ctx: int, start: int, faults: tuple[int, int, int], messages: tuple[int, int, int]) -> list[int]:
    return [ctx, start, *faults, *messages, 0]


def test_the_kernels_counters_replace_what_was_dropped() -> None:
    events = Events()
    events.userfaultfd()
    events.register(0, 4)
    events.register(10, 4)
    events.served(0)
    ending = {**ENDING, "events_dropped": 5}
    counters = [counter_row(events.ctx, 0x7F0000000000, (0, 9, 0), (0, 8, 0))]
    found = build(fed(events.array()), TRACE, PROCESS, {**ending, "counters": counters})
    assert [one["messages"]["wp"] for one in found["ranges"]] == [8, 0]
    assert [one["faults"]["wp"] for one in found["ranges"]] == [9, 0]
    assert "messages" not in found["loss"]["lower_bounds"]
    # A count that could be either range's: the events' own stay.
    found = build(
        fed(events.array()), TRACE, PROCESS, {**ending, "counters": [counter_row(events.ctx, 0, (0, 9, 0), (0, 8, 0))]}
    )
    assert [one["messages"]["wp"] for one in found["ranges"]] == [1, 0]
    assert {"messages", "faults"} <= set(found["loss"]["lower_bounds"])


# ---- text ------------------------------------------------------------------------


def rendered(found: dict[str, Any]) -> str:
    out = io.StringIO()
    text.render(found, out)
    return out.getvalue()


def test_text_of_a_small_trace() -> None:
    out = rendered(small())
    for words in ("./tracker --snapshot (7)", "7f0000000000", "unpopulated", "Remedy:", "lost-writes"):
        assert words in out
    assert out.rstrip().splitlines()[-1].startswith("Verdict: lost-writes")


def test_text_of_what_is_not_known() -> None:
    out = rendered(nulls())
    assert "None" not in out
    assert "Whether events were dropped is not known" in out


HOSTILE = "a\x1b[2J\x1b]0;pwned\x07\x9b31m\r\n\tb\u202e\u2028[bold red]x[/bold red]\x00\udc80"


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
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    text.render(found, stream)


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


def test_many_ranges() -> None:
    events = Events()
    events.userfaultfd()
    for number in range(400):
        events.register(number * 10, 4)
        if number != 399:
            events.arm(number * 10, 4, 0)
    events.fresh(3000)
    found = build(fed(events.array()), TRACE, PROCESS, ENDING)
    assert len(found["ranges"]) == 400
    out = rendered(found)
    assert len(out.splitlines()) < 120
    # The worst stands first, the rest is summed up.
    assert out.index("lost-writes") < out.index(" ok")
    assert f"{400 - text.MOST_RANGES} more ranges" in out


@pytest.mark.parametrize(
    ("pages", "words"),
    [(1, "4 KiB"), (2, "8 KiB"), (256, "1 MiB"), (4096, "16 MiB"), (1 << 28, "1 TiB"), (255, "1020 KiB")],
)
def test_size(pages: int, words: str) -> None:
    assert text.size(pages, 4096) == words


def test_names() -> None:
    assert report_module.SCHEMA == "uffdtrace-report/1"
