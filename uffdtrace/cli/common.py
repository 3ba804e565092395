"""What the verbs share: options, errors as one line, the report printed."""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Callable, TextIO, TypeVar

import click

from uffdtrace.cli.messages import fail
from uffdtrace.errors import UffdtraceError
from uffdtrace.model.diagnosis.document import ReportDict
from uffdtrace.reporters.options import Color, TextOptions
from uffdtrace.reporters.words import reading

Function = TypeVar("Function", bound=Callable[..., Any])


def errors_in_one_line(function: Function) -> Function:
    """Every error that a user can cause ends in one line and exit status 1."""

    @functools.wraps(function)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except UffdtraceError as error:
            fail(" ".join(str(error).split()))
        except BrokenPipeError:
            # Whoever read our output has enough; nothing is left to flush to.
            sys.stdout = None
            sys.exit(141)
        except MemoryError:
            fail("this machine's memory is not enough for it: trace for a shorter time, or read it on a larger one")
        except OSError as error:
            # The one that nobody foresaw: it has a cause, and mostly a place.
            place = f" {error.filename}" if error.filename else ""
            fail(f"the kernel refuses{place}: {error.strerror or error}: see uffdtrace doctor for what it allows")

    return wrapped  # type: ignore[return-value]


# A file that a user names beside the trace, or - for standard input: click says in one line why it cannot be read.
TEXT_FILE = click.File(encoding="utf-8", errors="replace")
_MOST_TEXT = 4 << 20


def text_of(file: TextIO) -> str:
    """What is in it; UsageError where that is more than such a file can hold."""
    text = file.read(_MOST_TEXT + 1)
    if len(text) > _MOST_TEXT:
        raise click.UsageError(f"{file.name} is larger than {_MOST_TEXT >> 20} MiB: it is another file")
    return text


class _Pid(click.IntRange):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{value!r} is no process number: find it with pidof or ps", param, ctx)


PID = _Pid(min=1)


class Duration(click.ParamType):
    """Seconds, or with s, m or h seconds, minutes or hours; more than none."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = re.fullmatch(r"(\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})([smh]?)", str(value), re.ASCII)
        seconds = float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]] if found else 0.0
        if not seconds:
            self.fail(f"{value!r} is no time: give seconds, or a number with s, m or h", param, ctx)
        return seconds


def color_option(function: Function) -> Function:
    return click.option(
        "--color",
        type=click.Choice([color.value for color in Color]),
        default=Color.AUTO.value,
        show_default=True,
        callback=lambda _context, _parameter, value: Color(value),
        help="Colour in a text report; auto is for terminals, unless NO_COLOR is set.",
    )(function)


def format_option(*formats: str) -> Callable[[Function], Function]:
    return click.option(
        "--format", "form", type=click.Choice(formats), default="text", show_default=True, help="Form of the report."
    )


def _json_lines(data: Mapping[str, Any]) -> Iterator[str]:
    """An object as JSON text, a piece at a time: each member begins a line, and so does each item of a member's list.

    json does all but its indent in C: with one the text would take longer than the account of many ranges does.
    """
    encode = json.JSONEncoder(allow_nan=False).encode
    members = [(f"  {encode(name)}: ", value) for name, value in data.items()]
    yield "{\n"
    for number, (name, value) in enumerate(members):
        comma = "," if number + 1 < len(members) else ""
        if value and isinstance(value, list):
            yield f"{name}[\n"
            yield from (f"    {encode(item)},\n" for item in value[:-1])
            yield f"    {encode(value[-1])}\n  ]{comma}\n"
        else:
            yield f"{name}{encode(value)}{comma}\n"
    yield "}\n"


def write(data: Mapping[str, Any], form: str, as_text: Callable[[TextIO], None], err: bool = False) -> None:
    """Print data to stdout, or to stderr where stdout is another program's."""
    stream = sys.stderr if err else sys.stdout
    try:
        if form == "json":
            # At once: standard error would write every line by itself.
            stream.write("".join(_json_lines(data)))
        elif form == "jsonl":
            stream.write(json.dumps(data, allow_nan=False) + "\n")
        else:
            as_text(stream)
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        # What stands in its buffer cannot be flushed at exit either.
        sys.stdout = None
        fail(f"cannot write the report: {error.strerror}: make room, or send it elsewhere")


def where(report: ReportDict, output: Path) -> str:
    """Why a trace ended, where it is, and the command that reads it again."""
    return f"{report['trace']['stop_reason']}; trace in {output}: read it again with {reading(str(output))}"


def show(report: ReportDict, form: str, options: TextOptions, err: bool = False) -> None:
    def as_text(stream: TextIO) -> None:
        # Only here: rich takes longer to import than all the rest.
        from uffdtrace.reporters import text

        text.render(report, stream, options)

    write(report, form, as_text, err)
