"""Who else maps shared memory that is registered: what is written there sends no message."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from uffdtrace.kernel import mappings, proc
from uffdtrace.kernel.mappings import File, Mapping


@dataclass(frozen=True)
class Elsewhere:
    """Bytes [start, end) of process `pid` map what registered bytes [of_start, of_end) of process `owner` map."""

    owner: int
    of_start: int
    of_end: int
    pid: int
    comm: str
    start: int
    end: int


@dataclass(frozen=True)
class Look:
    """What was seen, and how many processes could not be looked at."""

    elsewhere: list[Elsewhere]
    unreadable: int


def _mappings(pid: int) -> list[Mapping] | None:
    """Its mappings; empty if it is gone, None where we may not look."""
    try:
        # Names are the target's: a carriage return is no end of line.
        with (mappings.PROC / str(pid) / "maps").open(errors="replace", newline="\n") as lines:
            return [mapping for mapping in map(mappings.parse, lines) if mapping]
    except PermissionError:
        return None
    except OSError:
        return []


def _shared(found: Iterable[Mapping], writable: bool) -> dict[File, list[Mapping]]:
    """Shared mappings of files by the file, or only those that may be written to now."""
    by_file: dict[File, list[Mapping]] = {}
    for mapping in found:
        if mapping.file and mapping.shared and (mapping.writable or not writable):
            by_file.setdefault(mapping.file, []).append(mapping)
    return by_file


def _outside(mapping: Mapping, registered: Iterable[tuple[int, int]]) -> Iterator[Mapping]:
    """The parts of a mapping that are not registered."""
    parts = [(mapping.start, mapping.end)]
    for start, end in registered:
        parts = [part for low, high in parts for part in ((low, min(high, start)), (max(low, end), high))]
        parts = [(low, high) for low, high in parts if low < high]
    for low, high in parts:
        yield Mapping(low, high, mapping.offset + low - mapping.start, mapping.file, mapping.name, True, True)


def look(watched: dict[int, list[tuple[int, int]]]) -> Look:
    """One pass over all processes: `watched` are the registered ranges, as bytes [start, end), by process."""
    elsewhere: list[Elsewhere] = []
    # What the registered ranges map: by file, the process and the part of the mapping.
    files: dict[File, list[tuple[int, Mapping]]] = {}
    for owner, ranges in watched.items():
        for file, shared in _shared(_mappings(owner) or [], writable=False).items():
            for mapping in shared:
                for start, end in ranges:
                    low, high = max(start, mapping.start), min(end, mapping.end)
                    if low < high:
                        offset = mapping.offset + low - mapping.start
                        part = Mapping(low, high, offset, file, mapping.name, True, True)
                        files.setdefault(file, []).append((owner, part))
    if not files:
        return Look([], 0)
    unreadable = 0
    for pid in proc.pids():
        # A look at ourselves would find nothing: we map no memory of others.
        if pid == os.getpid():
            continue
        found = _mappings(pid)
        if found is None:
            unreadable += 1
            continue
        candidates = {file: shared for file, shared in _shared(found, writable=True).items() if file in files}
        if candidates:
            elsewhere += _of_process(pid, candidates, files, watched.get(pid))
    return Look(elsewhere, unreadable)


def _of_process(
    pid: int,
    candidates: dict[File, list[Mapping]],
    files: dict[File, list[tuple[int, Mapping]]],
    watched: list[tuple[int, int]] | None,
) -> Iterator[Elsewhere]:
    # What is registered there sends messages of its own, to whichever userfaultfd.
    registered = [(span.start, span.end) for span in proc.registered(pid)] + (watched or [])
    comm = proc.comm(pid)
    for file, shared in candidates.items():
        for owner, part in files[file]:
            if owner != pid and proc.same_memory(owner, pid):
                continue
            size = part.end - part.start
            for mapping in shared:
                for free in _outside(mapping, registered):
                    low, high = (
                        max(part.offset, free.offset),
                        min(part.offset + size, free.offset + free.end - free.start),
                    )
                    if low < high:
                        start = free.start + low - free.offset
                        of_start = part.start + low - part.offset
                        yield Elsewhere(owner, of_start, of_start + high - low, pid, comm, start, start + high - low)
