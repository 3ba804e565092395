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


def families(report: ReportDict, labels: Labels) -> list[Family]:
    """What a report counts, with these labels on each sample. A number that is not known has no sample."""
    trace, loss = report["trace"], report["loss"]
    process = report["process"]
    own = {**labels, "process": process["comm"] if process else ""}
    info = {**own, "kernel": trace["kernel"], "backend": trace["backend"], "verdict": report["verdict"]}
    found = [Family("uffdtrace_trace_info", "", "What was traced, and the verdict.", [(info, 1)])]

    def tell(name: str, unit: str, help_: str, samples: Iterable[tuple[Labels, float | None]]) -> None:
        known = [({**own, **more}, number) for more, number in samples if number is not None]
        if known:
            found.append(Family(f"uffdtrace_{name}_{unit}", unit, help_, known))

    tell("trace_duration", "seconds", "How long the trace took.", [({}, trace["duration_s"])])
    ranges = report["ranges"]
    armed, holes = add(*(one["armed_pages"] for one in ranges)), add(*(one["holes"] for one in ranges))
    tell("armed", "pages", "Pages that were write-protected.", [({}, armed)])
    tell("hole", "pages", "Pages that were empty when they should have been protected.", [({}, holes)])
    lost: dict[str, int] = {}
    for one in ranges:
        for cause, pages in (one["lost"]["causes"] or {}).items():
            lost[cause] = lost.get(cause, 0) + pages
    if all(one["lost"]["causes"] is not None for one in ranges):
        tell("lost", "pages", "Pages whose writes sent no message, by cause.", _by("cause", lost))
    kinds = ("missing", "wp", "minor")
    messages = {kind: sum(one["messages"][kind] for one in ranges) for kind in kinds}
    tell("read", "messages", "Messages that the monitor read.", _by("kind", messages))
    pending = add(*(one["pending"] for one in ranges))
    tell("pending", "faults", "Faults that waited for the monitor when the trace ended.", [({}, pending)])
    missed: list[tuple[Labels, float | None]] = [({}, loss["events_dropped"])]
    tell("dropped", "events", "Events that the trace lacks: other numbers are lower bounds.", missed)
    return found


def _by(label: str, counts: Mapping[str, int]) -> list[tuple[Labels, float | None]]:
    return [({label: name}, count) for name, count in counts.items()]


def _escaped(value: str) -> str:
    """Within quotes; what a target chose to be called steers no terminal and ends no line."""
    return printable(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def text(found: Iterable[Family]) -> str:
    """All families, and the line that ends them."""
    lines = []
    for family in found:
        lines.append(f"# TYPE {family.name} gauge")
        if family.unit:
            lines.append(f"# UNIT {family.name} {family.unit}")
        lines.append(f"# HELP {family.name} {family.help}")
        for labels, number in family.samples:
            inside = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
            lines.append(f"{family.name}{{{inside}}} {number!r}")
    return "\n".join([*lines, "# EOF", ""])
