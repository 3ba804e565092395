"""Did the fix help: two reports, before and after it, held against each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from uffdtrace.model.diagnosis.case import VERDICTS
from uffdtrace.model.diagnosis.document import ReportDict
from uffdtrace.model.diagnosis.rules import SEVERITIES
from uffdtrace.reporters.match import Range, kind, match
from uffdtrace.reporters.words import add, addresses, lost_pages, noun, size

SCHEMA = "uffdtrace-compare/1"
# AFTER must have seen at least this part of BEFORE's writes: less shows nothing.
COMPARABLE = 0.1

# What a finding's number rests on, by its unit: report fields that may be lower bounds.
_RESTS_ON = {
    "pages": {"armed_pages", "holes", "skipped", "lost"},
    "faults": {"faults", "pending"},
    "threads": {"faults", "pending"},
    "messages": {"messages"},
}


@dataclass(frozen=True)
class Amount:
    """A count; None where it is not known, a lower bound where it is not exact."""

    count: int | None
    exact: bool

    def __str__(self) -> str:
        if self.count is None:
            return "nobody knows how many"
        return f"{self.count:,}" if self.exact else f"at least {self.count:,}"

    @property
    def none(self) -> bool:
        return self.exact and self.count == 0


def _total(amounts: list[Amount]) -> Amount:
    return Amount(add(*(one.count for one in amounts)), all(one.exact for one in amounts))


def change(before: Amount, after: Amount) -> str:
    """gone, new, fewer, more, same; unknown where what is known does not decide."""
    if before.count is None or after.count is None or not (before.exact or after.exact):
        return "unknown"
    if after.exact and after.count < before.count:
        return "fewer" if after.count else "gone"
    if before.exact and after.count > before.count:
        return "more" if before.count else "new"
    return "same" if before.exact and after.exact else "unknown"


class Run:
    """One of the two reports."""

    def __init__(self, report: ReportDict) -> None:
        self.report = report
        self.ranges: list[Range] = report["ranges"]
        self.page_size = report["trace"]["page_size"]
        self.dropped: int | None = report["loss"]["events_dropped"]
        self.lower_bounds = set(report["loss"]["lower_bounds"])

    def exact(self, fields: set[str]) -> bool:
        return self.dropped == 0 and not fields & self.lower_bounds

    def lost(self, found: Range) -> Amount:
        return Amount(lost_pages(found), self.exact({"lost"}))

    def all_lost(self) -> Amount:
        return _total([self.lost(found) for found in self.ranges])

    def finding(self, found: Range | None, name: str, unit: str) -> Amount:
        """How much of a finding a range has."""
        if found is None:
            return Amount(0, self.exact(_RESTS_ON.get(unit, set())))
        unknown = (unit == "pages" and lost_pages(found) is None) or (unit == "faults" and found["pending"] is None)
        counts = [finding["pages"] for finding in found["findings"] if finding["id"] == name]
        return Amount(sum(counts), self.exact(_RESTS_ON.get(unit, set())) and not unknown)

    def summary(self) -> dict[str, Any]:
        trace, lost = self.report["trace"], self.all_lost()
        return {
            "file": trace["file"],
            "started": trace["started"],
            "duration_s": trace["duration_s"],
            "kernel": trace["kernel"],
            "page_size": self.page_size,
            "process": self.report["process"],
            "verdict": self.report["verdict"],
            "lost": lost.count,
            "lost_is_lower_bound": not lost.exact,
            "events_dropped": self.dropped,
            "messages": sum(sum(found["messages"].values()) for found in self.ranges),
        }


def _side(found: Range | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "start": found["start"],
        "end": found["end"],
        "pages": found["pages"],
        "page_size": found["page_size"],
        "memory": found["memory"],
        "name": found["name"],
        "modes": found["modes"],
        "userfaultfd": found["userfaultfd"],
        "armed_pages": found["armed_pages"],
        "verdict": found["verdict"],
        "messages": sum(found["messages"].values()),
        "lost": lost_pages(found),
    }


def _trouble(found: Range) -> set[str]:
    """What is wrong besides: errors, and threads that hang."""
    errors = {finding["id"] for finding in found["findings"] if finding["severity"] == "error"}
    return errors | ({"pending"} if found["verdict"] == "pending" else set())


def _writes(found: Range) -> int:
    """Bytes of the pages whose write was seen, notified or not."""
    return ((found["notified_pages"] or 0) + (found["lost"]["observed"] or 0)) * found["page_size"]


def _shows_nothing(before: Range, after: Range) -> str | None:
    """Why AFTER's range cannot show that a fix helped; None where it can."""
    if after["verdict"] == "async":
        return "uses WP_ASYNC, where a trace cannot show losses"
    if after["armed_pages"] == 0:
        return "was not armed"
    served = sum(after["messages"].values()) + sum(after["faults"].values()) + (after["skipped"]["fresh_page"] or 0)
    if not served and not lost_pages(after):
        return "was armed, but nothing wrote to it"
    if _writes(after) < COMPARABLE * _writes(before):
        return "saw less than a tenth of the writes that BEFORE saw"
    return None


