"""A report held against the workload's own account of what it did."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

KINDS = ("missing", "wp", "minor")
# Everything a truth line can give, in the report's own terms (design.md, section 4).
FIELDS = (
    "start",
    "end",
    "page_size",
    "modes",
    "memory",
    "armed_pages",
    "holes",
    "messages",
    "notified_pages",
    "skipped",
    "lost.observed",
    "lost.blind",
    "lost.causes",
    "pending",
    "killed",
    "verdict",
)
# Luck and timing decide about these: where a scenario forces or forbids one, it says so by itself.
# Forked children and second mappings are seen in a look at /proc, or are gone by then.
VARYING = {"repeated-messages", "slow-service", "undecided", "mapped-elsewhere"}
# What else a range seems to have where events are missing: a populated page is still a hole, a loss has
# another cause or none, a registration that was not seen is older than the trace.
MISREAD = {"holes-left", "exposed", "unpopulated", "unexplained", "armed-before-trace"}
# In place of a number that the workload knows and the report must not claim to.
UNKNOWN = "unknown"


@dataclass
class Comparison:
    """What differs, and which differences the report itself had announced."""

    differences: list[str] = field(default_factory=list)
    lower_bounds: set[str] = field(default_factory=set)

    @property
    def cell(self) -> str:
        return "FAIL" if self.differences else "lower bound" if self.lower_bounds else "ok"


def owned_ranges(report: Json, pid: int) -> list[Json]:
    owned = {uffd["id"] for uffd in report["userfaultfds"] if uffd["owner_pid"] == pid}
    return in_order([found for found in report["ranges"] if found["userfaultfd"] in owned])


def in_order(ranges: list[Json]) -> list[Json]:
    # Stable: entries for the same addresses stay in the order of time.
    return sorted(ranges, key=lambda found: int(found["start"], 16))


def lookup(document: Json, path: str) -> Any:
    value: Any = document
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def normal(path: str, value: Any) -> Any:
    if path in ("start", "end") and value is not None:
        return int(value, 16)
    if path == "modes" and value is not None:
        return sorted(value)
    if path == "lost.causes" and isinstance(value, dict):
        return {cause: pages for cause, pages in value.items() if pages}
    return value


def leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A field's parts that are compared one by one; the causes are one, for none may be added."""
    if isinstance(value, dict) and path != "lost.causes":
        for key, part in value.items():
            yield f"{path}.{key}", part
    else:
        yield path, value


def named(path: str, names: Collection[str]) -> bool:
    return any(path == name or path.startswith(f"{name}.") or name.startswith(f"{path}.") for name in names)


def not_more(reported: Any, true: Any) -> bool:
    """A lower bound keeps its word; null claims nothing."""
    if reported is None:
        return True
    if isinstance(true, dict) and isinstance(reported, dict):
        # A cause may be the wrong one where events are missing, but not one page too many.
        return sum(reported.values()) <= sum(true.values())
    return isinstance(true, int) and isinstance(reported, int) and reported <= true


def untouched(reported: Json) -> bool:
    """Nothing happened there, so only a look at the living process could tell what memory it is."""
    counts = [*reported["messages"].values(), *reported["faults"].values(), *reported["skipped"].values()]
    return not any(counts) and not reported["armed_pages"]


def compare_range(reported: Json, true: Json, where: str, bounds: Collection[str]) -> Comparison:
    outcome = Comparison()
    excused = False
    for path in FIELDS:
        for leaf, expected in leaves(path, normal(path, lookup(true, path))):
            if expected is None:
                continue
            found = normal(leaf, lookup(reported, leaf))
            told = None if expected == UNKNOWN else expected
            if found == told or (leaf == "memory" and found is None and untouched(reported)):
                continue
            if named(leaf, bounds) and not_more(found, expected):
                outcome.lower_bounds.add(leaf)
                excused = True
            # It is drawn from the numbers; and where an arming may not have been seen, none is said to be missing.
            elif leaf == "verdict" and (excused or (expected == "never-armed" and "armed_pages" in bounds)):
                outcome.lower_bounds.add(leaf)
            else:
                outcome.differences.append(f"{where}: {leaf} is {found}, the workload counted {expected}")
    compare_runs(reported, true, where, bounds, outcome)
    compare_findings(reported, true, where, bounds, outcome)
    if not named("lost", bounds):
        compare_content(reported, true, where, outcome)
    for kind in KINDS:
        faults, messages = lookup(reported, f"faults.{kind}"), lookup(reported, f"messages.{kind}")
        if isinstance(faults, int) and isinstance(messages, int) and faults < messages:
            if named("faults", bounds):
                outcome.lower_bounds.add("faults")
            else:
                outcome.differences.append(f"{where}: {faults} {kind} faults for {messages} messages")
    return outcome


def runs_of(reported: Json) -> list[list[str]]:
    return [[run["start"], run["end"], run["how"], run["cause"]] for run in reported["lost"]["runs"] or []]


def pages_of(runs: list[list[str]], size: int) -> set[tuple[int, str]]:
    return {(page, how) for start, end, how, _ in runs for page in range(int(start, 16), int(end, 16), size)}


