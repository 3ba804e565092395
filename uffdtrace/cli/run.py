"""uffdtrace run."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import click

from uffdtrace.cli.common import errors_in_one_line, show, where
from uffdtrace.cli.messages import say
from uffdtrace.cli.tracing import trace_options
from uffdtrace.collect.program import Follow
from uffdtrace.collect.session import Options, Session, load
from uffdtrace.collect.target import Command, open_pidfd, who_called_sudo
from uffdtrace.kernel import preflight
from uffdtrace.kernel.probes import Backend
from uffdtrace.reporters.options import Color, TextOptions


@click.command("run", context_settings={"allow_interspersed_args": False})
@trace_options("text", "json")
@click.option(
    "-u",
    "--user",
    metavar="USER",
    help="Run COMMAND as this user (name or number); as root if not given, even under sudo.",
)
@click.argument("arguments", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
@errors_in_one_line
def command(
    arguments: tuple[str, ...],
    output: Path,
    duration: float | None,
    most_bytes: int | None,
    user: str | None,
    backend: str,
    form: str,
    color: Color,
) -> None:
    """Trace COMMAND, and what it starts, from its first instruction.

    Standard output is the command's: the report goes to standard error. For
    JSON to parse, use uffdtrace report --format json afterwards. Exits with the
    command's status.

    \b
    Examples:
      uffdtrace run -- ./tracker --snapshot
      uffdtrace run -o tracker.data --backend kprobe -- ./tracker
    """
    preflight.check_privileges()
    preflight.check_tracing()
    caller = who_called_sudo()
    if user is None and caller is not None:
        say(f"{arguments[0]} runs as root: -u {caller} would run it as {caller}")
    target = Command(list(arguments), user)
    try:
        options = Options(output, Backend(backend), duration, Follow.FORKS, most_bytes)
        # No status line: the terminal is the command's, whose output it would garble.
        session = Session(load(options, say), options, [target.process()], say)
        report = session.run(release=target.release, ended=target.ended, wait_fd=open_pidfd(target.pid))
    finally:
        target.abandon()
    if session.stopped_by(signal.SIGTERM):
        target.forward(signal.SIGTERM)
    say(where(report, output))
    show(report, form, TextOptions(color), err=True)
    target.wait()
    sys.exit(target.exit_status)