class Comparison:
    """What is said of two runs: a change for each range and for all, and the reasons of what is not known."""

    def __init__(self, before: Run, after: Run) -> None:
        self.before, self.after = before, after
        self.pairs = match(before.ranges, after.ranges)
        self.doubts: dict[tuple[str, str], list[Range]] = {}
        self.reasons: list[str] = []
        # Where a range is missing, any of its like could be the one.
        self.missing = [kind(one) for one, other in self.pairs if one and not other]
        self.changes = [self._pair(one, other) for one, other in self.pairs]
        self.change = self._overall()

    def _doubt(self, found: Range, run: str, why: str) -> str:
        self.doubts.setdefault((run, why), []).append(found)
        return "unknown"

    def _change_of(self, before: Amount, after: Amount) -> str:
        """change() of pages: of two sizes some are neither more nor fewer than others, only none is none."""
        found = change(before, after)
        alike = self.before.page_size == self.after.page_size or found in ("gone", "new") or before.none
        return found if alike else "unknown"

    def _pair(self, before: Range | None, after: Range | None) -> str:
        if before is None or after is None:
            return "only-after" if before is None else "only-before"
        lost = self._change_of(self.before.lost(before), self.after.lost(after))
        if lost == "unknown":
            return "unknown"
        if lost in ("more", "new"):
            return "worse"
        was, still = _trouble(before), _trouble(after)
        if lost == "same":
            # One error for another: the verdict tells which is worse.
            step = VERDICTS.index(after["verdict"]) - VERDICTS.index(before["verdict"])
            step = len(was) - len(still) if was < still or still < was else step
            if was == still or not step:
                return "same"
            if step < 0:
                return "worse"
        why = _shows_nothing(before, after)
        if why:
            return self._doubt(after, "AFTER", why)
        if kind(before) in self.missing:
            return self._doubt(before, "BEFORE", "cannot be told from another of its size, which AFTER lacks")
        return "better" if still or self.after.lost(after).count else "fixed"

    def _harmless(self, found: Range, run: Run) -> bool:
        return run.lost(found).none and not _trouble(found)

    def _unmatched(self, before: Range | None, after: Range | None) -> str | None:
        """What a range that only one run has means for the whole; None where it means nothing."""
        if before and not self._harmless(before, self.before):
            known = self.before.lost(before).count or _trouble(before)
            what = "lost writes or had errors" if known else "may have lost writes"
            return self._doubt(before, "BEFORE", f"{what}, and AFTER has no such range")
        if after and not self._harmless(after, self.after):
            if self.after.lost(after).count or _trouble(after):
                return "worse"
            return self._doubt(after, "AFTER", "is not in BEFORE, and what it lost is not known")
        return None

    def _overall(self) -> str:
        matched = {one for one in self.changes if not one.startswith("only-")}
        found = matched | {
            means for pair in self.pairs if None in pair and (means := self._unmatched(*pair)) is not None
        }
        if not matched:
            self._nothing_matched()
        for (run, why), ranges in self.doubts.items():
            self.reasons.append(f"{_some(ranges)} of {run} {why}")
        self._uncertain()
        if not matched:
            return "unknown"
        if "worse" in found and found & {"fixed", "better"}:
            # Here better, there worse: what both lost in all decides.
            lost = self._change_of(self.before.all_lost(), self.after.all_lost())
            if lost in ("more", "new"):
                return "worse"
            if "unknown" in found or lost == "unknown":
                return "unknown"
            return "same" if lost == "same" else "better"
        for first in ("worse", "unknown", "better"):
            if first in found:
                return first
        if "fixed" in found:
            return "fixed" if all(self._harmless(one, self.after) for one in self.after.ranges) else "better"
        return "same"

    def _nothing_matched(self) -> None:
        for run, name in ((self.before, "BEFORE"), (self.after, "AFTER")):
            if not run.ranges:
                self.reasons.append(f"{name} has no range: nothing was registered while it was traced")
        if not self.reasons:
            self.reasons.append("no range of AFTER has the size and memory of one of BEFORE")

    def _uncertain(self) -> None:
        """Say whose numbers are not the whole truth."""
        if self.before.page_size != self.after.page_size:
            sizes = " and ".join(size(1, run.page_size) for run in (self.before, self.after))
            self.reasons.append(f"the pages of the two machines differ, {sizes}: counts of them cannot be compared")
        for run, name in ((self.before, "BEFORE"), (self.after, "AFTER")):
            if run.dropped is None:
                self.reasons.append(f"{name}'s trace has no end, so its numbers are lower bounds")
            elif run.dropped:
                self.reasons.append(f"{name} dropped {noun(run.dropped, 'event')}, so its numbers are lower bounds")
            elif not run.exact({"lost"}):
                self.reasons.append(f"not everything was seen in {name}, so its losses are lower bounds")
            unknown = [found for found in run.ranges if lost_pages(found) is None]
            if unknown:
                self.reasons.append(f"what {_some(unknown)} of {name} lost is not known")

    def notes(self) -> list[str]:
        """What else to know before believing the answer."""
        first, second = self.before.report, self.after.report
        notes = []
        names = [(run["process"] or {"comm": "every userfaultfd"})["comm"] for run in (first, second)]
        if names[0] != names[1]:
            notes.append(f"BEFORE traced {names[0]}, AFTER {names[1]}: two different programs")
        if first["trace"]["kernel"] != second["trace"]["kernel"]:
            notes.append(f"the kernels differ: {first['trace']['kernel']} and {second['trace']['kernel']}")
        unknown = [found for found in self.after.ranges if found["pending"] is None]
        if unknown:
            notes.append(f"whether faults still wait in {_some(unknown)} of AFTER is not known")
        # The answer has the first reason of what is not known.
        return self.reasons[self.change == "unknown" :] + notes

    def answer(self) -> str:
        """One sentence: did the fix help?"""
        before, after = self.before.all_lost(), self.after.all_lost()
        lost = f"BEFORE lost {_pages(before)}, AFTER {_pages(after)}"
        if self.change == "unknown":
            still = f"; AFTER lost {_pages(after)}" if after.count else ""
            return f"Not known: {self.reasons[0]}{still}."
        if after.none and before.none:
            return {
                "fixed": "Yes: what was wrong is gone, and neither run lost a page.",
                "better": "Partly: some of what was wrong is gone; neither run lost a page.",
                "same": "No change: neither run lost a page.",
            }.get(self.change, "No, worse: neither run lost a page, but AFTER has new errors.")
        if self.change == "better" and after.none:
            return f"Partly: {lost}, but something else is wrong in AFTER."
        return {"fixed": "Yes", "better": "Partly", "same": "No"}.get(self.change, "No, worse") + f": {lost}."

    def findings(self, pairs: list[tuple[Range | None, Range | None]]) -> list[dict[str, Any]]:
        """The findings of some pairs of ranges together, worst first."""
        known = {finding["id"]: finding for pair in pairs for found in pair if found for finding in found["findings"]}
        compared = []
        for name, finding in known.items():
            before = _total([self.before.finding(one, name, finding["unit"]) for one, _ in pairs])
            after = _total([self.after.finding(other, name, finding["unit"]) for _, other in pairs])
            if any(one and not other and name in _ids(one) for one, other in pairs):
                # Not gone: its range is.
                after = Amount(after.count, False)
            compared.append(
                {
                    "id": name,
                    "severity": finding["severity"],
                    "unit": finding["unit"],
                    "before": before.count,
                    "after": after.count,
                    "change": (self._change_of if finding["unit"] == "pages" else change)(before, after),
                }
            )
        return sorted(compared, key=lambda one: SEVERITIES.index(one["severity"]))


def _ids(found: Range) -> set[str]:
    return {finding["id"] for finding in found["findings"]}


def _some(ranges: list[Range]) -> str:
    more = f" (and {noun(len(ranges) - 1, 'more range')})" if len(ranges) > 1 else ""
    return addresses(ranges[0]) + more


def _pages(lost: Amount) -> str:
    if lost.none:
        return "none"
    return f"{lost} page{'' if lost.count == 1 else 's'}"


def compare(before: ReportDict, after: ReportDict) -> dict[str, Any]:
    """Two reports held against each other: `compare.schema.json`."""
    made = Comparison(Run(before), Run(after))
    return {
        "schema": SCHEMA,
        "before": made.before.summary(),
        "after": made.after.summary(),
        "ranges": [
            {"before": _side(one), "after": _side(other), "change": found, "findings": made.findings([(one, other)])}
            for (one, other), found in zip(made.pairs, made.changes)
        ],
        "findings": made.findings(made.pairs),
        "change": made.change,
        "answer": made.answer(),
        "notes": made.notes(),
    }