def compare_runs(reported: Json, true: Json, where: str, bounds: Collection[str], outcome: Comparison) -> None:
    """The very pages that were lost, not only how many."""
    found, expected = runs_of(reported), true["lost_runs"]
    if found == expected:
        return
    if named("lost", bounds) and pages_of(found, true["page_size"]) <= pages_of(expected, true["page_size"]):
        outcome.lower_bounds.add("lost.runs")
        return
    only = [run for run in found if run not in expected][:5], [run for run in expected if run not in found][:5]
    outcome.differences.append(f"{where}: lost runs {only[0]} are not the workload's, {only[1]} are not reported")


def pages_in(runs: list[list[str]], size: int) -> set[int]:
    return {page for start, end in runs for page in range(int(start, 16), int(end, 16), size)}


def judged_by_content(truth: Json) -> bool:
    """Whether there is a page of which what it held when it was armed says whether it is lost."""
    return any(found[name] for found in truth["ranges"] for name in ("changed_unannounced", "unchanged", "announced"))


def compare_content(reported: Json, true: Json, where: str, outcome: Comparison) -> None:
    """Nobody's idea of the kernel: a page that changed without a message is lost, one that did not is not written."""
    if reported["lost"]["runs"] is None:
        # It was armed before the trace: the report says that it does not know, and claims nothing.
        return
    size = true["page_size"]
    lost = pages_of(runs_of(reported), size)
    changed, unchanged = pages_in(true["changed_unannounced"], size), pages_in(true["unchanged"], size)
    silent = changed - {page for page, _ in lost}
    if silent and not any(finding["id"] == "undecided" for finding in reported["findings"]):
        outcome.differences.append(
            f"{where}: {len(silent)} pages changed without a message and are not lost, from {min(silent):#x}"
        )
    accused = unchanged & {page for page, how in lost if how == "observed"}
    if accused:
        outcome.differences.append(
            f"{where}: {len(accused)} pages hold what they held when armed and are lost, from {min(accused):#x}"
        )


def compare_findings(reported: Json, true: Json, where: str, bounds: Collection[str], outcome: Comparison) -> None:
    """Exactly the findings that the workload knows it earned: whatever else is reported is a false alarm."""
    found = {finding["id"]: finding["pages"] for finding in reported["findings"]}
    forced = {*true["must"], *true["must_not"]}
    ids, expected = set(found) - (VARYING - forced), {*true["findings"], *true["must"]}
    extra, absent = ids - expected, expected - ids
    if "holes-left" in absent and lookup(true, "lost.causes.discarded"):
        # Which of the discarded pages had been holes no event tells, so their number may be unknown.
        absent.discard("holes-left")
    # What an event that was not recorded could refute is not claimed.
    if outcome.lower_bounds | set(bounds) & {"pending", "holes", "armed_pages"}:
        extra, absent = extra - MISREAD, set()
    if extra or absent:
        outcome.differences.append(f"{where}: findings {sorted(extra)} should not be there, {sorted(absent)} should")
    for name, count in {**true["counts"], **true["must"]}.items():
        pages = found.get(name)
        if not count or pages is None or pages == count:
            continue
        if not named("lost", bounds) or (pages > count and name not in MISREAD):
            outcome.differences.append(f"{where}: {name} is {pages}, the workload counted {count}")


def compare(report: Json, truth: Json, forced: bool = False) -> Comparison:
    """One scenario's ranges against the report's.

    A forced backend may say that a number is a lower bound (`loss.lower_bounds`);
    the default one may not.
    """
    bounds = (report["loss"].get("lower_bounds") or []) if forced else []
    total = Comparison()
    # A forked child's ranges are its own process's.
    for pid in dict.fromkeys([truth["pid"], *pids_of(truth)]):
        of_process(report, truth, pid, bounds, total)
    return total


def pids_of(truth: Json) -> list[int]:
    return [found.get("pid", truth["pid"]) for found in truth["ranges"]]


def of_process(report: Json, truth: Json, pid: int, bounds: Collection[str], total: Comparison) -> None:
    reported = owned_ranges(report, pid)
    true = in_order([found for found in truth["ranges"] if found.get("pid", truth["pid"]) == pid])
    if len(reported) != len(true):
        total.differences.append(f"{len(reported)} ranges reported, the workload had {len(true)}")
    different = []
    for number, (found, expected) in enumerate(zip(reported, true)):
        one = compare_range(found, expected, f"range {number}", bounds)
        total.differences += one.differences
        total.lower_bounds |= one.lower_bounds
        if one.differences:
            different.append((number, found, expected))
    # Both whole, so that nobody has to boot again to see the rest; 400 of them help nobody.
    for number, found, expected in different[:3]:
        total.differences.append(f"range {number} reported: {json.dumps(found)}")
        total.differences.append(f"range {number} counted:  {json.dumps(expected)}")
    if len(reported) != len(true):
        total.differences += [f"reported: {addresses(reported)}", f"counted:  {addresses(true)}"]


def addresses(ranges: list[Json]) -> str:
    return ", ".join(f"{found['start']}-{found['end']} {found['modes']}" for found in ranges[:20])


def strays(report: Json, truth: dict[str, Json]) -> list[str]:
    """Ranges that no scenario accounts for."""
    pids = {pid for line in truth.values() for pid in [line["pid"], *pids_of(line)]}
    known = {uffd["id"] for uffd in report["userfaultfds"] if uffd["owner_pid"] in pids}
    return [json.dumps(found) for found in report["ranges"] if found["userfaultfd"] not in known]
