"""uffdtrace report."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from uffdtrace.cli.common import DEFAULT_FILE, errors_in_one_line, format_option, show
from uffdtrace.reporters.offline import read


@click.command("report")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), default=DEFAULT_FILE, metavar="[FILE]")
@format_option("text", "json")
@click.option("--check", is_flag=True, help="Exit with status 3 if writes were lost.")
@errors_in_one_line
def command(file: Path, form: str, check: bool) -> None:
    """Print the report of a trace; needs neither root nor BCC nor that kernel.

    FILE is uffdtrace.data unless named.

    \b
    Examples:
      uffdtrace report
      uffdtrace report --format json migration.data
    """
    found = read(file)
    show(found, form)
    if check and found["verdict"] in ("lost-writes", "blind"):
        sys.exit(3)
