"""The probes are proven to fire when a trace begins, and one that does not is told of."""

from __future__ import annotations

import json

import pytest
from guest.compare import owned_ranges
from guest.results import Guest

# A child cannot bring along what swaps, has hugetlb pages, or is merged.
NOT_TRIED = {"swap-ins", "swapoffs", "hugetlb-faults", "hugetlb-zaps", "hugetlb-zap-returns"}
NOT_TRIED |= {"merges", "merge-returns", "unmerges", "unmerge-returns", "huge-fault-returns"}
# Write protection of shared memory came with 5.19 (b1f9e876862d).
NOT_TRIED_ON = {"bullseye": NOT_TRIED | {"file-faults"}}
# What follows from a silent page-commits: a huge page is told of when it is committed.
FOLLOW = {"huge-faults"}


def test_every_row_that_can_be_tried_fires(guest: Guest, suite: str) -> None:
    said = json.loads(guest.step("doctor")["stdout"])
    proof = said["checks"]["proof"]
    assert set(proof["not_tried"]) <= NOT_TRIED_ON.get(suite, NOT_TRIED)
    assert set(proof["proven"]) | set(proof["not_tried"]) == {one["row"] for one in said["probes"] if one["kind"]}


@pytest.mark.once
def test_silenced_rows_are_named(guest: Guest) -> None:
    """Their probes are on a function that never runs."""
    step, trace = guest.step("silenced"), guest.trace("silenced")
    rows = set(step["rows"])
    unproven = trace.report["trace"]["unproven_probes"]
    assert rows <= set(unproven) <= rows | FOLLOW
    for row in rows:
        assert f"uffdtrace: {row}: the probe on emergency_restart" in trace.stderr
    rest = {name for names in unproven.values() for name in names}
    assert {"lost", "skipped", "pages"} <= rest == set(trace.report["loss"]["lower_bounds"])


@pytest.mark.once
def test_nothing_of_the_child_is_in_the_report(guest: Guest) -> None:
    """Not even where its exit is not seen."""
    trace = guest.trace("silenced")
    ((_, truth),) = trace.truth.items()
    assert trace.report["loss"]["unattributed_messages"] == 0
    assert {one["owner_pid"] for one in trace.report["userfaultfds"]} == {truth["pid"]}
    assert owned_ranges(trace.report, truth["pid"]) == trace.report["ranges"]
    assert [one["messages"] for one in trace.report["ranges"]] == [one["messages"] for one in truth["ranges"]]
