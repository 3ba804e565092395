"""Writing a trace file."""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from uffdtrace.model.elsewhere import Look
from uffdtrace.model.events import Array
from uffdtrace.model.report import Name
from uffdtrace.trace import packing
from uffdtrace.trace.file import (
    DONE,
    EVENTS,
    HEADER,
    LOOKS,
    LOSS,
    MAGIC,
    META,
    NAMES,
    PACKED,
    PROCESSES,
    SCHEMA,
    TraceError,
)
from uffdtrace.trace.output import Output

# To pack fewer events takes longer than to write them as they are.
_FEW = 256


class Writer:
    """Appends whole chunks, straight to the kernel: what is written survives our death."""

    def __init__(self, output: Path | Output, meta: dict[str, Any]) -> None:
        """The file takes its place once its head is written."""
        output = output if isinstance(output, Output) else Output(output)
        self.path, self._fd = output.path, output.fd
        try:
            self._write(MAGIC)
            self._chunk(META, json.dumps({"schema": SCHEMA, **meta}).encode())
            output.take_place()
        finally:
            output.abandon()

    def events(self, events: Array) -> None:
        if 0 < len(events) < _FEW:
            self._chunk(EVENTS, np.ascontiguousarray(events).tobytes())
            return
        for first in range(0, len(events), packing.MOST):
            self._chunk(PACKED, packing.pack(events[first : first + packing.MOST]))

    def names(self, names: list[Name]) -> None:
        if names:
            self._chunk(NAMES, json.dumps([asdict(name) for name in names]).encode())

    def processes(self, processes: list[dict[str, Any]]) -> None:
        if processes:
            self._chunk(PROCESSES, json.dumps(processes).encode())

    def looks(self, looks: list[Look]) -> None:
        if looks:
            self._chunk(LOOKS, json.dumps([asdict(look) for look in looks]).encode())

    def loss(self, loss: dict[str, Any]) -> None:
        self._chunk(LOSS, json.dumps(loss).encode())

    def done(self, ending: dict[str, Any]) -> None:
        self._chunk(DONE, json.dumps(ending).encode())
        os.close(self._fd)

    def _chunk(self, tag: bytes, payload: bytes) -> None:
        self._write(HEADER.pack(tag, zlib.crc32(payload), len(payload)) + payload)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            raise TraceError(
                f"cannot write {self.path}: {error.strerror}: the trace ends here; make room, or choose another"
                " file with -o"
            ) from None
