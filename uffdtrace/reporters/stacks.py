"""Stacks of those who wrote, populated or armed: who they are, and their frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.text import Text

from uffdtrace.model.diagnosis.document import ReportDict, StackDict
from uffdtrace.model.diagnosis.stacks import ASLEEP
from uffdtrace.reporters.harmless import printable
from uffdtrace.reporters.words import shorten, thread

_MOST_FRAME = 100
# What a way (model.diagnosis.stacks.WAYS) is within a sentence.
_WORDS = {
    "its own code": "in its own code",
    "a system call": "in a system call",
    "kvm": "in KVM, for its guest",
    "vhost": "in vhost, for its guest",
    "io_uring": "in io_uring",
    "process_vm_writev": "in process_vm_writev, from outside",
    "ptrace": "by ptrace, from outside",
    "fork": "in fork",
    "populate": "in mlock, MAP_POPULATE or MADV_POPULATE",
    "ksm": "in KSM",
}
_ARMED = "protect"
_ACTS = {_ARMED: "armed", ASLEEP: "slept in a fault at the end"}


def of_run(report: ReportDict, tid: int, first_s: float) -> StackDict | None:
    """The stack of the write with which a run of lost pages began; else of an earlier one of that thread."""
    return _last(report, lambda one: one["tid"] == tid and one["event"] not in _ACTS and one["at_s"] <= first_s)


def of_sleeper(report: ReportDict, tid: int) -> StackDict | None:
    """Where a thread stood that still slept when the trace ended."""
    return _last(report, lambda one: one["tid"] == tid and one["event"] == ASLEEP)


def _last(report: ReportDict, wanted: Callable[[StackDict], bool]) -> StackDict | None:
    found = [one for one in report["stacks"] if wanted(one)]
    return found[-1] if found else None


def where(stack: StackDict) -> str:
    """How the thread came to the page: `in KVM, for its guest`, `in its own code (memcpy)`; empty if nothing tells."""
    said = _WORDS.get(stack["way"], "")
    if stack["way"] == "its own code" and stack["user"]:
        # The function alone: where in which file is with the frames.
        said += f" ({frame(stack['user'][0]).partition('+')[0]})"
    return said


def frame(one: str) -> str:
    return shorten(printable(one), _MOST_FRAME)


def did(stack: StackDict) -> str:
    """`255 "CPU 2/KVM" touched a page in KVM, for its guest: fresh-page, 0.308 s into the trace`."""
    act = _ACTS.get(stack["event"], "touched a page")
    ways = "" if stack["event"] == _ARMED else f" {where(stack)}".rstrip()
    return f"{thread(stack)} {act}{ways}: {printable(stack['event'])}, {stack['at_s']:.3f} s into the trace"


def render_stacks(console: Console, stacks: Sequence[StackDict]) -> None:
    """All of them, each with its frames, those of the kernel first."""
    if not stacks:
        console.print(
            "No stack was recorded: nobody came to armed memory unasked, or the trace is of an older uffdtrace.\n"
        )
        return
    for stack in stacks:
        console.print(Text("Thread " + did(stack), style="bold"))
        for side in ("kernel", "user"):
            frames = stack["kernel"] if side == "kernel" else stack["user"]
            for at, one in enumerate(frames):
                console.print(Text(f"  {side if not at else '':6}  {frame(one)}"))
        console.print()
