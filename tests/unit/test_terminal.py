"""The status line: only on a terminal, never in the way of what else is printed there."""

from __future__ import annotations

import itertools
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from unit.events import Events
from unit.reports import PROCESS, TRACE

from uffdtrace.cli.status import StatusLine, describe
from uffdtrace.collect import session
from uffdtrace.collect.program import Program
from uffdtrace.collect.progress import Progress
from uffdtrace.collect.proof import Proof
from uffdtrace.collect.session import Loaded, Options, Session
from uffdtrace.collect.stacks import Stacks
from uffdtrace.kernel import privileges
from uffdtrace.kernel.proc import Process
from uffdtrace.model.records.events import EVENT, Array
from uffdtrace.reporters import offline

ROOT = Path(__file__).resolve().parents[2]
PROGRESS = Progress(elapsed_s=12.3, faults=3072, messages=3071, lost=1024, lost_unknown=False, behind=False)
LINE = "12 s  3,072 faults  3,071 messages  1,024 lost  (Ctrl-C to end)"
ERASE = "\r\x1b[K"

# uffdtrace attach with a session that needs no kernel; what follows is its body.
ATTACH = """
import sys
from uffdtrace.cli import attach, main
from uffdtrace.collect.progress import Progress
from uffdtrace.kernel.preflight import Refusal
from unit.reports import a_range, a_report
from unit.test_terminal import PROGRESS

class Fake:
    def __init__(self, program, options, process, say, show=None):
        self.say, self.show = say, show or (lambda progress: None)
    def run(self, release, ended, wait_fd):
        self.say("tracing tracker (1): Ctrl-C to end")
        self.show(PROGRESS)
        {body}
        return a_report(a_range(lost=1))

attach.Session, attach.load = Fake, lambda options, say: None
attach.preflight.check_privileges = lambda: None
main(["attach", "--color", "never", "-o", "a b", "1"])
"""


