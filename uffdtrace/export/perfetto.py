"""Faults as slices on the tracks of their threads, for Perfetto's screen and its queries.

A fault is a slice with what it waited for within: `queue` until the monitor read its message,
`service` until it woke the thread, `wakeup` until that ran. What was lost is an instant.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import IO, TYPE_CHECKING, Any

from uffdtrace.errors import UffdtraceError
from uffdtrace.export.tables import started
from uffdtrace.model.account.sleep import FAULT
from uffdtrace.model.diagnosis.document import ReportDict
from uffdtrace.model.records.events import Array, Kind
from uffdtrace.reporters.harmless import printable
from uffdtrace.reporters.words import thread

if TYPE_CHECKING:
    from types import ModuleType

# protos/perfetto/common/builtin_clock.proto.
_REALTIME, _MONOTONIC = 1, 3
# All packets are one writer's.
_SEQUENCE = 1
_CHUNK = 1 << 20


class NoPerfetto(UffdtraceError):
    """The package perfetto is missing, or does not work here."""


def load() -> ModuleType:
    """Perfetto's messages; NoPerfetto."""
    try:
        from google.protobuf.runtime_version import VersionError
    except ImportError as error:
        raise _missing(error) from None
    try:
        from perfetto.protos.perfetto.trace import perfetto_trace_pb2
    except (ImportError, VersionError) as error:
        raise _missing(error) from None
    module: ModuleType = perfetto_trace_pb2
    return module


def _missing(error: Exception) -> NoPerfetto:
    said = " ".join(str(error).split())
    return NoPerfetto(
        f"perfetto and protobuf are needed for --format perfetto ({said}): pip install 'uffdtrace[perfetto]'"
    )


class Tracks:
    """A Perfetto trace of one trace: faults go into a file as they come, so that memory does not grow with them."""

    def __init__(self) -> None:
        """NoPerfetto."""
        self._messages: Any = load()
        self._types = self._messages.TrackEvent
        # It has no name, and is gone with this process.
        self._slices: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - close() closes it
        # Of each thread that faulted: its process.
        self._processes: dict[int, int] = {}

    def close(self) -> None:
        self._slices.close()

    def add(self, faults: Array) -> None:
        """Faults (of sleep.FAULT) that are over, or still wait when the trace ends."""
        trace = self._messages.Trace()
        for values in faults.tolist():
            self._fault(trace, dict(zip(FAULT.names or (), values)))
        self._slices.write(trace.SerializeToString())

    def parts(self, report: ReportDict, began: int, threads: Mapping[int, str]) -> Iterator[bytes]:
        """The whole trace, which began at `began` (ns, CLOCK_MONOTONIC); `threads` are names, by tid."""
        trace = self._messages.Trace()
        self._clocks(trace, began, started(report))
        process = report["process"]
        for pid in sorted(set(self._processes.values())):
            name = process["comm"] if process and process["pid"] == pid else ""
            self._describe(trace, _uuid(pid, 0)).process.MergeFrom(
                self._messages.ProcessDescriptor(pid=pid, process_name=printable(name))
            )
        for tid, pid in sorted(self._processes.items()):
            self._describe(trace, _uuid(pid, tid)).thread.MergeFrom(
                self._messages.ThreadDescriptor(pid=pid, tid=tid, thread_name=printable(threads.get(tid, "")))
            )
        self._losses(trace, report, began)
        yield trace.SerializeToString()
        self._slices.seek(0)
        while part := self._slices.read(_CHUNK):
            yield part

    def _packet(self, trace: Any, time: int | None = None) -> Any:
        packet = trace.packet.add(trusted_packet_sequence_id=_SEQUENCE)
        if time is not None:
            packet.timestamp, packet.timestamp_clock_id = time, _MONOTONIC
        return packet

    def _clocks(self, trace: Any, began: int, at: datetime | None) -> None:
        snapshot = self._packet(trace).clock_snapshot
        snapshot.primary_trace_clock = _MONOTONIC
        snapshot.clocks.add(clock_id=_MONOTONIC, timestamp=began)
        if at is not None:
            snapshot.clocks.add(clock_id=_REALTIME, timestamp=max(0, int(at.timestamp() * 1e9)))

    def _describe(self, trace: Any, uuid: int, name: str = "") -> Any:
        descriptor = self._packet(trace).track_descriptor
        descriptor.uuid = uuid
        if name:
            descriptor.name = name
        return descriptor

    def _event(self, trace: Any, time: int, kind: int, uuid: int, name: str = "", **told: object) -> None:
        event = self._packet(trace, time).track_event
        event.type, event.track_uuid = kind, uuid
        if name:
            event.name = name
            event.categories.append("userfaultfd")
        for key, value in told.items():
            event.debug_annotations.add(name=key, string_value=str(value))

    def _fault(self, trace: Any, fault: Mapping[str, int]) -> None:
        tid, began, read, woken = (fault[name] for name in ("tid", "began", "read", "woken"))
        self._processes[tid] = fault["tgid"]
        uuid = _uuid(fault["tgid"], tid)
        ends = [fault[name] for name in ("returned", "died", "woken") if fault[name] >= began]
        end = max(ends, default=0)
        begin, over = self._types.TYPE_SLICE_BEGIN, self._types.TYPE_SLICE_END
        told = {"address": f"{fault['address']:#x}", **({"end": "killed"} if fault["died"] else {})}
        if fault["before"]:
            told["begin"] = "before the trace"
        kind = Kind(fault["kind"] % len(Kind)).name
        self._event(trace, began, begin, uuid, f"{kind} fault", **told)
        phases = [("queue", began, read)]
        if read:
            phases.append(("service", read, woken))
        if woken:
            phases.append(("wakeup", woken, fault["returned"]))
        for name, first, last in phases:
            # What came in another order, or never, has no length.
            if began <= first <= last <= (end or last) and last:
                self._event(trace, first, begin, uuid, name)
                self._event(trace, last, over, uuid)
        if end:
            self._event(trace, end, over, uuid)

    def _losses(self, trace: Any, report: ReportDict, began: int) -> None:
        """An instant for each run of lost pages, on the track of the thread that wrote first."""
        described: set[int] = set()
        for row in report["ranges"]:
            for run in row["lost"]["runs"] or []:
                tid = run["tid"]
                uuid = _uuid(self._processes.get(tid, 0), tid)
                if tid not in self._processes and tid not in described:
                    # It never waited for a message: whose thread it is no fault told.
                    described.add(tid)
                    self._describe(trace, uuid, printable(thread(run)))
                self._event(
                    trace,
                    began + round(run["first_s"] * 1e9),
                    self._types.TYPE_INSTANT,
                    uuid,
                    f"lost: {run['cause']}",
                    pages=run["pages"],
                    start=run["start"],
                    end=run["end"],
                    range=printable(row["name"] or ""),
                )


def _uuid(pid: int, tid: int) -> int:
    """A track's number: that of a process has the thread 0, and none is 0."""
    return pid << 32 | tid
