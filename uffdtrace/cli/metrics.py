"""A file of metrics that is kept fresh while a trace goes on (`attach --metrics`)."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

from uffdtrace.cli.messages import say
from uffdtrace.collect.helper import Helper
from uffdtrace.collect.progress import Progress
from uffdtrace.errors import UffdtraceError
from uffdtrace.export import openmetrics
from uffdtrace.kernel.privileges import Capability
from uffdtrace.model.diagnosis.document import ReportDict
from uffdtrace.trace.output import replace

# Prometheus asks several times a minute.
_EVERY_S = 5.0
_LAST_S = 5.0


class NoMetrics(UffdtraceError):
    """The file cannot be written."""


class MetricsFile:
    """Writes by a child, which may still make files in others' folders when this process has given that up."""

    def __init__(self, path: Path) -> None:
        """NoMetrics where nothing can be written there, which is better known before minutes are spent."""
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            raise NoMetrics(f"cannot write metrics to {path}: {path.parent} is no folder that you may write to")
        self._path = path
        self._next = 0.0
        # The child's: what it was refused.
        self._refused = ""
        self._child = Helper(self._write, [Capability.DAC_OVERRIDE])

    def so_far(self, progress: Progress, process: str, backend: str) -> None:
        """Tell how the trace goes, if it is time to."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _EVERY_S
        # A child that waits for a slow disk gets the next ones.
        self._child.send(_content(_numbers(progress, process, backend)))

    def done(self, report: ReportDict) -> None:
        """Tell what the report has."""
        self._child.send(_content(openmetrics.numbers(report)), _LAST_S)

    def close(self) -> None:
        """Wait until all is written."""
        self._child.close()

    def _write(self, content: bytes) -> None:
        try:
            replace(self._path, content, openmetrics.MODE)
        except OSError as error:
            # Once, and again if it is another reason: what is there stays, and is old.
            if self._refused != error.strerror:
                self._refused = error.strerror or ""
                say(f"cannot write {self._path}: {error.strerror}: its numbers are old")


def _content(told: openmetrics.Numbers) -> bytes:
    return openmetrics.text(openmetrics.families(told, {}))


def _numbers(progress: Progress, process: str, backend: str) -> openmetrics.Numbers:
    return openmetrics.Numbers(
        process,
        platform.release(),
        backend,
        openmetrics.TRACING,
        progress.elapsed_s,
        progress.armed,
        None,
        progress.by_cause,
        progress.by_kind,
        None,
        progress.dropped,
    )
