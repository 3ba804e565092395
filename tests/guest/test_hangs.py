"""Attached to a process that hangs already: who waits, where, for what, and what became of it."""

from __future__ import annotations

import pytest
from guest.results import Guest, Json


def ids(found: Json) -> set[str]:
    return {finding["id"] for finding in found["findings"]}


@pytest.mark.parametrize("name", ["hanging-faults", "hanging-faults-all"])
def test_faults_from_before_the_trace_are_pending(guest: Guest, name: str) -> None:
    step, trace = guest.step(name), guest.trace(name)
    assert (step["exit_status"], step["workload_exit_status"]) == (0, 0), trace.stderr
    assert len(step["threads"]) == 4
    (home,) = (home for home in trace.report["userfaultfds"] if home["owner_pid"] == step["pid"])
    (found,) = (one for one in trace.report["ranges"] if one["userfaultfd"] == home["id"])
    assert (found["pending"], found["verdict"], sum(found["faults"].values())) == (4, "pending", 0)
    waiting = {fault["tid"]: fault for fault in found["waiting"]}
    assert sorted(waiting) == step["threads"]
    # The workload's monitor had read all four.
    assert all(fault["read"] and fault["kind"] == "wp" and fault["for_s"] is None for fault in waiting.values())
    assert len({fault["address"] for fault in waiting.values()}) == 4
    assert home["before_trace"]["still_asleep"] == step["threads"]
    assert "never-read" not in ids(found)
    assert trace.report["verdict"] == "pending"


def test_an_event_that_nobody_reads(guest: Guest) -> None:
    step, trace = guest.step("hanging-event"), guest.trace("hanging-event")
    assert (step["exit_status"], step["process_exit_status"]) == (0, 0), trace.stderr
    (home,) = trace.report["userfaultfds"]
    assert home["asleep_in_events"] == [{"tid": step["tid"], "event": "unmap", "for_s": None, "reads": False}]
    assert ids(home) == {"event-unread"}
    assert trace.report["verdict"] == "pending"


def test_an_event_that_is_read_in_the_trace(guest: Guest) -> None:
    step, trace = guest.step("hanging-event-served"), guest.trace("hanging-event-served")
    assert (step["exit_status"], step["process_exit_status"]) == (0, 0), trace.stderr
    (home,) = trace.report["userfaultfds"]
    assert home["asleep_in_events"] == [] and not ids(home)
    assert trace.report["verdict"] != "pending"


def test_a_monitor_whose_thread_ended(guest: Guest) -> None:
    step, trace = guest.step("hanging-monitor"), guest.trace("hanging-monitor")
    assert (step["exit_status"], step["process_exit_status"]) == (0, 0), trace.stderr
    (home,), (found,) = trace.report["userfaultfds"], trace.report["ranges"]
    assert [(fault["tid"], fault["kind"], fault["read"]) for fault in found["waiting"]] == [
        (step["tid"], "missing", True)
    ]
    assert "monitor-gone" in ids(home)
    assert found["verdict"] == "pending"
