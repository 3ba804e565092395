"""uffdtrace attach."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from uffdtrace.cli.common import PID, errors_in_one_line, show, trace_options, where, write
from uffdtrace.cli.messages import say
from uffdtrace.cli.status import StatusLine
from uffdtrace.collect.program import Follow
from uffdtrace.collect.progress import Progress
from uffdtrace.collect.session import Options, Session, load
from uffdtrace.collect.target import find, open_pidfd
from uffdtrace.kernel import preflight, proc
from uffdtrace.kernel.probes import Backend
from uffdtrace.reporters.options import Color, TextOptions


@click.command("attach")
@click.argument("pid", type=PID, required=False)
@click.option("-p", "--pid", "also", type=PID, metavar="PID", help="The process, as an option.")
@click.option("--comm", metavar="NAME", help="The one process of that name (ps -o comm).")
@click.option("--exe", metavar="PATH", help="The one process that runs that program.")
@click.option("--all", "everybody", is_flag=True, help="Trace every userfaultfd on the machine instead of one PID's.")
@click.option(
    "--follow-forks",
    is_flag=True,
    help="Trace the children that PID forks, too, and go on until they have exited.",
)
@click.option(
    "--interval",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="With --format jsonl: a line of JSON on standard output so often, the report as the last.",
)
@trace_options("text", "json", "jsonl")
@errors_in_one_line
def command(
    pid: int | None,
    also: int | None,
    comm: str | None,
    exe: str | None,
    everybody: bool,
    follow_forks: bool,
    interval: float | None,
    output: Path,
    duration: float | None,
    most_bytes: int | None,
    backend: str,
    form: str,
    color: Color,
) -> None:
    """Trace the running process PID until Ctrl-C, its exit, or the duration.

    PID is the process whose memory is tracked, or the monitor that holds the
    userfaultfd. What was registered and protected before is found and told apart.

    \b
    Examples:
      uffdtrace attach 1234
      uffdtrace attach -d 10 -o vm.data $(pidof qemu-kvm)
      uffdtrace attach --comm qemu-kvm
      uffdtrace attach --all -d 60
      uffdtrace attach --format jsonl --interval 5 1234
    """
    if (interval is None) != (form != "jsonl"):
        raise click.UsageError("--interval SECONDS and --format jsonl go together.")
    by_name = comm is not None or exe is not None
    ways = [pid is not None, also is not None, by_name, everybody]
    if everybody and sum(ways) > 1:
        raise click.UsageError("--all traces every process: give a PID or --all, not both.")
    if sum(ways) > 1:
        raise click.UsageError("One process is traced: give PID, -p PID, or --comm and --exe.")
    if not any(ways):
        raise click.UsageError("Missing argument 'PID': give a process, or --all for every userfaultfd.")
    preflight.check_privileges()
    pid = find(comm, exe) if by_name else also if pid is None else pid
    # Its PIDs would be others than ours.
    preflight.check_namespaces()
    follow = Follow.ALL if everybody else Follow.FORKS if follow_forks else Follow.NOBODY
    options = Options(output, Backend(backend), duration, follow, most_bytes, interval)
    process = None if pid is None else proc.process(pid)
    wait_fd = None if pid is None else open_pidfd(pid)

    def ended() -> bool:
        if pid is None or proc.is_alive(pid):
            return False
        return follow is not Follow.FORKS or not any(map(proc.is_alive, session.followed))

    def tell(progress: Progress) -> None:
        write({"progress": asdict(progress)}, "jsonl", lambda stream: None)

    with StatusLine(sys.stderr) as status:
        shows = tell if form == "jsonl" else status.show if status.live else None
        session = Session(load(options, say), options, process, status.say, shows)
        report = session.run(release=None, ended=ended, wait_fd=wait_fd)
    say(where(report, output))
    show(report, form, TextOptions(color))
