"""What inspect found, as plain data: `reporters/inspect.schema.json`.

Pagemap tells which pages are protected now. It cannot tell why one is not: a
page that the monitor released looks like one whose protection was missed or
lost. So there is no lost-writes here, and never-armed is `unprotected`. What it
decides is that an empty page in a range of WP alone sends no message for its next
write: where others are protected, these are `holes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from uffdtrace.model.records.events import Feature, Mode

SCHEMA = "uffdtrace-inspect/1"
# The worst first.
VERDICTS = ("holes", "unprotected", "pending", "unknown", "async", "ok", "idle", "unregistered")
# Runs of pages that a range lists.
MOST_RUNS = 10_000


@dataclass(frozen=True)
class Elsewhere:
    """Bytes [start, end) of a process, which map the same memory."""

    pid: int
    comm: str
    start: int
    end: int


@dataclass(frozen=True)
class Span:
    """A registered mapping, or several that touch and are alike; counts as in kernel.pagemap, None if not known."""

    start: int
    end: int
    # Bytes of a base page.
    page_size: int
    modes: int
    memory: str
    name: str | None
    wp_async: bool
    protected: int | None
    unprotected: int | None
    swapped: int | None
    empty: int
    in_memory: int
    # Writable mappings of its memory that no userfaultfd watches.
    elsewhere: tuple[Elsewhere, ...] = ()
    # [start, end) and what it is, of pages whose next write sends no message; None if nobody asked for them.
    silent: tuple[tuple[int, int, str], ...] | None = None

    @property
    def pages(self) -> int:
        return (self.end - self.start) // self.page_size

    def joined(self, other: Span) -> Span:
        return replace(
            self,
            end=other.end,
            name=self.name if self.name == other.name else None,
            protected=_add(self.protected, other.protected),
            unprotected=_add(self.unprotected, other.unprotected),
            swapped=_add(self.swapped, other.swapped),
            empty=self.empty + other.empty,
            in_memory=self.in_memory + other.in_memory,
            elsewhere=tuple(dict.fromkeys(self.elsewhere + other.elsewhere)),
            silent=None if self.silent is None or other.silent is None else self.silent + other.silent,
        )


@dataclass(frozen=True)
class Holder:
    """A process that holds a userfaultfd."""

    pid: int
    comm: str
    fds: tuple[int, ...]


@dataclass(frozen=True)
class Userfaultfd:
    """Faults `unread`, and all that are `waiting`; None where fdinfo could not be read.

    `blocking` where it is known to be open without O_NONBLOCK.
    """

    features: int | None
    unread: int | None
    waiting: int | None
    holders: tuple[Holder, ...]
    blocking: bool = False


@dataclass(frozen=True)
class EventSleeper:
    """A thread that sleeps in `call` until the monitor reads `event`; both None where not known."""

    tid: int
    call: str | None
    event: str | None


def _add(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


def join(spans: Iterable[Span]) -> list[Span]:
    """Contiguous mappings of one kind as one range, as the report has them (design.md section 2)."""
    ranges: list[Span] = []
    for span in spans:
        last = ranges[-1] if ranges else None
        if last and (last.end, last.modes, last.memory, last.wp_async) == (
            span.start,
            span.modes,
            span.memory,
            span.wp_async,
        ):
            ranges[-1] = last.joined(span)
        else:
            ranges.append(span)
    return ranges


def verdict(span: Span) -> str:
    if not span.modes & Mode.WP:
        return "idle" if span.empty == span.pages else "ok"
    if span.wp_async:
        return "async"
    if span.protected is None or span.unprotected is None or span.swapped is None:
        return "unknown"
    # The first access to an empty page sends a message where MISSING is registered too.
    silent = span.unprotected + span.swapped + (0 if span.modes & Mode.MISSING else span.empty)
    if not span.protected:
        return "unprotected" if silent else "idle"
    return "holes" if holes(span) else "unknown" if silent else "ok"


def holes(span: Span) -> int:
    """Its empty pages, where nothing tells of their next write: MISSING would, and MINOR may."""
    watched_otherwise = span.modes & (Mode.MISSING | Mode.MINOR) or span.wp_async or span.protected is None
    return 0 if watched_otherwise or not span.modes & Mode.WP else span.empty


def _runs(span: Span) -> list[dict[str, Any]] | None:
    if span.silent is None:
        return None
    return [
        {"start": hex(start), "end": hex(end), "pages": (end - start) // span.page_size, "kind": kind}
        for start, end, kind in span.silent[:MOST_RUNS]
    ]


def _range(span: Span) -> dict[str, Any]:
    return {
        "start": hex(span.start),
        "end": hex(span.end),
        "pages": span.pages,
        "page_size": span.page_size,
        "name": span.name or None,
        "memory": span.memory,
        "modes": [mode.name.lower() for mode in Mode if span.modes & mode and mode.name],
        "wp_async": span.wp_async,
        "protected": span.protected,
        "unprotected": span.unprotected,
        "swapped": span.swapped,
        "empty": span.empty,
        "in_memory": span.in_memory,
        "silent": _runs(span),
        "more_silent": len(span.silent or ()) > MOST_RUNS,
        "mapped_elsewhere": [
            {"pid": other.pid, "comm": other.comm, "start": hex(other.start), "end": hex(other.end)}
            for other in span.elsewhere
        ],
        "verdict": verdict(span),
    }


def _userfaultfd(found: Userfaultfd) -> dict[str, Any]:
    names = None
    if found.features is not None:
        names = [feature.name for feature in Feature if found.features & feature]
    return {
        "features": names,
        "unread": found.unread,
        "waiting": found.waiting,
        "holders": [{"pid": one.pid, "comm": one.comm, "fds": list(one.fds)} for one in found.holders],
    }


def _held(userfaultfds: Sequence[Userfaultfd], pid: int) -> list[Userfaultfd]:
    return [found for found in userfaultfds if any(holder.pid == pid for holder in found.holders)]


def _notes(
    spans: Sequence[Span], own: Sequence[Userfaultfd], elsewhere: Sequence[Userfaultfd], pid: int, whole: bool
) -> list[str]:
    notes = []
    if spans and len(own) > 1:
        notes.append(f"Which of its {len(own)} userfaultfds a range belongs to, the kernel does not say.")
    if spans and not own and elsewhere:
        notes.append(
            "It holds no userfaultfd: another process watches its memory, perhaps one of those listed under elsewhere."
        )
    if spans and not own and not elsewhere:
        notes.append("It holds no userfaultfd, and no other process was seen to hold one.")
    if own and not spans:
        others = sorted({holder.pid for found in own for holder in found.holders} - {pid})
        notes.append("None of its memory is registered, and the kernel does not say whose its userfaultfds watch.")
        if others:
            notes.append(f"Also held by {', '.join(map(str, others))}: inspect that, they may watch its memory.")
    for found in own:
        # Blocking reads are as good. Where messages wait unread, nobody may know of them.
        if found.blocking and found.unread:
            (fds,) = [holder.fds for holder in found.holders if holder.pid == pid]
            which = f"descriptor{'s' if len(fds) > 1 else ''} {', '.join(map(str, fds))}"
            notes.append(
                f"Messages wait in its {which}, without O_NONBLOCK: poll(), select() and epoll answer POLLERR there"
                " whatever waits, only read() brings them."
            )
    if (spans or own) and not whole:
        notes.append("Processes of other users were not searched for userfaultfds: that needs root.")
    return notes


def build(
    inspection: dict[str, Any],
    process: dict[str, Any],
    spans: Iterable[Span],
    userfaultfds: Sequence[Userfaultfd],
    asleep: Sequence[int],
    notes: Sequence[str],
    whole: bool,
    in_events: Sequence[EventSleeper] = (),
) -> dict[str, Any]:
    """`inspection` and `process` go in as they are.

    `userfaultfds` are all that were found on the machine, `whole` if every
    process could be searched; `asleep` are the process's threads in
    handle_userfault(), `in_events` those that wait for an event to be read;
    `notes` say what could not be known.
    """
    ranges = join(spans)
    pid = process["pid"]
    own = _held(userfaultfds, pid)
    # Elsewhere they matter only where something must watch this memory.
    elsewhere = list(userfaultfds) if ranges and not own else []
    verdicts = [verdict(span) for span in ranges]
    if asleep or in_events or any(found.waiting for found in own):
        verdicts.append("pending")
    if own and not ranges:
        verdicts.append("unknown")
    return {
        "schema": SCHEMA,
        "inspection": inspection,
        "process": process,
        "userfaultfds": [_userfaultfd(found) for found in own],
        "elsewhere": [_userfaultfd(found) for found in elsewhere],
        "asleep": list(asleep),
        "asleep_in_events": [asdict(sleeper) for sleeper in in_events],
        "ranges": [_range(span) for span in ranges],
        "notes": [*notes, *_notes(ranges, own, elsewhere, pid, whole)],
        "verdict": min(verdicts, key=VERDICTS.index) if verdicts else "unregistered",
    }
