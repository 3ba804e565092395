"""The report for a person: a table of ranges, then what they mean."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from uffdtrace.model.diagnosis.document import FindingDict, RangeDict, ReportDict
from uffdtrace.model.diagnosis.rules import SEVERITIES
from uffdtrace.reporters import summary
from uffdtrace.reporters.alike import alike, summed
from uffdtrace.reporters.grouped import grouped
from uffdtrace.reporters.harmless import printable
from uffdtrace.reporters.latency import latency_table, render_histogram
from uffdtrace.reporters.options import DEFAULT, MOST_RANGES, TextOptions
from uffdtrace.reporters.pages import render_lost, render_waiting
from uffdtrace.reporters.sections import Section, command, not_followed, sections
from uffdtrace.reporters.stacks import render_stacks
from uffdtrace.reporters.terminal import STYLES, console_for, fit, memory, plain, print_line, table
from uffdtrace.reporters.words import (
    add,
    addresses,
    alternatives,
    doubt,
    guest_blocks,
    lost_of_all,
    lost_pages,
    machine,
    messages_of_all,
    noun,
    number,
    reading,
)

_MOST_THREADS = 10
_REMEDY = "Remedy: "
_MEANING = {
    "lost-writes": "writes to armed pages were lost",
    "blind": "armed pages became writable with nothing left to see",
    "never-armed": "registered for write protection, but never armed",
    "pending": "threads wait for the monitor",
    "async": "the kernel resolves write faults itself (WP_ASYNC)",
    "ok": "no lost write was seen",
    "idle": "nothing happened while we watched",
}


def _messages(ranges: list[RangeDict], joint: str) -> list[str]:
    """`1,024 wp` for each range, a line for each kind that it can have or had."""
    shown = [
        {kind: f"{count:,}" for kind, count in found["messages"].items() if count or kind in found["modes"]}
        for found in ranges
    ]
    # Not justified by rich, so that the numbers stand below each other.
    width = max((len(count) for kinds in shown for count in kinds.values()), default=0)
    return ["\n".join(f"{count:>{width}}{joint}{kind}" for kind, count in kinds.items()) for kinds in shown]


def _table(kinds: list[list[RangeDict]], joint: str) -> Table:
    """A row for ranges of each kind; `joint` stands between a number of messages and their kind."""
    made = table()
    made.add_column("Range", no_wrap=True)
    made.add_column("Memory", overflow="fold")
    made.add_column("Messages", overflow="fold", no_wrap=True)
    for header in ("Holes", "Skipped", "Lost"):
        made.add_column(header, justify="right", overflow="fold", no_wrap=True)
    made.add_column("Verdict", no_wrap=True)
    sums = [summed(ranges) for ranges in kinds]
    for ranges, found, messages in zip(kinds, sums, _messages(sums, joint)):
        more = f"\nand {len(ranges) - 1:,} alike" if len(ranges) > 1 else ""
        made.add_row(
            addresses(found, "-\n") + more,
            memory(found),
            messages,
            number(found["holes"]),
            number(add(*found["skipped"].values())),
            Text(number(lost_pages(found)), style="bold red" if lost_pages(found) else ""),
            Text(found["verdict"], style=STYLES.get(found["verdict"], "")),
        )
    return made


def _rest(what: str, ranges: list[RangeDict], file: str) -> str:
    return (
        f"and {what}: {messages_of_all(ranges)} messages, {lost_of_all(ranges)} lost"
        f" (`{reading(file, '--all-ranges')}` shows them)\n"
    )


def _finding(console: Console, finding: FindingDict, fix: str | None) -> None:
    """What it means and what to change; what the answer at the head says already is not said again."""
    console.print(Padding(Text(printable(plain(finding["message"], console))), (0, 0, 0, 4)))
    remedies = ["see fix, above"] if finding["remedy"] == fix else alternatives(finding["remedy"])
    for place, remedy in enumerate(remedies):
        said = Text(printable(plain(remedy, console)))
        indent = 4 + (len(_REMEDY) if place else 0)
        last = int(place == len(remedies) - 1)
        console.print(Padding(Text.assemble("" if place else _REMEDY, said), (0, 0, last, indent)))


def _findings(console: Console, ranges: list[RangeDict], pages: bool, file: str, fix: str | None) -> None:
    """Each finding once, with the ranges it holds for; its pages, faults or calls added up."""
    found = grouped(ranges)
    for severity in SEVERITIES:
        for one in found:
            if one.severity != severity:
                continue
            where = addresses(one.place)
            if one.places > 1:
                where += f" and {one.places - 1:,} more, {one.total:,} {one.worst['unit']} in all"
            console.print(Text.assemble((severity, STYLES.get(severity, "")), f" [{one.id}] in {where}"))
            _finding(console, one.worst, fix)
        if severity == "error" and not pages and any(found["lost"]["runs"] for found in ranges):
            console.print(Text(f"`{reading(file, '--pages')}` lists the addresses of the lost pages.\n"))


def _of_no_range(console: Console, report: ReportDict, fix: str | None) -> None:
    """Findings about calls that named no range, and threads that wait in none."""
    for uffd in report["userfaultfds"]:
        for finding in uffd["findings"]:
            severity = finding["severity"]
            whose = f"userfaultfd {uffd['id']}" + (f" of process {uffd['owner_pid']}" if uffd["owner_pid"] else "")
            console.print(Text.assemble((severity, STYLES.get(severity, "")), f" [{finding['id']}] with {whose}"))
            _finding(console, finding, fix)


def _before(console: Console, report: ReportDict) -> None:
    """Who slept already when the trace began, and what became of them."""
    found = [uffd["before_trace"] for uffd in report["userfaultfds"] if uffd["before_trace"]]
    waiting = sum(one["waiting"] for one in found)
    unread = sum(one["unread"] for one in found)
    served = sum(one["served"] for one in found)
    still = sum(len(one["still_asleep"]) for one in found)
    if waiting:
        became = [f"{served:,} of them {'was' if served == 1 else 'were'} answered in the trace"] * bool(served)
        became += [f"{still:,} still {'sleeps' if still == 1 else 'sleep'}"] * bool(still)
        console.print(
            f"{noun(waiting, 'thread')} slept in faults when the trace began, with"
            f" {noun(unread, 'message')} not read yet{'; ' + ' and '.join(became) if became else ''}."
            " The counts of faults have those that began in the trace, and the counts of messages those that were"
            " read in it."
        )
        threads = sorted({tid for one in found for tid in one["threads"]})
        some = ", ".join(map(str, threads[:_MOST_THREADS])) + ", ..." * (len(threads) > _MOST_THREADS)
        console.print(f"Threads {some}\n" if threads else "")


def _losses(console: Console, report: ReportDict) -> None:
    loss = report["loss"]
    if not_searched := report.get("processes_not_searched"):
        processes, it_maps = ("process", "it maps") if not_searched == 1 else ("processes", "they map")
        said = f"{not_searched:,} {processes} could not be looked at: whether {it_maps} the same memory is not known."
        console.print(said)
    if ended := report["trace"]["file_ended"]:
        why = printable(ended["reason"])
        console.print(Text(f"The trace file has no events from {ended['after_s']} s on ({why}): counting went on."))
    if loss["events_dropped"]:
        console.print(f"{loss['events_dropped']:,} events were dropped: the tracer could not keep up.")
    if loss["probes_missed"]:
        rest = "." if loss["lower_bounds"] else ": no number here rests on them."
        console.print(f"The kernel skipped {noun(loss['probes_missed'], 'run')} of our probes{rest}")
    unproven = report["trace"]["unproven_probes"]
    if unproven is None:
        console.print("Whether each probe fires on this kernel could not be tried when the trace began.")
    elif unproven:
        rows = printable(", ".join(unproven))
        console.print(Text(f"Tried when the trace began, and saw nothing: {noun(len(unproven), 'probe')} ({rows})."))
    if loss["unattributed_messages"]:
        console.print(f"{loss['unattributed_messages']:,} messages belong to no range that was seen.")
    if loss["lower_bounds"]:
        console.print(Text(f"Lower bounds, not exact: {', '.join(loss['lower_bounds'])}.", style="yellow"))
    if loss["probes_missed"] is None:
        console.print("Whether something was dropped is not known: the trace has no end.")


def _latencies(console: Console, ranges: list[RangeDict], options: TextOptions) -> None:
    measured = [found for found in ranges if found["latency_us"]]
    shown = measured[: options.most_ranges]
    if shown:
        console.print(latency_table(console, shown))
        console.print()
    if len(measured) > len(shown):
        console.print(f"and {noun(len(measured) - len(shown), 'more range')} with latencies\n")
    if options.histogram:
        for found in shown:
            render_histogram(console, found)
        if not shown:
            console.print("No histogram: no latency was measured.\n")


def _pages(console: Console, ranges: list[RangeDict], offsets: bool) -> None:
    if offsets:
        console.print("Offsets count from the range's start.\n")
    for found in ranges:
        render_lost(console, found, offsets)
        render_waiting(console, found, offsets)
    if not any(found["lost"]["runs"] != [] or found["waiting"] != [] for found in ranges):
        console.print("No page was lost, and no fault waits.\n")


def _guest_memory(console: Console, report: ReportDict) -> None:
    blocks = guest_blocks(report)
    if not blocks:
        return
    made = table()
    made.add_column("Guest memory", overflow="fold")
    made.add_column("Guest-physical addresses", no_wrap=True)
    made.add_column("Lost", justify="right", no_wrap=True)
    for block in blocks[:MOST_RANGES]:
        made.add_row(
            Text(printable(block["block"])),
            f"{block['start']}-{block['end']}",
            Text(f"{block['lost_pages']:,}", style="bold red" if block["lost_pages"] else ""),
        )
    console.print(made)
    console.print()
    if rest := blocks[MOST_RANGES:]:
        console.print(f"and {noun(len(rest), 'more block')}\n")


def _section(
    console: Console, section: Section, options: TextOptions, offsets: bool, file: str, fix: str | None
) -> None:
    console.print()
    if section.heading:
        console.print(Text(section.heading, style="bold"))
        console.print()
    ranges = section.ranges
    kinds = [[found] for found in ranges] if options.all_ranges else alike(ranges)
    shown = kinds[: options.most_ranges]
    console.print(fit(console, _table(shown, " "), _table(shown, "\n")))
    console.print()
    if rest := [found for of_kind in kinds[len(shown) :] for found in of_kind]:
        console.print(Text(_rest(noun(len(rest), "more range"), rest, file)))
    elif len(shown) < len(ranges):
        console.print(Text(f"`{reading(file, '--all-ranges')}` shows each of them.\n"))
    _findings(console, ranges, options.pages, file, fix)
    _latencies(console, ranges, options)
    if options.pages:
        _pages(console, ranges, offsets)


def _others(console: Console, others: list[Section], file: str) -> None:
    """A line for each process that has no section of its own."""
    made = table()
    made.add_column("Other processes", overflow="fold")
    for header in ("Ranges", "Messages", "Lost"):
        made.add_column(header, justify="right", no_wrap=True)
    made.add_column("Verdict", no_wrap=True)
    shown = others[:MOST_RANGES]
    for section in shown:
        worst = section.ranges[0]["verdict"]
        made.add_row(
            Text(section.owner),
            f"{len(section.ranges):,}",
            messages_of_all(section.ranges),
            lost_of_all(section.ranges),
            Text(worst, style=STYLES.get(worst, "")),
        )
    console.print()
    console.print(made)
    console.print()
    if rest := others[len(shown) :]:
        console.print(Text(_rest(f"{len(rest):,} more", [found for section in rest for found in section.ranges], file)))
    else:
        console.print(Text(f"`{reading(file, '--all-ranges')}` shows their ranges and what was found there.\n"))


def render(report: ReportDict, stream: TextIO, options: TextOptions = DEFAULT) -> None:
    """Write the report to a stream."""
    console = console_for(stream, options.color)
    trace = report["trace"]
    print_line(console, command(report["process"], report["also_traced"]))
    console.print(
        Text(
            printable(
                f"{machine(trace)}, {trace.get('backend')}, {trace.get('duration_s')} s: {trace.get('stop_reason')}"
            )
        )
    )
    console.print()
    told = summary.answer(report)
    summary.put(told, doubt(report), report["verdict"], console, console.width)
    if not report["ranges"]:
        console.print(
            "\nNo memory was registered with userfaultfd while we watched. Was it the right process?"
            " `uffdtrace inspect PID` says what is registered now; `uffdtrace attach --all` watches every process.\n"
        )
    found = sections(report)
    shown = found[: options.most_processes]
    for section in shown:
        _section(console, section, options, report.get("relative", False), trace["file"], told.fix)
    if others := found[len(shown) :]:
        _others(console, others, trace["file"])
    _guest_memory(console, report)
    if children := not_followed(report):
        console.print(children + "\n")
    if options.stacks:
        render_stacks(console, report["stacks"])
    _of_no_range(console, report, told.fix)
    _before(console, report)
    _losses(console, report)
    verdict = report["verdict"]
    unproven = doubt(report)
    style = "yellow" if unproven else STYLES.get(verdict, "")
    console.print(Text.assemble("Verdict: ", (verdict, style), f": {_MEANING[verdict]}{unproven}."))
