"""uffdtrace map."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TextIO

import click

from uffdtrace.cli.common import TEXT_FILE, errors_in_one_line, text_of
from uffdtrace.collect import machine
from uffdtrace.model.diagnosis.guest_memory import written
from uffdtrace.reporters.harmless import printable


@click.command("map")
@click.option(
    "--qmp",
    type=click.Path(path_type=Path),
    metavar="SOCKET",
    help="Ask QEMU at its QMP socket (its option -qmp unix:SOCKET,server=on,wait=off).",
)
@click.option(
    "--hmp",
    metavar="COMMAND",
    help="Ask QEMU by a command that takes a line for its human monitor and prints the answer.",
)
@click.option(
    "--firecracker",
    type=TEXT_FILE,
    metavar="FILE",
    help="Read what Firecracker sent with its userfaultfd (JSON).",
)
@errors_in_one_line
def command(qmp: Path | None, hmp: str | None, firecracker: TextIO | None) -> None:
    """Print where a virtual machine's memory lies: block, host address, length, guest-physical address.

    With it, report --map tells the machine's own addresses of lost pages. It holds for one run
    of the machine: make it while that runs.

    \b
    Examples:
      uffdtrace map --qmp /run/vm1.qmp
      uffdtrace map --hmp 'virsh qemu-monitor-command vm1 --hmp'
      uffdtrace map --firecracker mappings.json
    """
    if sum(one is not None for one in (qmp, hmp, firecracker)) != 1:
        raise click.UsageError("give one of --qmp SOCKET, --hmp COMMAND and --firecracker FILE")
    if qmp is not None:
        with machine.Qmp(qmp) as monitor:
            blocks = machine.qemu(monitor.ask)
    elif hmp is not None:
        blocks = machine.qemu(machine.by_command(shlex.split(hmp)))
    else:
        assert firecracker is not None
        blocks = machine.firecracker(text_of(firecracker))
    for line in written(blocks).splitlines():
        click.echo(printable(line))
