"""Tables as CSV files, for people and spreadsheets."""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from uffdtrace.export.tables import PARTS, TABLES, Exported
from uffdtrace.reporters.harmless import printable

# A spreadsheet takes a cell that begins with one of these for a formula.
_FORMULA = ("=", "+", "-", "@")


class _File(NamedTuple):
    """A table while it is written: `part` is its name until all is there."""

    part: str
    stream: TextIO
    writer: Any


class CsvFiles:
    """A folder with a file for each table; they take the place of earlier ones when all traces are written."""

    def __init__(self, folder: Path, labels: Mapping[str, str]) -> None:
        """`labels` are columns of `traces`, but for host, which all tables have. OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._seen: set[str] = set()
        self._files: dict[str, _File] = {}
        for name, columns in TABLES.items():
            fd, part = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
            stream = os.fdopen(fd, "w", encoding="utf-8", errors="replace", newline="")
            names = [*PARTS, *(column.name for column in columns)]
            names += [key for key in labels if name == "traces" and key != "host"]
            writer = csv.DictWriter(stream, names)
            self._files[name] = _File(part, stream, writer)
            writer.writeheader()

    def add(self, trace: Exported) -> None:
        """Write a trace's rows; of one that comes again nothing. OSError."""
        if trace.trace_id in self._seen:
            return
        self._seen.add(trace.trace_id)
        for name, rows in trace.rows.items():
            for row in rows:
                whole = {"date": trace.date, "host": trace.host, **row}
                self._files[name].writer.writerow({key: _cell(value) for key, value in whole.items()})

    def close(self, kept: bool = True) -> None:
        """No more rows: the files get their names, or go if they are not to be `kept`. OSError."""
        for name, file in self._files.items():
            file.stream.close()
            if kept:
                os.replace(file.part, self._folder / f"{name}.csv")
            else:
                os.unlink(file.part)


def _cell(value: Any) -> Any:
    """What a person can look at: a name that would be a formula is text."""
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds")
    if not isinstance(value, str):
        return value
    shown = printable(value)
    return f"'{shown}" if shown.startswith(_FORMULA) else shown
