"""The proof that the probes fire on this kernel: a child of ours does what they watch for, and they must tell of it.

A probe that is attached may still never run: the compiler can inline a function into
its callers, or split it, and leave a copy that nobody calls. Then the trace would be
silent about what that probe is there for, and nothing else would show it.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from uffdtrace.collect import provoker
from uffdtrace.collect.child import bind_to_parent
from uffdtrace.collect.program import Program
from uffdtrace.collect.ring import Stream
from uffdtrace.kernel import proc
from uffdtrace.kernel.probes import Attachment
from uffdtrace.model.records.acts import unfolded
from uffdtrace.model.records.batch import Batch
from uffdtrace.model.records.counting import one_of
from uffdtrace.model.records.events import Array, Type

# By row: the events of which one must come. What is not here is not provoked: KSM, swap and
# hugetlb need more than a child can bring along.
_TELLS: dict[str, tuple[Type, ...]] = {
    "faults": (Type.FAULT,),
    "fault-returns": (Type.FAULT_RETURN,),
    "messages": (Type.MESSAGE,),
    "wakes": (Type.WAKE,),
    "ioctls": (Type.IOCTL,),
    "ioctl-returns": (Type.IOCTL_RETURN,),
    "registrations": (Type.AREA_REGISTERED,),
    "releases": (Type.RELEASE,),
    "polls": (Type.POLL,),
    "protection": (Type.PROTECT,),
    "protection-returns": (Type.PROTECT_RETURN,),
    "page-commits": (Type.FRESH_PAGE,),
    "anonymous-faults": (Type.ZERO_PAGE,),
    "huge-faults": (Type.HUGE_PAGE,),
    "huge-writes": (Type.HUGE_WRITE,),
    "huge-write-returns": (Type.HUGE_WRITE,),
    "unprotected-writes": (Type.UNPROTECTED_WRITE,),
    "file-faults": (Type.FILE_PAGE,),
    "discards": (Type.DISCARD,),
    "zaps": (Type.ZAP,),
    "zap-returns": (Type.ZAP_RETURN,),
    # Through which of two functions madvise() goes is the kernel's: both rows send the same.
    "advised-zaps": (Type.ZAP,),
    "advised-zap-returns": (Type.ZAP_RETURN,),
    "unmaps": (Type.UNMAP,),
    "exits": (Type.EXIT,),
    "forks": (Type.FORK,),
    "remaps": (Type.REMAP,),
    "remap-returns": (Type.REMAP_RETURN,),
    "events": (Type.EVENT,),
    "page-scans": (Type.PAGE_SCAN,),
    "page-scan-returns": (Type.PAGE_SCAN_RETURN,),
    "areas": (Type.AREA,),
    "descriptors": (Type.USERFAULTFD,),
}
# Rows that are provoked only where the child finds such memory.
_OF_HUGE_PAGES = {"huge-faults", "huge-writes", "huge-write-returns"}
_OF_SHARED_MEMORY = {"file-faults"}
# An emulated machine with others beside it takes several seconds.
_CHILD_S = 15.0
_DONE, _GO = b"\0", b"\1"
# Two probes at once, or a full ring, can cost one event: that does not make a probe silent.
_TRIES = 3


@dataclass
class Proof:
    """What was seen: rows that told of the child, rows that should have and did not, and rows that nobody tried."""

    proven: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    not_tried: list[str] = field(default_factory=list)
    # Why nothing could be tried.
    problem: str = ""


def prove(program: Program, stream: Stream) -> Proof:
    """Have each row that can be provoked tell of a child of ours; nothing of it stays in the stream or the maps."""
    rows = list(dict.fromkeys(attachment.row.name for attachment in program.attachments))
    seen: set[int] = set()
    tried: set[str] = set()
    lost = _lost(program)
    for _ in range(_TRIES):
        events, problem, provoked = _one(program, stream)
        if problem:
            return Proof(not_tried=rows, problem=problem)
        seen |= set(np.unique(unfolded(Batch(events))["type"]).tolist())
        tried |= provoked
        if all(_told(row, seen) for row in rows if row in tried):
            break
    else:
        # What is missing may be among what was lost.
        if _lost(program) != lost:
            return Proof(not_tried=rows, problem="events were lost meanwhile")
    return Proof(
        [row for row in rows if row in tried and _told(row, seen)],
        [row for row in rows if row in tried and not _told(row, seen)],
        [row for row in rows if row not in tried],
    )


def _lost(program: Program) -> int:
    return sum(program.losses().values())


def _told(row: str, seen: set[int]) -> bool:
    return any(int(kind) in seen for kind in _TELLS[row])


def _one(program: Program, stream: Stream) -> tuple[Array, str, set[str]]:
    """The events of one child; why it came to no end; the rows that it provoked."""
    to_child, from_child = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(to_child[0], from_child[1])
    try:
        os.close(to_child[0])
        os.close(from_child[1])
        program.follow(pid)
        os.write(to_child[1], _GO)
        said = _said(from_child[0])
        whole = said.startswith(_DONE)
        if whole:
            proc.fdinfo(pid, said[1])
            proc.areas(pid)
        stream.peek()
        # While the child lives, nobody else has these addresses.
        program.forget_counters(set(_addresses(stream.held, pid).tolist()))
        if whole:
            os.write(to_child[1], _GO)
            os.read(from_child[0], 1)
    except BrokenPipeError:
        # Its alarm ended it, or somebody killed it.
        said, whole = b"the child was gone before it was done", False
    finally:
        for fd in (to_child[1], from_child[0]):
            os.close(fd)
        _reap(pid)
    events = _taken_out(program, stream, pid)
    if not whole:
        return events, said.decode(errors="replace") or "the child ended", set()
    huge, shared = said[2:4]
    tried = set(_TELLS) - (set() if huge else _OF_HUGE_PAGES) - (set() if shared else _OF_SHARED_MEMORY)
    return events, "", tried


def _taken_out(program: Program, stream: Stream, pid: int) -> Array:
    """The events of a child that is gone: from here on nothing of it is in the stream or the maps."""
    stream.peek()
    own = _of_child(stream.held, pid)
    events = stream.held[own]
    stream.held = stream.held[~own]
    stream.forget_stacks(pid)
    # Where these probes fire, they have done it already, before others could have the same addresses.
    if not {int(Type.EXIT), int(Type.RELEASE)} <= set(events["type"].tolist()):
        program.forget(pid, _addresses(events, pid).tolist())
    return events


def _addresses(events: Array, pid: int) -> Array:
    """Where the child's userfaultfds and its memory are in the kernel."""
    told = (events["type"] == Type.USERFAULTFD) & (events["aux"] == pid)
    own: Array = np.unique(np.concatenate([events["ctx"][told], events["start"][told]]))
    return own


