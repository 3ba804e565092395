"""Threads that wait for the monitor without a fault of this trace: for an event to be read, or since before it."""

from __future__ import annotations

from dataclasses import dataclass

from uffdtrace.model.account.watched import EndedReader, EventWait, Holder, Userfaultfd, Watched
from uffdtrace.model.records.batch import Batch
from uffdtrace.model.records.counting import different
from uffdtrace.model.records.events import Array, Feature, Type, UffdEvent, name_in


@dataclass(frozen=True)
class _Began:
    """Thread began to wait at `time` (ns; None: before the trace) until the monitor of `uffd` reads this event."""

    uffd: Userfaultfd
    event: UffdEvent
    time: int | None


class Waits:
    """Matches who was seen asleep when the trace ended with what is known of how that began."""

    def __init__(self) -> None:
        # By thread: it waits for one event at a time.
        self._began: dict[int, _Began] = {}
        self._asleep: list[tuple[int, int, int]] = []
        # Threads that faulted in the trace: what they sleep in now is not what they slept in before it.
        self._faulted: set[int] = set()
        # By thread that read messages: when it was seen to have ended, when alive for the last time (ns), and
        # whether its process had ended.
        self._gone: dict[int, tuple[int, int, bool]] = {}
        # HOLDER_FOUND events.
        self._holders: list[Array] = []

    def began(self, uffd: Userfaultfd, event: Array) -> None:
        """An EVENT of the kernel's."""
        self._began[int(event["tid"])] = _Began(uffd, UffdEvent(int(event["kind"])), int(event["time"]))

    def began_before(self, uffd: Userfaultfd, event: Array) -> None:
        """An EVENT_FOUND: the queue of `uffd` told of it."""
        self._began.setdefault(int(event["tid"]), _Began(uffd, UffdEvent(int(event["kind"])), None))

    def feed(self, events: Batch) -> None:
        for index in events.of(Type.EVENT_ASLEEP).tolist():
            event = events[index]
            self._asleep.append((int(event["tid"]), int(event["tgid"]), int(event["kind"])))
        for event in events[events.of(Type.READER_GONE)].records:
            self._gone[int(event["tid"])] = int(event["time"]), int(event["value"]), bool(event["kind"])
        self._holders += list(events[events.of(Type.HOLDER_FOUND)].records)
        self._faulted.update(different(events["tid"][events.of(Type.FAULT)]))

    def finish(self, watched: Watched, in_faults: set[int]) -> None:
        """Tell each userfaultfd who waits for it; `in_faults` are threads that slept in a fault at the end."""
        for tid, tgid, kind in self._asleep:
            event = UffdEvent(kind) if kind in list(UffdEvent) else None
            began = self._began.get(tid)
            # Of a wait that is over another event may be what the thread's stack tells of.
            if began is not None and event in (None, began.event) and began.uffd.gone is None:
                began.uffd.event_waits.append(EventWait(tid, began.event, began.time, tid in began.uffd.threads))
                continue
            # Before the trace. The stack does not tell which userfaultfd it is.
            uffds = [
                uffd
                for uffd in watched.current.values()
                if uffd.owner == tgid and (event is None or uffd.has(Feature[f"EVENT_{event.name}"]))
            ]
            if len(uffds) == 1:
                uffds[0].event_waits.append(EventWait(tid, event, None, tid in uffds[0].threads))
        for uffd in watched.current.values():
            uffd.ended_readers = self._ended(uffd)
            if uffd.before is not None and uffd.before[1]:
                uffd.still_asleep = sorted((set(uffd.slept) & in_faults) - self._faulted - set(uffd.listed))
        for found in self._holders:
            held = watched.current.get(int(found["ctx"]))
            if held is not None:
                holder = Holder(int(found["tgid"]), name_in(found), int(found["value"]))
                held.holders = (held.holders or []) + [holder] * (holder.pid != 0)

    def _ended(self, uffd: Userfaultfd) -> list[EndedReader]:
        ended = []
        for tid, reader in uffd.threads.items():
            by, alive, process = self._gone.get(tid, (0, 0, False))
            # Another thread may have had its number, and read, since it was seen to have ended.
            if by <= reader.last:
                return []
            ended.append(EndedReader(tid, reader.tgid, reader.last, max(alive, reader.last), by, process))
        return sorted(ended, key=lambda reader: -reader.last)
