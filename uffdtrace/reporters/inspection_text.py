"""What inspect found, for a person: registered ranges, userfaultfds, and what nobody can tell from outside."""

from __future__ import annotations

from typing import Any, TextIO

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from uffdtrace.model.diagnosis.inspection import VERDICTS
from uffdtrace.model.diagnosis.rules import RULES, plain_remedy
from uffdtrace.reporters.harmless import printable
from uffdtrace.reporters.options import DEFAULT, MOST_RANGES, Color, TextOptions
from uffdtrace.reporters.sections import command
from uffdtrace.reporters.summary import Answer, put
from uffdtrace.reporters.terminal import MOST_NAME, STYLES, console_for, fit, list_rows, memory, print_line, table
from uffdtrace.reporters.words import add, addresses, alternatives, name, noun, number, size

_STYLES = {**STYLES, "holes": "bold red", "unprotected": "red", "unknown": "yellow"}
_MEANING = {
    "holes": "the next write to an empty page is lost to the monitor",
    "unprotected": "registered for write protection, but no page is protected",
    "pending": "threads wait for the monitor",
    "unknown": "the page tables do not decide",
    "async": "the kernel resolves write faults itself (WP_ASYNC)",
    "idle": "nothing happened",
    "unregistered": "nothing is registered with userfaultfd",
}
_RULES = {rule.id: rule for rule in RULES}
_REMEDIES = {
    "holes": plain_remedy(_RULES["unpopulated"]),
    "unprotected": "call UFFDIO_WRITEPROTECT with UFFDIO_WRITEPROTECT_MODE_WP when the pages are there: registering"
    " protects nothing",
    "pending": "see that the monitor reads every message and answers each",
    "unknown": "uffdtrace attach PID tells what becomes of them",
}
_WORDS = {
    "holes": "HOLES",
    "unprotected": "UNARMED",
    "pending": "STUCK",
    "unknown": "UNKNOWN",
    "async": "ASYNC",
    "ok": "OK",
    "idle": "IDLE",
    "unregistered": "NOTHING",
}
_EXPLAINED = {
    "holes": "the range was protected, but not these pages: they had no page-table entry then, or lost it since. The"
    " next write to each gets a new page, and sends no message. Of unprotected and swapped pages only a trace can tell"
    " whether the monitor released them (uffdtrace attach).",
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


def _sentence(found: dict[str, Any]) -> str:
    """What is so, in one line."""
    ranges, verdict = found["ranges"], found["verdict"]
    mine = [one for one in ranges if one["verdict"] == verdict]
    pages = sum(one["pages"] for one in mine)
    if verdict == "holes":
        empty = sum(one["empty"] for one in mine)
        will = "page will lose its" if pages == 1 else "pages will lose their"
        of_size = f"{size(empty, mine[0]['page_size'])} of {size(pages, mine[0]['page_size'])}"
        return f"{empty:,} of {pages:,} {will} next write: empty, and nothing protects them ({of_size})"
    if verdict == "unprotected":
        return f"{noun(pages, 'page')} registered for write protection, and none is protected"
    if verdict == "pending":
        waiting = sum(one["waiting"] or 0 for one in found["userfaultfds"]) or len(found["asleep"])
        return f"{noun(waiting, 'fault')} waiting for the monitor" if waiting else "threads wait for the monitor"
    if verdict == "unknown" and any(one["protected"] is None for one in mine):
        return "this kernel does not show which pages are protected"
    if verdict == "unknown" and mine:
        silent = sum((one["unprotected"] or 0) + (one["swapped"] or 0) for one in mine)
        return f"{noun(silent, 'page')} of {pages:,} not protected: released by the monitor, or missed"
    return _meaning(verdict, ranges)


def summarize(found: dict[str, Any], stream: TextIO, color: Color = Color.AUTO) -> None:
    """The answer alone, as `report --summary` has it."""
    console = console_for(stream, color)
    put(_answer(found), "", found["verdict"], console, console.width if console.is_terminal else None)


def _answer(found: dict[str, Any]) -> Answer:
    verdict = found["verdict"]
    lines = [("fix", one) for one in alternatives(f"{_REMEDIES[verdict]}.")] if verdict in _REMEDIES else []
    mine = [one for one in found["ranges"] if one["verdict"] == verdict]
    if mine:
        where = f"{addresses(mine[0])} {name(mine[0], MOST_NAME)}".rstrip()
        rest = f", and {noun(len(mine) - 1, 'more range')}" if len(mine) > 1 else ""
        lines.append(("where", where + rest))
    lines.append(("trust", "the page tables at this moment: what happened before and what comes, only a trace tells"))
    return Answer(_WORDS[verdict], _sentence(found), lines)


def _silent(console: Console, found: dict[str, Any]) -> None:
    """The pages of a range whose next write sends no message."""
    runs = found["silent"]
    if not runs:
        return
    where = f"{addresses(found)} {name(found, MOST_NAME)}".rstrip()
    console.print(Text.assemble(("Silent pages", "bold"), f" in {where}: {noun(len(runs), 'run')}"))
    rows = [(addresses(run), f"{run['pages']:,}", run["kind"]) for run in runs]
    list_rows(console, ["Addresses", "Pages", "Kind"], rows, {"Pages"})
    if found["more_silent"]:
        console.print("and more, which are not listed")
    console.print()


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
    put(_answer(found), "", found["verdict"], console, console.width)
    console.print()
    ranges = sorted(found["ranges"], key=lambda one: VERDICTS.index(one["verdict"]))
    if ranges:
        console.print(fit(console, _table(ranges[:MOST_RANGES])))
        console.print()
        if len(ranges) > MOST_RANGES:
            console.print(_rest(ranges[MOST_RANGES:]))
        _explain(console, ranges)
        _elsewhere(console, ranges[:MOST_RANGES])
        for one in ranges:
            _silent(console, one)
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
