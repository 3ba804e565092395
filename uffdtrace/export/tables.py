"""A report as rows of five tables: their columns have this one source, documentation included.

A trace has an id (Reader.id): rows of one trace have the same wherever its file lies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from uffdtrace.model.diagnosis.document import FindingDict, LatencyDict, RangeDict, ReportDict, phase
from uffdtrace.reporters.words import add, lost_pages

# Of the columns: another number is another set of tables.
VERSION = 1
UNKNOWN_HOST = UNKNOWN_DATE = "unknown"
_PHASES = ("total", "queue", "service", "wakeup")

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """`kind` is `string`, `int`, `float`, `bool` or `time` (of day, in UTC); what is not known is null."""

    name: str
    kind: str
    meaning: str


def _columns(*columns: tuple[str, str, str]) -> tuple[Column, ...]:
    return tuple(Column(*column) for column in columns)


_OF_TRACE = _columns(("trace_id", "string", "The trace: the same for all rows of one, wherever its file lies."))
_OF_RANGE = (*_OF_TRACE, *_columns(("range", "int", "Number of the range in its trace.")))
_MESSAGES = (("missing", "pages that were not there"), ("wp", "protected pages"), ("minor", "pages not mapped"))

TABLES: dict[str, tuple[Column, ...]] = {
    "traces": (
        *_OF_TRACE,
        *_columns(
            ("started", "time", "When the trace began."),
            ("duration_s", "float", "How long it took; null where the file has no end."),
            ("kernel", "string", "Release, as uname(1) tells it."),
            ("arch", "string", "Machine, as uname(1) tells it."),
            ("backend", "string", "Kinds of probe."),
            ("uffdtrace", "string", "Version that made the trace."),
            ("pid", "int", "What was traced; null where all were."),
            ("comm", "string", "What that process called itself: untrusted text."),
            ("verdict", "string", "The worst of its ranges' verdicts."),
            ("ranges", "int", "How many were registered."),
            ("armed_pages", "int", "Pages that were protected."),
            ("lost_pages", "int", "Pages that were written without a message, or that nobody can see being written."),
            *((f"messages_{kind}", "int", f"Messages about {what}.") for kind, what in _MESSAGES),
            ("events_dropped", "int", "Events for which there was no room."),
            ("exact", "bool", "No number of this trace is a lower bound."),
            ("stop_reason", "string", "Why it ended."),
            ("file", "string", "Where it was read from."),
        ),
    ),
    "ranges": (
        *_OF_RANGE,
        *_columns(
            ("start", "int", "First address."),
            ("end", "int", "First address behind it."),
            ("pages", "int", "How many pages it has."),
            ("page_size", "int", "Bytes."),
            ("name", "string", "What the mapping is called: untrusted text."),
            ("memory", "string", "anon, shmem, hugetlb or file."),
            ("modes", "string", "What it is registered for, joined by +."),
            ("owner_pid", "int", "Whose memory it is."),
            ("armed_pages", "int", "Pages that were protected."),
            ("holes", "int", "Pages that were empty when they should have been protected."),
            ("notified_pages", "int", "Pages of which a message told."),
            *((f"messages_{kind}", "int", f"Messages about {what}.") for kind, what in _MESSAGES),
            *((f"faults_{kind}", "int", f"Faults on {what}.") for kind, what in _MESSAGES),
            ("pending", "int", "Faults that waited when the trace ended."),
            ("killed", "int", "Faults whose threads were killed before they were served."),
            ("skipped_zero_page", "int", "Armed pages for which a read mapped the page of zeros."),
            ("skipped_fresh_page", "int", "Armed pages for which a write got a new page."),
            ("skipped_huge_page", "int", "Armed pages that became part of a huge page."),
            ("skipped_file_page", "int", "Armed pages that the page cache had."),
            ("lost_observed", "int", "Pages that were written without a message."),
            ("lost_blind", "int", "Pages whose writes nobody can see."),
            ("verdict", "string", "The worst that applies."),
        ),
    ),
    "findings": (
        *_OF_TRACE,
        *_columns(
            ("range", "int", "Number of the range in its trace; null where it is about a userfaultfd."),
            ("finding", "string", "Its name, which `uffdtrace explain` takes."),
            ("severity", "string", "error, warning or note."),
            ("count", "int", "How many."),
            ("unit", "string", "What is counted."),
        ),
    ),
    "lost_runs": (
        *_OF_RANGE,
        *_columns(
            ("start", "int", "First address."),
            ("end", "int", "First address behind it."),
            ("pages", "int", "How many pages were lost in the same way."),
            ("how", "string", "observed or blind."),
            ("cause", "string", "Why: the finding of that name explains it."),
            ("first_s", "float", "Seconds from the trace's begin to the first of them."),
            ("tid", "int", "Thread of the first."),
            ("thread", "string", "What that thread called itself: untrusted text."),
        ),
    ),
    "latency": (
        *_OF_RANGE,
        *_columns(
            ("phase", "string", "total (fault to wake), queue (to read), service (to wake) or wakeup (to run)."),
            ("faults", "int", "How many were measured."),
            ("p50_us", "float", "Microseconds that half of them took at most."),
            ("p90_us", "float", "Microseconds that nine of ten took at most."),
            ("p99_us", "float", "Microseconds that 99 of 100 took at most."),
            ("max_us", "float", "Microseconds that the longest took."),
        ),
    ),
}
# By these a dataset is parted, so that a question about a week or a host reads nothing else.
PARTS = ("date", "host")


@dataclass(frozen=True)
class Exported:
    """One trace: the rows of each table, and the parts of the dataset that they go to."""

    trace_id: str
    date: str
    host: str
    rows: dict[str, list[Row]]


def exported(report: ReportDict, trace_id: str, labels: Mapping[str, str]) -> Exported:
    """The rows of a report, with a column in `traces` for each label but `host`."""
    others = {key: value for key, value in labels.items() if key != "host"}
    tables: dict[str, list[Row]] = {name: [] for name in TABLES}
    tables["traces"].append({**_trace(report, trace_id), **others})
    owners = {uffd["id"]: uffd["owner_pid"] for uffd in report["userfaultfds"]}
    for number, found in enumerate(report["ranges"]):
        key = {"trace_id": trace_id, "range": number}
        tables["ranges"].append({**key, **_range(found), "owner_pid": owners.get(found["userfaultfd"])})
        tables["findings"] += [{**key, **_finding(finding)} for finding in found["findings"]]
        for run in found["lost"]["runs"] or []:
            addresses = {"start": int(run["start"], 16), "end": int(run["end"], 16)}
            tables["lost_runs"].append({**key, **run, **addresses})
        if found["latency_us"]:
            tables["latency"] += [{**key, **row} for row in _latency(found["latency_us"])]
    for uffd in report["userfaultfds"]:
        key = {"trace_id": trace_id, "range": None}
        tables["findings"] += [{**key, **_finding(finding)} for finding in uffd["findings"]]
    began = started(report)
    date = began.date().isoformat() if began else UNKNOWN_DATE
    return Exported(trace_id, date, labels.get("host", UNKNOWN_HOST), tables)


def started(report: ReportDict) -> datetime | None:
    """When the trace began, None where the file has something else: it becomes the name of a folder."""
    try:
        told = datetime.fromisoformat(report["trace"]["started"])
        return (told if told.tzinfo else told.replace(tzinfo=timezone.utc)).astimezone(timezone.utc)
    except (ValueError, OverflowError):
        return None


def _trace(report: ReportDict, trace_id: str) -> Row:
    trace, ranges, process = report["trace"], report["ranges"], report["process"]
    loss = report["loss"]
    return {
        "trace_id": trace_id,
        "started": started(report),
        "duration_s": trace["duration_s"],
        "kernel": trace["kernel"],
        "arch": trace["arch"],
        "backend": trace["backend"],
        "uffdtrace": trace["uffdtrace"],
        "pid": process and process["pid"],
        "comm": process and process["comm"],
        "verdict": report["verdict"],
        "ranges": len(ranges),
        "armed_pages": add(*(found["armed_pages"] for found in ranges)),
        "lost_pages": add(*map(lost_pages, ranges)),
        **{f"messages_{kind}": sum(found["messages"][kind] for found in ranges) for kind, _ in _MESSAGES},
        "events_dropped": loss["events_dropped"],
        "exact": loss["probes_missed"] is not None and not loss["lower_bounds"],
        "stop_reason": trace["stop_reason"],
        "file": trace["file"],
    }


def _range(found: RangeDict) -> Row:
    return {
        "start": int(found["start"], 16),
        "end": int(found["end"], 16),
        "pages": found["pages"],
        "page_size": found["page_size"],
        "name": found["name"],
        "memory": found["memory"],
        "modes": "+".join(found["modes"]),
        "armed_pages": found["armed_pages"],
        "holes": found["holes"],
        "notified_pages": found["notified_pages"],
        **{f"messages_{kind}": found["messages"][kind] for kind, _ in _MESSAGES},
        **{f"faults_{kind}": found["faults"][kind] for kind, _ in _MESSAGES},
        "pending": found["pending"],
        "killed": found["killed"],
        **{f"skipped_{name}": count for name, count in found["skipped"].items()},
        "lost_observed": found["lost"]["observed"],
        "lost_blind": found["lost"]["blind"],
        "verdict": found["verdict"],
    }


def _finding(finding: FindingDict) -> Row:
    return {
        "finding": finding["id"],
        "severity": finding["severity"],
        "count": finding["pages"],
        "unit": finding["unit"],
    }


def _latency(waited: LatencyDict) -> list[Row]:
    rows = []
    for name in _PHASES:
        if times := phase(waited, name):
            percentiles = {f"{share}_us": times[share] for share in ("p50", "p90", "p99", "max")}
            rows.append({"phase": name, "faults": waited["faults"], **percentiles})
    return rows
