"""Steps in the guest: processes that hang, attached to. Only the standard library."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Callable

from steps import FINISH_SECONDS, Guest, Result, attached, finish, first_line, go_on, standing, started


def program(guest: Guest, what: str) -> list[str]:
    return [f"{guest.programs}/hanging", what]


def in_faults(pid: int) -> list[int]:
    """The threads of a process that the kernel says sleep in handle_userfault()."""
    tasks = sorted(Path(f"/proc/{pid}/task").iterdir(), key=lambda task: int(task.name))
    return [int(task.name) for task in tasks if "handle_userfault" in (task / "stack").read_text()]


def hanging_faults(guest: Guest, *target: str) -> Result:
    """Threads sleep in faults of which the monitor has read; the trace ends before them."""
    name = "hanging-faults" + "-all" * bool(target)
    with standing(guest, "pending", "asleep", "/dev/null") as (workload, pid):
        with attached(guest, name, *(target or (str(pid),))) as collector:
            sleepers = in_faults(pid)
            collector.send_signal(signal.SIGINT)
            status = finish(collector, FINISH_SECONDS)
        workload_status = go_on(workload)
    return {"exit_status": status, "workload_exit_status": workload_status, "pid": pid, "threads": sleepers}


def event(guest: Guest, name: str, served: bool) -> Result:
    """A thread sleeps in munmap() until its event is read: during the trace if `served`, after it if not."""
    with started(guest, program(guest, "event"), subprocess.PIPE, subprocess.DEVNULL, subprocess.PIPE) as process:
        tid = int(first_line(process, FINISH_SECONDS))
        with attached(guest, name, str(process.pid)) as collector:
            if served:
                process_status = go_on(process)
            else:
                # Long enough for a finding.
                time.sleep(1.5)
                collector.send_signal(signal.SIGINT)
            status = finish(collector, FINISH_SECONDS)
        if not served:
            process_status = go_on(process)
    return {"exit_status": status, "process_exit_status": process_status, "tid": tid}


def monitor(guest: Guest) -> Result:
    """The thread that read a fault's message ends, and the fault waits on."""
    name = "hanging-monitor"
    with started(guest, program(guest, "monitor"), subprocess.PIPE, subprocess.DEVNULL, subprocess.PIPE) as process:
        first_line(process, FINISH_SECONDS)
        with attached(guest, name, str(process.pid)) as collector:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
            tid = int(first_line(process, FINISH_SECONDS))
            collector.send_signal(signal.SIGINT)
            status = finish(collector, FINISH_SECONDS)
        process_status = go_on(process)
    return {"exit_status": status, "process_exit_status": process_status, "tid": tid}


STEPS: dict[str, Callable[[Guest], Result]] = {
    "hanging-faults": hanging_faults,
    "hanging-faults-all": lambda guest: hanging_faults(guest, "--all"),
    "hanging-event": lambda guest: event(guest, "hanging-event", served=False),
    "hanging-event-served": lambda guest: event(guest, "hanging-event-served", served=True),
    "hanging-monitor": monitor,
}
