"""uffdtrace attach."""

from __future__ import annotations

import sys
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path

import click

from uffdtrace.cli.common import PID, Duration, errors_in_one_line, show, where, write
from uffdtrace.cli.messages import say
from uffdtrace.cli.metrics import MetricsFile
from uffdtrace.cli.status import StatusLine
from uffdtrace.cli.tracing import trace_options
from uffdtrace.collect.program import Follow
from uffdtrace.collect.progress import Progress
from uffdtrace.collect.session import Options, Session, load
from uffdtrace.collect.target import find, open_pidfd
from uffdtrace.kernel import preflight, proc
from uffdtrace.kernel.probes import Backend
from uffdtrace.reporters.options import Color, TextOptions


@click.command("attach")
@click.argument("pids", type=PID, nargs=-1, metavar="[PID]...")
@click.option(
    "-p", "--pid", "also", type=PID, multiple=True, metavar="PID", help="A process, as an option (repeatable)."
)
@click.option("--comm", metavar="NAME", help="All processes of that name (ps -o comm).")
@click.option("--exe", metavar="PATH", help="All processes that run that program.")
@click.option("--all", "everybody", is_flag=True, help="Trace every userfaultfd on the machine instead of one PID's.")
@click.option(
    "--follow-forks",
    is_flag=True,
    help="Trace the children that PID forks, too, and go on until they have exited.",
)
@click.option(
    "--interval",
    type=Duration(),
    metavar="SECONDS",
    help="With --format jsonl: a line of JSON on standard output so often, the report as the last.",
)
@click.option(
    "--metrics",
    "metrics_path",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Keep FILE fresh while tracing, as OpenMetrics for the node exporter.",
)
@trace_options("text", "json", "jsonl")
@errors_in_one_line
def command(
    pids: tuple[int, ...],
    also: tuple[int, ...],
    comm: str | None,
    exe: str | None,
    everybody: bool,
    follow_forks: bool,
    interval: float | None,
    metrics_path: Path | None,
    output: Path,
    duration: float | None,
    most_bytes: int | None,
    backend: str,
    form: str,
    color: Color,
) -> None:
    """Trace running processes until Ctrl-C, their exit, or the duration.

    PID is a process whose memory is tracked, or the monitor that holds the
    userfaultfd. What was registered and protected before is found and told apart.

    \b
    Examples:
      uffdtrace attach 1234
      uffdtrace attach -d 10s -o vm.data $(pidof qemu-kvm)
      uffdtrace attach --comm qemu-kvm
      uffdtrace attach --all -d 60
      uffdtrace attach --format jsonl --interval 5 1234
      uffdtrace attach --all --metrics /var/lib/node_exporter/uffdtrace.prom
    """
    if (interval is None) != (form != "jsonl"):
        raise click.UsageError("--interval SECONDS and --format jsonl go together.")
    by_name = comm is not None or exe is not None
    pids = (*pids, *also)
    if everybody and (pids or by_name):
        raise click.UsageError("--all traces every process: give a PID or --all, not both.")
    if not everybody and not pids and not by_name:
        raise click.UsageError("Missing argument 'PID': give a process, or --all for every userfaultfd.")
    preflight.check_privileges()
    # One that is named twice is one.
    wanted = list(dict.fromkeys([*pids, *(find(comm, exe) if by_name else [])]))
    # Its PIDs would be others than ours.
    preflight.check_namespaces()
    follow = Follow.ALL if everybody else Follow.FORKS if follow_forks else Follow.NOBODY
    options = Options(output, Backend(backend), duration, follow, most_bytes, interval)
    processes = [proc.process(pid) for pid in wanted]
    # A thread's number is refused.
    descriptors = [open_pidfd(pid) for pid in wanted]
    # Of several, the end of each is looked for between two looks at the events.
    wait_fd = descriptors[0] if len(descriptors) == 1 else None

    def ended() -> bool:
        if not wanted or any(map(proc.is_alive, wanted)):
            return False
        return follow is not Follow.FORKS or not any(map(proc.is_alive, session.followed))

    def tell(progress: Progress) -> None:
        write({"progress": asdict(progress)}, "jsonl", lambda stream: None)

    with ExitStack() as stack:
        # Before the probes are there, which must not stay if this process dies and its child does not.
        metrics = None if metrics_path is None else stack.enter_context(closing(MetricsFile(metrics_path)))
        status = stack.enter_context(StatusLine(sys.stderr))
        shows = tell if form == "jsonl" else status.show if status.live else None
        loaded = load(options, say)

        def look(progress: Progress) -> None:
            if shows is not None:
                shows(progress)
            if metrics is not None:
                name = processes[0].comm if processes else ""
                metrics.so_far(progress, name, loaded.program.backend)

        wanted_looks = shows if metrics is None else look
        session = Session(loaded, options, processes, status.say, wanted_looks)
        report = session.run(release=None, ended=ended, wait_fd=wait_fd)
        if metrics is not None:
            metrics.done(report)
    say(where(report, output))
    show(report, form, TextOptions(color))
