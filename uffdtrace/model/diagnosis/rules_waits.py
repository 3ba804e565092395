"""Findings about threads that wait for a userfaultfd's monitor, in no range of it."""

from __future__ import annotations

from uffdtrace.model.account.watched import EndedReader, EventWait, Userfaultfd
from uffdtrace.model.diagnosis.document import FindingDict
from uffdtrace.model.diagnosis.latency import readable
from uffdtrace.model.records.events import UffdEvent

# Whoever waits for less may be answered in a moment: the trace has to end at some time.
_LONG_NS = 1_000_000_000
_MOST_NAMED = 4
_CALLS = {UffdEvent.UNMAP: "munmap", UffdEvent.REMOVE: "madvise", UffdEvent.REMAP: "mremap", UffdEvent.FORK: "fork"}


def _named(parts: list[str], joint: str) -> str:
    more = len(parts) - _MOST_NAMED
    return joint.join([*parts[:_MOST_NAMED], *([f"{more:,} more"] if more > 0 else [])])


def _threads(count: int, singular: str, plural: str) -> str:
    return f"{count:,} thread{'' if count == 1 else 's'} {singular if count == 1 else plural}"


def _wait(wait: EventWait, end: int) -> str:
    what = f"thread {wait.tid} in {_CALLS[wait.event]}" if wait.event else f"thread {wait.tid}"
    until = f" until UFFD_EVENT_{wait.event.name} is read" if wait.event else ""
    since = "since before the trace" if wait.since is None else f"for {readable((end - wait.since) / 1000)}"
    return f"{what}{until}, {since}" + (", though it is itself a thread that reads the userfaultfd" * wait.reads)


def _ended(reader: EndedReader, began: int) -> str:
    """`began` (ns) is when the trace began."""
    last, after, by = ((time - began) / 1e9 for time in (reader.last, reader.after, reader.by))
    process = " (which has ended, too)" * reader.process
    return (
        f"thread {reader.tid} of process {reader.tgid}{process} read for the last time at {last:.1f} s of the trace and"
        f" ended between {after:.1f} and {by:.1f} s"
    )


def _held(uffd: Userfaultfd) -> str:
    """Who has it open, as a sentence behind another; empty where nobody looked."""
    if uffd.holders is None:
        return ""
    holders = [f"{holder.comm} ({holder.pid}) as descriptor {holder.fd}" for holder in uffd.holders]
    return f" It is held open by {_named(holders, ', ')}." if holders else " No process has it open by a descriptor."


def _finding(name: str, count: int, message: str, remedy: str) -> FindingDict:
    return {
        "id": name,
        "severity": "error",
        "pages": count,
        "unit": "threads",
        "message": message,
        "remedy": remedy,
    }


def waiting_findings(uffd: Userfaultfd, end: int, faults: int = 0, began: int = 0) -> list[FindingDict]:
    """Findings about who waited for this userfaultfd when the trace ended, in the form of the report.

    The trace lasted from `began` to `end` (ns); `faults` of its ranges were pending.
    """
    found = []
    long = [wait for wait in uffd.event_waits if wait.since is None or end - wait.since >= _LONG_NS]
    if long:
        remedy = "read the userfaultfd whenever poll() says so, and hold no lock there that a thread may hold which"
        remedy += " unmaps, discards, moves or forks."
        if any(wait.reads for wait in long):
            remedy = "let no thread that reads the userfaultfd unmap, discard, move or fork the memory that it watches."
        found.append(
            _finding(
                "event-unread",
                len(long),
                f"{_threads(len(long), 'sleeps', 'sleep')} until the monitor reads an event:"
                f" {_named([_wait(wait, end) for wait in long], '; ')}.{_held(uffd)}",
                remedy,
            )
        )
    if uffd.still_asleep:
        count = len(uffd.still_asleep)
        tids = _named([str(tid) for tid in uffd.still_asleep], ", ")
        found.append(
            _finding(
                "asleep-throughout",
                count,
                f"{_threads(count, 'slept in a fault', 'slept in faults')} when the trace began and when it ended,"
                f" with no other fault seen between: {tids}.",
                "see what the monitor waits for: its stack tells (gdb, or /proc/PID/task/*/stack); it must answer every"
                " fault.",
            )
        )
    waiting = faults + len(uffd.event_waits) + len(uffd.still_asleep)
    if waiting and uffd.ended_readers:
        readers = [_ended(reader, began) for reader in uffd.ended_readers]
        found.append(
            {
                **_finding(
                    "monitor-gone",
                    waiting,
                    f"{_threads(waiting, 'waits', 'wait')} for a monitor that is gone: every thread that read this"
                    f" userfaultfd in the trace had ended when the trace ended. T{_named(readers, '; ')[1:]}."
                    f"{_held(uffd)}",
                    "find out why the reading thread ended; close the userfaultfd or UFFDIO_UNREGISTER when the monitor"
                    " stops, and start another where it failed.",
                ),
                # A monitor may read each message in a thread of its own, and start the next one in a moment.
                "severity": "warning",
            }
        )
    return found
