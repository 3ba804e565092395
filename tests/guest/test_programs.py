"""Real programs under trace: what uffdtrace reports, against what they say of themselves."""

from __future__ import annotations

import pytest
from guest.results import Guest, Json

pytestmark = pytest.mark.step("qemu-snapshot", "qemu-postcopy")

KINDS = ("missing", "wp", "minor")


def own_ranges(report: Json, blocks: list[tuple[str, str, int]]) -> dict[str, Json]:
    """The range of each RAM block, by its name, on the userfaultfd that the program used last.

    QEMU tries its memory on userfaultfds of their own first, which it closes again.
    """
    last = max(home["id"] for home in report["userfaultfds"])
    ranges = {
        (int(found["start"], 16), found["pages"] * found["page_size"]): found
        for found in report["ranges"]
        if found["userfaultfd"] == last
    }
    places = {(int(start, 16), length): name for name, start, length in blocks}
    assert blocks, "QEMU traced no RAM block: this proves nothing"
    assert set(ranges) == set(places)
    return {name: ranges[place] for place, name in places.items()}


def total(report: Json, kind: str) -> int:
    return sum(found["messages"][kind] for found in report["ranges"])


def assert_nothing_is_wrong(report: Json, pid: int) -> None:
    assert report["trace"]["stop_reason"] == "the process exited"
    assert report["process"]["pid"] == pid
    assert {home["owner_pid"] for home in report["userfaultfds"]} == {pid}
    assert report["userfaultfds"][-1]["monitor_pids"] == [pid]
    assert not any(report["loss"].values()), report["loss"]
    for found in report["ranges"]:
        assert [problem for problem in found["findings"] if problem["severity"] == "error"] == []
        assert (found["lost"]["observed"], found["lost"]["blind"], found["pending"]) == (0, 0, 0), found
    assert report["verdict"] == "ok"


def test_qemu_snapshot_went_well(guest: Guest) -> None:
    step = guest.step("qemu-snapshot")
    assert (step["migrate"]["status"], step["qemu_exit_status"]) == ("completed", 0), step
    assert step["saved_bytes"] >= step["migrate"]["ram"]["transferred"]
    # It wrote while it was saved.
    assert step["source"]["counts"]["wp"] > 0


def test_qemu_snapshot_messages_are_what_qemu_read(guest: Guest) -> None:
    step, report = guest.step("qemu-snapshot"), guest.trace("qemu-snapshot").report
    counts = step["source"]["counts"]
    assert counts["other_events"] == 0
    assert {kind: total(report, kind) for kind in KINDS} == {kind: counts[kind] for kind in KINDS}


def test_qemu_snapshot_protects_its_ram_blocks(guest: Guest) -> None:
    step, report = guest.step("qemu-snapshot"), guest.trace("qemu-snapshot").report
    ranges = own_ranges(report, step["blocks"])
    assert {name: found["modes"] for name, found in ranges.items()} == {name: ["wp"] for name in ranges}
    assert {found["memory"] for found in ranges.values()} == {"anon"}
    # It populates first, so that nothing of what it protects is empty.
    assert [found["holes"] for found in ranges.values()] == [0] * len(ranges)
    assert [found["armed_pages"] for found in ranges.values()] == [found["pages"] for found in ranges.values()]
    protected = sum(found["armed_pages"] * found["page_size"] for found in ranges.values())
    assert protected == step["source"]["counts"]["protect_bytes"]


def test_qemu_snapshot_verdict(guest: Guest) -> None:
    step = guest.step("qemu-snapshot")
    assert_nothing_is_wrong(guest.trace("qemu-snapshot").report, step["source"]["pid"])


def test_qemu_postcopy_went_well(guest: Guest) -> None:
    step = guest.step("qemu-postcopy")
    assert (step["migrate"]["status"], step["arrived"]["status"]) == ("completed", "completed"), step
    assert step["qemu_exit_statuses"] == [0, 0]
    assert step["destination"]["counts"]["missing"] > 0


def test_qemu_postcopy_messages_are_what_qemu_read(guest: Guest) -> None:
    step, report = guest.step("qemu-postcopy"), guest.trace("qemu-postcopy").report
    counts = step["destination"]["counts"]
    assert counts["other_events"] == 0
    assert {kind: total(report, kind) for kind in KINDS} == {kind: counts[kind] for kind in KINDS}
    assert total(report, "missing") == step["requested"]
    assert sum(found["notified_pages"] for found in report["ranges"]) == step["requested_pages"]


def test_qemu_postcopy_requests(guest: Guest) -> None:
    """query-migrate's postcopy-requests: the pages that the destination asked the source for.

    It asks once per message, but not where the page arrived between fault and message.
    """
    step, report = guest.step("qemu-postcopy"), guest.trace("qemu-postcopy").report
    requests = step["migrate"]["ram"]["postcopy-requests"]
    assert requests == step["requests_sent"]
    assert 0 < requests <= total(report, "missing")


def test_qemu_postcopy_registers_its_ram_blocks(guest: Guest) -> None:
    step, report = guest.step("qemu-postcopy"), guest.trace("qemu-postcopy").report
    ranges = own_ranges(report, step["blocks"])
    assert {name: found["modes"] for name, found in ranges.items()} == {name: ["missing"] for name in ranges}
    assert ranges["pc.ram"]["messages"]["missing"] > 0
    assert {found["memory"] for found in ranges.values()} == {"anon"}


def test_qemu_postcopy_verdict(guest: Guest) -> None:
    step = guest.step("qemu-postcopy")
    assert_nothing_is_wrong(guest.trace("qemu-postcopy").report, step["destination"]["pid"])


def test_where_qemu_says_that_its_memory_is(guest: Guest) -> None:
    """By the bytes there, and by the RAM blocks of its own trace."""
    step = guest.step("qemu-snapshot")
    told = step["map"]
    assert told["exit_status"] == 0, told["stderr"]
    assert all(same for *_, same in told["blocks"]), told["blocks"]
    ram = {name: (int(start, 16), length) for name, start, length in step["blocks"]}
    start, length = ram["pc.ram"]
    parts = [(host, size, physical) for name, host, size, physical, _ in told["blocks"] if name == "pc.ram"]
    assert parts and all(host - physical == start and physical + size <= length for host, size, physical in parts)
