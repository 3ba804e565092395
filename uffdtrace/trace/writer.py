"""Writing a trace file."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from uffdtrace.model.account.elsewhere import Look
from uffdtrace.model.diagnosis.report import Name
from uffdtrace.model.diagnosis.stacks import Stack
from uffdtrace.model.records.batch import Batch, as_batch
from uffdtrace.model.records.events import Array, Counter, Kind, Type
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
    STACKS,
    THREADS,
    TraceError,
)
from uffdtrace.trace.output import Output

# To pack fewer events takes longer than to write them as they are.
_FEW = 256


class Writer:
    """Appends whole chunks, straight to the kernel: what is written survives our death.

    A disk that is full, or a limit, ends the file and not the trace: `ended` says why
    nothing is written any more but the trace's last word.
    """

    def __init__(self, output: Path | Output, meta: dict[str, Any], most_bytes: int | None = None) -> None:
        """The file takes its place once its head is written; its last word may come on top of `most_bytes`."""
        output = output if isinstance(output, Output) else Output(output)
        self.path, self._fd = output.path, output.fd
        self._most = most_bytes
        # Bytes of whole chunks.
        self._size = 0
        # A part of a chunk stands behind them, which cannot be taken back.
        self._torn = False
        self.ended: str | None = None
        # Of faults and messages that are not in the file: (ctx, vm_start or 0) to the slots of Counter.
        self.unwritten: dict[tuple[int, int], list[int]] = {}
        try:
            self._head(json.dumps({"schema": SCHEMA, **meta}).encode())
            output.take_place()
        finally:
            output.abandon()

    @property
    def written(self) -> int:
        """Bytes in the file."""
        return self._size

    def events(self, events: Array | Batch) -> None:
        events = as_batch(events)
        for first in range(0, len(events), packing.MOST):
            part = events[first : first + packing.MOST]
            few = len(part) < _FEW
            self._chunk(EVENTS if few else PACKED, part.records.tobytes() if few else packing.pack(part))
            if self.ended is not None:
                self._count(part.records)

    def _count(self, events: Array) -> None:
        """What these events would have said of how many faults and messages there were."""
        for kind, slot, start in ((Type.FAULT, 0, "value"), (Type.MESSAGE, Counter.MESSAGE_MISSING, "end")):
            mine = events[(events["type"] == kind) & (events["ret"] == 0) & (events["kind"] < len(Kind))]
            for event, count in zip(*np.unique(mine[["ctx", start, "kind"]], return_counts=True)):
                counts = self.unwritten.setdefault((int(event["ctx"]), int(event[start])), [0] * len(Counter))
                counts[slot + int(event["kind"])] += int(count)

    def names(self, names: list[Name]) -> None:
        if names:
            self._chunk(NAMES, json.dumps([asdict(name) for name in names]).encode())

    def processes(self, processes: Sequence[Mapping[str, Any]]) -> None:
        if processes:
            self._chunk(PROCESSES, json.dumps(processes).encode())

    def threads(self, threads: list[dict[str, Any]]) -> None:
        if threads:
            self._chunk(THREADS, json.dumps(threads).encode())

    def stacks(self, stacks: list[Stack]) -> None:
        if stacks:
            self._chunk(STACKS, json.dumps([asdict(stack) for stack in stacks]).encode())

    def looks(self, looks: list[Look]) -> None:
        if looks:
            self._chunk(LOOKS, json.dumps([asdict(look) for look in looks]).encode())

    def loss(self, loss: dict[str, Any]) -> None:
        self._chunk(LOSS, json.dumps(loss).encode())

    def done(self, ending: dict[str, Any]) -> None:
        """The trace's last word; `ended` says so if even that could not be written."""
        try:
            try:
                # Behind a part of a chunk it would be no last word: the file would look damaged, and not cut short.
                if not self._torn:
                    self._write(_packed(DONE, json.dumps(ending).encode()))
            finally:
                os.close(self._fd)
        except OSError as error:
            self.ended = error.strerror

    def _head(self, meta: bytes) -> None:
        try:
            self._write(MAGIC + _packed(META, meta))
        except OSError as error:
            raise TraceError(
                f"cannot write {self.path}: {error.strerror}: make room, or choose another file with -o"
            ) from None

    def _chunk(self, tag: bytes, payload: bytes) -> None:
        if self.ended is not None:
            return
        data = _packed(tag, payload)
        if self._most is not None and self._size + len(data) > self._most:
            self.ended = f"it would be larger than --max-size {self._most:,} bytes"
            return
        try:
            self._write(data)
        except OSError as error:
            self.ended = error.strerror
            # A device or FIFO cannot be cut, and its reader has that part.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
                os.lseek(self._fd, self._size, os.SEEK_SET)
                self._torn = False

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
            self._torn = bool(view)
        self._size += len(data)


def _packed(tag: bytes, payload: bytes) -> bytes:
    """A chunk, as the file has it."""
    return HEADER.pack(tag, zlib.crc32(payload), len(payload)) + payload