class Terminal:
    """A pty, and what was written there; other output of a program goes to a pipe."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()

    def read(self) -> str:
        said = b""
        while select.select([self.master], [], [], 0.2)[0]:
            said += os.read(self.master, 4096)
        return said.decode().replace("\r\n", "\n")

    def attach(self, body: str = "pass", **environment: str) -> tuple[str, str, int]:
        """stderr, stdout and exit status of an attach that does `body` while its line is shown."""
        done = subprocess.run(
            [sys.executable, "-c", ATTACH.format(body=body)],
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "TERM": "xterm", **environment},
            stdout=subprocess.PIPE,
            stderr=self.slave,
            text=True,
            check=False,
        )
        return self.read(), done.stdout, done.returncode


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    os.close(made.master)
    os.close(made.slave)


def screen(said: str) -> list[str]:
    """The lines that are left where \\r goes back and ESC [K erases."""
    return [line.rpartition(ERASE)[2] for line in said.rstrip("\n").split("\n")]


def test_the_line() -> None:
    assert describe(PROGRESS, 80) == LINE
    behind = Progress(1234, 12_345_678, 12_345_678, 1_024_000, lost_unknown=False, behind=True)
    whole = "1,234 s  12,345,678 faults  12,345,678 messages  1,024,000 lost  catching up"
    # A line of the whole width would wrap on some terminals.
    assert describe(behind, 80) == whole and describe(behind, 100) == whole + "  (Ctrl-C to end)"
    assert describe(PROGRESS, len(LINE) + 1) == LINE and describe(PROGRESS, len(LINE)) == LINE.partition("  (")[0]
    assert describe(PROGRESS, 20) == LINE[:19]
    for lost, expected in ((0, "  ? lost  "), (7, "  at least 7 lost  ")):
        assert expected in describe(replace(PROGRESS, lost=lost, lost_unknown=True), 80)


def test_it_is_erased_before_anything_else_is_said(terminal: Terminal) -> None:
    said, report, status = terminal.attach("self.show(PROGRESS); self.say('more')")
    assert status == 0 and said.count(ERASE + LINE) == 2
    assert screen(said) == [
        "uffdtrace: tracing tracker (1): Ctrl-C to end",
        "uffdtrace: more",
        "uffdtrace: the process exited; trace in a b: read it again with uffdtrace report 'a b'",
    ]
    assert "lost-writes" in report and "\x1b" not in report


def test_it_is_erased_where_the_trace_fails(terminal: Terminal) -> None:
    said, _, status = terminal.attach("raise Refusal('no')")
    assert (status, screen(said)) == (1, ["uffdtrace: tracing tracker (1): Ctrl-C to end", "uffdtrace: no"])


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_that_cannot_erase(term: str, terminal: Terminal) -> None:
    said, _, _ = terminal.attach(TERM=term)
    assert "faults" not in said and "\x1b" not in said and said.count("\n") == 2


def test_no_terminal() -> None:
    with open(os.devnull, "w") as stream, StatusLine(stream) as status:
        assert not status.live
        status.show(PROGRESS)


def test_as_wide_as_the_terminal(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with open(terminal.slave, "w", closefd=False) as stream, StatusLine(stream) as status:
        for columns, expected in ((40, LINE[:39]), (100, LINE), (0, LINE)):
            terminal_size(terminal.slave, columns)
            status.show(PROGRESS)
            assert terminal.read() == ERASE + expected
    assert terminal.read() == ERASE


def terminal_size(descriptor: int, columns: int) -> None:
    import fcntl
    import struct
    import termios

    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))


def test_a_terminal_that_was_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGHUP ends the trace: the line must not be what does."""
    monkeypatch.setenv("TERM", "xterm")
    made = Terminal()
    status = StatusLine(open(made.slave, "w", closefd=False))  # noqa: SIM115
    status.show(PROGRESS)
    os.close(made.master)
    status.show(PROGRESS)
    assert not status.live
    os.close(made.slave)


# ---- where the numbers come from --------------------------------------------------


class FakeStream:
    """Batches of events, one a fetch."""

    def __init__(self, batches: list[Array]) -> None:
        self.batches = batches
        self.late = 0
        self.held = getattr(FakeStream, "held_first", Events().array())

    def arrived(self) -> Array:
        return self.held

    def fetch(self) -> int:
        return 0

    def stacks(self) -> Array:
        return Events().array()

    def push(self, events: list[Array]) -> None:
        self.batches += [one for one in events if len(one)]

    def drain(self, horizon: int | None) -> Array:
        return self.batches.pop(0) if self.batches else Events().array()


class FakeStacks:
    def take(self, records: Array) -> list[Any]:
        return []

    rest = take
    unnamed = 0

    def sleepers(self, threads: Any, now: int) -> None:
        list(threads)

    def close(self) -> None:
        pass


class FakeProgram:
    attachments: tuple[Any, ...] = ()
    backend = "fentry"
    wchan_tells = True

    def __init__(self, *batches: Array) -> None:
        self.batches = list(batches)

    def stream(self) -> FakeStream:
        return FakeStream(self.batches)

    def losses(self) -> dict[Any, int]:
        return {}

    misses = counters = losses

    def run_ns(self) -> None:
        return None

    def returns(self) -> Array:
        return np.empty(0, dtype=EVENT)

    def follow(self, tgid: int) -> None:
        pass

    def attach(self) -> None:
        pass

    detach = close = attach


def traced(
    tmp_path: Path, seconds: float, *batches: Array, most_bytes: int | None = None
) -> tuple[list[Progress], list[str], dict[str, Any]]:
    """What a session with these events shows and says, and its report."""
    shown: list[Progress] = []
    said: list[str] = []
    process = Process(PROCESS["pid"], PROCESS["comm"], PROCESS["cmdline"])
    made = Session(
        Loaded(cast(Program, FakeProgram(*batches)), cast(Stacks, FakeStacks()), FakeProgram.wchan_tells),
        Options(tmp_path / "trace", most_bytes=most_bytes),
        [process],
        said.append,
        shown.append,
    )
    began = time.monotonic()
    # There are no probes here that could tell of a child.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session.proof, "prove", lambda program, stream: Proof())
        report = made.run(release=lambda: None, ended=lambda: time.monotonic() - began > seconds, wait_fd=None)
    return shown, said, report


def losing(served: int, lost: int) -> Array:
    events = Events()
    events.userfaultfd()
    events.register(0, served + lost)
    events.arm(0, served + lost, served)
    for page in range(served):
        events.served(page)
    for page in range(served, served + lost):
        events.fresh(page)
    return events.array()


def test_progress_is_what_the_report_will_say(tmp_path: Path) -> None:
    shown, said, report = traced(tmp_path, 1.2, losing(5, 3))
    assert [(one.faults, one.messages, one.lost, one.behind) for one in shown[1:]] == [(5, 5, 3, False)] * 2
    (found,) = report["ranges"]
    assert (found["messages"]["wp"], found["lost"]["observed"]) == (5, 3)
    assert said == ["attaching 0 probes", "tracing tracker (7): Ctrl-C to end", "detaching 0 probes"]
    # Twice a second.
    assert len(shown) == 3 and shown[-1].elapsed_s - shown[0].elapsed_s == pytest.approx(1, abs=0.4)


def test_a_backlog_is_catching_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "BATCH", 1)
    monkeypatch.setattr(session, "_BEHIND_S", 0.3)
    monkeypatch.setattr(session, "_PROGRESS_S", 0.1)
    feed = session.Model.feed

    def slow(model: session.Model, events: Array) -> None:
        time.sleep(0.005)
        feed(model, events)

    monkeypatch.setattr(session.Model, "feed", slow)
    shown, _, report = traced(tmp_path, 2.5, losing(20, 10))
    behind = [one.behind for one in shown]
    # Not at once, then as long as it lasts.
    assert [one for one, _ in itertools.groupby(behind)] == [False, True, False]
    assert report["trace"]["stop_reason"] == TRACE["stop_reason"]
    assert (shown[-1].messages, shown[-1].lost) == (20, 10)