def _of_child(events: Array, pid: int) -> Array:
    """Which events tell of the child, its userfaultfds and its memory."""
    mine: Array = one_of(events["ctx"], _addresses(events, pid).tolist()) | (events["tgid"] == pid)
    return mine


def _child(go: int, said: int) -> None:
    """Never returns."""
    try:
        bind_to_parent(signal.SIG_IGN)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(_CHILD_S) + 1)
        os.read(go, 1)
        provoker.provoke(lambda *found: _write(said, _DONE + bytes(found)), lambda: _wait(go))
        os._exit(0)
    except BaseException as error:  # noqa: BLE001 - whatever it was, the parent tells of it
        os.write(said, str(error).encode()[:200])
    finally:
        os._exit(1)


def _write(fd: int, data: bytes) -> None:
    os.write(fd, data)


def _wait(fd: int) -> None:
    os.read(fd, 1)


def _said(fd: int) -> bytes:
    """What the child wrote: _DONE and what provoke() says, or why it failed; nothing where it ended without a word."""
    if not select.select([fd], [], [], _CHILD_S)[0]:
        return b"the child did not come to its end in time"
    return os.read(fd, 256)


def _reap(pid: int) -> None:
    deadline = time.monotonic() + _CHILD_S
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return
        time.sleep(0.002)


def numbers(attachments: Iterable[Attachment], silent: list[str]) -> list[str]:
    """The report's fields that rest on these rows."""
    return sorted({name for one in attachments if one.row.name in silent for name in one.row.numbers})


def unproven(attachments: Iterable[Attachment], found: Proof) -> dict[str, list[str]] | None:
    """The silent rows, each with the report's fields that rest on it; None where nothing could be tried."""
    return None if found.problem else {row: numbers(attachments, [row]) for row in found.silent}


def sentences(attachments: Iterable[Attachment], found: Proof) -> list[str]:
    """What the user must know: nothing where all that was tried was seen."""
    if found.problem:
        return [f"the probes were not tried ({found.problem}): whether each of them fires here is not known"]
    said = []
    places = {one.row.name: one.place for one in attachments}
    for row in found.silent:
        rest = ", ".join(numbers(attachments, [row]))
        said.append(
            f"{row}: the probe on {places[row]} saw nothing of what it was tried with"
            + (f", so these are lower bounds: {rest}" if rest else "")
            + ": report the kernel's version to the project"
        )
    return said
