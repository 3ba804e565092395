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


@pytest.mark.parametrize("name", ["hanging-one", "hanging-all"])
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


def test_a_monitor_whose_thread_ended(guest: Guest) -> None:
    (thread,), home, (found,) = of_process(guest, "hanging-all", "monitor")
    waiting = [(fault["tid"], fault["kind"], fault["read"]) for fault in found["waiting"]]
    assert waiting == [(thread, "missing", True)]
    assert ids(home) == {"monitor-gone"}
    assert found["verdict"] == "pending"


@pytest.mark.once
def test_an_event_that_is_read_in_the_trace(guest: Guest) -> None:
    step, trace = guest.step("hanging-served"), guest.trace("hanging-served")
    assert step["exit_status"] == 0 and not any(step["exit_statuses"]), trace.stderr
    (home,) = trace.report["userfaultfds"]
    assert home["asleep_in_events"] == [] and not ids(home)
    assert trace.report["verdict"] != "pending"
