"""uffdtrace export."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import click

from uffdtrace.cli.common import errors_in_one_line
from uffdtrace.cli.messages import fail, say
from uffdtrace.errors import UffdtraceError
from uffdtrace.export import openmetrics
from uffdtrace.export.csv_files import CsvFiles
from uffdtrace.export.parquet import Dataset
from uffdtrace.export.perfetto import Tracks
from uffdtrace.export.tables import TABLES, Exported, exported
from uffdtrace.reporters.offline import Told, identified
from uffdtrace.trace.output import replace

# On a terminal a line tells how far it is, once for so many files.
_EVERY = 100
_KEY = re.compile(r"[a-z_][a-z0-9_]{0,62}")
# The value of host names a folder of the dataset: it must not lead out of it.
_VALUE = re.compile(r"[\w.:@ +-]{1,200}")


class _Label(click.ParamType):
    name = "label"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        key, _, text = str(value).partition("=")
        taken = {column.name for column in TABLES["traces"]} | {"date"}
        if not _KEY.fullmatch(key) or key in taken:
            self.fail(
                f"{key!r} is no name for a label: small letters, digits and _, and no column of traces", param, ctx
            )
        if not _VALUE.fullmatch(text) or text.startswith("."):
            self.fail(f"{text!r} is no value for a label: letters, digits, blanks and ._:@+-", param, ctx)
        return key, text


class _Sink(Protocol):
    def add(self, trace: Exported) -> None: ...

    def close(self, kept: bool = True) -> None: ...


@click.command("export")
@click.argument("files", type=click.Path(path_type=Path, dir_okay=False), nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--format",
    "form",
    type=click.Choice(["parquet", "csv", "openmetrics", "perfetto"]),
    default="parquet",
    show_default=True,
    help="Parquet for engines, CSV for people; of one trace OpenMetrics for the node exporter, or Perfetto.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="PATH",
    help="The dataset's folder, or with openmetrics and perfetto the file.",
)
@click.option(
    "--label",
    "labels",
    type=_Label(),
    multiple=True,
    metavar="KEY=VALUE",
    help="A column of its own in the table of traces, or a label of each metric; host parts the dataset.",
)
@errors_in_one_line
def command(files: Sequence[Path], form: str, output: Path, labels: Sequence[tuple[str, str]]) -> None:
    """Turn traces into tables, for questions about many of them.

    The tables are traces, ranges, findings, lost_runs and latency. A trace that is exported
    again takes its own place. A file that cannot be read is named and passed over, and the
    exit status is then 1.

    \b
    Examples:
      uffdtrace export -o fleet --label host=hv7 uffdtrace.data
      uffdtrace export -o tables --format csv uffdtrace.data migration.data
      uffdtrace export -o uffdtrace.prom --format openmetrics uffdtrace.data
      uffdtrace export -o uffdtrace.pftrace --format perfetto uffdtrace.data
    """
    given = dict(labels)
    if form in _OF_ONE:
        if len(files) != 1:
            raise click.UsageError(f"--format {form} is of one trace: name one FILE")
        try:
            _OF_ONE[form](files[0], output, given)
        except OSError as error:
            fail(f"cannot write {error.filename or output}: {error.strerror}: make room, or name another file")
        return
    try:
        sink: _Sink = Dataset(output, given) if form == "parquet" else CsvFiles(output, given)
        refused = _export(files, sink, given)
    except OSError as error:
        fail(f"cannot write {error.filename or output}: {error.strerror}: make room, or name another folder")
    if refused:
        fail(f"{refused:,} of {len(files):,} files could not be read, and are not in {output}")


def _openmetrics(path: Path, output: Path, labels: dict[str, str]) -> None:
    _, report = identified(path)
    told = openmetrics.families(openmetrics.numbers(report), labels)
    replace(output, openmetrics.text(told), openmetrics.MODE)


def _perfetto(path: Path, output: Path, labels: dict[str, str]) -> None:
    if labels:
        raise click.UsageError("a Perfetto trace has no place for a --label")
    with contextlib.closing(Tracks()) as tracks:
        told = Told(tracks.add)
        _, report = identified(path, None, told=told)
        replace(output, tracks.parts(report, told.began, told.threads), 0o644)


_OF_ONE: dict[str, Callable[[Path, Path, dict[str, str]], None]] = {"openmetrics": _openmetrics, "perfetto": _perfetto}


def _export(files: Sequence[Path], sink: _Sink, labels: dict[str, str]) -> int:
    """How many files could not be read."""
    refused, kept = 0, False
    try:
        for number, path in enumerate(files, 1):
            try:
                trace_id, report = identified(path, None)
                sink.add(exported(report, trace_id, labels))
            except UffdtraceError as error:
                say(" ".join(str(error).split()))
                refused += 1
            if number % _EVERY == 0 and sys.stderr is not None and sys.stderr.isatty():
                say(f"{number:,} of {len(files):,} files read")
        kept = True
    finally:
        sink.close(kept)
    return refused
