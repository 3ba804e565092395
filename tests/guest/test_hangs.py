"""Attached to a process that hangs already: who waits, where, for what, and what became of it."""

from __future__ import annotations

import pytest
from guest.results import Guest, Json


def ids(found: Json) -> set[str]:
    return {finding["id"] for finding in found["findings"]}


def of_process(guest: Guest, name: str, what: str) -> tuple[list[int], Json, list[Json]]:
    """The threads that hang in a process, by the kernel's or its own account; its userfaultfd, and its ranges."""
    step, trace = guest.step(name), guest.trace(name)
    assert step["exit_status"] == 0 and not any(step["exit_statuses"]), trace.stderr
    (home,) = (home for home in trace.report["userfaultfds"] if home["owner_pid"] == step[what]["pid"])
    return step[what]["threads"], home, [one for one in trace.report["ranges"] if one["userfaultfd"] == home["id"]]


def holders(home: Json) -> list[tuple[int, int]]:
    return [(holder["pid"], holder["fd"]) for holder in home["holders"]]


def held(guest: Guest, what: str) -> list[tuple[int, int]]:
    step = guest.step("hanging-all")[what]
    return [(step["pid"], step["fd"])]


@pytest.mark.parametrize("name", [pytest.param("hanging-one", marks=pytest.mark.step("hanging-one")), "hanging-all"])
def test_faults_from_before_the_trace_are_pending(guest: Guest, name: str) -> None:
    threads, home, (found,) = of_process(guest, name, "faults")
    assert len(threads) == 4
    assert (found["pending"], found["verdict"], sum(found["faults"].values())) == (4, "pending", 0)
    waiting = {fault["tid"]: fault for fault in found["waiting"]}
    assert sorted(waiting) == threads
    # The workload's monitor had read all four.
    assert all(fault["read"] and fault["kind"] == "wp" and fault["for_s"] is None for fault in waiting.values())
    assert len({fault["address"] for fault in waiting.values()}) == 4
    assert home["before_trace"]["still_asleep"] == threads
    assert "never-read" not in ids(found)
    assert guest.trace(name).report["verdict"] == "pending"


def test_an_event_that_nobody_reads(guest: Guest) -> None:
    (thread,), home, _ = of_process(guest, "hanging-all", "event")
    assert home["asleep_in_events"] == [{"tid": thread, "event": "unmap", "for_s": None, "reads": False}]
    assert ids(home) == {"event-unread"}


def test_an_event_in_the_trace_that_nobody_reads(guest: Guest) -> None:
    (thread,), home, _ = of_process(guest, "hanging-all", "later")
    (wait,) = home["asleep_in_events"]
    assert (wait["tid"], wait["event"], wait["reads"]) == (thread, "unmap", False)
    assert 2 < wait["for_s"] < guest.trace("hanging-all").report["trace"]["duration_s"]
    assert ids(home) == {"event-unread"}
    assert holders(home) == held(guest, "later")


@pytest.mark.parametrize("what", ["monitor", "process", "forks"])
def test_a_monitor_that_ended(guest: Guest, what: str) -> None:
    (thread,), home, (found,) = of_process(guest, "hanging-all", what)
    waiting = [(fault["tid"], fault["kind"], fault["read"]) for fault in found["waiting"]]
    assert waiting == [(thread, "missing", True)]
    assert ids(home) == {"monitor-gone"}
    # What it forked, or was forked from, does not concern the memory.
    assert (found["verdict"], ids(found)) == ("pending", {"pending"})
    step, (ended,) = guest.step("hanging-all")[what], home["monitor_threads_ended"]
    process = step["reader"] if what == "process" else step["pid"]
    assert (ended["tid"], ended["pid"], ended["process_ended"]) == (step["reader"], process, what == "process")
    names = {one["pid"]: one["comm"] for one in guest.trace("hanging-all").report["processes"]}
    assert names[process] == "hanging"
    assert 0 < ended["last_read_s"] <= ended["ended_after_s"] < ended["ended_by_s"]
    # More than two seconds went by after that.
    assert ended["ended_by_s"] < guest.trace("hanging-all").report["trace"]["duration_s"]
    assert holders(home) == held(guest, what)


@pytest.mark.once
def test_more_who_sleep_than_a_look_goes_through(guest: Guest) -> None:
    threads, home, (found,) = of_process(guest, "hanging-many", "many")
    assert len(threads) == 600
    assert home["before_trace"]["waiting"] == home["before_trace"]["unread"] == 600
    assert sorted(home["before_trace"]["still_asleep"]) == sorted(threads)
    (throughout,) = home["findings"]
    assert (throughout["id"], found["pending"] + throughout["pages"]) == ("asleep-throughout", 600)
    assert throughout["pages"] > 0 and found["pending"] > 0


@pytest.mark.once
def test_an_event_that_is_read_in_the_trace(guest: Guest) -> None:
    step, trace = guest.step("hanging-served"), guest.trace("hanging-served")
    assert step["exit_status"] == 0 and not any(step["exit_statuses"]), trace.stderr
    (home,) = trace.report["userfaultfds"]
    assert home["asleep_in_events"] == [] and not ids(home)
    assert trace.report["verdict"] != "pending"
