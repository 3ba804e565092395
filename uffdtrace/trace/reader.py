"""Reading a trace file, which may be cut short, broken or foreign."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from uffdtrace.model.account.elsewhere import Elsewhere, Look
from uffdtrace.model.diagnosis.report import Name
from uffdtrace.model.diagnosis.stacks import MOST_STACKS, Stack
from uffdtrace.model.records.batch import Batch
from uffdtrace.model.records.events import EVENT, PAGE_SIZES
from uffdtrace.trace import shape
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
from uffdtrace.trace.packing import PackingError, unpack

_ID_DIGITS = 32


def _opened(path: Path) -> BinaryIO:
    """The file; what cannot be read twice, as a pipe, is copied to a file without a name. `-` is standard input."""
    file: BinaryIO = sys.stdin.buffer if str(path) == "-" else path.open("rb")
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - the reader's, for as long as that lives
    copy.write(file.read(len(MAGIC)))
    copy.seek(0)
    # An endless device must not fill the disk.
    if copy.read() == MAGIC:
        shutil.copyfileobj(file, copy)
    copy.seek(0)
    return copy


class Reader:
    """`meta` at once; then iterate over `events()`; then the rest is known.

    That is `names`, `processes`, `threads`, `stacks`, `looks`, `ending`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ending: dict[str, Any] = {}
        self.names: list[Name] = []
        self.processes: list[dict[str, Any]] = []
        # What threads are called, by tid.
        self.threads: dict[int, str] = {}
        self.stacks: list[Stack] = []
        self.looks: list[Look] = []
        self.complete = False
        # Some event has an earlier time than one before it.
        self.backwards = False
        self._last = 0
        # More than cut short: something wrong stands before its end.
        self.damaged = False
        try:
            self._file = _opened(path)
            self._size = os.fstat(self._file.fileno()).st_size
            magic = self._file.read(len(MAGIC))
        except FileNotFoundError:
            raise TraceError(f"no trace file {path}: make one with uffdtrace attach or run, or name yours") from None
        except PermissionError:
            raise TraceError(
                f"may not read {path}: a trace belongs to who made it: read it as that user, or have it chowned"
            ) from None
        except OSError as error:
            raise TraceError(f"cannot read {path}: {error.strerror}: name another file, or copy it first") from None
        if magic != MAGIC:
            raise TraceError(f"{path} is not a uffdtrace trace file")
        first = self._next()
        if first is None or first[0] != META:
            raise TraceError(f"{path} is broken: its first part is missing, nothing in it can be read")
        found = self._json(first[1])
        schema = found.get("schema") if isinstance(found, dict) else None
        if schema != SCHEMA:
            raise TraceError(
                f"{path} has the schema {str(schema)[:40]!r}, this uffdtrace reads {SCHEMA}:"
                " use the version that wrote it"
            )
        self.meta = self._shaped(found, shape.META)
        # The same wherever the file lies, and another for each trace: its head has the time in ns.
        self.id = hashlib.sha256(first[1]).hexdigest()[:_ID_DIGITS]
        if self.meta["page_size"] not in PAGE_SIZES:
            raise TraceError(
                f"{path} is of a machine with pages of {self.meta['page_size']:,} bytes: no machine that can be traced"
                f" has such, they have {', '.join(map(str, PAGE_SIZES))}: the file is broken or foreign"
            )

    def events(self) -> Iterator[Batch]:
        """The events, up to where the file is whole."""
        while True:
            chunk = self._next()
            if chunk is None:
                return
            tag, payload = chunk
            if tag == EVENTS:
                if len(payload) % EVENT.itemsize:
                    raise TraceError(f"{self.path} is broken: it holds a part of an event")
                yield self._in_order(Batch(np.frombuffer(payload, dtype=EVENT)))
            elif tag == PACKED:
                try:
                    events = unpack(payload)
                except PackingError:
                    raise TraceError(f"{self.path} is broken: a part of its events is not what it says") from None
                yield self._in_order(events)
            elif tag == NAMES:
                self.names += [Name(**name) for name in self._checked(self._json(payload), shape.NAMES)]
            elif tag == PROCESSES:
                self.processes += self._checked(self._json(payload), shape.PROCESSES)
            elif tag == THREADS:
                told = self._checked(self._json(payload), shape.THREADS)
                self.threads.update({one["tid"]: one["comm"] for one in told})
            elif tag == STACKS:
                told = self._checked(self._json(payload), shape.STACKS)
                self.stacks += [Stack(**one) for one in told][: max(0, MOST_STACKS - len(self.stacks))]
            elif tag == LOOKS:
                for look in self._checked(self._json(payload), shape.LOOKS):
                    others = tuple(Elsewhere(**other) for other in look["elsewhere"])
                    self.looks.append(Look(max(0, look["unreadable"]), others))
            elif tag == LOSS:
                self.ending = self._shaped(self._json(payload), shape.LOSS)
            elif tag == DONE:
                self.ending = self._shaped(self._json(payload), shape.DONE)
                self.complete = True
                return

    def _in_order(self, events: Batch) -> Batch:
        times = events["time"]
        if len(events):
            self.backwards |= int(times[0]) < self._last or bool((times[1:] < times[:-1]).any())
            self._last = int(times[-1])
        return events

    def _next(self) -> tuple[bytes, bytes] | None:
        header = self._file.read(HEADER.size)
        if len(header) < HEADER.size:
            return None
        tag, checksum, length = HEADER.unpack(header)
        if length > self._size - self._file.tell():
            return None
        payload = self._file.read(length)
        if zlib.crc32(payload) != checksum:
            self.damaged = True
            return None
        return tag, payload

    def _json(self, payload: bytes) -> Any:
        try:
            return json.loads(payload)
        except (ValueError, RecursionError):
            return None

    def _checked(self, found: Any, wanted: Any) -> Any:
        if not shape.fits(found, wanted):
            raise TraceError(f"{self.path} is broken: one of its parts is not what it says")
        return found

    def _shaped(self, found: Any, wanted: dict[str, Any]) -> dict[str, Any]:
        checked: dict[str, Any] = self._checked(found, wanted)
        return checked
