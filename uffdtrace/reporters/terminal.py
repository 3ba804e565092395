"""What the text reports share: the console, tables, colours."""

from __future__ import annotations

from collections.abc import Sequence
from io import TextIOWrapper
from typing import Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from uffdtrace.model.latency import readable
from uffdtrace.reporters.words import name, size

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
    """A time as the findings write it, where the terminal can show it."""
    if microseconds is None:
        return "?"
    said = readable(microseconds)
    return said.replace("µ", "u") if console.options.ascii_only else said


def memory(found: dict[str, Any]) -> Text:
    """A range's size and kind of memory, its modes, and what it is called, each a line."""
    lines = [f"{size(found['pages'], found['page_size'])} {found['memory'] or '?'}", "+".join(found["modes"])]
    return Text("\n".join([*lines, name(found, MOST_NAME)]).rstrip())


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
