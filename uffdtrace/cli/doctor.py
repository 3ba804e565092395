"""uffdtrace doctor."""

from __future__ import annotations

import sys
from typing import TextIO

import click

from uffdtrace.cli.common import color_option, errors_in_one_line, format_option, write
from uffdtrace.cli.messages import say
from uffdtrace.cli.tracing import backend_option
from uffdtrace.collect.checkup import check
from uffdtrace.kernel.probes import Backend
from uffdtrace.reporters.options import Color, TextOptions


@click.command("doctor")
@format_option("text", "json")
@backend_option
@color_option
@errors_in_one_line
def command(form: str, backend: str, color: Color) -> None:
    """Tell what this machine allows, and the remedy for what it does not.

    Needs neither root nor BCC to say so. As root, and where nothing speaks
    against it, attaches every probe for a moment. Exits with status 1 if attach
    would not work here.

    \b
    Examples:
      sudo uffdtrace doctor
      uffdtrace doctor --format json --backend kprobe
    """
    found = check(Backend(backend), say)

    def as_text(stream: TextIO) -> None:
        # Only here: rich takes longer to import than all the rest.
        from uffdtrace.reporters import doctor_text

        doctor_text.render(found, stream, TextOptions(color))

    write(found, form, as_text)
    sys.exit(0 if found["attach_works"] else 1)
