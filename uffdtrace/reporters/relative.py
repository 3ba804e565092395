"""A report whose addresses can be compared with another run's."""

from __future__ import annotations

from typing import Any


def relative(report: dict[str, Any]) -> dict[str, Any]:
    """The report with the addresses of runs and of what waits counted from their range's start."""
    return {**report, "relative": True, "ranges": [_relative(found) for found in report["ranges"]]}


def _relative(found: dict[str, Any]) -> dict[str, Any]:
    start = int(found["start"], 16)

    def offset(one: dict[str, Any], *names: str) -> dict[str, Any]:
        return {**one, **{name: hex(int(one[name], 16) - start) for name in names}}

    runs, waiting = found["lost"]["runs"], found["waiting"]
    return {
        **found,
        "lost": {**found["lost"], "runs": runs and [offset(run, "start", "end") for run in runs]},
        "waiting": waiting and [offset(fault, "address") for fault in waiting],
    }
