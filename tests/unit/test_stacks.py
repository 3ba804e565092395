"""Stacks: their records put together, frames named, and what they say of whoever wrote."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from unit.events import Events
from unit.reports import a_range, a_report
from unit.traces import history, write

from uffdtrace.collect import stacks as module
from uffdtrace.collect.ring import Stream
from uffdtrace.collect.stacks import Namer, Stacks
from uffdtrace.model.diagnosis.stacks import MOST_STACKS, WAYS, Stack, told, way
from uffdtrace.model.records.events import EVENT, STACK_NAME, STACK_USER, Array, Type
from uffdtrace.reporters import offline
from uffdtrace.reporters.options import TextOptions
from uffdtrace.reporters.stacks import did, where
from uffdtrace.reporters.summary import answer
from uffdtrace.reporters.text import render
from uffdtrace.trace.reader import Reader
from uffdtrace.trace.writer import Writer

SYMBOLS = """\
ffffffff81000000 T probed
ffffffff81000100 t handle_mm_fault
ffffffff81000200 D some_data
ffffffff81000300 T asm_exc_page_fault
ffffffffc0000000 t bpf_trampoline_1\t[bpf]
ffffffffc0100000 t kvm_mmu_page_fault\t[kvm]
"""
PROBED, FAULT, EXCEPTION = 0xFFFFFFFF81000009, 0xFFFFFFFF81000110, 0xFFFFFFFF81000326
TRAMPOLINE, KVM = 0xFFFFFFFFC0000041, 0xFFFFFFFFC0100020


class Cache:
    """BCC's, for a process whose memory has one function."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def resolve(self, address: int, demangle: bool) -> tuple[bytes | None, int, bytes | None]:
        if address == 666:
            os._exit(3)
        if address == 777:
            time.sleep(60)
        if address < 0x1000:
            return None, address, None
        if address < 0x2000:
            return None, address - 0x1000, b"/usr/lib/libc.so.6"
        return b"write_here", address - 0x2000, b"/usr/bin/tracker"


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stacks]:
    (tmp_path / "kallsyms").write_text(SYMBOLS)
    monkeypatch.setattr(module, "KALLSYMS", tmp_path / "kallsyms")
    found = Stacks(cast(Any, SimpleNamespace(SymbolCache=Cache)), ["probed"])
    yield found
    found.close()


def records(kernel: list[int], user: list[int], at: int = 5, tid: int = 7, name: str = "CPU 2/KVM") -> Array:
    """What the BPF program sends of a stack."""
    slots = [kernel[first : first + 5] for first in range(0, 20, 5)] + [
        user[first : first + 5] for first in range(0, 15, 5)
    ]
    found = np.zeros(len(slots) + 1, dtype=EVENT)
    found["type"], found["time"], found["tid"], found["tgid"] = Type.STACK, at, tid, 6
    found["flags"], found["kind"] = Type.FRESH_PAGE, range(len(found))
    for record, frames in zip(found, slots):
        for field, frame in zip(("ctx", "start", "end", "aux", "value"), frames):
            record[field] = np.uint64(frame).astype(found.dtype[field])
    words = np.frombuffer(name.encode().ljust(16, b"\0"), dtype="<u8")
    found[STACK_NAME]["start"], found[STACK_NAME]["end"] = words
    assert found[STACK_USER]["ctx"] == (user or [0])[0]
    return found


NONE = Events().array()


def test_frames_have_names_from_the_probe_on(made: Stacks) -> None:
    (stack,) = made.rest(
        records([TRAMPOLINE, PROBED, TRAMPOLINE, PROBED, FAULT, EXCEPTION, KVM], [0x2012, 0x1005, 0x10])
    )
    assert stack == Stack(
        7,
        5,
        "fresh-page",
        ["probed+0x9", "handle_mm_fault+0x10", "asm_exc_page_fault+0x26", "kvm_mmu_page_fault [kvm]+0x20"],
        ["write_here+0x12 (tracker)", "0x5 (libc.so.6)", "0x10"],
    )
    assert made.names == {7: "CPU 2/KVM"}


