"""The line at the bottom of a terminal that says how a trace is going."""

from __future__ import annotations

import os
from types import TracebackType
from typing import TextIO

from uffdtrace.cli.messages import say
from uffdtrace.collect.session import Progress
from uffdtrace.reporters.words import known_part

_ERASE = "\r\x1b[K"
_NO_WIDTH = 80


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


class StatusLine:
    """Shown on a terminal that can erase it, while we have the foreground; erased on exit."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown = False
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
            width = os.get_terminal_size(terminal).columns or _NO_WIDTH
            self._stream.write(_ERASE + (describe(progress, width) if progress else ""))
            self._stream.flush()
            self._shown = progress is not None
        except OSError:
            # The terminal was closed: SIGHUP ends the trace, and its file must be finished.
            self.live = self._shown = False


def _foreground(terminal: int) -> bool:
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        # Not our controlling terminal: no shell shares it with us.
        return True
