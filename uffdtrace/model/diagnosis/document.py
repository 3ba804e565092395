"""The report as JSON has it, typed. What each property means is in `reporters/report.schema.json`."""

from __future__ import annotations

from typing import TypedDict


class ProcessDict(TypedDict):
    pid: int
    comm: str
    cmdline: list[str] | None


class FindingDict(TypedDict):
    id: str
    severity: str
    pages: int
    unit: str
    message: str
    remedy: str


class PieceDict(TypedDict):
    block: str
    start: str
    end: str


class _Run(TypedDict):
    start: str
    end: str
    pages: int
    how: str
    cause: str
    first_s: float
    tid: int
    thread: str | None


class RunDict(_Run, total=False):
    guest: list[PieceDict]


class _Waiting(TypedDict):
    address: str
    tid: int
    thread: str | None
    kind: str
    for_s: float | None
    read: bool


class WaitingDict(_Waiting, total=False):
    guest: list[PieceDict]


class BinDict(TypedDict):
    below_us: float
    faults: int


class LatencyDict(TypedDict):
    """Percentiles (p50, p90, p99, max) in µs: of the whole, and of each phase."""

    faults: int
    p50: float
    p90: float
    p99: float
    max: float
    queue: dict[str, float]
    service: dict[str, float]
    wakeup: dict[str, float] | None
    histogram: list[BinDict]


def phase(waited: LatencyDict, name: str) -> dict[str, float] | None:
    """Percentiles of a phase: `queue`, `service`, `wakeup`, or `total` for all of them together."""
    if name == "total":
        return {"p50": waited["p50"], "p90": waited["p90"], "p99": waited["p99"], "max": waited["max"]}
    return {"queue": waited["queue"], "service": waited["service"], "wakeup": waited["wakeup"]}[name]


class LostDict(TypedDict):
    observed: int | None
    blind: int | None
    causes: dict[str, int] | None
    runs: list[RunDict] | None
    runs_left_off: int


class DropDict(TypedDict):
    call: str
    told: bool
    pages: int


class ElsewhereDict(TypedDict):
    pid: int
    comm: str
    start: str
    end: str


class RangeDict(TypedDict):
    start: str
    end: str
    pages: int
    page_size: int
    name: str | None
    memory: str | None
    modes: list[str]
    userfaultfd: int
    armed_pages: int | None
    holes: int | None
    messages: dict[str, int]
    notified_pages: int | None
    faults: dict[str, int]
    pending: int | None
    waiting: list[WaitingDict] | None
    killed: int
    skipped: dict[str, int | None]
    lost: LostDict
    dropped: list[DropDict]
    mapped_elsewhere: list[ElsewhereDict]
    latency_us: LatencyDict | None
    verdict: str
    findings: list[FindingDict]


class FileEndedDict(TypedDict):
    after_s: float
    reason: str


class TraceDict(TypedDict):
    file: str
    started: str
    duration_s: float | None
    kernel: str
    arch: str
    page_size: int
    backend: str
    stop_reason: str | None
    uffdtrace: str
    unproven_probes: dict[str, list[str]] | None
    file_ended: FileEndedDict | None


class LossDict(TypedDict):
    events_dropped: int | None
    probes_missed: int | None
    unattributed_messages: int
    lower_bounds: list[str]


class EndedReaderDict(TypedDict):
    tid: int
    pid: int
    process_ended: bool
    last_read_s: float
    ended_after_s: float
    ended_by_s: float


class HolderDict(TypedDict):
    pid: int
    comm: str
    fd: int


class EventWaitDict(TypedDict):
    tid: int
    event: str | None
    for_s: float | None
    reads: bool


class BeforeTraceDict(TypedDict):
    unread: int
    waiting: int
    threads: list[int]
    served: int
    still_asleep: list[int]


class UserfaultfdDict(TypedDict):
    id: int
    features: list[str] | None
    owner_pid: int | None
    forked_from: int | None
    events: dict[str, int]
    monitor_pids: list[int]
    monitor_threads_ended: list[EndedReaderDict]
    holders: list[HolderDict] | None
    asleep_in_events: list[EventWaitDict]
    findings: list[FindingDict]
    before_trace: BeforeTraceDict | None


class StackDict(TypedDict):
    tid: int
    thread: str | None
    at_s: float
    event: str
    way: str
    kernel: list[str]
    user: list[str]


class BlockDict(TypedDict):
    block: str
    host: str
    start: str
    end: str
    lost_pages: int


class _Report(TypedDict):
    schema: str
    trace: TraceDict
    process: ProcessDict | None
    also_traced: list[ProcessDict]
    processes: list[ProcessDict]
    processes_not_searched: int | None
    loss: LossDict
    userfaultfds: list[UserfaultfdDict]
    ranges: list[RangeDict]
    stacks: list[StackDict]
    verdict: str


class ReportDict(_Report, total=False):
    relative: bool
    guest_memory: list[BlockDict]