def test_records_come_in_parts_and_several_stacks_at_once(made: Stacks) -> None:
    one, other = records([PROBED, FAULT] * 8, [0x2000] * 12), records([PROBED], [], at=6, tid=8)
    found = made.take(np.concatenate([one[:3], other]))
    found += made.take(one[3:])
    found += made.rest(NONE)
    by_tid = {stack.tid: stack for stack in found}
    assert [len(by_tid[7].kernel), len(by_tid[7].user)] == [16, 12] and by_tid[8].kernel == ["probed+0x9"]
    assert len(found) == 2


@pytest.mark.parametrize("address", [666, 777])
def test_a_file_that_kills_or_stops_whoever_reads_it(
    made: Stacks, monkeypatch: pytest.MonkeyPatch, address: int
) -> None:
    monkeypatch.setattr(module, "_LAST_S", 0.3)
    found = made.take(records([PROBED], [address])) + made.rest(records([FAULT], [0x2000], at=9))
    # The second one is not asked for where the child is known to be dead by then, and comes first.
    assert sorted((stack.time, stack.kernel, stack.user) for stack in found) == [
        (5, [hex(PROBED)], [hex(address)]),
        (9, [hex(FAULT)], ["0x2000"]),
    ]


@pytest.mark.parametrize(
    "said",
    [
        b"\xff",
        b"[" * 60_000,
        b"{}",
        b'{"number": 9, "tgid": 1, "kernel": [], "user": []}',
        b'{"number": 0, "tgid": 1, "kernel": [1], "user": []}',
    ],
)
def test_a_child_that_a_targets_file_has_taken_over(made: Stacks, monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    monkeypatch.setattr(made._child, "receive", lambda seconds=0.0: said)
    (stack,) = made.rest(records([PROBED], [0x2000]))
    assert (stack.kernel, stack.user, made.unnamed) == ([hex(PROBED)], ["0x2000"], 1)
    monkeypatch.undo()
    # It is gone, and nobody waits for it.
    assert len(made.rest(records([PROBED], [], at=9))) == 1 and made._child.receive(60) == b""


def test_where_a_sleeper_stands(made: Stacks, monkeypatch: pytest.MonkeyPatch) -> None:
    places = {7: (None, 0x2000), 8: (0, 0x1001), 9: None}
    monkeypatch.setattr(module.proc, "stands_at", lambda tid: places[tid])
    made.sleepers([(7, 6), (8, 6), (9, 6)], 5)
    found = made.rest(NONE)
    assert [(one.tid, one.event, one.user) for one in found] == [
        (7, "asleep", ["write_here+0x0 (tracker)"]),
        (8, "asleep", ["0x1 (libc.so.6)"]),
    ]
    assert [way(one.kernel) for one in found] == ["its own code", "a system call"]


def test_there_are_no_more_than_a_report_holds(made: Stacks) -> None:
    for at in range(MOST_STACKS + 5):
        made.take(records([PROBED], [], at=at))
    assert len(made.rest(NONE)) <= MOST_STACKS


def test_the_stream_has_no_stacks_among_its_events() -> None:
    class Source:
        blocked = False

        def __init__(self, *parts: Array) -> None:
            self.parts = list(parts)

        def drain(self) -> Array:
            return self.parts.pop(0) if self.parts else NONE

    events = Events()
    events.userfaultfd()
    mixed = np.concatenate([records([PROBED], []), events.array(), records([PROBED], [], tid=9)])
    stream = Stream(cast(Any, Source(mixed)), cast(Any, Source()))
    stream.fetch()
    assert stream.held.tolist() == events.array().tolist()
    stream.forget_stacks(1)
    assert set(stream.stacks()["tid"].tolist()) == {7, 9} and not len(stream.stacks())


def test_a_trace_keeps_them(tmp_path: Path) -> None:
    stack = Stack(7, 1_500_000_500, "fresh-page", ["probed+0x9", "kvm_mmu_page_fault+0x20 [kvm]"], ["\x1b[2J+0x1"])
    path = write(tmp_path / "trace", history(), began=500)
    # Again, as the writer of these tests has no stacks.
    reader = Reader(path)
    events = np.concatenate([some.records for some in reader.events()])
    writer = Writer(tmp_path / "other", {name: value for name, value in reader.meta.items() if name != "schema"})
    writer.stacks([stack] * 3)
    writer.events(events)
    writer.done(reader.ending)
    report = offline.read(tmp_path / "other")
    assert [one["at_s"] for one in report["stacks"]] == [1.5] * 3
    assert report["stacks"][0]["way"] == "kvm"
    out = io.StringIO()
    render(report, out, TextOptions(stacks=True))
    assert "kernel  probed+0x9" in out.getvalue() and "\x1b" not in out.getvalue()


WAYS_OF_FRAMES = [
    (["do_anonymous_page+0x1", "handle_mm_fault+0x2", "exc_page_fault+0x3", "asm_exc_page_fault+0x26"], "its own code"),
    (["handle_mm_fault", "exc_page_fault", "copy_to_user", "vfs_read", "ksys_read", "do_syscall_64"], "a system call"),
    (["__get_user_pages", "process_vm_rw_core.constprop.0+0x1", "do_syscall_64"], "process_vm_writev"),
    (["populate_vma_page_range", "__mm_populate", "do_mlock", "do_syscall_64"], "populate"),
    (["io_read", "io_issue_sqe", "do_syscall_64"], "io_uring"),
    (["vhost_copy_to_user [vhost]+0x1", "vhost_task_fn"], "vhost"),
    (["faultin_page", "kvm_mmu_faultin_pfn", "kvm_vcpu_ioctl", "do_syscall_64"], "kvm"),
    (["get_user_pages_remote", "async_pf_execute [kvm]+0x1", "process_one_work", "worker_thread"], "kvm"),
    (["copy_page_range", "dup_mm", "do_syscall_64"], "fork"),
    (["0xffffffff81000000"], "unknown"),
    ([], "unknown"),
]


@pytest.mark.parametrize(("frames", "expected"), WAYS_OF_FRAMES)
def test_on_whose_behalf(frames: list[str], expected: str) -> None:
    assert way(frames) == expected and expected in WAYS


def test_who_is_told_with_the_first_write() -> None:
    report: Any = a_report(a_range(lost=3))
    (run, *_) = report["ranges"][0]["lost"]["runs"]
    kernel = ["do_anonymous_page+0x1", "kvm_mmu_page_fault+0x2"]
    before = Stack(run["tid"], 1, "fresh-page", ["asm_exc_page_fault+0x1"], ["memset+0x1 (vm)"])
    first = Stack(run["tid"], round(run["first_s"] * 1e9), "fresh-page", kernel, [])
    armed = Stack(run["tid"], round(run["first_s"] * 1e9), "protect", [], [])
    other = Stack(run["tid"] + 1, round(run["first_s"] * 1e9), "fresh-page", ["vhost_a"], [])
    report["stacks"] = told([other, armed, first, before], 0, {run["tid"]: "CPU 2/KVM"})
    who = dict(answer(report).lines)["who"]
    assert "in KVM, for its guest, first" in who
    shown = [did(one) for one in report["stacks"]]
    assert where(report["stacks"][0]) == "in its own code (memset)"
    assert any(" armed: protect, " in one for one in shown)


def test_a_namer_says_no_more_than_a_message_holds() -> None:
    namer = Namer(cast(Any, SimpleNamespace(SymbolCache=Cache)))
    namer._kernel = ([0], ["x" * 70_000])
    answer_ = json.loads(namer(json.dumps({"number": 1, "tgid": 1, "kernel": [5], "user": []}).encode()))
    assert answer_ == {"number": 1, "tgid": 1, "kernel": [], "user": []}
