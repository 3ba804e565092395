"""What uffdtrace itself says to the person at the terminal. Light: --help needs it."""

from __future__ import annotations

import sys
from typing import NoReturn

import click

from uffdtrace.reporters.harmless import printable


def say(line: str) -> None:
    """Progress, and the one line of an error; what it names may be anybody's."""
    click.echo(f"uffdtrace: {printable(line)}", err=True)


def fail(line: str) -> NoReturn:
    say(line)
    sys.exit(1)
