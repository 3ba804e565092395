"""What the text reports share: the console, tables, colours."""

from __future__ import annotations

import codecs
import locale
import os
import re
from collections.abc import Mapping, Sequence
from io import TextIOWrapper
from typing import Any, TextIO, cast

from rich.box import SIMPLE_HEAD, Box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from uffdtrace.model.diagnosis.latency import readable
from uffdtrace.reporters.options import Color
from uffdtrace.reporters.words import name, size

# Longer ones would push the counts out of 80 columns.
MOST_NAME = 20
# Below that, rich cuts words.
_NARROWEST = 40
_UNLIMITED = 1 << 16
_PADDING = re.compile(" +(?=\n)")
# "missing+wp" fits; or "hugetlb" at least.
_MEMORY_WIDTHS = (11, 7)
STYLES = {
    "lost-writes": "bold red",
    "blind": "red",
    "never-armed": "red",
    "pending": "yellow",
    "error": "bold red",
    "warning": "yellow",
    "ok": "green",
}


class _Rule(Box):
    """A rule below the head; rich would draw every line where there is only ASCII."""

    def substitute(self, options: ConsoleOptions, safe: bool = True) -> Box:
        return _ASCII_RULE if options.ascii_only else self


_RULE = _Rule(str(SIMPLE_HEAD))
_ASCII_RULE = Box(str(SIMPLE_HEAD).replace("─", "-"), ascii=True)


def plain(text: str, console: Console) -> str:
    """Text of ours as the terminal can show it."""
    return text.replace("µ", "u") if console.options.ascii_only else text


def duration(microseconds: float | None, console: Console) -> str:
    """A time as the findings write it."""
    return "?" if microseconds is None else plain(readable(microseconds), console)


def memory(found: Mapping[str, Any]) -> Text:
    """A range's size and kind of memory, its modes, and what it is called, each a line."""
    lines = [f"{size(found['pages'], found['page_size'])} {found['memory'] or '?'}", "+".join(found["modes"])]
    return Text("\n".join([*lines, name(found, MOST_NAME)]).rstrip())


def _encoding(stream: TextIOWrapper) -> str:
    """What the terminal takes: in the C locale Python writes UTF-8 all the same."""
    told = "PYTHONIOENCODING" in os.environ or "PYTHONUTF8" in os.environ
    taken = codecs.lookup(locale.nl_langinfo(locale.CODESET)).name
    return "ascii" if taken == "ascii" and not told else stream.encoding


class _Unpadded:
    """A stream whose lines end where their text does: rich fills each up to its column's width."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        # rich writes whole lines.
        return self._stream.write(_PADDING.sub("", text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def console_for(stream: TextIO, color: Color = Color.AUTO) -> Console:
    """As wide as COLUMNS or the terminal."""
    if isinstance(stream, TextIOWrapper):
        # A name from a target may be more than the terminal can show.
        stream.reconfigure(encoding=_encoding(stream), errors="replace")
    always = color is Color.ALWAYS
    never = color is Color.NEVER or (not always and os.environ.get("NO_COLOR"))
    console = Console(
        file=cast(TextIO, _Unpadded(stream)),
        highlight=False,
        force_terminal=True if always else None,
        color_system=None if never else "standard" if always else "auto",
        # rich leaves bold text bold.
        no_color=False,
    )
    columns = os.environ.get("COLUMNS", "")
    # rich does not ask COLUMNS on a dumb terminal unless it knows the height.
    console.size = max(int(columns) if columns.isdecimal() else console.width, _NARROWEST), console.height
    return console


def print_line(console: Console, text: str) -> None:
    """One line: what does not fit is left off."""
    if cell_len(text) > console.width:
        text = set_cell_size(text, console.width - 3) + "..."
    console.print(Text(text), no_wrap=True)


def table() -> Table:
    return Table(box=_RULE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))


def fit(console: Console, *tables: Table) -> Table:
    """The first that leaves its column Memory room to fold in; if none does, the last, whose numbers fold, too."""
    for least in _MEMORY_WIDTHS:
        for made in tables:
            for gap in (1, 0):
                made.padding = (0, gap, 0, 0)
                if _room(console, made) >= least:
                    return made
    # Nothing is ever cut.
    for column in tables[-1].columns:
        column.no_wrap = column.overflow != "fold"
    return tables[-1]


def _room(console: Console, made: Table) -> int:
    """What the other columns leave for Memory."""
    others = [column for column in made.columns if column.header != "Memory"]
    unlimited = console.options.update(max_width=_UNLIMITED)
    cells = [[column.header, *column.cells] for column in others]
    widths = [max(console.measure(cell, options=unlimited).maximum for cell in column) for column in cells]
    # The rule below the head is a character longer than the padding.
    return console.width - sum(widths) - len(others) * (1 + made.padding[1])


def fits(console: Console, made: Table) -> bool:
    return console.measure(made, options=console.options.update(max_width=_UNLIMITED)).maximum <= console.width


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
