"""What the text reports share: the console, tables, colours."""

from __future__ import annotations

from collections.abc import Sequence
from io import TextIOWrapper
from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from uffdtrace.reporters.words import three_digits

# More than a screen helps nobody: the worst come first, the rest is summed up.
MOST_RANGES = 20
# Longer ones would push the counts out of 80 columns.
MOST_NAME = 20
STYLES = {
    "lost-writes": "bold red",
    "blind": "red",
    "never-armed": "red",
    "pending": "yellow",
    "error": "bold red",
    "warning": "yellow",
    "ok": "green",
}


def duration(microseconds: float | None, console: Console) -> str:
    """A time to three digits in a unit that fits: `12.3 ms`."""
    if microseconds is None:
        return "?"
    amount, units = float(microseconds), ["us" if console.options.ascii_only else "µs", "ms", "s"]
    while amount >= 1000 and len(units) > 1:
        amount /= 1000
        units.pop(0)
    return f"{three_digits(amount)} {units[0]}"


def console_for(stream: TextIO) -> Console:
    """In colour where the stream is a terminal."""
    if isinstance(stream, TextIOWrapper):
        # A name from a target may be more than the terminal can show.
        stream.reconfigure(errors="replace")
    return Console(file=stream, highlight=False)


def table() -> Table:
    return Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))


def list_rows(console: Console, headers: Sequence[str], rows: Sequence[Sequence[str]], right: set[str]) -> None:
    """A table of any length; its last column takes a line of its own where the line is full.

    Not rich's: that takes seconds for 10,000 rows. Cells are ours and trusted.
    """
    widths = [max(map(len, column)) for column in zip(headers, *rows)]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.rjust(width) if header in right else cell.ljust(width)
            for header, cell, width in zip(headers, row, widths)
        ]
        whole = "  ".join(cells).rstrip()
        if len(whole) <= console.width:
            return whole
        return "  ".join(cells[:-1]).rstrip() + "\n    " + cells[-1].strip()

    rule = "-" if console.options.ascii_only else "─"
    console.print(line(headers), style="bold", markup=False)
    console.print(rule * min(console.width, sum(widths) + 2 * len(widths) - 2), markup=False)
    console.file.write("".join(line(row) + "\n" for row in rows))
