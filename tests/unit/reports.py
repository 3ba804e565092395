"""Reports made by hand, for the reporters' tests."""

from __future__ import annotations

import copy
from typing import Any

TRACE = {
    "file": "uffdtrace.data",
    "started": "2026-01-02T03:04:05.678+00:00",
    "duration_s": 2.5,
    "kernel": "6.1.0",
    "arch": "x86_64",
    "page_size": 4096,
    "backend": "fentry",
    "stop_reason": "the process exited",
    "uffdtrace": "1",
    "unproven_probes": {},
    "file_ended": None,
}
PROCESS = {"pid": 7, "comm": "tracker", "cmdline": ["./tracker", "--snapshot"]}
BASE = 0x7F0000000000
# A name as a hostile target could choose it.
HOSTILE = "a\x1b[2J\x1b]0;pwned\x07\x9b31m\r\n\tb\u202e\u2028[bold red]x[/bold red][/]:smile:\x00\udc80"


def times(p50: float) -> dict[str, float]:
    return {"p50": p50, "p90": p50 * 2, "p99": p50 * 10, "max": p50 * 100}


def latency(faults: int = 12, p50: float = 10.0) -> dict[str, Any]:
    return {
        "faults": faults,
        **times(p50),
        "queue": times(p50 / 2),
        "service": times(p50 / 4),
        "wakeup": times(1.0),
        "histogram": [
            {"below_us": 8, "faults": 1},
            {"below_us": 16, "faults": faults - 2},
            {"below_us": 32, "faults": 0},
            {"below_us": 64, "faults": 1},
        ],
    }


def run(page: int, pages: int, start: int = BASE, **changes: Any) -> dict[str, Any]:
    made = {
        "start": hex(start + page * 4096),
        "end": hex(start + (page + pages) * 4096),
        "pages": pages,
        "how": "observed",
        "cause": "unpopulated",
        "first_s": 0.123456,
        "tid": 4711,
        "thread": "writer",
    }
    return {**made, **changes}


def waits(page: int, start: int = BASE, **changes: Any) -> dict[str, Any]:
    made = {
        "address": hex(start + page * 4096 + 8),
        "tid": 4712,
        "thread": None,
        "kind": "wp",
        "for_s": 1.5,
        "read": False,
    }
    return {**made, **changes}


def finding(name: str = "unpopulated", pages: int = 3, severity: str = "error", unit: str = "pages") -> dict[str, Any]:
    return {
        "id": name,
        "severity": severity,
        "pages": pages,
        "unit": unit,
        "message": f"{pages} {unit} said to be {name}.",
        "remedy": f"do something about {name}.",
    }


def a_range(start: int = BASE, pages: int = 16, lost: int | None = 0, **changes: Any) -> dict[str, Any]:
    """A range that was armed and written: to `lost` of its pages unseen, to the others with a message."""
    served = pages - (lost or 0)
    made: dict[str, Any] = {
        "start": hex(start),
        "end": hex(start + pages * 4096),
        "pages": pages,
        "page_size": 4096,
        "memory": "anon",
        "name": None,
        "modes": ["wp"],
        "userfaultfd": 0,
        "armed_pages": None if lost is None else pages,
        "holes": lost,
        "messages": {"missing": 0, "wp": served, "minor": 0},
        "notified_pages": served,
        "faults": {"missing": 0, "wp": served, "minor": 0},
        "pending": 0,
        "waiting": [],
        "killed": 0,
        "skipped": {"zero_page": 0, "fresh_page": lost, "huge_page": 0, "file_page": 0},
        "lost": {
            "observed": lost,
            "blind": None if lost is None else 0,
            "causes": None if lost is None else {"unpopulated": lost} if lost else {},
            "runs": None if lost is None else [run(0, lost, start)] if lost else [],
            "runs_left_off": 0,
        },
        "dropped": [],
        "mapped_elsewhere": [],
        "latency_us": None,
        "verdict": "lost-writes" if lost else "ok",
        "findings": [finding(pages=lost)] if lost else [],
    }
    return {**made, **changes}


def a_userfaultfd(**fields: Any) -> dict[str, Any]:
    """The first of the traced process, which watches itself."""
    return {
        "id": 0,
        "features": [],
        "owner_pid": PROCESS["pid"],
        "forked_from": None,
        "events": {"fork": 0, "remap": 0, "remove": 0, "unmap": 0},
        "monitor_pids": [PROCESS["pid"]],
        "monitor_threads_ended": [],
        "holders": None,
        "asleep_in_events": [],
        "findings": [],
        "before_trace": None,
        **fields,
    }


def a_stack(**more: Any) -> dict[str, Any]:
    return {
        "tid": 255,
        "thread": "CPU 2/KVM",
        "at_s": 0.3,
        "event": "fresh-page",
        "way": "kvm",
        "kernel": ["do_anonymous_page+0x1", "kvm_mmu_page_fault+0x20 [kvm]"],
        "user": ["ioctl+0x3b (libc.so.6)"],
        **more,
    }


def a_report(*ranges: dict[str, Any], verdict: str | None = None, **loss: Any) -> dict[str, Any]:
    """A report of these ranges, the worst of which comes first."""
    return copy.deepcopy(
        {
            "schema": "uffdtrace-report/1",
            "trace": TRACE,
            "process": PROCESS,
            "also_traced": [],
            "processes": [PROCESS],
            "processes_not_searched": None,
            "loss": {"events_dropped": 0, "probes_missed": 0, "unattributed_messages": 0, "lower_bounds": [], **loss},
            "userfaultfds": [a_userfaultfd()],
            "ranges": list(ranges),
            "stacks": [],
            "verdict": verdict or (ranges[0]["verdict"] if ranges else "idle"),
        }
    )