def test_what_is_too_far_behind_reads_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for what waits must not grow with how fast a target makes events; all that was read is accounted for."""
    monkeypatch.setattr(session, "BATCH", 8)
    monkeypatch.setattr(session, "_MOST_WAITING", 16)
    read: list[int] = []
    events = losing(20, 10)

    class Trickle(FakeStream):
        def fetch(self) -> int:
            read.append(len(self.batches))
            return 1

        def drain(self, horizon: int | None) -> Array:
            return super().drain(horizon) if horizon != 0 else Events().array()

    monkeypatch.setattr(FakeProgram, "stream", lambda program: Trickle(program.batches))
    waited: list[int] = []
    take = session.Session._take

    def takes(made: session.Session, *what: Any) -> None:
        take(made, *what)
        waited.append(made._waiting)

    monkeypatch.setattr(session.Session, "_take", takes)
    _, _, report = traced(tmp_path, 0.5, *np.array_split(events, 6))
    most = max(len(part) for part in np.array_split(events, 6))
    assert max(waited) < 16 + most and waited[-1] == 0
    (found,) = report["ranges"]
    assert (found["messages"]["wp"], found["lost"]["observed"]) == (20, 10)
    assert len(read) < len(waited)


def test_a_full_file_ends_no_trace(tmp_path: Path) -> None:
    shown, said, report = traced(tmp_path, 1.2, losing(5, 3), most_bytes=1)
    assert shown[-1].messages == 5
    (ended,) = [line for line in said if "takes no more events" in line]
    assert "it would be larger than --max-size 1 bytes: counting goes on" in ended
    (found,) = report["ranges"]
    assert (found["messages"]["wp"], found["lost"]["observed"]) == (5, 3)
    assert report["loss"]["lower_bounds"] == []
    # Who has only the file is told that it is not all.
    later = offline.read(tmp_path / "trace")
    assert later["trace"]["file_ended"] == report["trace"]["file_ended"]
    assert later["trace"]["file_ended"]["reason"] == "it would be larger than --max-size 1 bytes"
    assert later["ranges"] == [] and "lost" in later["loss"]["lower_bounds"]


@pytest.mark.parametrize(("wchan_tells", "is_admin"), [(True, False), (False, True), (False, False)])
def test_who_sleeps_at_the_end_is_told_by_wchan_or_by_stacks_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wchan_tells: bool, is_admin: bool
) -> None:
    events = Events()
    events.owner = PROCESS["pid"]
    events.userfaultfd()
    events.register(0, 4)
    events.arm(0, 4, 4)
    events.fault(0)
    events.message(0)
    kept: list[list[privileges.Capability]] = []
    monkeypatch.setattr(privileges, "drop", lambda but: kept.append(list(but)))
    monkeypatch.setattr(privileges, "has", lambda capability: is_admin)
    monkeypatch.setattr(FakeProgram, "wchan_tells", wchan_tells)
    monkeypatch.setattr(session.found.proc, "is_alive", lambda pid: True)
    # Nobody sleeps any more: the fault was resolved in a way that no event tells of.
    monkeypatch.setattr(session.found.proc, "asleep_in_fault", lambda pid: [])
    monkeypatch.setattr(session.found.proc, "asleep_in_event", lambda pid: [])
    _, said, report = traced(tmp_path, 0.1, events.array())
    assert kept == [[] if wchan_tells else [privileges.Capability.SYS_ADMIN]]
    (found,) = report["ranges"]
    known = wchan_tells or is_admin
    assert found["pending"] == (0 if known else None)
    assert any("will be unknown" in line for line in said) != known


def test_who_a_process_is_is_asked_before_its_events_are_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Events()
    told.userfaultfd()
    told.register(0, 4)
    # They are held until the end, and never handed on.
    monkeypatch.setattr(FakeStream, "held_first", told.array(), raising=False)
    asked: list[int] = []
    new = session.found.Processes.new

    def asks(processes: session.found.Processes, events: Array) -> list[dict[str, Any]]:
        asked.append(len(events))
        return new(processes, events)

    monkeypatch.setattr(session.found.Processes, "new", asks)
    traced(tmp_path, 0.2)
    assert set(asked) == {len(told.array())}
