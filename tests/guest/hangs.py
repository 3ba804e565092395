"""Steps in the guest: processes that hang, attached to. Only the standard library."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from pathlib import Path
from typing import Callable

from steps import FINISH_SECONDS, Guest, Result, attached, finish, first_line, go_on, standing, started, until

# What tests/programs/hanging.c does only after a line.
LATER = ("later", "monitor", "process", "forks")
# The threads of `hanging many`.
MANY = 600


def program(guest: Guest, what: str) -> list[str]:
    return [f"{guest.programs}/hanging", what]


def in_faults(pid: int) -> list[int]:
    """The threads of a process that the kernel says sleep in handle_userfault()."""
    tasks = sorted(Path(f"/proc/{pid}/task").iterdir(), key=lambda task: int(task.name))
    return [int(task.name) for task in tasks if "handle_userfault" in (task / "stack").read_text()]


def numbers(process: subprocess.Popen[str]) -> list[int]:
    """What tests/programs/hanging.c says."""
    return [int(word) for word in first_line(process, FINISH_SECONDS).split()]


def let_go(process: subprocess.Popen[str]) -> None:
    """Send the line that it waits for, and do not wait until it ends."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def one(guest: Guest) -> Result:
    """Threads sleep in faults of which the monitor has read; the trace of their process ends before them."""
    with standing(guest, "pending", "asleep", "/dev/null") as (workload, pid):
        with attached(guest, "hanging-one", str(pid)) as collector:
            sleepers = in_faults(pid)
            collector.send_signal(signal.SIGINT)
            status = finish(collector, FINISH_SECONDS)
        workload_status = go_on(workload)
    return {"exit_status": status, "exit_statuses": [workload_status], "faults": {"pid": pid, "threads": sleepers}}


def everybody(guest: Guest) -> Result:
    """The same with all userfaultfds; other processes hang in their ways, and some begin to in the trace."""
    with contextlib.ExitStack() as stack:
        workload, pid = stack.enter_context(standing(guest, "pending", "asleep", "/dev/null"))
        hanging = {
            what: stack.enter_context(
                started(guest, program(guest, what), subprocess.PIPE, subprocess.DEVNULL, subprocess.PIPE)
            )
            for what in ("event", *LATER)
        }
        said = {what: numbers(process) for what, process in hanging.items()}
        with attached(guest, "hanging-all", "--all") as collector:
            sleepers = in_faults(pid)
            for what in LATER:
                let_go(hanging[what])
            slept = {what: numbers(hanging[what]) for what in LATER}
            # Long enough for a finding, and for a look at who read.
            time.sleep(2.5)
            collector.send_signal(signal.SIGINT)
            status = finish(collector, FINISH_SECONDS)
        statuses = [go_on(process) for process in (workload, *hanging.values())]
    result: Result = {"exit_status": status, "exit_statuses": statuses, "faults": {"pid": pid, "threads": sleepers}}
    result["event"] = {"pid": hanging["event"].pid, "threads": said["event"][:1]}
    for what, (thread, reader) in slept.items():
        result[what] = {"pid": hanging[what].pid, "fd": said[what][1], "threads": [thread], "reader": reader}
    return result


def many(guest: Guest) -> Result:
    """More threads sleep in faults, before the trace and after it, than a look at the queues goes through."""
    command = program(guest, "many")
    with started(guest, command, subprocess.PIPE, subprocess.DEVNULL, subprocess.PIPE) as process:
        numbers(process)
        until(lambda: len(in_faults(process.pid)) == MANY, FINISH_SECONDS)
        with attached(guest, "hanging-many", str(process.pid)) as collector:
            sleepers = in_faults(process.pid)
            collector.send_signal(signal.SIGINT)
            status = finish(collector, FINISH_SECONDS)
        statuses = [go_on(process)]
    many = {"pid": process.pid, "threads": sleepers}
    return {"exit_status": status, "exit_statuses": statuses, "many": many}


def served(guest: Guest) -> Result:
    """The event that a thread waits for is read during the trace."""
    command = program(guest, "event")
    with started(guest, command, subprocess.PIPE, subprocess.DEVNULL, subprocess.PIPE) as process:
        numbers(process)
        with attached(guest, "hanging-served", str(process.pid)) as collector:
            statuses = [go_on(process)]
            status = finish(collector, FINISH_SECONDS)
    return {"exit_status": status, "exit_statuses": statuses}


STEPS: dict[str, Callable[[Guest], Result]] = {"hanging-one": one, "hanging-all": everybody}
ONCE: dict[str, Callable[[Guest], Result]] = {"hanging-served": served, "hanging-many": many}
