"""What uffdtrace itself says to the person at the terminal. Light: --help needs it."""

from __future__ import annotations

import sys
from typing import NoReturn

import click


def say(line: str) -> None:
    """Progress, and the one line of an error."""
    click.echo(f"uffdtrace: {line}", err=True)


def fail(line: str) -> NoReturn:
    say(line)
    sys.exit(1)
