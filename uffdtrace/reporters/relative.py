"""A report whose addresses can be compared with another run's."""

from __future__ import annotations

from uffdtrace.model.diagnosis.document import RangeDict, ReportDict


def relative(report: ReportDict) -> ReportDict:
    """The report with the addresses of runs and of what waits counted from their range's start."""
    return {**report, "relative": True, "ranges": [_relative(found) for found in report["ranges"]]}


def _relative(found: RangeDict) -> RangeDict:
    start = int(found["start"], 16)

    def offset(address: str) -> str:
        return hex(int(address, 16) - start)

    runs, waiting = found["lost"]["runs"], found["waiting"]
    if runs is not None:
        runs = [{**run, "start": offset(run["start"]), "end": offset(run["end"])} for run in runs]
    if waiting is not None:
        waiting = [{**fault, "address": offset(fault["address"])} for fault in waiting]
    return {**found, "lost": {**found["lost"], "runs": runs}, "waiting": waiting}
