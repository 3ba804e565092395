"""The report as plain data: design.md section 4, `reporters/report.schema.json`."""

from __future__ import annotations

from typing import Any

import numpy as np

from uffdtrace.model.diagnosis import VERDICTS, Case, findings, verdict
from uffdtrace.model.events import PAGE_SIZE, Counter, Feature, Kind, Memory, Mode
from uffdtrace.model.model import Model, Userfaultfd
from uffdtrace.model.pages import Cause
from uffdtrace.model.ranges import Range

SCHEMA = "uffdtrace-report/1"

_SKIPPED = ("zero_page", "fresh_page", "huge_page", "file_page")


def _memory(row: Range) -> str | None:
    # An area may have been replaced by one of another kind: then it is not one thing.
    names = [member.name.lower() for member in Memory if row.memory & member and member.name]
    return names[0] if len(names) == 1 else None


def _latency(row: Range) -> dict[str, float] | None:
    """Microseconds from fault to wake-up, of the faults whose message was read."""
    if not row.latencies:
        return None
    total = np.concatenate(row.latencies)[:, 2] / 1000
    p50, p90, p99 = np.percentile(total, (50, 90, 99))
    return {
        "p50": round(float(p50), 1),
        "p90": round(float(p90), 1),
        "p99": round(float(p99), 1),
        "max": round(float(total.max()), 1),
    }


def _kinds(counts: list[int]) -> dict[str, int]:
    return {kind.name.lower(): counts[kind] for kind in Kind}


def _range(row: Range, home: Userfaultfd, offered: int | None) -> dict[str, Any]:
    case = Case(row, home, offered)
    # Populated without protection here, but perhaps armed before the trace.
    unknown = case.unknown_before

    def known(count: int) -> int | None:
        return None if unknown else count

    return {
        "start": hex(row.start),
        "end": hex(row.end),
        "pages": row.pages,
        "page_size": PAGE_SIZE,
        "memory": _memory(row),
        "modes": [mode.name.lower() for mode in Mode if row.modes & mode and mode.name],
        "userfaultfd": home.number,
        "armed_pages": known(row.count("armed_pages")),
        "holes": None if unknown else row.holes,
        "messages": _kinds(row.messages),
        "notified_pages": row.count("notified_pages"),
        "faults": _kinds(row.faults),
        "pending": row.pending,
        "skipped": {name: known(row.count(name)) for name in _SKIPPED},
        "lost": {
            "observed": known(row.count("observed")),
            "blind": known(row.count("blind")),
            "causes": None if unknown else {cause.label: row.cause(cause) for cause in Cause if row.cause(cause)},
        },
        "latency_us": _latency(row),
        "verdict": verdict(case),
        "findings": findings(case),
    }


def _userfaultfd(home: Userfaultfd) -> dict[str, Any]:
    names = None
    if home.features is not None:
        names = [feature.name for feature in Feature if home.features & feature]
    return {
        "id": home.number,
        "features": names,
        "owner_pid": home.owner,
        "monitor_pids": sorted(home.readers or home.callers),
    }


def use_counters(model: Model, counters: list[list[int]]) -> bool:
    """Put the kernel's own counts of faults and messages in place of the events'.

    `counters` rows: ctx, vm_start, then the slots of Counter. False where a
    count could belong to more than one range, so that the events' must stay.
    """
    wanted: dict[int, list[int]] = {}
    if any(len(row) != 2 + len(Counter) for row in counters):
        return False
    for ctx, vm_start, *slots in counters:
        if not any(slots[: Counter.EVENTS]):
            continue
        rows = [row for row in model.rows() if model.userfaultfd_of(row).ctx == ctx]
        rows = [row for row in rows if row.start <= vm_start < row.end] if vm_start else rows
        if len(rows) != 1:
            return False
        total = wanted.setdefault(rows[0].number, [0] * int(Counter.EVENTS))
        for slot in range(int(Counter.EVENTS)):
            total[slot] += slots[slot]
    for row in model.rows():
        if row.number in wanted:
            row.faults = wanted[row.number][Counter.FAULT_MISSING : Counter.MESSAGE_MISSING]
            row.messages = wanted[row.number][Counter.MESSAGE_MISSING : Counter.EVENTS]
    return True


# What rests on events alone, so that a dropped event makes it a lower bound.
_FROM_EVENTS = ("armed_pages", "holes", "notified_pages", "pending", "skipped", "lost")


def build(model: Model, trace: dict[str, Any], process: dict[str, Any], ending: dict[str, Any]) -> dict[str, Any]:
    """The report of a finished model.

    `trace` and `process` go in as they are. `ending` (the trace file's last
    word, empty if it has none): `events_dropped`, `probes_missed` (probe to
    count), `doubtful` (fields that rest on missed probes), `counters`,
    `features_offered`.
    """
    lower = list(ending.get("doubtful", ()))
    dropped = ending.get("events_dropped")
    if dropped:
        lower += _FROM_EVENTS
        if not use_counters(model, ending.get("counters", [])):
            lower += ["messages", "faults"]
    missed: int | None = None
    if "probes_missed" in ending:
        missed = sum(ending["probes_missed"].values()) + model.lost_returns
    if model.lost_returns:
        lower += ["holes", "lost"]
    if any(row.pending is None for row in model.rows()):
        lower.append("pending")
    ranges = [_range(row, model.userfaultfd_of(row), ending.get("features_offered")) for row in model.rows()]
    verdicts = [found["verdict"] for found in ranges]
    return {
        "schema": SCHEMA,
        "trace": trace,
        "process": process,
        "loss": {
            "events_dropped": dropped,
            "probes_missed": missed,
            "unattributed_messages": model.unattributed_messages,
            "lower_bounds": sorted(set(lower)),
        },
        "userfaultfds": [_userfaultfd(home) for home in model.userfaultfds],
        "ranges": ranges,
        "verdict": min(verdicts, key=VERDICTS.index) if verdicts else "idle",
    }
