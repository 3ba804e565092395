"""Numbers in OpenMetrics' text form, for the node exporter's textfile collector and whatever else reads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from uffdtrace.model.diagnosis.document import ReportDict
from uffdtrace.reporters.harmless import printable
from uffdtrace.reporters.words import add

Labels = Mapping[str, str]


@dataclass
class Family:
    """A metric with its samples. Each is a gauge: it tells of one trace, and the next begins anew."""

    name: str
    unit: str
    help: str
    samples: Sequence[tuple[Labels, float]]


@dataclass(frozen=True)
class Numbers:
    """What is told of a trace; None where it is not known. `messages` are by kind, `lost` pages by cause."""

    process: str
    kernel: str
    backend: str
    # The report's, or TRACING.
    verdict: str
    duration_s: float | None
    armed: int | None
    holes: int | None
    lost: Mapping[str, int] | None
    messages: Mapping[str, int]
    pending: int | None
    dropped: int | None


# In place of a verdict, while the trace goes on.
TRACING = "tracing"


def numbers(report: ReportDict) -> Numbers:
    """What a report counts, summed up over its ranges."""
    trace, process, ranges = report["trace"], report["process"], report["ranges"]
    lost: dict[str, int] | None = {}
    for one in ranges:
        causes = one["lost"]["causes"]
        if lost is None or causes is None:
            lost = None
            continue
        for cause, pages in causes.items():
            lost[cause] = lost.get(cause, 0) + pages
    return Numbers(
        process["comm"] if process else "",
        trace["kernel"],
        trace["backend"],
        report["verdict"],
        trace["duration_s"],
        add(*(one["armed_pages"] for one in ranges)),
        add(*(one["holes"] for one in ranges)),
        lost,
        {kind: sum(one["messages"][kind] for one in ranges) for kind in ("missing", "wp", "minor")},
        add(*(one["pending"] for one in ranges)),
        report["loss"]["events_dropped"],
    )


def families(told: Numbers, labels: Labels) -> list[Family]:
    """The numbers, with these labels on each sample. One that is not known has no sample."""
    own = {**labels, "process": told.process}
    info = {**own, "kernel": told.kernel, "backend": told.backend, "verdict": told.verdict}
    found = [Family("uffdtrace_trace_info", "", "What was traced, and the verdict.", [(info, 1)])]

    def tell(name: str, unit: str, help_: str, samples: Iterable[tuple[Labels, float | None]]) -> None:
        known = [({**own, **more}, number) for more, number in samples if number is not None]
        if known:
            found.append(Family(f"uffdtrace_{name}_{unit}", unit, help_, known))

    tell("trace_duration", "seconds", "How long the trace took.", [({}, told.duration_s)])
    tell("armed", "pages", "Pages that were write-protected.", [({}, told.armed)])
    tell("hole", "pages", "Pages that were empty when they should have been protected.", [({}, told.holes)])
    tell("lost", "pages", "Pages whose writes sent no message, by cause.", _by("cause", told.lost or {}))
    tell("read", "messages", "Messages that the monitor read.", _by("kind", told.messages))
    tell("pending", "faults", "Faults that waited for the monitor when the trace ended.", [({}, told.pending)])
    tell("dropped", "events", "Events that the trace lacks: other numbers are lower bounds.", [({}, told.dropped)])
    return found


def _by(label: str, counts: Mapping[str, int]) -> list[tuple[Labels, float | None]]:
    return [({label: name}, count) for name, count in counts.items()]


def _escaped(value: str) -> str:
    """Within quotes; what a target chose to be called steers no terminal and ends no line."""
    return printable(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


# Whoever collects them is another user.
MODE = 0o644


def text(found: Iterable[Family]) -> bytes:
    """A file's content: all families, and the line that ends them."""
    lines = []
    for family in found:
        lines.append(f"# TYPE {family.name} gauge")
        if family.unit:
            lines.append(f"# UNIT {family.name} {family.unit}")
        lines.append(f"# HELP {family.name} {family.help}")
        for labels, number in family.samples:
            inside = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
            lines.append(f"{family.name}{{{inside}}} {number!r}")
    return "\n".join([*lines, "# EOF", ""]).encode("utf-8", "replace")
