"""The report as plain data: design.md section 4, `reporters/report.schema.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from uffdtrace.model.account.elsewhere import Look, Others
from uffdtrace.model.account.losses import lost_pages
from uffdtrace.model.account.model import Model
from uffdtrace.model.account.ranges import Range
from uffdtrace.model.account.sleep import longest_first
from uffdtrace.model.account.watched import Userfaultfd
from uffdtrace.model.diagnosis.case import VERDICTS, Case, verdict
from uffdtrace.model.diagnosis.document import (
    ProcessDict,
    RangeDict,
    ReportDict,
    RunDict,
    TraceDict,
    UserfaultfdDict,
    WaitingDict,
)
from uffdtrace.model.diagnosis.rules import findings
from uffdtrace.model.diagnosis.rules_calls import userfaultfd_findings
from uffdtrace.model.diagnosis.rules_waits import waiting_findings
from uffdtrace.model.diagnosis.stacks import Stack, told
from uffdtrace.model.records.events import HIGHEST, Counter, Feature, Kind, Memory, Mode, UffdEvent

SCHEMA = "uffdtrace-report/1"

MOST_RUNS = 10_000
MOST_WAITING = 16
_SKIPPED = ("zero_page", "fresh_page", "huge_page", "file_page")

# By the bits of Mode.
_MODES = {bits: [mode.name.lower() for mode in Mode if bits & mode and mode.name] for bits in range(8)}


def _memory(row: Range) -> str | None:
    # An area may have been replaced by one of another kind: then it is not one thing.
    names = [member.name.lower() for member in Memory if row.memory & member and member.name]
    return names[0] if len(names) == 1 else None


@dataclass(frozen=True)
class Name:
    """What the kernel called a mapping of a userfaultfd's memory when it was registered, at `time` (ns)."""

    time: int
    ctx: int
    start: int
    end: int
    name: str


def _name(row: Range, uffd: Userfaultfd, names: Sequence[Name]) -> str | None:
    """The first while the range was there: its userfaultfd's address may be another's before and after."""
    for name in names:
        there = row.born <= name.time and (uffd.gone is None or name.time <= uffd.gone)
        if name.ctx == uffd.ctx and there and name.start < row.end and row.start < name.end:
            return name.name
    return None


def _waiting(row: Range, end: int, called: Mapping[int, str]) -> list[WaitingDict] | None:
    if row.pending is None:
        return None
    longest = longest_first(row.waiting)[:MOST_WAITING]
    return [
        {
            "address": hex(fault.address),
            "tid": fault.tid,
            "thread": called.get(fault.tid),
            "kind": fault.kind.name.lower(),
            "for_s": None if fault.since is None else round((end - fault.since) / 1e9, 6),
            "read": fault.read,
        }
        for fault in longest
    ]


def _kinds(counts: list[int]) -> dict[str, int]:
    return {kind.name.lower(): counts[kind] for kind in Kind}


def _range(case: Case, name: str | None, runs: list[RunDict], left_off: int, called: Mapping[int, str]) -> RangeDict:
    row = case.row
    # Populated without protection here, but perhaps armed before the trace; or more than can be kept.
    unknown = case.unknown

    def known(count: int) -> int | None:
        return None if unknown else count

    return {
        "start": hex(row.start),
        "end": hex(row.end),
        "pages": row.pages,
        "page_size": row.page_size,
        "name": name,
        "memory": _memory(row),
        "modes": _MODES[row.modes & 7],
        "userfaultfd": case.userfaultfd.number,
        "armed_pages": case.armed,
        "holes": None if case.before else row.holes,
        "messages": _kinds(row.messages),
        "notified_pages": None if row.untracked else row.count("notified_pages"),
        "faults": _kinds(row.faults),
        "pending": row.pending,
        "waiting": _waiting(row, case.end, called),
        "killed": len(row.killed),
        "skipped": {name: known(row.count(name)) for name in _SKIPPED},
        "lost": {
            "observed": known(row.count("observed")),
            "blind": known(row.count("blind")),
            "causes": None if unknown else row.causes(),
            "runs": None if unknown else runs,
            "runs_left_off": 0 if unknown else left_off,
        },
        "dropped": [
            {"call": drop.call, "told": drop.told, "pages": pages}
            for drop, pages in sorted(row.drops.items(), key=lambda item: (item[0].call, item[0].told))
        ],
        "mapped_elsewhere": [
            {"pid": other.pid, "comm": other.comm, "start": hex(other.start), "end": hex(other.end)}
            for other in case.elsewhere
        ],
        "latency_us": case.waited,
        "verdict": verdict(case),
        "findings": findings(case),
    }


