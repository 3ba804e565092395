"""uffdtrace attach."""

from __future__ import annotations

from pathlib import Path

import click

from uffdtrace.cli.common import errors_in_one_line, say, show, trace_options
from uffdtrace.collect.session import Options, Session, load
from uffdtrace.collect.target import open_pidfd
from uffdtrace.kernel import preflight, proc
from uffdtrace.kernel.probes import Backend


@click.command("attach")
@click.argument("pid", type=click.IntRange(min=1))
@trace_options
@errors_in_one_line
def command(pid: int, output: Path, duration: float | None, backend: str, form: str) -> None:
    """Trace the running process PID until Ctrl-C, its exit, or the duration.

    PID is the process whose memory is tracked, or the monitor that holds the
    userfaultfd.

    \b
    Examples:
      uffdtrace attach 1234
      uffdtrace attach -d 10 -o migration.data $(pidof qemu-system-x86_64)
    """
    preflight.check_privileges()
    process = proc.process(pid)
    pidfd = open_pidfd(pid)
    session = Session(load(Backend(backend), say), Options(output, Backend(backend), duration), process, say)
    report = session.run(release=None, ended=lambda: not proc.is_alive(pid), wait_fd=pidfd)
    say(f"{report['trace']['stop_reason']}; trace in {output}: read it again with uffdtrace report {output}")
    show(report, form)
