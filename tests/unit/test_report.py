"""Verdicts, findings, the report as JSON and as text."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from unit.events import MONITOR, THREAD, Events, fed
from unit.reports import PROCESS, TRACE, a_userfaultfd

from uffdtrace.model.account.pages import COUNTS, Cause
from uffdtrace.model.account.ranges import Range
from uffdtrace.model.account.watched import Userfaultfd
from uffdtrace.model.diagnosis import report as report_module
from uffdtrace.model.diagnosis.case import Case, verdict
from uffdtrace.model.diagnosis.report import FROM_EVENTS, build
from uffdtrace.model.records.events import Feature, Ioctl, Memory, Mode, UffdEvent
from uffdtrace.reporters import offline

SCHEMA_FILE = Path(offline.__file__).with_name("report.schema.json")
CHILD, UNCONCERNED = 300, 4711
ENDING: dict[str, Any] = {"events_dropped": 0, "probes_missed": {}, "doubtful": [], "counters": []}


def row(modes: Mode = Mode.WP, pages: int = 16, **changes: Any) -> Range:
    """A range with these counts; causes by the name of Cause's member."""
    found = Range(0, 0, pages * 4096, modes, 4096, Memory.ANON)
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
        ("never-armed", case(ASYNC)),
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


_SEEN = ["never-armed", "stale-protection"]


@pytest.mark.parametrize(
    ("ending", "trace", "claimed"),
    [
        ({}, {}, _SEEN),
        # A fentry program was preempted: change_protection() ran unseen, and messages came of it.
        ({"doubtful": ["armed_pages"], "probes_missed": {"change_protection": 1}}, {}, []),
        ({"events_dropped": 1}, {}, []),
        # Events came too late to be put in order.
        ({"doubtful": list(FROM_EVENTS)}, {}, []),
        ({}, {"unproven_probes": {"protection": ["armed_pages"]}}, []),
        # Returns add results: that pages were armed is told without them.
        ({"doubtful": ["armed_pages"], "probes_missed": {"change_protection%return": 1}}, {}, _SEEN),
        # It arms nothing.
        ({"doubtful": ["lost"], "probes_missed": {"userfaultfd_remove": 1}}, {}, _SEEN),
    ],
)
def test_an_arming_that_may_not_have_been_recorded(
    ending: dict[str, Any], trace: dict[str, Any], claimed: list[str]
) -> None:
    events = Events()
    events.userfaultfd()
    events.register(0, 8)
    events.fault(1)
    events.message(1)
    events.wake(1)
    (row,) = build(fed(events.array()), {**TRACE, **trace}, PROCESS, {**ENDING, **ending})["ranges"]
    assert [name for name in _SEEN if name in ids(row["findings"])] == claimed
    assert row["verdict"] == ("never-armed" if claimed else "ok")


def test_what_a_copy_without_its_result_may_have_armed() -> None:
    events = Events()
    events.userfaultfd()
    events.register(0, 8, Mode.WP | Mode.MISSING)
    events.call(Ioctl.COPY, 0, 1, 2)
    events.register(100, 8, Mode.WP)
    first, second = build(fed(events.array()), TRACE, PROCESS, ENDING)["ranges"]
    assert (first["verdict"], second["verdict"]) == ("idle", "never-armed")


def test_what_rests_on_a_silent_probe_is_a_lower_bound() -> None:
    silent = {**TRACE, "unproven_probes": {"discards": ["lost"], "polls": []}}
    assert build(fed(Events().array()), silent, PROCESS, ENDING)["loss"]["lower_bounds"] == ["lost"]
    untried = {**TRACE, "unproven_probes": None}
    assert build(fed(Events().array()), untried, PROCESS, ENDING)["loss"]["lower_bounds"] == []


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


# ---- the report as a whole -------------------------------------------------------


def small() -> dict[str, Any]:
    events = Events()
    events.userfaultfd()
    events.register(0, 4)
    events.arm(0, 4, 3)
    events.fresh(1)
    events.served(2)
    return build(fed(events.array()), copy.deepcopy(TRACE), copy.deepcopy(PROCESS), ENDING)


def same(wait: float) -> dict[str, float]:
    """Percentiles of one wait."""
    return dict.fromkeys(("p50", "p90", "p99", "max"), wait)


