"""The command line: one module per verb, and the only code that knows click."""

from __future__ import annotations

import contextlib
import difflib
import importlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, cast

import click

from uffdtrace import __version__
from uffdtrace.cli.messages import say
from uffdtrace.reporters.harmless import printable

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# Each is a module of this package, which is imported when it is called: they need numpy.
_SHORT_HELP = {
    "attach": "Trace a running process.",
    "run": "Trace a program from its start.",
    "report": "Read a trace again, or compare two.",
    "map": "Where a virtual machine's memory is, for report --map.",
    "export": "Many traces as tables, for questions about all of them.",
    "explain": "What a finding means, with wrong and right code.",
    "inspect": "What the page tables say now, without BPF.",
    "doctor": "Whether this machine can trace.",
}


@contextlib.contextmanager
def _harmless() -> Iterator[None]:
    """click's own errors repeat what they were given, which a script may have had from anybody."""
    try:
        yield
    except click.ClickException as error:
        error.message = printable(error.message)
        raise


class _Commands(Mapping[str, click.Command]):
    """The verbs' commands by their names."""

    def __init__(self) -> None:
        self._loaded: dict[str, click.Command] = {}

    def __getitem__(self, verb: str) -> click.Command:
        if verb not in self._loaded and verb in _SHORT_HELP:
            command: click.Command = importlib.import_module(f"uffdtrace.cli.{verb}").command
            command.short_help = _SHORT_HELP[verb]
            self._loaded[verb] = command
        return self._loaded[verb]

    def __iter__(self) -> Iterator[str]:
        return iter(_SHORT_HELP)

    def __len__(self) -> int:
        return len(_SHORT_HELP)


class _Verbs(click.Group):
    """Imports a verb when it is called, and says in one line which one was probably meant; exit status 2."""

    def __init__(self, **options: Any) -> None:
        # Nothing is ever added: a mapping that can be read is enough for click.
        super().__init__(commands=cast("dict[str, click.Command]", _Commands()), **options)

    def make_context(self, *arguments: Any, **extra: Any) -> click.Context:
        with _harmless():
            return super().make_context(*arguments, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _harmless():
            return super().invoke(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(verb, _SHORT_HELP[verb]) for verb in self.list_commands(ctx)])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        verbs = [verb for verb in self.list_commands(ctx) if verb.startswith(incomplete)]
        # A group's own would import each verb for its help.
        options = click.Command.shell_complete(self, ctx, incomplete)
        return [CompletionItem(verb, help=_SHORT_HELP[verb]) for verb in verbs] + options

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
