"""Stacks tell on whose behalf a thread wrote: the program says which thread wrote in which way."""

from __future__ import annotations

import re

import pytest
from guest.results import Guest, Json

# What the report calls each of the program's ways, and the function of user space from which the kernel was entered.
# glibc's have no frame pointers: whoever called them is passed over.
WAYS = {
    "own": ("its own code", "write_here"),
    "read": ("a system call", "read"),
    "process_vm_writev": ("process_vm_writev", "process_vm_writev"),
    "mlock": ("populate", "mlock"),
    "io_uring": ("io_uring", "syscall"),
    "kvm": ("kvm", "ioctl"),
    "vhost": ("vhost", ""),
    "kvm_async": ("kvm", ""),
}
# What a thread of the kernel's is called that writes instead; it may have its owner's number. For io_uring there is one
# where the file system has to wait.
WORKERS = {"io_uring": "iou-wrk-{}", "vhost": "vhost-{}", "kvm_async": r"kworker/\S+:\d+"}


def stacks_of(guest: Guest, tid: int, event: str) -> list[Json]:
    stacks = guest.trace("writers").report["stacks"]
    return [one for one in stacks if one["tid"] == tid and (one["event"] == "protect") == (event == "protect")]


def functions(frames: list[str]) -> list[str]:
    return [frame.partition("+")[0] for frame in frames]


def entered_from(stack: Json) -> str:
    """Of glibc's names for it (`read`, `__read`, `__libc_read`) any may be found."""
    return functions(stack["user"])[0].removeprefix("__").removeprefix("libc_")


def is_worker(stack: Json, name: str, ways: dict[str, int]) -> bool:
    return bool(re.fullmatch(WORKERS[name].format(ways[name]), stack["thread"] or ""))


def test_each_way_is_told_apart(guest: Guest) -> None:
    ways = guest.step("writers")["ways"]
    # Debian's 5.10 to 7.2 have io_uring and vhost, and every guest's CPU has what KVM needs: emulated ones AMD's SVM,
    # and that of a guest of KVM's what the host's has.
    assert set(ways) == {"armed", *WAYS}
    for name, (way, function) in WAYS.items():
        own = stacks_of(guest, ways[name], "page")
        if name in WORKERS and not own:
            named = [one for one in guest.trace("writers").report["stacks"] if is_worker(one, name, ways)]
            assert [one["way"] for one in named] == [way], (name, named)
            continue
        (stack,) = own
        assert stack["way"] == way, (name, stack)
        assert stack["thread"] == "writers"
        assert entered_from(stack) == function and "act" in functions(stack["user"]), (name, stack)


def test_stacks_begin_at_the_probe(guest: Guest) -> None:
    for stack in guest.trace("writers").report["stacks"]:
        assert not functions(stack["kernel"])[0].startswith(("bpf_", "0x")), stack
        assert "handle_mm_fault" in functions(stack["kernel"]) or stack["event"] == "protect", stack


def test_who_armed(guest: Guest) -> None:
    # Twice, by the second time it is armed twice as often.
    stacks = stacks_of(guest, guest.step("writers")["ways"]["armed"], "protect")
    assert [stack["thread"] for stack in stacks] == ["writers"] * 2
    for stack in stacks:
        assert entered_from(stack) == "ioctl"
        # Before "x86/unwind: Recover kretprobe trampoline entry" (19138af1bd88, 5.16) a kretprobe hides who called.
        assert "userfaultfd_ioctl" in functions(stack["kernel"]) or guest.suite == "bullseye"


def test_each_lost_page_has_its_stack(guest: Guest) -> None:
    report = guest.trace("writers").report
    runs = [run for found in report["ranges"] for run in found["lost"]["runs"]]
    told = {(one["tid"], one["at_s"]) for one in report["stacks"]}
    # Of the last one the monitor was told.
    assert sum(run["pages"] for run in runs) == len(WAYS) - 1
    assert {(run["tid"], run["first_s"]) for run in runs} <= told


def test_what_kvm_tries_without_waiting_is_no_fault(guest: Guest) -> None:
    """The guest's CPU comes first, and leaves the page to a thread that waits for the monitor."""
    (found,) = (one for one in guest.trace("writers").report["ranges"] if "missing" in one["modes"])
    assert (found["faults"]["missing"], found["messages"]["missing"], found["verdict"]) == (1, 1, "ok")


def test_nobody_else_is_told_of(guest: Guest) -> None:
    """Not the child by which the probes are tried."""
    ways = guest.step("writers")["ways"]
    for stack in guest.trace("writers").report["stacks"]:
        assert stack["thread"] == "writers" or any(is_worker(stack, name, ways) for name in WORKERS), stack


@pytest.mark.once
def test_where_those_stand_who_sleep_at_the_end(guest: Guest) -> None:
    report = guest.trace("pending").report
    waiting = {wait["tid"] for found in report["ranges"] for wait in found["waiting"] or []}
    stacks = {one["tid"]: one for one in report["stacks"] if one["event"] == "asleep"}
    assert waiting and set(stacks) == waiting
    assert {one["way"] for one in stacks.values()} == {"its own code"} and all(one["user"] for one in stacks.values())
