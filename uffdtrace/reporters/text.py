"""The report for a person: a table of ranges, then what they mean."""

from __future__ import annotations

from typing import Any, TextIO

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from uffdtrace.reporters.latency import latency_table, render_histogram
from uffdtrace.reporters.pages import render_lost, render_waiting
from uffdtrace.reporters.sections import Section, command, not_followed, sections
from uffdtrace.reporters.terminal import MOST_RANGES, STYLES, console_for, memory, table
from uffdtrace.reporters.words import add, addresses, lost_pages, number, printable

_MEANING = {
    "lost-writes": "writes to armed pages were lost",
    "blind": "armed pages became writable with nothing left to see",
    "never-armed": "registered for write protection, but never armed",
    "pending": "faults wait for the monitor",
    "async": "the kernel resolves write faults itself (WP_ASYNC)",
    "ok": "no lost writes",
    "idle": "nothing happened",
}


def _messages(found: dict[str, Any]) -> str:
    """`1,024 wp`, a line for each kind that the range can have or had."""
    counts = found["messages"]
    return "\n".join(f"{counts[kind]:,} {kind}" for kind in counts if counts[kind] or kind in found["modes"])


def _table(ranges: list[dict[str, Any]]) -> Table:
    # Nothing is ever cut: what does not fit folds.
    made = table()
    made.add_column("Range", no_wrap=True)
    made.add_column("Memory", overflow="fold")
    made.add_column("Messages", justify="right", overflow="fold")
    for header in ("Holes", "Skipped", "Lost"):
        made.add_column(header, justify="right", overflow="fold")
    made.add_column("Verdict", no_wrap=True)
    for found in ranges:
        made.add_row(
            addresses(found, "-\n"),
            memory(found),
            _messages(found),
            number(found["holes"]),
            number(add(*found["skipped"].values())),
            Text(number(lost_pages(found)), style="bold red" if lost_pages(found) else ""),
            Text(found["verdict"], style=STYLES.get(found["verdict"], "")),
        )
    return made


def _rest(ranges: list[dict[str, Any]]) -> str:
    messages = sum(sum(found["messages"].values()) for found in ranges)
    lost = sum(lost_pages(found) or 0 for found in ranges)
    return f"and {len(ranges):,} more ranges: {messages:,} messages, {lost:,} lost (all in --format json)"


def _findings(console: Console, ranges: list[dict[str, Any]], pages: bool) -> None:
    """Each finding once, with the ranges it holds for; its pages, faults or calls added up."""
    together: dict[str, list[dict[str, Any]]] = {}
    for found in ranges:
        for finding in found["findings"]:
            together.setdefault(finding["id"], []).append({**finding, "range": found})
    for severity in ("error", "warning", "note"):
        for alike in together.values():
            if alike[0]["severity"] != severity:
                continue
            worst = max(alike, key=lambda finding: int(finding["pages"]))
            where = addresses(worst["range"])
            if len(alike) > 1:
                total = sum(int(finding["pages"]) for finding in alike)
                where += f" and {len(alike) - 1:,} more, {total:,} {worst['unit']} in all"
            console.print(Text.assemble((severity, STYLES.get(severity, "")), f" [{worst['id']}] in {where}"))
            console.print(Padding(Text(printable(worst["message"])), (0, 0, 0, 4)))
            console.print(Padding(Text("Remedy: " + printable(worst["remedy"])), (0, 0, 1, 4)))
        if severity == "error" and not pages and any(found["lost"]["runs"] for found in ranges):
            console.print("`uffdtrace report --pages` lists the addresses of the lost pages.\n")


def _before(console: Console, report: dict[str, Any]) -> None:
    """Who slept already when the trace began: in no count."""
    found = [home["before_trace"] for home in report["userfaultfds"] if home["before_trace"]]
    waiting, unread = (sum(int(one[name]) for one in found) for name in ("waiting", "unread"))
    if waiting:
        console.print(
            f"{waiting:,} thread{'s' if waiting > 1 else ''} slept in faults already when the trace began, with"
            f" {unread:,} of the messages not read: they are in no count.\n"
        )


def _losses(console: Console, report: dict[str, Any]) -> None:
    loss = report["loss"]
    if loss["events_dropped"]:
        console.print(f"{loss['events_dropped']:,} events were dropped: the tracer could not keep up.")
    if loss["probes_missed"]:
        console.print(f"The kernel skipped probes {loss['probes_missed']:,} times.")
    if loss["unattributed_messages"]:
        console.print(f"{loss['unattributed_messages']:,} messages belong to no range that was seen.")
    if loss["lower_bounds"]:
        console.print(Text(f"Lower bounds, not exact: {', '.join(loss['lower_bounds'])}.", style="yellow"))
    if loss["events_dropped"] is None:
        console.print("Whether events were dropped is not known: the trace has no end.")


def _latencies(console: Console, ranges: list[dict[str, Any]], histogram: bool) -> None:
    measured = [found for found in ranges if found["latency_us"]]
    shown = measured[:MOST_RANGES]
    if shown:
        console.print(latency_table(console, shown))
        console.print()
    if len(measured) > len(shown):
        console.print(f"and {len(measured) - len(shown):,} more ranges with latencies (all in --format json)\n")
    if histogram:
        for found in shown:
            render_histogram(console, found)
        if not shown:
            console.print("No histogram: no latency was measured.\n")


def _pages(console: Console, ranges: list[dict[str, Any]], offsets: bool) -> None:
    if offsets:
        console.print("Offsets count from the range's start.\n")
    for found in ranges:
        render_lost(console, found, offsets)
        render_waiting(console, found, offsets)
    if not any(found["lost"]["runs"] != [] or found["waiting"] != [] for found in ranges):
        console.print("No page was lost, and no fault waits.\n")


def _section(console: Console, section: Section, pages: bool, histogram: bool, offsets: bool) -> None:
    console.print()
    if section.heading:
        console.print(Text(section.heading, style="bold"))
        console.print()
    ranges = section.ranges
    console.print(_table(ranges[:MOST_RANGES]))
    console.print()
    if len(ranges) > MOST_RANGES:
        console.print(_rest(ranges[MOST_RANGES:]) + "\n")
    _findings(console, ranges, pages)
    _latencies(console, ranges, histogram)
    if pages:
        _pages(console, ranges, offsets)


def render(report: dict[str, Any], stream: TextIO, pages: bool = False, histogram: bool = False) -> None:
    """Write the report to a stream; `pages` lists what was lost and what waits, `histogram` draws the latencies."""
    console = console_for(stream)
    trace = report["trace"]
    console.print(Text(command(report["process"])), overflow="ellipsis", no_wrap=True)
    console.print(
        Text(
            printable(
                f"Linux {trace.get('kernel')} {trace.get('arch')}, {trace.get('backend')}, "
                f"{trace.get('duration_s')} s: {trace.get('stop_reason')}"
            )
        )
    )
    if not report["ranges"]:
        console.print("\nNo memory was registered with userfaultfd while we watched.")
    for section in sections(report):
        _section(console, section, pages, histogram, report.get("relative", False))
    if children := not_followed(report):
        console.print(children + "\n")
    _before(console, report)
    _losses(console, report)
    verdict = report["verdict"]
    console.print(Text.assemble("Verdict: ", (verdict, STYLES.get(verdict, "")), f": {_MEANING[verdict]}."))
