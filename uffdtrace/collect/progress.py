"""How a trace goes while it goes: totals, and the ranges that are worst off."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from uffdtrace.model.account.model import Model
from uffdtrace.model.account.ranges import Range
from uffdtrace.model.diagnosis.case import VERDICTS, Case, verdict
from uffdtrace.model.diagnosis.rules import MEANINGS, findings
from uffdtrace.model.records.events import Kind

# Ranges that are looked at closely, and looks that a range's history goes back.
MOST_RANGES = 20
HISTORY = 16


@dataclass(frozen=True)
class RangeProgress:
    """A range so far. Pages, but for messages (per second since the last look) and `p99_us`."""

    start: int
    end: int
    pages: int
    page_size: int
    memory: str
    armed: int
    messages: int
    per_second: float
    p99_us: float | None
    # Faults that wait, of which the monitor has read nothing yet.
    unread: int
    # None where it is not known.
    lost: int | None
    verdict: str
    # Pages lost between the last looks, the newest last.
    history: tuple[int, ...]


@dataclass(frozen=True)
class Progress:
    """How far a trace has come: totals so far, and whether events come faster than they are accounted for."""

    elapsed_s: float
    faults: int
    messages: int
    lost: int
    # Some pages may have been lost that were armed before the trace, or not.
    lost_unknown: bool
    behind: bool
    # The worst first; `more` are not among them.
    ranges: tuple[RangeProgress, ...] = ()
    more: int = 0
    # Events that found no room, and bytes in the file.
    dropped: int = 0
    written: int = 0
    # `[unpopulated] pages that were empty ...`: the finding that came last.
    newest: str | None = None
    # Share of one CPU that our probes took since the last look; None where the kernel does not count it.
    probes: float | None = None
    # Messages by kind; lost pages by cause, None where some may have been lost that nobody saw.
    by_kind: Mapping[str, int] = field(default_factory=dict)
    by_cause: Mapping[str, int] | None = None
    # Pages; None where it is not known, as in the report.
    armed: int | None = 0


class Watch:
    """Looks at a model again and again, and remembers what it saw."""

    def __init__(self) -> None:
        self._time: float | None = None
        # By number of the range: messages and lost pages at the last look.
        self._last: dict[int, tuple[int, int]] = {}
        self._history: dict[int, deque[int]] = {}
        self._findings: set[str] = set()
        self._newest: str | None = None
        self._run_ns: int | None = None

    def look(
        self, model: Model, elapsed_s: float, behind: bool, dropped: int, written: int, run_ns: int | None = None
    ) -> Progress:
        """`run_ns` is the time that our probes took in all, None where it is not known."""
        since = None if self._time is None else elapsed_s - self._time
        model.divide_waits()
        rows = model.ranges.rows()
        counts = {row.number: (sum(row.messages), row.count("observed") + row.count("blind")) for row in rows}
        worst = sorted(rows, key=lambda row: (-counts[row.number][1], -counts[row.number][0], row.number))
        unread = model.unread()
        shown = [
            self._range(model, row, *counts[row.number], unread.get(row.number, 0), since)
            for row in worst[:MOST_RANGES]
        ]
        shown.sort(key=lambda one: (VERDICTS.index(one.verdict), -(one.lost or 0), -one.messages))
        probes = None
        if since and run_ns is not None and self._run_ns is not None:
            probes = (run_ns - self._run_ns) / 1e9 / since
        cases = [Case(row, model.uffd_of(row)) for row in rows]
        unknown = any(case.unknown for case in cases)
        armed = [case.armed for case in cases]
        causes: Counter[str] = Counter()
        for row in rows:
            causes.update(row.causes())
        self._time, self._last, self._run_ns = elapsed_s, counts, run_ns
        return Progress(
            elapsed_s=elapsed_s,
            faults=sum(sum(row.faults) for row in rows),
            messages=sum(messages for messages, _ in counts.values()),
            lost=sum(lost for _, lost in counts.values()),
            lost_unknown=unknown,
            behind=behind,
            ranges=tuple(shown),
            more=len(rows) - len(shown),
            dropped=dropped,
            written=written,
            newest=self._newest,
            probes=probes,
            by_kind={kind.name.lower(): sum(row.messages[kind] for row in rows) for kind in Kind},
            by_cause=None if unknown else causes,
            armed=None if None in armed else sum(filter(None, armed)),
        )

    def _range(
        self, model: Model, row: Range, messages: int, lost: int, unread: int, since: float | None
    ) -> RangeProgress:
        case = Case(row, model.uffd_of(row))
        for finding in findings(case):
            name = str(finding["id"])
            if name not in self._findings:
                self._findings.add(name)
                self._newest = f"[{name}] {MEANINGS[name]}"
        before, lost_before = self._last.get(row.number, (0, 0))
        history = self._history.setdefault(row.number, deque(maxlen=HISTORY))
        history.append(max(0, lost - lost_before))
        waited = case.waited
        return RangeProgress(
            start=row.start,
            end=row.end,
            pages=row.pages,
            page_size=row.page_size,
            memory=row.memory.name.lower() if row.memory.name else "?",
            armed=row.count("armed_pages"),
            messages=messages,
            per_second=(messages - before) / since if since else 0.0,
            p99_us=waited["p99"] if waited else None,
            unread=unread,
            lost=None if case.unknown else lost,
            verdict=verdict(case),
            history=tuple(history),
        )
