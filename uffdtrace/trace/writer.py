"""Writing a trace file."""

from __future__ import annotations

import contextlib
import errno
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

# To pack fewer events takes longer than to write them as they are.
_FEW = 256
_CANNOT_CREATE = "cannot create {path}: {error}: choose another file with -o"


def check_path(path: Path) -> None:
    """TraceError where no trace can be made, which is better known before minutes are spent on it."""
    # access() knows of read-only file systems, too.
    try:
        wanted = path if path.exists() and not path.is_file() else path.parent
        there = wanted.exists()
    except OSError as error:
        raise TraceError(_CANNOT_CREATE.format(path=path, error=error.strerror)) from None
    if not there or not os.access(wanted, os.W_OK):
        why = os.strerror(errno.EACCES if there else errno.ENOENT)
        raise TraceError(_CANNOT_CREATE.format(path=path, error=why))


def _sudo_user() -> tuple[int, int] | None:
    """User and group of who called sudo, whose the trace should be."""
    user, group = os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_GID", "")
    return (int(user), int(group)) if os.geteuid() == 0 and user.isdecimal() and group.isdecimal() else None


class Writer:
    """Appends whole chunks, straight to the kernel: what is written survives our death."""

    def __init__(self, path: Path, meta: dict[str, Any]) -> None:
        self.path = path
        try:
            if path.exists() and not path.is_file():
                # A device or a pipe is the user's to choose, and not ours to move.
                self._fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            else:
                if path.is_file():
                    # As perf does with perf.data.
                    path.replace(path.with_name(path.name + ".old"))
                # The addresses in it are the target's business.
                self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                if (owner := _sudo_user()) is not None:
                    # Not every file system has owners (vfat); root's trace is better than none.
                    with contextlib.suppress(OSError, OverflowError):
                        os.fchown(self._fd, *owner)
        except OSError as error:
            raise TraceError(_CANNOT_CREATE.format(path=path, error=error.strerror)) from None
        self._write(MAGIC)
        self._chunk(META, json.dumps({"schema": SCHEMA, **meta}).encode())

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
