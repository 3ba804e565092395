"""A trace file made into a report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from uffdtrace.model.account import memory
from uffdtrace.model.account.model import BATCH, Model
from uffdtrace.model.account.timeline import Timeline
from uffdtrace.model.diagnosis.document import ProcessDict, ReportDict, TraceDict
from uffdtrace.model.diagnosis.page_map import PageMap, page_maps
from uffdtrace.model.diagnosis.report import FROM_EVENTS, MOST_RUNS, build
from uffdtrace.model.records.batch import Batch
from uffdtrace.model.records.events import Array
from uffdtrace.trace.file import TraceError
from uffdtrace.trace.reader import Reader

# All maps of a picture together, so that it stays small.
MOST_CELLS = 20_000
# Of a range in a picture.
_FEWEST_CELLS, _MOST_CELLS = 16, 1024

CUT_SHORT = "cut short: the collector was killed, what came before is whole"
DAMAGED = "damaged: what comes after this point is lost, what came before is whole"


def batches(chunks: Iterable[Batch]) -> Iterator[Batch]:
    """The same events in larger parts: a slow trace has chunks of a few."""
    held: list[Batch] = []
    size = 0
    for events in chunks:
        held.append(events)
        size += len(events)
        if size >= BATCH:
            yield Batch.joined(held)
            held, size = [], 0
    if size:
        yield Batch.joined(held)


@dataclass
class Picture:
    """What a page shows beside the report: when things happened, from `began` (ns) on, and each range's pages."""

    most_cells: int
    timeline: Timeline = field(default_factory=Timeline)
    maps: list[PageMap] = field(default_factory=list)
    began: int = 0


@dataclass
class Told:
    """What is told of a trace beside its report: each fault (sleep.FAULT), when it began (ns), threads' names."""

    faults: Callable[[Array], None]
    began: int = 0
    threads: dict[int, str] = field(default_factory=dict)


def read(path: Path, most_runs: int | None = MOST_RUNS, picture: Picture | None = None) -> ReportDict:
    """The report of a trace file, with all runs of lost pages if `most_runs` is None; fills the picture.

    TraceError or ModelError (of model.account.ranges) where it cannot be made.
    """
    return identified(path, most_runs, picture)[1]


def identified(
    path: Path, most_runs: int | None = MOST_RUNS, picture: Picture | None = None, told: Told | None = None
) -> tuple[str, ReportDict]:
    """The trace's id and its report, as read() makes it; tells of the faults on the way."""
    try:
        return _read(path, most_runs, picture, told)
    except MemoryError:
        raise TraceError(f"{path} claims more than this machine's memory holds: it is broken or foreign") from None


def _read(path: Path, most_runs: int | None, picture: Picture | None, told: Told | None) -> tuple[str, ReportDict]:
    memory.keep()
    reader = Reader(path)
    timeline, faults = None if picture is None else picture.timeline, None if told is None else told.faults
    model = Model(reader.meta["page_size"], reader.meta["trace"]["arch"], timeline, faults)
    model.sees_page_scans = any(probe["row"] == "page-scans" for probe in reader.meta["probes"])
    first = last = 0
    for events in batches(reader.events()):
        first = first or int(events["time"][0])
        last = int(events["time"][-1])
        model.feed(events)
    model.finish()
    # It may have been moved since.
    trace = {**reader.meta["trace"], "page_size": model.page_size, "file": str(path), "file_ended": None}
    process = reader.meta["process"]
    ending = {"features_offered": reader.meta["features_offered"], **reader.ending}
    if reader.backwards:
        # A collector that was late says so itself; in any other file the order is somebody's invention.
        ending["doubtful"] = sorted({*ending.get("doubtful", ()), *FROM_EVENTS})
    if reader.complete:
        for name in ("duration_s", "stop_reason", "file_ended"):
            trace[name] = ending[name]
    else:
        trace["duration_s"] = round(max(0, last - first) / 1e9, 3)
        trace["stop_reason"] = DAMAGED if reader.damaged else CUT_SHORT
    began = reader.meta["began"]
    # The reader has held them against their forms (trace.shape).
    report = build(
        model,
        cast(TraceDict, trace),
        process,
        ending,
        reader.names,
        cast("list[ProcessDict]", reader.processes),
        began,
        most_runs,
        reader.looks,
        reader.threads,
        reader.meta["also_traced"],
        reader.stacks,
    )
    if picture is not None:
        cells = max(_FEWEST_CELLS, picture.most_cells // max(1, len(report["ranges"])))
        picture.maps = page_maps(model, report["ranges"], min(cells, _MOST_CELLS))
        picture.began = began
    if told is not None:
        told.began, told.threads = began, reader.threads
    return reader.id, report
