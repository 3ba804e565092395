"""The options of the verbs that trace, or try to: what these alone import."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Callable

import click

from uffdtrace.cli.common import Duration, Function, color_option, format_option
from uffdtrace.kernel.probes import Backend
from uffdtrace.trace.file import DEFAULT


class _Size(click.ParamType):
    """Bytes, or with K, M, G or T as many KiB, MiB, GiB or TiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"(\d{1,15})([KMGT]?)", str(value), re.ASCII | re.IGNORECASE)
        if found is None or not int(found[1]):
            self.fail(f"{value!r} is no size: give bytes, or a number with K, M, G or T", param, ctx)
        return int(found[1]) << 10 * " KMGT".index(found[2].upper() or " ")


def trace_options(*formats: str) -> Callable[[Function], Function]:
    """The options that attach and run have in common."""
    options = (
        click.option(
            "-o",
            "--output",
            type=click.Path(path_type=Path, dir_okay=False),
            default=DEFAULT,
            show_default=True,
            metavar="FILE",
            help="Where the trace goes; an existing one is kept as FILE.old.",
        ),
        click.option(
            "-d",
            "--duration",
            type=Duration(),
            metavar="SECONDS",
            help="Stop after that time (10, 10s, 2m, 1h).",
        ),
        click.option(
            "--max-size",
            "most_bytes",
            type=_Size(),
            metavar="SIZE",
            help="Write no more events to FILE than that (bytes, or 500M, 2G); the trace and its counts go on.",
        ),
        backend_option,
        format_option(*formats),
        color_option,
    )

    def with_all(function: Function) -> Function:
        for option in options:
            function = option(function)
        return function

    return with_all


def backend_option(function: Function) -> Function:
    return click.option(
        "--backend",
        type=click.Choice([backend.value for backend in Backend]),
        default="auto",
        show_default=True,
        help="Kind of probe to use where the kernel leaves a choice.",
    )(function)
