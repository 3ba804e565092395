"""Collectors that are killed, stopped or come by the hundred, held against what their target wrote down."""

from __future__ import annotations

import re

import numpy as np
import pytest
from guest.results import Guest, Json, read_json

from uffdtrace.model.records.events import EVENT, Array, Type, joined
from uffdtrace.trace.reader import Reader

# tests/programs/soak.c, struct entry.
ENTRY = np.dtype([("time", "<u8"), ("address", "<u8")])
# What a killed collector may not have written: on an emulated CPU that six threads share.
LAST_NS = 5e9
# KiB by which the kernel's memory may differ between the first attaches and the last: other things run, too.
DRIFT_KB = 16 << 10
# A collector's memory in the second half of a trace, by that at the end of the first.
GROWTH = 1.1


def log(guest: Guest, name: str) -> Array:
    """The messages that the target read, in their order."""
    return np.fromfile(guest.folder / f"log-{name}.bin", dtype=ENTRY)


def messages(report: Json) -> int:
    return sum(found["messages"]["wp"] for found in report["ranges"])


def traced(guest: Guest, name: str) -> Array:
    """The messages in a trace file, in the order of time."""
    parts = [events[events.of(Type.MESSAGE)].records for events in Reader(guest.trace(name).data).events()]
    found = joined(parts) if parts else np.empty(0, dtype=EVENT)
    return found[np.argsort(found["time"], kind="stable")]


@pytest.mark.survival
def test_a_collector_killed_at_any_moment_leaves_what_happened_up_to_its_last_second(guest: Guest) -> None:
    """Message by message what the target had read: none too many, none missing before the end."""
    step = guest.step("kills")
    told = log(guest, "kills")
    assert len(told) == step["messages"]
    for number, killed in enumerate(step["killed"]):
        found = traced(guest, f"kills-{number}")
        if not len(found):
            # Killed before it had written anything.
            assert killed["at"] - killed["ready"] < LAST_NS, f"kill {number}"
            continue
        # The kernel's time is before read(2) returns, and after it returned the last time.
        first = int(np.searchsorted(told["time"], found["time"][0]))
        same = told["address"][first : first + len(found)]
        assert np.array_equal(same, found["start"] & ~np.uint64(4095)), f"kill {number}"
        assert found["time"][-1] > killed["at"] - LAST_NS, f"kill {number}"


@pytest.mark.survival
def test_a_killed_collector_leaves_no_probe_and_its_target_runs_on(guest: Guest) -> None:
    step = guest.step("kills")
    assert all(killed["gone"] and killed["runs"] for killed in step["killed"]), step["killed"]
    assert step["before"] == step["after"]


@pytest.mark.once
def test_counts_are_exact_where_the_collector_stood_still(guest: Guest) -> None:
    assert messages(guest.trace("stopped").report) == guest.step("stopped")["messages"]


@pytest.mark.once
def test_counts_are_exact_and_the_loss_is_said_where_most_events_found_no_room(guest: Guest) -> None:
    report = guest.trace("small-ring").report
    assert messages(report) == guest.step("small-ring")["messages"]
    loss = report["loss"]
    assert loss["events_dropped"] > 0
    # What rests on the order of events is marked; what the kernel counts is not.
    assert {"lost", "pending"} <= set(loss["lower_bounds"])
    assert "messages" not in loss["lower_bounds"]


@pytest.mark.once
@pytest.mark.long
@pytest.mark.parametrize("name", ["two-first", "two-second"])
def test_two_traces_of_one_target_count_the_same(guest: Guest, name: str) -> None:
    step = guest.step("two")
    assert step["exit_statuses"] == [0, 0]
    report = read_json(guest.folder / f"report-{name}.json")
    assert report is not None
    assert messages(report) == step["messages"]


@pytest.mark.once
def test_what_a_terminal_shows(guest: Guest) -> None:
    step = guest.step("screen")
    assert messages(guest.trace("screen").report) == step["messages"]
    # Drawn again and again where it stood, and gone in the end.
    drawn = re.findall(r"Range +Memory +Armed +Msg/s +p99 +Unread +Lost +Verdict", step["written"])
    assert len(drawn) > 3
    assert step["written"].count("\x1b[") > len(drawn)
    said = step["written"].rpartition("\x1b[J")[2]
    assert "MB written" not in said and "read it again with uffdtrace report" in said


@pytest.mark.once
@pytest.mark.long
def test_attaching_again_and_again_leaves_nothing(guest: Guest) -> None:
    step = guest.step("attaches")
    assert step["exit_status"] == 0
    assert step["gone"]
    times = step["times"]
    assert all(one["messages"] > 0 and not one["unproven"] for one in times), times
    # Of the first ones a part stays: libraries that are loaded once, and what allocators keep.
    early, late = times[len(times) // 5], times[-1]
    assert late["descriptors"] == early["descriptors"]
    assert late["resident_kb"] < GROWTH * early["resident_kb"]
    grown = {kind: late["kernel"][kind] - early["kernel"][kind] for kind in early["kernel"]}
    assert max(grown.values()) < DRIFT_KB, grown


@pytest.mark.once
@pytest.mark.long
def test_ranges_that_come_and_go_are_all_counted(guest: Guest) -> None:
    report = guest.trace("churn").report
    assert messages(report) == guest.step("churn")["ranges"]
    assert sum(found["lost"]["observed"] for found in report["ranges"]) == 0


@pytest.mark.once
def test_threads_that_die_in_faults_are_all_counted(guest: Guest) -> None:
    report = guest.trace("dying").report
    assert sum(found["killed"] for found in report["ranges"]) == guest.step("dying")["threads"]
    assert sum(found["pending"] for found in report["ranges"]) == 0


@pytest.mark.once
@pytest.mark.long
def test_a_soak_counts_all_and_its_memory_is_flat(guest: Guest) -> None:
    step = guest.step("soak")
    assert messages(guest.trace("soak").report) == step["messages"]
    memory = step["memory"]
    half = len(memory) // 2
    assert max(memory[half:]) < GROWTH * max(memory[:half]), memory
