"""A comparison for a person: what changed, and at the end whether the fix helped."""

from __future__ import annotations

from collections import Counter
from typing import Any, TextIO

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from uffdtrace.reporters.harmless import printable
from uffdtrace.reporters.options import DEFAULT, TextOptions
from uffdtrace.reporters.sections import command
from uffdtrace.reporters.terminal import MOST_NAME, STYLES, console_for, fit, print_line, table
from uffdtrace.reporters.words import name, noun, number, size

# Worst first.
_CHANGES = {
    "worse": "bold red",
    "unknown": "yellow",
    "only-before": "yellow",
    "only-after": "yellow",
    "better": "yellow",
    "same": "",
    "fixed": "green",
}
_FINDINGS = {"new": "red", "more": "red", "unknown": "yellow", "same": "", "fewer": "yellow", "gone": "green"}


def _run(console: Console, which: str, run: dict[str, Any]) -> None:
    print_line(console, f"{which:<6}  {command(run['process'])}")
    began = f"{run['file']}: {run['started']}, Linux {run['kernel']}, {run['duration_s']} s"
    console.print(Padding(Text(printable(began)), (0, 0, 0, 8)))


def _memory(side: dict[str, Any]) -> Text:
    words = [size(side["pages"], side["page_size"]), side["memory"] or "?", "+".join(side["modes"])]
    return Text(" ".join([*words, name(side, MOST_NAME)]).rstrip())


def _table(ranges: list[dict[str, Any]]) -> Table:
    made = table()
    made.add_column("Range", no_wrap=True)
    made.add_column("Start", no_wrap=True)
    made.add_column("Memory", overflow="fold")
    made.add_column("Messages", justify="right", overflow="fold", no_wrap=True)
    made.add_column("Lost", justify="right", overflow="fold", no_wrap=True)
    made.add_column("Verdict", no_wrap=True)
    made.add_column("Change", no_wrap=True)
    for found in ranges:
        sides = [(which, found[which]) for which in ("before", "after") if found[which]]
        for which, side in sides:
            last = side is sides[-1][1]
            made.add_row(
                which,
                side["start"][2:],
                _memory(side),
                f"{side['messages']:,}",
                Text(number(side["lost"]), style="bold red" if side["lost"] else ""),
                Text(side["verdict"], style=STYLES.get(side["verdict"], "")),
                Text(found["change"], style=_CHANGES[found["change"]]) if last else "",
            )
    return made


def _findings(console: Console, findings: list[dict[str, Any]]) -> None:
    """A line for each, what got worse first."""
    order = list(_FINDINGS)
    for one in sorted(findings, key=lambda one: order.index(one["change"])):
        console.print(
            Text.assemble(
                (f"{one['change']:<7}", _FINDINGS[one["change"]]),
                "  ",
                (f"{one['severity']:<7}", STYLES.get(one["severity"], "")),
                f" [{one['id']}] {one['before']:,} -> {one['after']:,} {one['unit']}",
            )
        )


def render(comparison: dict[str, Any], stream: TextIO, options: TextOptions = DEFAULT) -> None:
    """Write the comparison to a stream."""
    console = console_for(stream, options.color)
    _run(console, "BEFORE", comparison["before"])
    _run(console, "AFTER", comparison["after"])
    console.print()
    order = list(_CHANGES)
    ranges = sorted(comparison["ranges"], key=lambda found: order.index(found["change"]))
    shown = ranges[: options.most_ranges]
    if shown:
        console.print(fit(console, _table(shown)))
        console.print()
    if len(ranges) > len(shown):
        rest = Counter(found["change"] for found in ranges[len(shown) :])
        counts = ", ".join(f"{rest[one]:,} {one}" for one in order if rest[one])
        console.print(f"and {noun(len(ranges) - len(shown), 'more range')}: {counts} (--all-ranges shows them)\n")
    if comparison["findings"]:
        _findings(console, comparison["findings"])
        console.print()
    for note in comparison["notes"]:
        console.print(Text(f"Note: {printable(note)}."))
    change = comparison["change"]
    console.print(Text.assemble("Verdict: ", (change, _CHANGES[change]), f". {printable(comparison['answer'])}"))
