"""uffdtrace report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, TextIO

import click

from uffdtrace.cli.common import DEFAULT_FILE, color_option, errors_in_one_line, format_option, show, write
from uffdtrace.model.diagnosis import LOST
from uffdtrace.model.report import MOST_RUNS
from uffdtrace.reporters.compare import compare as compare_reports
from uffdtrace.reporters.offline import read
from uffdtrace.reporters.options import MOST_RANGES, Color, TextOptions
from uffdtrace.reporters.relative import relative as with_offsets

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("report")
@click.argument("file", type=_FILE, required=False, metavar="[FILE]")
@format_option("text", "json")
@color_option
@click.option(
    "--all-ranges", is_flag=True, help=f"Show every range and process, not only the worst {MOST_RANGES} of each."
)
@click.option("--pages", is_flag=True, help="List the lost pages and the faults that wait, all of them.")
@click.option("--relative", is_flag=True, help="Count their addresses from the range's start.")
@click.option("--histogram", is_flag=True, help="Draw how long faults took.")
@click.option(
    "--compare", nargs=2, type=_FILE, metavar="BEFORE AFTER", help="Tell whether a fix helped, from two traces."
)
@click.option("--check", is_flag=True, help="Exit with status 3 if writes were lost (with --compare: in AFTER).")
@errors_in_one_line
def command(
    file: Path | None,
    form: str,
    color: Color,
    all_ranges: bool,
    pages: bool,
    relative: bool,
    histogram: bool,
    compare: tuple[Path, Path] | None,
    check: bool,
) -> None:
    """Print the report of a trace; needs neither root nor BCC nor that kernel.

    FILE is uffdtrace.data unless named.

    \b
    Examples:
      uffdtrace report
      uffdtrace report --pages --relative migration.data
      uffdtrace report --format json migration.data
      uffdtrace report --compare uffdtrace.data.old uffdtrace.data
    """
    options = TextOptions(color, pages, histogram, all_ranges)
    if compare:
        if file or pages or relative or histogram:
            raise click.UsageError(
                "--compare takes BEFORE and AFTER, and neither FILE nor --pages, --relative, --histogram"
            )
        verdict = _compare(*compare, form, options)
    else:
        if relative and not pages and form == "text":
            raise click.UsageError("--relative changes what --pages and --format json list: give one of them")
        found = read(file or DEFAULT_FILE, None if pages else MOST_RUNS)
        verdict = found["verdict"]
        show(with_offsets(found) if relative else found, form, options)
    if check and verdict in LOST:
        sys.exit(3)


def _read_as(path: Path) -> dict[str, Any]:
    """A report under today's name of its file, which may have become FILE.old."""
    found = read(path)
    return {**found, "trace": {**found["trace"], "file": str(path)}}


def _compare(before: Path, after: Path, form: str, options: TextOptions) -> str:
    compared = compare_reports(_read_as(before), _read_as(after))

    def as_text(stream: TextIO) -> None:
        from uffdtrace.reporters import compare_text

        compare_text.render(compared, stream, options)

    write(compared, form, as_text)
    return str(compared["after"]["verdict"])
