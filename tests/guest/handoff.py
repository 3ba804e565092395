"""Steps in the guest: a monitor in another process, attached to as either of the two."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Callable

from steps import FINISH_SECONDS, Guest, Result, attached, finish, first_line, go_on, started, until

PROGRAM = str(Path(__file__).resolve().parents[1] / "programs" / "handoff.py")
PAGES = (512, 256)


def monitor(guest: Guest, name: str, stack: contextlib.ExitStack) -> tuple[subprocess.Popen[str], str, str]:
    """The monitor, its socket and the file of its counts."""
    path, out = f"/run/{name}.socket", guest.path(f"counts-{name}.json")
    command = started(guest, [sys.executable, PROGRAM, "monitor", path, out], subprocess.PIPE, sys.stderr)
    process = stack.enter_context(command)
    first_line(process, FINISH_SECONDS)
    return process, path, out


def tracked(guest: Guest, path: str, pages: int, stack: contextlib.ExitStack) -> subprocess.Popen[str]:
    """A process that has handed its userfaultfd over, and waits for a line before it writes."""
    command = [sys.executable, PROGRAM, "tracked", path, str(pages)]
    process = stack.enter_context(started(guest, command, subprocess.PIPE, sys.stderr, subprocess.PIPE))
    first_line(process, FINISH_SECONDS)
    return process


def counted(counts: str, processes: int) -> Result:
    """What the monitor counted of that many processes; it writes of each when it is done with it."""
    path = Path(counts)
    until(lambda: path.exists() and len(json.loads(path.read_text())) == processes, FINISH_SECONDS)
    return dict(json.loads(path.read_text()))


def answer(counts: Result, collector: subprocess.Popen[str], statuses: list[int | None]) -> Result:
    status = finish(collector, FINISH_SECONDS)
    return {"exit_status": status, "tracked_exit_statuses": statuses, "counts": counts}


def of_monitor(guest: Guest, name: str, stopped: bool) -> Result:
    """Attached to the monitor before anybody has connected: what is tracked comes later.

    With `stopped` the collector is, meanwhile: what was tracked has ended before anybody looks at it.
    """
    with contextlib.ExitStack() as stack:
        watcher, path, counts = monitor(guest, name, stack)
        collector = stack.enter_context(attached(guest, name, str(watcher.pid)))
        together = [tracked(guest, path, pages, stack) for pages in PAGES]
        if stopped:
            collector.send_signal(signal.SIGSTOP)
        statuses = [go_on(one) for one in together]
        found = counted(counts, len(PAGES))
        collector.send_signal(signal.SIGCONT)
        watcher.terminate()
        return {**answer(found, collector, statuses), "monitor": watcher.pid}


def of_tracked(guest: Guest) -> Result:
    """Attached to the tracked process, which has given its descriptor away."""
    name = "handoff-tracked"
    with contextlib.ExitStack() as stack:
        watcher, path, counts = monitor(guest, name, stack)
        process = tracked(guest, path, PAGES[0], stack)
        collector = stack.enter_context(attached(guest, name, str(process.pid)))
        statuses = [go_on(process)]
        return {**answer(counted(counts, 1), collector, statuses), "monitor": watcher.pid}


STEPS: dict[str, Callable[[Guest], Result]] = {
    "handoff-monitor": lambda guest: of_monitor(guest, "handoff-monitor", stopped=False),
    "handoff-late": lambda guest: of_monitor(guest, "handoff-late", stopped=True),
    "handoff-tracked": of_tracked,
}
