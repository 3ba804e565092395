"""The command line: one module per verb, and the only code that knows click."""

from __future__ import annotations

import click

from uffdtrace import __version__
from uffdtrace.cli import attach, inspect, report, run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="uffdtrace")
def main() -> None:
    """Trace userfaultfd: which writes a tracker misses, where, and why.

    \b
    Examples:
      uffdtrace run -- ./tracker           trace a program from its start
      uffdtrace attach 1234                trace a running process
      uffdtrace report                     read the last trace again
      uffdtrace inspect 1234               what its page tables say, without BPF
    """


main.add_command(attach.command)
main.add_command(run.command)
main.add_command(report.command)
main.add_command(inspect.command)
