"""The lines at the bottom of a terminal that say how a trace is going."""

from __future__ import annotations

import os
from types import TracebackType
from typing import TextIO

from uffdtrace.cli.messages import say
from uffdtrace.collect.progress import Progress, RangeProgress
from uffdtrace.model.diagnosis.latency import readable
from uffdtrace.reporters.words import known_part, number, size

_ERASE = "\r\x1b[K"
_NO_WIDTH = 80
# Ranges on a screen, and lines beside them: totals, head, "and more", and one that stays free.
_MOST_RANGES = 10
_OTHER_LINES = 4
_HEADS = ["Range", "Memory", "Armed", "Msg/s", "p99", "Unread", "Lost", "Verdict", "Losses"]
_LEFT = (0, 1, 7, 8)
_BARS = " ▁▂▃▄▅▆▇█"
_PLAIN_BARS = " .:-=+*#@"


def describe(progress: Progress, width: int) -> str:
    """The progress in fewer than `width` characters; a full line would wrap."""
    parts = [
        f"{progress.elapsed_s:,.0f} s",
        f"{progress.faults:,} faults",
        f"{progress.messages:,} messages",
        f"{known_part(progress.lost, not progress.lost_unknown)} lost",
        "catching up" * progress.behind,
    ]
    said = "  ".join(filter(None, parts))
    hint = f"{said}  (Ctrl-C to end)"
    return hint if len(hint) < width else said[: width - 1]


def screen(progress: Progress, width: int, height: int, plain: bool) -> list[str]:
    """As many lines as a terminal has room for: the totals, the ranges that are worst off, what came last."""
    lines = [describe(progress, width)]
    foot = _foot(progress)
    room = min(_MOST_RANGES, height - _OTHER_LINES - len(foot))
    if progress.ranges and room > 0:
        shown = progress.ranges[:room]
        more = progress.more + len(progress.ranges) - len(shown)
        lines += _table([_HEADS, *(_cells(one, plain) for one in shown)])
        lines += [f"and {more:,} more ranges"] * bool(more)
    return [line[: width - 1] for line in [*lines, *foot]]


def _foot(progress: Progress) -> list[str]:
    if not progress.ranges:
        return []
    kept = f"{progress.written / 1e6:,.1f} MB written, {progress.dropped:,} events dropped"
    kept += "" if progress.probes is None else f", probes take {progress.probes:.1%} of a CPU"
    return [f"newest: {progress.newest}"] * bool(progress.newest) + [kept]


def _cells(one: RangeProgress, plain: bool) -> list[str]:
    bars = _PLAIN_BARS if plain else _BARS
    most = max(one.history, default=0)
    # Whatever was lost shows.
    history = "".join(bars[-(-lost * (len(bars) - 1) // most) if most else 0] for lost in one.history)
    return [
        f"{one.start:x}",
        f"{size(one.pages, one.page_size)} {one.memory}",
        f"{one.armed:,}",
        f"{one.per_second:,.0f}",
        "" if one.p99_us is None else readable(one.p99_us).replace("µ", "u" if plain else "µ"),
        f"{one.unread:,}",
        number(one.lost),
        one.verdict,
        history if most else "",
    ]


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADS))]
    lines = []
    for row in rows:
        cells = zip(row, widths, range(len(row)))
        said = "  ".join(cell.ljust(width) if at in _LEFT else cell.rjust(width) for cell, width, at in cells)
        lines.append(said.rstrip())
    return lines


class StatusLine:
    """Shown on a terminal that can erase it, while we have the foreground; erased on exit."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        # Lines that stand there.
        self._shown = 0
        self._plain = (stream.encoding or "ascii").lower().replace("-", "") != "utf8"
        self.live = stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")

    def __enter__(self) -> StatusLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._draw(None)

    def show(self, progress: Progress) -> None:
        if self.live:
            self._draw(progress)

    def say(self, line: str) -> None:
        """Progress that stays."""
        self._draw(None)
        say(line)

    def _draw(self, progress: Progress | None) -> None:
        if not self._shown and progress is None:
            return
        terminal = self._stream.fileno()
        try:
            if not _foreground(terminal):
                return
            # Not COLUMNS, which may be another terminal's.
            columns, lines = os.get_terminal_size(terminal)
            told = screen(progress, columns or _NO_WIDTH, lines, self._plain) if progress else [""]
            up = f"\x1b[{self._shown - 1}A" if self._shown > 1 else ""
            # Line by line over what stands there: a screen that is cleared first flickers.
            rest = "\x1b[J" if self._shown > len(told) else ""
            self._stream.write(up + "\n".join(_ERASE + line for line in told) + rest)
            self._stream.flush()
            self._shown = len(told) if progress else 0
        except OSError:
            # The terminal was closed: SIGHUP ends the trace, and its file must be finished.
            self._shown, self.live = 0, False


def _foreground(terminal: int) -> bool:
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        # Not our controlling terminal: no shell shares it with us.
        return True
