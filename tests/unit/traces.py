"""Trace files made by hand."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from unit.events import Events, page_size

from uffdtrace.model.account.ranges import ModelError
from uffdtrace.model.records.events import EVENT, Array
from uffdtrace.reporters import offline
from uffdtrace.trace.file import HEADER, MAGIC, META, SCHEMA, TraceError
from uffdtrace.trace.reader import Reader
from uffdtrace.trace.writer import Writer

OURS = (TraceError, ModelError)
WHAT: dict[str, Any] = {
    "trace": {
        "file": "trace",
        "started": "2026-01-02T03:04:05.678+00:00",
        "duration_s": None,
        "kernel": "6.1.0",
        "arch": "x86_64",
        "backend": "fentry",
        "stop_reason": None,
        "uffdtrace": "1",
        "unproven_probes": {},
    },
    "process": {"pid": 7, "comm": "tracker", "cmdline": ["tracker"]},
    "also_traced": [],
    "began": 0,
    "page_size": page_size(),
    "features_offered": None,
    "probes": [{"row": "faults", "place": "handle_userfault", "kind": "fentry"}],
}
ENDING = {
    "events_dropped": 0,
    "probes_missed": {},
    "doubtful": [],
    "counters": [],
    "features_offered": None,
    "duration_s": 1.5,
    "stop_reason": "the process exited",
    "file_ended": None,
}


def history() -> Array:
    events = Events()
    events.userfaultfd()
    events.register(0, 4)
    events.arm(0, 4, 3)
    events.fresh(1)
    events.served(2)
    return events.array()


def write(path: Path, *batches: Array, ending: dict[str, Any] | None = None, **what: Any) -> Path:
    """`what` stands in the head, instead of WHAT's."""
    writer = Writer(path, {**WHAT, "page_size": page_size(), **what})
    for events in batches:
        writer.events(events)
    writer.loss({"events_dropped": 0})
    writer.done({**ENDING, **(ending or {})})
    return path


def chunk(tag: bytes, payload: bytes, length: int | None = None) -> bytes:
    return HEADER.pack(tag, zlib.crc32(payload), len(payload) if length is None else length) + payload


def meta(**more: Any) -> bytes:
    return MAGIC + chunk(META, json.dumps({"schema": SCHEMA, **WHAT, **more}).encode())


def read_all(path: Path) -> tuple[Reader, Array]:
    reader = Reader(path)
    batches = [events.records for events in reader.events()]
    return reader, np.concatenate(batches) if batches else np.empty(0, dtype=EVENT)


def one_line(error: Exception) -> None:
    text = str(error)
    assert text and "\n" not in text and len(text) < 500


def either_way(path: Path) -> dict[str, Any] | None:
    """The report, or one of our own errors with one line."""
    try:
        return offline.read(path)
    except OURS as error:
        one_line(error)
        return None