def test_the_whole_report_of_a_small_trace() -> None:
    found = small()
    finding = found["ranges"][0]["findings"][0]
    assert set(finding) == {"id", "severity", "pages", "unit", "message", "remedy"}
    finding.update(message="said elsewhere", remedy="said elsewhere")
    assert found == {
        "schema": "uffdtrace-report/1",
        "trace": TRACE,
        "process": PROCESS,
        "also_traced": [],
        "processes": [],
        "processes_not_searched": None,
        "loss": {"events_dropped": 0, "probes_missed": 0, "unattributed_messages": 0, "lower_bounds": []},
        "userfaultfds": [a_userfaultfd(owner_pid=200, monitor_pids=[100])],
        "ranges": [
            {
                "start": "0x7f0000000000",
                "end": "0x7f0000004000",
                "pages": 4,
                "page_size": 4096,
                "name": None,
                "memory": "anon",
                "modes": ["wp"],
                "userfaultfd": 0,
                "armed_pages": 4,
                "holes": 1,
                "messages": {"missing": 0, "wp": 1, "minor": 0},
                "notified_pages": 1,
                "faults": {"missing": 0, "wp": 1, "minor": 0},
                "pending": 0,
                "waiting": [],
                "killed": 0,
                "skipped": {"zero_page": 0, "fresh_page": 1, "huge_page": 0, "file_page": 0},
                "lost": {
                    "observed": 1,
                    "blind": 0,
                    "causes": {"unpopulated": 1},
                    "runs": [
                        {
                            "start": "0x7f0000001000",
                            "end": "0x7f0000002000",
                            "pages": 1,
                            "how": "observed",
                            "cause": "unpopulated",
                            "first_s": 8e-06,
                            "tid": 200,
                            "thread": None,
                        }
                    ],
                    "runs_left_off": 0,
                },
                "dropped": [],
                "latency_us": {
                    "faults": 1,
                    **same(2.0),
                    "queue": same(1.0),
                    "service": same(1.0),
                    "wakeup": same(1.0),
                    "histogram": [{"below_us": 4, "faults": 1}],
                },
                "mapped_elsewhere": [],
                "verdict": "lost-writes",
                "findings": [
                    {
                        "id": "unpopulated",
                        "severity": "error",
                        "pages": 1,
                        "unit": "pages",
                        "message": "said elsewhere",
                        "remedy": "said elsewhere",
                    }
                ],
            }
        ],
        "stacks": [],
        "verdict": "lost-writes",
    }


def test_the_report_is_what_its_schema_says() -> None:
    schema = json.loads(SCHEMA_FILE.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(json.dumps(small())), schema)
    jsonschema.validate(json.loads(json.dumps(nulls())), schema)
    jsonschema.validate(json.loads(json.dumps(everybody())), schema)


def everybody() -> dict[str, Any]:
    """All userfaultfds traced: a parent and its child, both known by name, and somebody who is not."""
    events = Events()
    events.userfaultfd()
    events.register(0, 4)
    events.arm(0, 4)
    events.fork(0, 4, watched=True)
    events.forked(events.ctx + 8, events.mm + 8)
    events.process(CHILD, events.mm + 8)
    events.using(events.ctx + 16, mm=events.mm + 16, owner=0).userfaultfd()
    events.register(0, 4)
    known = [{"pid": pid, "comm": f"p{pid}", "cmdline": [f"./p{pid}"]} for pid in (THREAD, CHILD, MONITOR, UNCONCERNED)]
    return build(fed(events.array()), copy.deepcopy(TRACE), None, ENDING, processes=known)


def test_all_userfaultfds() -> None:
    found = everybody()
    assert found["process"] is None
    assert [process["pid"] for process in found["processes"]] == [MONITOR, THREAD, CHILD]
    said = [(one["id"], one["owner_pid"], one["forked_from"], one["events"]["fork"]) for one in found["userfaultfds"]]
    assert said == [(0, THREAD, None, 1), (1, CHILD, 0, 0), (2, None, None, 0)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"process": {}},
        {"process": {"pid": 1, "comm": "x"}},
        {"processes": None},
        {"processes": [None]},
        {"processes": [{"pid": "1", "comm": "x", "cmdline": []}]},
    ],
)
def test_what_the_schema_refuses(wrong: dict[str, Any]) -> None:
    schema = json.loads(SCHEMA_FILE.read_text())
    jsonschema.validate(everybody(), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**everybody(), **wrong}, schema)


