"""What inspect found, for a person: registered ranges, userfaultfds, and what nobody can tell from outside."""

from __future__ import annotations

from typing import Any, TextIO

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from uffdtrace.model.diagnosis.inspection import VERDICTS
from uffdtrace.reporters.harmless import printable
from uffdtrace.reporters.options import DEFAULT, MOST_RANGES, TextOptions
from uffdtrace.reporters.sections import command
from uffdtrace.reporters.terminal import STYLES, console_for, fit, memory, print_line, table
from uffdtrace.reporters.words import add, addresses, noun, number

_STYLES = {**STYLES, "unprotected": "red", "unknown": "yellow"}
_MEANING = {
    "unprotected": "registered for write protection, but no page is protected",
    "pending": "threads wait for the monitor",
    "unknown": "the page tables do not decide",
    "async": "the kernel resolves write faults itself (WP_ASYNC)",
    "idle": "nothing happened",
}
_EXPLAINED = {
    "unprotected": "UFFDIO_WRITEPROTECT was never called, or found only empty pages, or every page was released since."
    " Writes send no message.",
    "unknown": "writes to pages that are not protected send no message. The monitor released these pages, or their"
    " protection was missed or lost: that only a trace can tell (uffdtrace attach).",
    "async": "protected pages are those not written since they were armed.",
}


def _meaning(verdict: str, ranges: list[dict[str, Any]]) -> str:
    if verdict != "ok":
        return _MEANING[verdict]
    # Without write protection a page that is there is written as any other.
    there = [found for found in ranges if "wp" not in found["modes"] and found["empty"] < found["pages"]]
    if not there:
        return "nothing can be written without its message"
    whose = "the ranges" if len(there) == len(ranges) else "ranges without write protection"
    return f"only pages that are not there send messages in {whose}, those that are there can be written without"


def _table(ranges: list[dict[str, Any]]) -> Table:
    made = table()
    made.add_column("Range", no_wrap=True)
    made.add_column("Memory", overflow="fold")
    for header in ("Protected", "Unprotected", "Swapped", "Empty"):
        made.add_column(header, justify="right", overflow="fold", no_wrap=True)
    made.add_column("Verdict", no_wrap=True)
    for found in ranges:
        made.add_row(
            addresses(found, "-\n"),
            memory(found),
            *(number(found[key]) for key in ("protected", "unprotected", "swapped", "empty")),
            Text(found["verdict"], style=_STYLES.get(found["verdict"], "")),
        )
    return made


def _rest(ranges: list[dict[str, Any]]) -> str:
    sums = [f"{number(add(*(found[key] for found in ranges)))} {key}" for key in ("protected", "unprotected", "empty")]
    return f"and {len(ranges):,} more ranges: {', '.join(sums)} (all in --format json)\n"


def _explain(console: Console, ranges: list[dict[str, Any]]) -> None:
    for word, meaning in _EXPLAINED.items():
        # Where protection itself is not known, a note says why.
        if any(found["verdict"] == word and found["protected"] is not None for found in ranges):
            console.print(Text.assemble((word, _STYLES.get(word, "")), f": {meaning}\n"))


def _userfaultfd(console: Console, found: dict[str, Any]) -> None:
    holders = [
        f"{one['pid']} ({printable(one['comm'])}) as {', '.join(map(str, one['fds']))}" for one in found["holders"]
    ]
    faults = "its faults are not known"
    if found["waiting"] is not None:
        faults = f"{noun(found['waiting'], 'fault')} waiting" + f", {found['unread']:,} unread" * bool(found["waiting"])
    features = "?" if found["features"] is None else ", ".join(found["features"]) or "none"
    console.print(Text(f"Userfaultfd of {'; '.join(holders)}: {faults}"))
    console.print(Padding(Text(f"Features asked for: {features}"), (0, 0, 0, 4), expand=False))


def _elsewhere(console: Console, ranges: list[dict[str, Any]]) -> None:
    """Who else maps the memory of which range."""
    for found in ranges:
        others = found["mapped_elsewhere"]
        for other in others[:MOST_RANGES]:
            who = f"{printable(other['comm'])} ({other['pid']})"
            said = f"{addresses(found)} is also mapped by {who} at {addresses(other)}: writes there send no message."
            console.print(Text(said))
        if rest := others[MOST_RANGES:]:
            console.print(f"and {len(rest):,} more mappings of it (all in --format json)")
        if others:
            console.print()


def render(found: dict[str, Any], stream: TextIO, options: TextOptions = DEFAULT) -> None:
    console = console_for(stream, options.color)
    inspection = found["inspection"]
    print_line(console, command(found["process"]))
    console.print(Text(printable(f"Linux {inspection['kernel']} {inspection['arch']}, {inspection['method']}")))
    console.print()
    ranges = sorted(found["ranges"], key=lambda one: VERDICTS.index(one["verdict"]))
    if ranges:
        console.print(fit(console, _table(ranges[:MOST_RANGES])))
        console.print()
        if len(ranges) > MOST_RANGES:
            console.print(_rest(ranges[MOST_RANGES:]))
        _explain(console, ranges)
        _elsewhere(console, ranges[:MOST_RANGES])
    else:
        console.print("None of its memory is registered with userfaultfd.\n")
    for one in found["userfaultfds"]:
        _userfaultfd(console, one)
    if found["elsewhere"]:
        console.print("Elsewhere:")
    for one in found["elsewhere"][:MOST_RANGES]:
        _userfaultfd(console, one)
    if found["asleep"]:
        tids = ", ".join(map(str, found["asleep"][:MOST_RANGES])) + (", ..." if found["asleep"][MOST_RANGES:] else "")
        count = noun(len(found["asleep"]), "thread")
        console.print(Text(f"{count} asleep in a fault: {tids}; at which address only a trace can tell."))
    for sleeper in found["asleep_in_events"][:MOST_RANGES]:
        what = (
            f"in {sleeper['call']} until UFFD_EVENT_{sleeper['event'].upper()}" if sleeper["call"] else "until an event"
        )
        console.print(Text(f"Thread {sleeper['tid']} sleeps {what} is read from the userfaultfd."))
    if more := found["asleep_in_events"][MOST_RANGES:]:
        console.print(Text(f"{noun(len(more), 'more thread')} sleep until an event is read."))
    for note in found["notes"]:
        console.print(Text(printable(note)))
    if any(found[key] for key in ("userfaultfds", "elsewhere", "asleep", "asleep_in_events", "notes")):
        console.print()
    verdict = found["verdict"]
    beside = ", but for its other mappings" if any(one["mapped_elsewhere"] for one in ranges) else ""
    console.print(
        Text.assemble("Verdict: ", (verdict, _STYLES.get(verdict, "")), f": {_meaning(verdict, ranges)}{beside}.")
    )