def _processes(model: Model, targets: Sequence[ProcessDict], processes: Sequence[ProcessDict]) -> list[ProcessDict]:
    """Those that own or watch memory, by number; the traced one as it was when the trace began."""
    wanted = {uffd.owner for uffd in model.userfaultfds} | {
        pid for uffd in model.userfaultfds for pid in uffd.readers | uffd.callers
    }
    found = {one["pid"]: one for one in [*processes, *targets]}
    return [found[pid] for pid in sorted(found) if pid in wanted]


def _userfaultfd(uffd: Userfaultfd, began: int, end: int, pending: int) -> UserfaultfdDict:
    def seconds(time: int) -> float:
        return round((time - began) / 1e9, 6)

    names = None
    if uffd.features is not None:
        names = [feature.name for feature in Feature if uffd.features & feature and feature.name]
    return {
        "id": uffd.number,
        "features": names,
        "owner_pid": uffd.owner,
        "forked_from": None if uffd.parent is None else uffd.parent.number,
        "events": {event.name.lower(): uffd.events.get(event, 0) for event in UffdEvent},
        "monitor_pids": sorted(uffd.readers or uffd.callers),
        "monitor_threads_ended": [
            {
                "tid": reader.tid,
                "pid": reader.tgid,
                "process_ended": reader.process,
                "last_read_s": seconds(reader.last),
                "ended_after_s": seconds(reader.after),
                "ended_by_s": seconds(reader.by),
            }
            for reader in uffd.ended_readers[:MOST_WAITING]
        ],
        "holders": None
        if uffd.holders is None
        else [{"pid": holder.pid, "comm": holder.comm, "fd": holder.fd} for holder in uffd.holders],
        "asleep_in_events": [
            {
                "tid": wait.tid,
                "event": wait.event.name.lower() if wait.event else None,
                "for_s": None if wait.since is None else round((end - wait.since) / 1e9, 6),
                "reads": wait.reads,
            }
            for wait in uffd.event_waits
        ],
        "findings": [*waiting_findings(uffd, end, pending, began), *userfaultfd_findings(uffd)],
        "before_trace": None
        if uffd.before is None
        else {
            "unread": uffd.before[0],
            "waiting": uffd.before[1],
            "threads": sorted(set(uffd.slept)),
            "served": uffd.served_later,
            "still_asleep": sorted({*uffd.listed, *uffd.still_asleep}),
        },
    }


def add_counters(model: Model, counters: list[list[int]]) -> bool:
    """Add the faults and messages that were counted only, as there was no room for their events.

    `counters` rows: ctx, vm_start, then the slots of Counter. False where a
    count could belong to more than one range, so that the events' must stay.
    """
    wanted: dict[int, list[int]] = {}
    if any(len(row) != 2 + len(Counter) for row in counters):
        return False
    of_ctx: dict[int, list[Range]] = {}
    for row in model.rows():
        of_ctx.setdefault(model.uffd_of(row).ctx, []).append(row)
    bounds = {ctx: np.array([(row.start, row.end) for row in rows], dtype=np.int64) for ctx, rows in of_ctx.items()}
    for ctx, vm_start, *slots in counters:
        if not any(slots):
            continue
        if vm_start >= HIGHEST:
            return False
        rows = of_ctx.get(ctx, [])
        if vm_start and rows:
            inside = (bounds[ctx][:, 0] <= vm_start) & (bounds[ctx][:, 1] > vm_start)
            rows = [rows[index] for index in np.flatnonzero(inside).tolist()]
        if len(rows) != 1:
            return False
        total = wanted.setdefault(rows[0].number, [0] * len(Counter))
        for slot in Counter:
            total[slot] += slots[slot]
    for row in model.rows():
        if row.number in wanted:
            for kind in Kind:
                row.faults[kind] += wanted[row.number][Counter.FAULT_MISSING + kind]
                row.messages[kind] += wanted[row.number][Counter.MESSAGE_MISSING + kind]
    return True


# What rests on events alone, so that a dropped event makes it a lower bound.
FROM_EVENTS = ("armed_pages", "holes", "notified_pages", "pending", "skipped", "lost", "dropped")


