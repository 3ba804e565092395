"""Who else maps shared memory that is registered: what is written there sends no message."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from uffdtrace.intervals import Intervals
from uffdtrace.kernel import mappings, proc
from uffdtrace.kernel.mappings import File, Mapping

# Other mappings that one look tells of.
MOST_ELSEWHERE = 4096


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
    """What was seen, and of how many processes some mappings or all were not looked at."""

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


def _outside(mapping: Mapping, registered: Intervals[None]) -> Iterator[Mapping]:
    """The parts of a mapping that are not registered."""
    low = mapping.start
    for start, end, _ in registered.overlapping(mapping.start, mapping.end):
        if low < start:
            yield _part(mapping, low, start)
        low = max(low, end)
    if low < mapping.end:
        yield _part(mapping, low, mapping.end)


def _part(mapping: Mapping, low: int, high: int) -> Mapping:
    """Bytes [low, high) of it."""
    return Mapping(low, high, mapping.offset + low - mapping.start, mapping.file, mapping.name, True, True)


def _by_offset(parts: Iterable[Mapping]) -> Intervals[Mapping]:
    return Intervals((part.offset, part.offset + part.end - part.start, part) for part in parts)


def look(watched: dict[int, list[tuple[int, int]]]) -> Look:
    """One pass over all processes: `watched` are the registered ranges, as bytes [start, end), by process."""
    # What the registered ranges map: by file and process the parts of its mappings.
    files: dict[File, dict[int, list[Mapping]]] = {}
    for owner, ranges in watched.items():
        registered = Intervals((start, end, None) for start, end in ranges)
        for file, shared in _shared(_mappings(owner) or [], writable=False).items():
            for mapping in shared:
                for start, end, _ in registered.overlapping(mapping.start, mapping.end):
                    part = _part(mapping, max(start, mapping.start), min(end, mapping.end))
                    files.setdefault(file, {}).setdefault(owner, []).append(part)
    if not files:
        return Look([], 0)
    elsewhere: list[Elsewhere] = []
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
            room = MOST_ELSEWHERE - len(elsewhere)
            others = list(islice(_of_process(pid, candidates, files, watched.get(pid)), room + 1))
            # How often it maps the same memory is its choice.
            unreadable += len(others) > room
            elsewhere += others[:room]
    return Look(elsewhere, unreadable)


def _of_process(
    pid: int,
    candidates: dict[File, list[Mapping]],
    files: dict[File, dict[int, list[Mapping]]],
    watched: list[tuple[int, int]] | None,
) -> Iterator[Elsewhere]:
    # What is registered there sends messages of its own, to whichever userfaultfd.
    spans = [(span.start, span.end) for span in proc.registered(pid)] + (watched or [])
    registered = Intervals((start, end, None) for start, end in spans)
    comm = proc.comm(pid)
    for file, shared in candidates.items():
        free = _by_offset(part for mapping in shared for part in _outside(mapping, registered))
        for owner, parts in files[file].items():
            if owner != pid and proc.same_memory(owner, pid):
                continue
            for part in parts:
                end = part.offset + part.end - part.start
                for first, last, other in free.overlapping(part.offset, end):
                    low, high = max(part.offset, first), min(end, last)
                    start, of_start = other.start + low - first, part.start + low - part.offset
                    yield Elsewhere(owner, of_start, of_start + high - low, pid, comm, start, start + high - low)
