"""The command line: one module per verb, and the only code that knows click."""

from __future__ import annotations

import difflib
from typing import NoReturn

import click

from uffdtrace import __version__
from uffdtrace.cli import attach, doctor, inspect, report, run
from uffdtrace.cli.common import say


class _Verbs(click.Group):
    """Says in one line which verb was probably meant; exit status 2."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if not ctx.resilient_parsing and args[0] not in self.commands:
            self._suggest(ctx, args[0])
        return super().resolve_command(ctx, args)

    def _suggest(self, ctx: click.Context, word: str) -> NoReturn:
        close = difflib.get_close_matches(word.lower(), self.commands, n=1)
        # No number is close to a verb: it is taken for a process.
        meant = f"attach {word}" if word.isascii() and word.isdigit() else close[0] if close else None
        remedy = f"did you mean {ctx.info_name} {meant}?" if meant else f"there are {', '.join(self.commands)}"
        say(f"{word!r} is no command: {remedy}")
        ctx.exit(2)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="uffdtrace")
def main() -> None:
    """Trace userfaultfd: which writes a tracker misses, where, and why.

    \b
    Examples:
      uffdtrace run -- ./tracker           trace a program from its start
      uffdtrace attach 1234                trace a running process
      uffdtrace report                     read the last trace again
      uffdtrace inspect 1234               what its page tables say, without BPF
      uffdtrace doctor                     whether this machine can trace
    """


main.add_command(attach.command)
main.add_command(run.command)
main.add_command(report.command)
main.add_command(inspect.command)
main.add_command(doctor.command)
