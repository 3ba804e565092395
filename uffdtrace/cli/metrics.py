"""A file of metrics that is kept fresh while a trace goes on (`attach --metrics`)."""

from __future__ import annotations

import os
import platform
import signal
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from uffdtrace.cli.messages import say
from uffdtrace.collect.progress import Progress
from uffdtrace.errors import UffdtraceError
from uffdtrace.export import openmetrics
from uffdtrace.kernel import privileges
from uffdtrace.model.diagnosis.document import ReportDict
from uffdtrace.trace.output import replace

# Prometheus asks several times a minute.
_EVERY_S = 5.0
# The metrics of a trace are a few kilobytes.
_MOST_BYTES = 1 << 17
_LAST_S = 5.0


class NoMetrics(UffdtraceError):
    """The file cannot be written."""


class MetricsFile:
    """Writes by a child, which may still make files in others' folders when this process has given that up.

    The child has nothing else that a tracer has: it is made before there is any, and ends with its parent.
    """

    def __init__(self, path: Path) -> None:
        """NoMetrics where nothing can be written there, which is better known before minutes are spent."""
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            raise NoMetrics(f"cannot write metrics to {path}: {path.parent} is no folder that you may write to")
        self._next = 0.0
        # A message arrives whole or not at all.
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._child = os.fork()
        if not self._child:
            status = 1
            try:
                self._ours.close()
                _keep(theirs, path)
                status = 0
            finally:
                os._exit(status)
        theirs.close()

    def so_far(self, progress: Progress, process: str, backends: Iterable[str]) -> None:
        """Tell how the trace goes, if it is time to."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _EVERY_S
        # A child that waits for a slow disk gets the next ones. Where it is gone, it has said why.
        with suppress(BlockingIOError, ConnectionError):
            self._ours.send(_content(_numbers(progress, process, backends)), socket.MSG_DONTWAIT)

    def done(self, report: ReportDict) -> None:
        """Tell what the report has."""
        self._ours.settimeout(_LAST_S)
        with suppress(socket.timeout, ConnectionError):
            self._ours.send(_content(openmetrics.numbers(report)))

    def close(self) -> None:
        """The child ends when it has written what it was given."""
        self._ours.close()
        os.waitpid(self._child, 0)


def _content(told: openmetrics.Numbers) -> bytes:
    return openmetrics.text(openmetrics.families(told, {}))


def _numbers(progress: Progress, process: str, backends: Iterable[str]) -> openmetrics.Numbers:
    return openmetrics.Numbers(
        process,
        platform.release(),
        "+".join(sorted(set(backends))),
        openmetrics.TRACING,
        progress.elapsed_s,
        progress.armed,
        None,
        progress.by_cause,
        progress.by_kind,
        None,
        progress.dropped,
    )


def _keep(messages: socket.socket, path: Path) -> None:
    """In the child: put what comes into the file, until the other end is closed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # They are meant for the trace, whose last word is still to be written.
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):
        privileges.keep_only([privileges.Capability.DAC_OVERRIDE])
    refused = ""
    while content := messages.recv(_MOST_BYTES):
        try:
            replace(path, content, openmetrics.MODE)
        except OSError as error:
            # Once, and again if it is another reason: what is there stays, and is old.
            if refused != error.strerror:
                refused = error.strerror or ""
                say(f"cannot write {path}: {error.strerror}: its numbers are old")
