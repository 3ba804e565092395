"""uffdtrace report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, TextIO

import click

from uffdtrace.cli.common import TEXT_FILE, color_option, errors_in_one_line, format_option, show, text_of, write
from uffdtrace.cli.messages import fail, say
from uffdtrace.errors import UffdtraceError
from uffdtrace.model.diagnosis.case import LOST
from uffdtrace.model.diagnosis.document import ReportDict
from uffdtrace.model.diagnosis.guest_memory import GuestMemory, parsed
from uffdtrace.model.diagnosis.report import MOST_RUNS, MOST_WAITING
from uffdtrace.reporters.chosen import bounds, chosen
from uffdtrace.reporters.compare import compare as compare_reports
from uffdtrace.reporters.offline import MOST_CELLS, Picture, read
from uffdtrace.reporters.options import MOST_PROCESSES, MOST_RANGES, Color, TextOptions
from uffdtrace.reporters.relative import relative as with_offsets
from uffdtrace.reporters.words import doubt
from uffdtrace.trace.file import DEFAULT
from uffdtrace.trace.output import replace

_FILE = click.Path(path_type=Path, dir_okay=False, readable=False)


class _Addresses(click.ParamType):
    name = "addresses"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        try:
            return bounds(value)
        except ValueError:
            self.fail(f"{value} is no address, and no START-END: write 7f0000000000 or 7f0000000000-7f0000010000")


@click.command("report")
@click.argument("files", type=_FILE, nargs=-1, metavar="[FILE]...")
@format_option("text", "json", "html")
@color_option
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the report there; html is one page that needs nothing else.",
)
@click.option(
    "--summary",
    is_flag=True,
    help="Print the answer alone: what was lost, why, what to change, where, by whom, and how far to trust it.",
)
@click.option(
    "--all-ranges",
    is_flag=True,
    help=f"Show every range, not only the worst {MOST_RANGES} of the worst {MOST_PROCESSES} processes, with those"
    " that are alike summed up.",
)
@click.option(
    "--pages",
    is_flag=True,
    help=f"List all lost pages, and the faults that wait (the {MOST_WAITING} longest of a range).",
)
@click.option(
    "--range",
    "addresses",
    type=_Addresses(),
    metavar="START[-END]",
    help="Only ranges that have these addresses (hexadecimal, as /proc/PID/maps has them).",
)
@click.option("--name", "pattern", metavar="PATTERN", help="Only ranges whose mapping's name has this in it (* and ?).")
@click.option(
    "--map",
    "guest",
    type=TEXT_FILE,
    metavar="FILE",
    help="Give the virtual machine's own addresses, too; uffdtrace map makes FILE.",
)
@click.option("--relative", is_flag=True, help="Count their addresses from the range's start.")
@click.option("--stacks", is_flag=True, help="Show the stacks of who wrote to, populated or armed the memory.")
@click.option("--histogram", is_flag=True, help="Draw how long faults took.")
@click.option(
    "--compare", nargs=2, type=_FILE, metavar="BEFORE AFTER", help="Tell whether a fix helped, from two traces."
)
@click.option(
    "--check",
    is_flag=True,
    help="Exit with status 3 if writes were lost or cannot be seen, with 4 if that is not known, with 5 for any other"
    " error found (--compare: in AFTER).",
)
@errors_in_one_line
def command(
    files: tuple[Path, ...],
    form: str,
    color: Color,
    output: Path | None,
    summary: bool,
    all_ranges: bool,
    pages: bool,
    stacks: bool,
    addresses: tuple[int, int] | None,
    pattern: str | None,
    guest: TextIO | None,
    relative: bool,
    histogram: bool,
    compare: tuple[Path, Path] | None,
    check: bool,
) -> None:
    """Print the report of a trace; needs neither root nor BCC nor that kernel.

    FILE is uffdtrace.data unless named, and - is standard input. Of several traces a line
    is printed for each, the worst first, and then what was found in them.

    \b
    Examples:
      uffdtrace report
      uffdtrace report --summary
      uffdtrace report --pages --relative migration.data
      uffdtrace report --stacks
      uffdtrace report --range 7f0000000000 migration.data
      uffdtrace report --pages --map vm1.map migration.data
      uffdtrace report uffdtrace.data migration.data
      uffdtrace report --format json migration.data
      uffdtrace report --format html -o migration.html migration.data
      uffdtrace report --compare uffdtrace.data.old uffdtrace.data
    """
    options = TextOptions(color, pages, histogram, all_ranges, stacks)
    more = pages or relative or histogram or all_ranges or stacks
    if summary and (form != "text" or compare or more):
        raise click.UsageError("--summary is text of one trace, and takes none of the options that show more")
    if form == "html" and (compare or more):
        raise click.UsageError("--format html is a page of one trace, with all that the other options show")
    if output is not None and (form != "html"):
        raise click.UsageError("-o takes --format html: other reports go to standard output")
    if compare:
        if files or pages or relative or histogram or stacks or addresses or pattern or guest:
            raise click.UsageError(
                "--compare takes BEFORE and AFTER, and neither FILE nor what chooses pages or ranges of one trace"
            )
        judged = _compare(*compare, form, options)
    elif len(files) > 1:
        if form != "text" or more or addresses or pattern or guest or summary:
            raise click.UsageError("of several traces a line each is printed: the other options are of one trace")
        sys.exit(_several(files, color, check))
    else:
        file = files[0] if files else DEFAULT
        if relative and not pages and form == "text":
            raise click.UsageError("--relative changes what --pages and --format json list: give one of them")
        picture = Picture(MOST_CELLS) if form == "html" else None
        most_runs = None if pages else MOST_RUNS
        memory = GuestMemory(parsed(text_of(guest))) if guest else None
        judged = read(file, None if memory else most_runs, picture)
        if addresses or pattern is not None:
            judged, kept = chosen(judged, addresses, pattern)
            if picture is not None:
                picture.maps = [picture.maps[at] for at in kept]
        if memory:
            judged = memory.located(judged, most_runs)
        if picture is not None:
            _page(judged, picture, output)
        elif summary:
            _summary(judged, color)
        else:
            show(with_offsets(judged) if relative else judged, form, options)
    if check:
        sys.exit(_status(judged))


def _status(report: ReportDict) -> int:
    if report["verdict"] in LOST:
        return 3
    if doubt(report):
        return 4
    findings = [one for found in (*report["ranges"], *report["userfaultfds"]) for one in found["findings"]]
    return 5 if any(finding["severity"] == "error" for finding in findings) else 0


def _several(files: tuple[Path, ...], color: Color, check: bool) -> int:
    """The exit status: 1 where a file cannot be read, else with --check the worst of all."""
    from uffdtrace.reporters.several import Several

    several, statuses, refused = Several(), [0], 0
    for path in files:
        try:
            report = read(path)
        except UffdtraceError as error:
            say(" ".join(str(error).split()))
            refused += 1
            continue
        several.take(report)
        statuses.append(_status(report))
    write({}, "text", lambda stream: several.render(stream, color))
    if refused:
        fail(f"{refused:,} of {len(files):,} files could not be read")
    # Lost is worse than not known, and that worse than any other error.
    return min((status for status in statuses if status), default=0) if check else 0


def _page(report: ReportDict, picture: Picture, output: Path | None) -> None:
    # Only here: nothing else needs jinja2.
    from uffdtrace.reporters.html import page

    made = page(report, picture)
    if output is None:
        write(report, "html", lambda stream: print(made, file=stream))
        return
    try:
        replace(output, made.encode("utf-8", "replace"))
    except OSError as error:
        fail(f"cannot write {output}: {error.strerror}: name another file")


def _summary(report: ReportDict, color: Color) -> None:
    def as_text(stream: TextIO) -> None:
        from uffdtrace.reporters import summary

        summary.render(report, stream, color)

    write(report, "text", as_text)


def _compare(before: Path, after: Path, form: str, options: TextOptions) -> ReportDict:
    judged = read(after)
    compared = compare_reports(read(before), judged)

    def as_text(stream: TextIO) -> None:
        from uffdtrace.reporters import compare_text

        compare_text.render(compared, stream, options)

    write(compared, form, as_text)
    return judged
