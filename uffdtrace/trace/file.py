"""The trace file's form, shared by writer and reader.

A file is MAGIC and then chunks, appended in whole: a header (tag, CRC-32 of the
payload, length of the payload in bytes, little-endian), then the payload.

    META  JSON, first: schema, what was traced, kernel, probes
    EVNT  events in order of time, records of model.records.events.EVENT
    PACK  the same in fewer bytes (trace/packing.py)
    NAME  JSON: what mappings are called (model.diagnosis.report.Name)
    PROC  JSON: pid, comm and cmdline (or null) of processes that own or watch memory
    THRD  JSON: tid and comm of threads that wrote or wait
    STKS  JSON: stacks of who wrote, populated or armed (model.diagnosis.stacks.Stack)
    MAPD  JSON: who else maps registered shared memory (model.elsewhere.Look)
    LOSS  JSON: what was dropped so far, whenever that changes
    DONE  JSON, last: why it stopped, loss, counts of faults and messages that are not in the file

A chunk that is short or fails its CRC is where a killed collector stopped; all
before it holds.
"""

from __future__ import annotations

import struct
from pathlib import Path

from uffdtrace.errors import UffdtraceError

# Where a trace goes unless told otherwise, as perf.data.
DEFAULT = Path("uffdtrace.data")
MAGIC = b"uffdtrc\n"
SCHEMA = "uffdtrace-trace/8"
HEADER = struct.Struct("<4sIQ")
META = b"META"
EVENTS = b"EVNT"
PACKED = b"PACK"
NAMES = b"NAME"
PROCESSES = b"PROC"
THREADS = b"THRD"
STACKS = b"STKS"
LOOKS = b"MAPD"
LOSS = b"LOSS"
DONE = b"DONE"


class TraceError(UffdtraceError):
    """The trace file cannot be written or read; one line with cause and remedy."""
