"""Threads that wait for an event to be read, or have slept since before the trace: who, since when, what is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from unit.events import MONITOR, THREAD, Events, fed
from unit.reports import PROCESS, TRACE

from uffdtrace.model.account.watched import EndedReader, EventWait, Holder, Userfaultfd
from uffdtrace.model.diagnosis.report import build
from uffdtrace.model.diagnosis.rules_waits import waiting_findings
from uffdtrace.model.records.events import Feature, Mode, Type, UffdEvent
from uffdtrace.reporters import offline

# Whatever the machine was that the events are of.
pytestmark = pytest.mark.usefixtures("any_page_size")

SCHEMA = json.loads(Path(offline.__file__).with_name("report.schema.json").read_text())
ENDING: dict[str, Any] = {"events_dropped": 0, "probes_missed": {}, "doubtful": [], "counters": []}
EVENTS = Feature.EVENT_UNMAP | Feature.EVENT_REMOVE | Feature.EVENT_REMAP
SECOND = 1_000_000_000


def started() -> Events:
    events = Events(features=EVENTS)
    events.userfaultfd()
    events.register(0, 8, Mode.MISSING)
    return events


def waits(events: Events, kind: int = UffdEvent.UNMAP, tid: int = THREAD) -> None:
    events.add(Type.EVENT, kind=kind, tid=tid, tgid=events.owner)


def asleep(events: Events, kind: int = UffdEvent.UNMAP, after: float = 3) -> None:
    """Seen when the trace ends, so many seconds after the last event."""
    time = int(events.array()["time"].max()) + int(after * SECOND)
    events.add(Type.EVENT_ASLEEP, kind=kind, tid=THREAD, tgid=events.owner, time=time)


def built(events: Events) -> dict[str, Any]:
    report = build(fed(events.array()), TRACE, PROCESS, ENDING)
    jsonschema.validate(report, SCHEMA)
    return report


def homes(events: Events) -> Any:
    return built(events)["userfaultfds"]


def ids(home: Any) -> list[str]:
    return [finding["id"] for finding in home["findings"]]


def test_a_thread_in_munmap_whose_event_nobody_reads() -> None:
    events = started()
    waits(events)
    asleep(events)
    report = built(events)
    (home,) = report["userfaultfds"]
    (wait,) = home["asleep_in_events"]
    assert (wait["tid"], wait["event"], wait["reads"]) == (THREAD, "unmap", False)
    assert wait["for_s"] == pytest.approx(3, abs=0.1)
    assert (report["verdict"], [row["verdict"] for row in report["ranges"]]) == ("pending", ["pending"])
    assert ids(home) == ["event-unread"]


def test_also_where_no_range_is_left_or_was_seen() -> None:
    events = Events(features=EVENTS)
    events.userfaultfd()
    waits(events)
    asleep(events)
    assert built(events)["verdict"] == "pending"


def test_an_event_that_was_read_is_no_wait() -> None:
    events = started()
    waits(events)
    assert (homes(events)[0]["asleep_in_events"], built(events)["verdict"]) == ([], "idle")


def test_who_waits_for_a_moment_only_is_pending_and_no_finding() -> None:
    events = started()
    waits(events)
    asleep(events, after=0.5)
    assert (ids(homes(events)[0]), built(events)["verdict"]) == ([], "pending")


def test_since_before_the_trace() -> None:
    events = started()
    asleep(events, UffdEvent.REMOVE)
    (home,) = homes(events)
    assert home["asleep_in_events"] == [{"tid": THREAD, "event": "remove", "for_s": None, "reads": False}]
    assert ids(home) == ["event-unread"]


def test_since_before_the_trace_of_a_userfaultfd_that_asked_for_no_such_event() -> None:
    events = started()
    asleep(events, UffdEvent.FORK)
    assert homes(events)[0]["asleep_in_events"] == []


def test_the_stack_did_not_tell_which_event() -> None:
    events = started()
    waits(events, UffdEvent.REMAP)
    asleep(events, 0)
    assert homes(events)[0]["asleep_in_events"][0]["event"] == "remap"


def test_the_monitors_own_munmap() -> None:
    events = started()
    events.message(0, tid=THREAD + 1, reader=THREAD)
    waits(events)
    asleep(events)
    (home,) = homes(events)
    assert home["asleep_in_events"][0]["reads"]
    assert "itself a thread that reads the userfaultfd" in home["findings"][0]["message"]


# ---- since before the trace, in a fault ----------------------------------------------


def hung(events: Events, waiting: int = 1) -> None:
    events.add(Type.WAITERS_FOUND, aux=0, value=waiting)
    events.add(Type.SLEEPER_FOUND, tid=THREAD, tgid=events.owner)


def test_a_thread_that_slept_throughout() -> None:
    events = started()
    hung(events)
    events.asleep(THREAD)
    report = built(events)
    (home,) = report["userfaultfds"]
    assert home["before_trace"]["still_asleep"] == [THREAD]
    assert (report["verdict"], ids(home)) == ("pending", ["asleep-throughout"])


@pytest.mark.parametrize("how", ["served", "another fault", "no waiters"])
def test_a_thread_that_did_not(how: str) -> None:
    events = started()
    hung(events, waiting=0 if how == "no waiters" else 1)
    if how == "another fault":
        events.fault(0)
    if how != "served":
        events.asleep(THREAD)
    (home,) = homes(events)
    assert (home["before_trace"]["still_asleep"], ids(home)) == ([], [])


# ---- the monitor is gone -------------------------------------------------------------


@pytest.mark.parametrize("alive", [False, True])
@pytest.mark.parametrize("waits_on", [False, True])
def test_the_threads_that_read_have_ended(alive: bool, waits_on: bool) -> None:
    events = started()
    for at, reader in ((0, 901), (1, 902)):
        events.fault(at, tid=THREAD + at)
        events.message(at, tid=THREAD + at, reader=reader)
        if at or not waits_on:
            events.wake(at, tid=THREAD + at)
            events.fault_return(tid=THREAD + at)
    for reader in (901,) if alive else (901, 902):
        events.add(Type.READER_GONE, tid=reader)
    events.add(Type.ASLEEP, tgid=events.owner)
    if waits_on:
        events.asleep(THREAD)
    (home,) = homes(events)
    assert ids(home) == (["monitor-gone"] if waits_on and not alive else [])
    assert [one["tid"] for one in home["monitor_threads_ended"]] == ([] if alive else [902, 901])


def test_when_a_reader_ended() -> None:
    events = started()
    events.fault(0)
    events.message(0, reader=901)
    last = int(events.array()["time"][-1])
    events.add(Type.READER_GONE, tid=901, value=last - 1, kind=1)
    by = int(events.array()["time"][-1])
    (ended,) = fed(events.array()).userfaultfds[0].ended_readers
    # It was seen alive before it read for the last time.
    assert ended == EndedReader(901, events.monitor, last, last, by, True)


def test_a_number_that_another_reader_has_now() -> None:
    events = started()
    for at in (0, 1):
        events.fault(at, tid=THREAD + at)
        events.message(at, tid=THREAD + at, reader=901)
        if not at:
            events.add(Type.READER_GONE, tid=901)
    events.asleep(THREAD)
    assert ids(homes(events)[0]) == []


def test_who_holds_the_descriptor() -> None:
    events = started()
    waits(events)
    asleep(events)
    assert homes(events)[0]["holders"] is None
    events.add(Type.HOLDER_FOUND)
    assert homes(events)[0]["holders"] == []
    name = int.from_bytes(b"monitor\0", "little")
    events.add(Type.HOLDER_FOUND, tgid=MONITOR, value=7, start=name)
    (home,) = homes(events)
    assert home["holders"] == [{"pid": MONITOR, "comm": "monitor", "fd": 7}]
    assert home["findings"][0]["message"].endswith(f"It is held open by monitor ({MONITOR}) as descriptor 7.")


def test_words_of_a_monitor_that_is_gone() -> None:
    home = Userfaultfd(0, 1, ended_readers=[EndedReader(901, 900, 2 * SECOND, 3 * SECOND, 4 * SECOND, True)])
    home.holders = [Holder(300, "guest", 5)]
    (finding,) = waiting_findings(home, 0, 1, SECOND)
    assert finding["message"] == (
        "1 thread waits for a monitor that is gone: every thread that read this userfaultfd in the trace had ended when"
        " the trace ended. Thread 901 of process 900 (which has ended, too) read for the last time at 1.0 s of the"
        " trace and ended between 2.0 and 3.0 s. It is held open by guest (300) as descriptor 5."
    )
    home.holders = []
    (finding,) = waiting_findings(home, 0, 1)
    assert str(finding["message"]).endswith("No process has it open by a descriptor.")
    (finding,) = waiting_findings(home, 0, 1234)
    assert str(finding["message"]).startswith("1,234 threads wait for a monitor that is gone")
    assert (finding["severity"], waiting_findings(home, 0)) == ("warning", [])


# ---- words -----------------------------------------------------------------------


def said(count: int, since: int | None = 0, reads: bool = False) -> dict[str, Any]:
    home = Userfaultfd(0, 1)
    home.event_waits = [EventWait(200 + one, UffdEvent.UNMAP, since, reads) for one in range(count)]
    (finding,) = waiting_findings(home, 2 * SECOND)
    return finding


def test_words() -> None:
    assert said(1)["message"].startswith(
        "1 thread sleeps until the monitor reads an event: thread 200 in munmap until UFFD_EVENT_UNMAP is read, for 2"
    )
    many = said(1234, since=None)
    assert many["message"].startswith("1,234 threads sleep until the monitor reads an event: thread 200 in munmap")
    assert many["message"].endswith("since before the trace; 1,230 more.") and many["pages"] == 1234
    assert "hold no lock" in said(1)["remedy"] and "hold no lock" not in said(1, reads=True)["remedy"]
    home = Userfaultfd(0, 1, still_asleep=[7])
    assert waiting_findings(home, 0)[0]["message"].startswith("1 thread slept in a fault when the trace began")
    home.still_asleep = list(range(1234))
    assert waiting_findings(home, 0)[0]["message"].startswith("1,234 threads slept in faults when the trace began")
