"""Stacks tell on whose behalf a thread wrote: the program says which thread wrote in which way."""

from __future__ import annotations

import pytest
from guest.results import Guest, Json

# What the report calls each of the program's ways, and the function of user space from which the kernel was entered.
# glibc's have no frame pointers: whoever called them is passed over.
WAYS = {
    "own": ("its own code", "write_here"),
    "read": ("a system call", "__read"),
    "process_vm_writev": ("process_vm_writev", "process_vm_writev"),
    "mlock": ("populate", "mlock"),
    "io_uring": ("io_uring", "syscall"),
}


def stacks_of(guest: Guest, tid: int, event: str) -> list[Json]:
    stacks = guest.trace("writers").report["stacks"]
    return [one for one in stacks if one["tid"] == tid and (one["event"] == "protect") == (event == "protect")]


def functions(frames: list[str]) -> list[str]:
    return [frame.partition("+")[0] for frame in frames]


def test_each_way_is_told_apart(guest: Guest) -> None:
    ways = guest.step("writers")["ways"]
    # Debian's 5.10 to 7.2 have io_uring.
    assert set(ways) == {"armed", *WAYS}
    for name, (way, function) in WAYS.items():
        if name == "io_uring" and not stacks_of(guest, ways[name], "page"):
            # A thread of the kernel's does it for that one where the file system has to wait.
            worker = f"iou-wrk-{ways[name]}"
            assert [one["way"] for one in guest.trace("writers").report["stacks"] if one["thread"] == worker] == [way]
            continue
        (stack,) = stacks_of(guest, ways[name], "page")
        assert stack["way"] == way, (name, stack)
        assert stack["thread"] == "writers"
        assert functions(stack["user"])[0] == function and "act" in functions(stack["user"]), (name, stack)


def test_stacks_begin_at_the_probe(guest: Guest) -> None:
    for stack in guest.trace("writers").report["stacks"]:
        assert not functions(stack["kernel"])[0].startswith(("bpf_", "0x")), stack
        assert "handle_mm_fault" in functions(stack["kernel"]) or stack["event"] == "protect", stack


def test_who_armed(guest: Guest) -> None:
    (stack,) = stacks_of(guest, guest.step("writers")["ways"]["armed"], "protect")
    assert functions(stack["user"])[0] == "__ioctl"
    # Before "x86/unwind: Recover kretprobe trampoline entry" (19138af1bd88, 5.16) a kretprobe hides who called.
    assert "userfaultfd_ioctl" in functions(stack["kernel"]) or guest.suite == "bullseye"


def test_each_lost_page_has_its_stack(guest: Guest) -> None:
    report = guest.trace("writers").report
    runs = [run for found in report["ranges"] for run in found["lost"]["runs"]]
    told = {(one["tid"], one["at_s"]) for one in report["stacks"]}
    assert sum(run["pages"] for run in runs) == len(WAYS)
    assert {(run["tid"], run["first_s"]) for run in runs} <= told


def test_nobody_else_is_told_of(guest: Guest) -> None:
    """Not the child by which the probes are tried."""
    named = {one["thread"] for one in guest.trace("writers").report["stacks"]}
    assert all(name == "writers" or name.startswith("iou-wrk-") for name in named)


@pytest.mark.once
def test_where_those_stand_who_sleep_at_the_end(guest: Guest) -> None:
    report = guest.trace("pending").report
    waiting = {wait["tid"] for found in report["ranges"] for wait in found["waiting"] or []}
    stacks = {one["tid"]: one for one in report["stacks"] if one["event"] == "asleep"}
    assert waiting and set(stacks) == waiting
    assert {one["way"] for one in stacks.values()} == {"its own code"} and all(one["user"] for one in stacks.values())