def _calls_seen(trace: TraceDict, ending: dict[str, Any]) -> bool:
    """Whether each call that arms was seen: where returns alone are missing, what was called is known."""
    doubtful = set(ending.get("doubtful", ()))
    entries = any(not place.endswith("%return") for place in ending.get("probes_missed", ()))
    if "armed_pages" in doubtful and entries:
        return False
    # Events that came too late to be put in order make all of these doubtful.
    late = set(FROM_EVENTS) <= doubtful
    return not late and not any("armed_pages" in names for names in (trace["unproven_probes"] or {}).values())


def build(
    model: Model,
    trace: TraceDict,
    process: ProcessDict | None,
    ending: dict[str, Any],
    names: Sequence[Name] = (),
    processes: Sequence[ProcessDict] = (),
    began: int = 0,
    most_runs: int | None = MOST_RUNS,
    looks: Sequence[Look] = (),
    threads: Mapping[int, str] | None = None,
    also_traced: Sequence[ProcessDict] = (),
    stacks: Sequence[Stack] = (),
) -> ReportDict:
    """The report of a finished model.

    `trace`, `process` and `also_traced` go in as they are. `ending` (the trace file's last
    word, empty if it has none): `events_dropped`, `probes_missed` (probe to
    count), `doubtful` (fields that rest on missed probes), `counters`,
    `features_offered`, and `file_ended` where events are missing in the file.
    `processes` are those that own or watch memory, `threads` what those are called (by tid) that wrote
    or wait, as far as they lived when they were asked, `stacks` what their stacks were. `began` is the time (ns,
    CLOCK_MONOTONIC) from which the report counts seconds; a range lists
    `most_runs` of its lost pages' runs, or all.
    """
    lower = list(ending.get("doubtful", ()))
    lower += [name for names in (trace["unproven_probes"] or {}).values() for name in names]
    dropped = ending.get("events_dropped")
    # What the file does not hold was dropped, too, for whoever has only the file.
    cut = dropped or ending.get("file_ended") is not None
    if cut:
        lower += FROM_EVENTS
        if not add_counters(model, ending.get("counters", [])):
            lower += ["messages", "faults"]
    missed: int | None = None
    if "probes_missed" in ending:
        missed = sum(ending["probes_missed"].values()) + model.lost_returns
    if model.lost_returns:
        lower += ["armed_pages", "holes", "skipped", "lost"]
    if any(row.pending is None for row in model.rows()):
        lower.append("pending")
    whole = not cut and "armed_pages" not in lower
    seen = not cut and _calls_seen(trace, ending)
    lost = lost_pages(model.losses.runs(), model.ranges, began, most_runs)
    ranges = []
    called, elsewhere = threads or {}, Others(looks)
    for row in model.rows():
        uffd = model.uffd_of(row)
        others = elsewhere.of_range(row, uffd)
        # COPY and its kin arm by what their returns say, and such a range may be armed by them alone.
        arms_seen = seen and not (model.lost_returns and row.modes & (Mode.MISSING | Mode.MINOR))
        offered = ending.get("features_offered")
        case = Case(row, uffd, offered, whole, arms_seen, model.last, others, model.sees_page_scans)
        listed, left_off = lost.get(row.number, ([], 0))
        runs = [cast(RunDict, {**run, "thread": called.get(run["tid"])}) for run in listed]
        ranges.append(_range(case, _name(row, uffd, names), runs, left_off, called))
    pending = [row for row in model.rows() if row.pending]
    verdicts = [found["verdict"] for found in ranges]
    if any(uffd.event_waits or uffd.still_asleep for uffd in model.userfaultfds):
        verdicts.append("pending")
    return {
        "schema": SCHEMA,
        "trace": trace,
        "process": process,
        "also_traced": list(also_traced),
        "processes": _processes(model, [*([process] if process else []), *also_traced], processes),
        "loss": {
            "events_dropped": dropped,
            "probes_missed": missed,
            "unattributed_messages": model.unattributed_messages,
            "lower_bounds": sorted(set(lower)),
        },
        "processes_not_searched": max((look.unreadable for look in looks), default=None),
        "userfaultfds": [
            _userfaultfd(
                uffd,
                began,
                model.last,
                sum(row.pending or 0 for row in pending if model.uffd_of(row) is uffd),
            )
            for uffd in model.userfaultfds
        ],
        "ranges": ranges,
        "stacks": told(stacks, began, called),
        "verdict": min(verdicts, key=VERDICTS.index) if verdicts else "idle",
    }
