"""What the proof at start says of what its child's events told; tests/guest has real kernels."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
import pytest
from unit.machine import events

from uffdtrace.collect import proof
from uffdtrace.collect.proof import Proof
from uffdtrace.kernel.probes import TABLE, Attachment, ProbeKind
from uffdtrace.model.records.events import EVENT, Loss, Type

CHILD, CTX, MM = 4000, 0x1000, 0x2000
ATTACHMENTS = [Attachment(row, row.candidates[0], ProbeKind.FENTRY, (), 0) for row in TABLE]
ALL = sorted({int(kind) for kinds in proof._TELLS.values() for kind in kinds})


class FakeProgram:
    attachments = ATTACHMENTS
    lost = 0

    def losses(self) -> dict[Loss, int]:
        return {Loss.RING_FULL: self.lost}


class FakeStream:
    pass


def proven(monkeypatch: pytest.MonkeyPatch, *tries: tuple[list[int], str, bool], lost: int = 0) -> Proof:
    """`lost` events are lost in each try."""
    program, stream = FakeProgram(), FakeStream()
    left = list(tries)

    def one(*_: object) -> tuple[Any, str, set[str]]:
        seen, problem, huge = left.pop(0)
        program.lost += lost
        provoked = set(proof._TELLS) - (set() if huge else proof._OF_HUGE_PAGES)
        return events(*({"type": kind} for kind in seen)), problem, provoked

    monkeypatch.setattr(proof, "_one", one)
    found = proof.prove(program, stream)  # type: ignore[arg-type]
    assert not left
    assert sorted([*found.proven, *found.silent, *found.not_tried]) == sorted({one.row.name for one in ATTACHMENTS})
    return found


def test_every_row_that_is_tried_is_in_the_table() -> None:
    assert set(proof._TELLS) <= {row.name for row in TABLE}


def test_all_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = proven(monkeypatch, (ALL, "", True))
    assert not found.silent and set(found.proven) == set(proof._TELLS) & {one.row.name for one in ATTACHMENTS}
    assert proof.sentences(ATTACHMENTS, found) == []


def test_one_that_never_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = [kind for kind in ALL if kind != Type.DISCARD]
    found = proven(monkeypatch, *[(silent, "", True)] * 3)
    assert found.silent == ["discards"]
    (sentence,) = proof.sentences(ATTACHMENTS, found)
    assert sentence.startswith("discards: the probe on userfaultfd_remove saw nothing")
    assert "lower bounds: lost" in sentence
    assert proof.numbers(ATTACHMENTS, found.silent) == ["lost"]


def test_a_second_try_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = [kind for kind in ALL if kind != Type.DISCARD]
    assert proven(monkeypatch, (silent, "", True), (ALL, "", True)).silent == []


def test_what_is_missing_may_have_been_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = [kind for kind in ALL if kind != Type.DISCARD]
    found = proven(monkeypatch, *[(silent, "", True)] * 3, lost=1)
    assert (found.proven, found.silent, found.problem) == ([], [], "events were lost meanwhile")
    assert proof.unproven(ATTACHMENTS, found) is None
    # All that came, came.
    assert proven(monkeypatch, (ALL, "", True), lost=1).problem == ""


def test_no_huge_pages_were_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    small = [kind for kind in ALL if kind not in (Type.HUGE_PAGE, Type.HUGE_WRITE)]
    found = proven(monkeypatch, (small, "", False))
    assert not found.silent and {"huge-faults", "huge-writes"} <= set(found.not_tried)


def test_a_child_that_failed_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = proven(monkeypatch, ([], "no memory", False))
    assert (found.proven, found.silent) == ([], [])
    assert "no memory" in proof.sentences(ATTACHMENTS, found)[0]


class Kernel:
    """A program without probes, and the stream of it: what one child left there."""

    def __init__(self) -> None:
        self.held = np.empty(0, dtype=EVENT)
        self.pid = 0
        self.forgotten: list[tuple[int, list[int]]] = []
        self.counters: set[int] = set()

    def follow(self, pid: int) -> None:
        self.pid = pid

    def peek(self) -> None:
        if not len(self.held):
            uffd = {"type": Type.USERFAULTFD, "ctx": CTX, "start": MM, "aux": self.pid, "tgid": self.pid}
            other = {"type": Type.UNMAP, "ctx": MM + 8, "tgid": 7}
            self.held = events(uffd, {"type": Type.FAULT, "ctx": CTX, "tgid": self.pid}, other)

    def forget_stacks(self, tgid: int) -> None:
        assert tgid == self.pid

    def forget(self, pid: int, addresses: list[int]) -> None:
        self.forgotten.append((pid, addresses))

    def forget_counters(self, userfaultfds: set[int]) -> None:
        self.counters |= userfaultfds


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_a_child_stays(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """A real child, which does nothing; it may also come to no end."""

    def provoke(say: Any, wait: Any) -> None:
        if fails:
            raise TimeoutError("no message came")
        say(3, True, False)
        wait()

    monkeypatch.setattr(proof.provoker, "provoke", provoke)
    kernel: Any = Kernel()
    found, problem, provoked = proof._one(kernel, kernel)
    assert found["type"].tolist() == [Type.USERFAULTFD, Type.FAULT]
    assert kernel.held["type"].tolist() == [Type.UNMAP]
    # Its exit was not seen.
    assert kernel.forgotten == [(kernel.pid, [CTX, MM])] and kernel.counters == {CTX, MM}
    assert problem == ("no message came" if fails else "")
    assert provoked == (set() if fails else set(proof._TELLS) - {"file-faults"})
    with pytest.raises(ChildProcessError):
        os.waitpid(kernel.pid, 0)


@pytest.mark.parametrize("said", [False, True])
def test_a_child_that_is_killed_proves_nothing(monkeypatch: pytest.MonkeyPatch, said: bool) -> None:
    """Before it begins, or once it has done all and waits."""

    def provoke(say: Any, wait: Any) -> None:
        say(3, True, False)
        wait()

    def kill(pid: int, *_: Any) -> None:
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    class Killing(Kernel):
        def follow(self, pid: int) -> None:
            super().follow(pid)
            if not said:
                kill(pid)

    monkeypatch.setattr(proof.provoker, "provoke", provoke)
    monkeypatch.setattr(proof.proc, "fdinfo", kill)
    kernel: Any = Killing()
    _, problem, provoked = proof._one(kernel, kernel)
    assert (problem, provoked) == ("the child was gone before it was done", set())
    with pytest.raises(ChildProcessError):
        os.waitpid(kernel.pid, 0)


def test_which_events_are_the_childs() -> None:
    """Others are traced already, where everybody is."""
    made = events(
        {"type": Type.USERFAULTFD, "ctx": CTX, "start": MM, "aux": CHILD, "tgid": CHILD},
        {"type": Type.ZAP_RETURN, "ctx": CTX, "tgid": CHILD},
        {"type": Type.UNMAP, "ctx": MM},
        {"type": Type.PROCESS_NAME, "tgid": CHILD},
        {"type": Type.USERFAULTFD, "ctx": CTX + 8, "start": MM + 8, "aux": 7, "tgid": 7},
        {"type": Type.UNMAP, "ctx": MM + 8},
    )
    assert proof._of_child(made, CHILD).tolist() == [True, True, True, True, False, False]
    assert proof._of_child(np.empty(0, dtype=EVENT), CHILD).tolist() == []