@pytest.mark.parametrize("name", ["forked_from", "events", "owner_pid"])
def test_the_schema_wants_all_of_a_userfaultfd(name: str) -> None:
    found = everybody()
    del found["userfaultfds"][1][name]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found, json.loads(SCHEMA_FILE.read_text()))


def test_every_event_is_counted() -> None:
    events = Events()
    events.userfaultfd()
    for times, what in enumerate(UffdEvent):
        for _ in range(times):
            events.event(what)
    found = build(fed(events.array()), TRACE, PROCESS, ENDING)
    assert found["userfaultfds"][0]["events"] == {"fork": 0, "remap": 1, "remove": 2, "unmap": 3}


def test_the_traced_process_is_among_the_others_if_it_owns_or_watches() -> None:
    events = Events()
    events.userfaultfd()
    events.register(0, 4)
    now = {"pid": THREAD, "comm": "now", "cmdline": []}
    traced = {"pid": THREAD, "comm": "then", "cmdline": []}
    assert build(fed(events.array()), TRACE, traced, ENDING, processes=[now])["processes"] == [traced]
    assert build(fed(events.array()), TRACE, PROCESS, ENDING, processes=[now])["processes"] == [now]


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
    return [ctx, start, *faults, *messages]


def test_what_was_counted_only_is_added() -> None:
    events = Events()
    events.userfaultfd()
    events.register(0, 4)
    events.register(10, 4)
    events.served(0)
    ending = {**ENDING, "events_dropped": 5}
    counters = [counter_row(events.ctx, 0x7F0000000000, (0, 8, 0), (0, 7, 0))] * 2
    found = build(fed(events.array()), TRACE, PROCESS, {**ending, "counters": counters})
    assert [one["messages"]["wp"] for one in found["ranges"]] == [15, 0]
    assert [one["faults"]["wp"] for one in found["ranges"]] == [17, 0]
    assert "messages" not in found["loss"]["lower_bounds"]
    # A count that could be either range's: the events' own stay.
    found = build(
        fed(events.array()), TRACE, PROCESS, {**ending, "counters": [counter_row(events.ctx, 0, (0, 9, 0), (0, 8, 0))]}
    )
    assert [one["messages"]["wp"] for one in found["ranges"]] == [1, 0]
    assert {"messages", "faults"} <= set(found["loss"]["lower_bounds"])


def test_names() -> None:
    assert report_module.SCHEMA == "uffdtrace-report/1"


# ---- armed before the trace, or not ----------------------------------------------


def found(memory: Memory = Memory.ANON) -> Events:
    events = Events()
    events.memory = memory
    events.userfaultfd()
    events.range_found(0, 4, tells=True)
    return events


def reported(events: Events) -> dict[str, Any]:
    (row,) = build(fed(events.array()), TRACE, PROCESS, ENDING)["ranges"]
    return dict(row)


def test_a_range_that_was_empty_when_it_was_armed_leaves_nothing_to_find() -> None:
    events = found()
    events.fresh(0)
    row = reported(events)
    assert row["armed_pages"] is row["holes"] is row["lost"]["observed"] is row["skipped"]["fresh_page"] is None
    assert [finding["id"] for finding in row["findings"]] == ["armed-before-trace"]
    assert row["verdict"] == "ok"


def test_where_markers_would_stand_it_was_not_armed() -> None:
    row = reported(found(Memory.SHMEM))
    assert (row["armed_pages"], row["holes"], row["verdict"]) == (0, 0, "never-armed")


def test_what_was_populated_before_it_was_armed_may_have_been_lost() -> None:
    events = found()
    events.fresh(0)
    events.arm(0, 4, 1)
    row = reported(events)
    # Of the arming that was seen all is known.
    assert (row["armed_pages"], row["holes"], row["lost"]["observed"]) == (4, 3, 0)
    assert "armed-before-trace" in [finding["id"] for finding in row["findings"]]


def test_armed_since_all_of_it_is_known() -> None:
    events = found()
    events.arm(0, 4, 1)
    events.fresh(1)
    row = reported(events)
    assert (row["armed_pages"], row["holes"], row["lost"]["observed"], row["verdict"]) == (4, 3, 1, "lost-writes")
